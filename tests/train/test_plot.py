"""Curves of old and new files, a page without network whose data cannot leave their place, and a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from slmx.app import run as slmx
from slmx.errors import RefusedError, UsageError
from slmx.train.plot import panels_of, plot, read_curves, smoothed

OLD = "step,loss,lr,tokens_per_sec,eta_hours,elapsed_hours"


def write(folder: Path, name: str = "training_metrics.csv", *, rows: int = 120, scale: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [OLD, *(f"{s},{scale * (9 * s**-0.3 + 2):.4f},0.001,1000,1.0,{s / 100}" for s in range(1, rows + 1))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def figure(page: Path) -> Any:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r"^const figure = (.*);$", text, re.MULTILINE)[1])  # type: ignore[index]


def test_several_runs_share_one_page_and_one_picture(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", "sft_metrics.csv", scale=1.2)]
    report = plot(runs, to=tmp_path / "out" / "curves.html")
    assert [one.name for one in report.runs] == ["a", "b"]
    assert all(one.forecast is not None and one.forecast.law is not None for one in report.runs)
    drawn = figure(tmp_path / "out" / "curves.html")
    titles = [value["title"]["text"] for key, value in drawn["layout"].items() if key.startswith("yaxis")]
    assert titles == ["loss", "learning rate", "tokens a second", "hours since the start"]
    assert {trace["name"] for trace in drawn["data"] if trace.get("showlegend")} == {"a", "b"}
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_asks_nothing_of_the_network_and_names_cannot_leave_their_place(tmp_path: Path) -> None:
    name = "<script>alert(1)<b>"
    plot([write(tmp_path / name)], to=tmp_path / "curves.html")
    page = (tmp_path / "curves.html").read_text(encoding="utf-8")
    own = page.replace(page[page.index("<script>") : page.index("</head>")], "")  # all but plotly's script itself
    assert "http" not in own and " src=" not in own and "<link" not in own
    assert "<script>alert" not in page and page.count("<script>") == page.count("</script>")
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page


def test_a_cut_row_is_left_out_and_a_step_done_twice_counts_once(tmp_path: Path) -> None:
    text = f"{OLD}\n1,3.0,0.1,10,1,0\n2,2.5,0.1,10,1,0\n2,2.4,0.1,10,1,0\n3,nan,0.1,10,1,0\n4,2."
    (tmp_path / "metrics.csv").write_text(text)
    curves = read_curves(tmp_path)
    assert curves.points("loss") == [(1, 3.0), (2, 2.4)]
    assert curves.steps == [1, 2, 3]


def test_columns_that_come_in_rows_of_their_own_are_joined(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("\ufeffstep, loss, lr,ndcg@10 x\n10,2.5,0.1,\n10,,,0.4\n", encoding="utf-8")
    curves = read_curves(tmp_path / "metrics.csv")
    assert [title for title, _ in panels_of([curves])] == ["loss", "nDCG@10", "learning rate"]
    assert curves.points("loss") == [(10, 2.5)] and curves.points("ndcg@10 x") == [(10, 0.4)]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write(tmp_path / place / "lm") for place in ("x", "y")]
    report = plot(runs, to=tmp_path / "c.html", forecasting=False)
    assert len({one.name for one in report.runs}) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2\n", "no column `step`"), ("step,loss\n", "holds no step yet"), ("", "no column `step`")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_curves(path)
    assert str(path) in caught.value.what


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "c.html").write_text("mine")
    with pytest.raises(RefusedError):
        plot([tmp_path / "a"], to=tmp_path / "c.html", forecasting=False)
    assert (tmp_path / "c.html").read_text() == "mine"
    (tmp_path / "c.html").rename(tmp_path / "c.png")
    with pytest.raises(RefusedError, match=r"c\.png exists"):
        plot([tmp_path / "a"], to=tmp_path / "c.html", forecasting=False)
    assert not (tmp_path / "c.html").exists() and (tmp_path / "c.png").read_text() == "mine"


def test_the_command(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty_folder / "lm")
    assert slmx(["train", "plot", "lm", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["page"] == "training.html" and report["runs"][0]["forecast"]["held_out_error"] < 0.1
    assert (empty_folder / "training.png").is_file()
    assert slmx(["train", "plot", "absent"]) == 2
    assert "There is no absent" in capsys.readouterr().err
    assert slmx(["train", "plot", "lm", "--to", "picture.png"]) == 2


@hypothesis_settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_smoothing_stays_within_the_curve(values: list[float]) -> None:
    points = list(enumerate(map(float, values)))
    even = smoothed([(float(x), y) for x, y in points])
    assert [x for x, _ in even] == [x for x, _ in points]
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in even)
