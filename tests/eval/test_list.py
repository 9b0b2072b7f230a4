"""`slmx eval list`: the runs so far."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from slmx.app import run
from slmx.eval.list import age, list_runs

MakeRun = Callable[..., Path]
SAID = ["Paris", "Anna", "1970", "Казань", "I do not know", "seven"]
NOW = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)


@pytest.fixture
def outputs(empty_folder: Path, make_run: MakeRun) -> Path:
    make_run(Path("outputs/a_no_context"), SAID)
    make_run(Path("outputs/a_oracle_context"), SAID, context="oracle")
    return Path("outputs")


def test_only_what_differs_has_a_column_and_the_rest_is_said_once(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = list_runs([outputs], now=NOW)
    assert [run.settings for run in listing.runs] == [{"context": "none"}, {"context": "oracle"}]
    assert listing.common["model"] == "tiny" and listing.common["seed"] == 0
    assert {run.age_seconds for run in listing.runs} == {9_000}
    assert listing.runs[0].metrics["match"] == pytest.approx(2 / 6)
    assert run(["eval", "list"]) == 0
    shown = capsys.readouterr().out
    assert "2 runs under outputs" in shown and "33.3" in shown and "finished" in shown
    assert "The same in all: model tiny, dataset towns" in shown
    assert "temperature" not in shown.partition("The same in all")[0]


def test_runs_of_one_cell_show_what_of_their_configuration_differs(outputs: Path, make_run: MakeRun) -> None:
    generator = {"name": "tiny", "weights": "f" * 64}
    make_run(Path("outputs/a_no_context-12345678"), SAID, generator=generator)
    settings = {Path(run.path).name: run.settings for run in list_runs([outputs], now=NOW).runs}
    assert settings["a_no_context-12345678"]["generator.weights"] == "f" * 64
    assert settings["a_no_context"]["generator.weights"] != "f" * 64
    assert "dataset.hash" not in settings["a_no_context"]


def test_unfinished_running_and_broken_runs_are_told_apart(
    outputs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # the older the runs, the wider the table
    make_run(Path("outputs/half"), SAID, answered=4)
    Path("outputs/broken").mkdir()
    Path("outputs/broken/run.json").write_text("{")
    Path("outputs/training").mkdir()
    Path("outputs/training/run.json").write_text('{"loss": "mnrl"}')
    assert run(["eval", "list"]) == 0
    shown = capsys.readouterr().out
    assert "unfinished, 4 of 6" in shown and "Unreadable: outputs/broken/run.json is not valid JSON" in shown
    assert "training" not in shown
    with Path("outputs/half/predictions.jsonl").open("ab") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        # flock is held by this process; another open file of the same process meets it all the same
        states = {Path(run.path).name: run.state for run in list_runs([outputs]).runs}
    assert states == {"a_no_context": "finished", "a_oracle_context": "finished", "half": "running"}


def test_looking_needs_no_right_to_write_and_is_not_in_the_way_of_another_look(
    outputs: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_run(Path("outputs/half"), SAID, answered=4) / "predictions.jsonl"

    def states() -> dict[str, tuple[str, int]]:
        return {Path(run.path).name: (run.state, run.answered) for run in list_runs([outputs]).runs}

    with journal.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert states()["half"] == ("unfinished", 4)
    opened = Path.open

    def read_only(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode not in ("r", "rb"):  # what a tree that may only be read says, to root as well
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", read_only)
    assert states()["half"] == ("unfinished", 4)


def test_a_run_file_that_is_not_understood_is_named(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = outputs / "a_oracle_context" / "run.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "batches": "by length"}), encoding="utf-8")
    Path("outputs/list").mkdir()
    Path("outputs/list/run.json").write_text("[1]")
    listing = list_runs([outputs])
    assert [Path(run.path).name for run in listing.runs] == ["a_no_context"]
    assert listing.unreadable == ["outputs/a_oracle_context/run.json is not as this version of slmx writes it."]
    assert run(["eval", "list"]) == 0
    assert "Unreadable: outputs/a_oracle_context/run.json" in " ".join(capsys.readouterr().out.split())


def test_json_and_no_runs_and_no_folder(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "list"]) == 2
    assert "There is no folder outputs" in capsys.readouterr().err
    Path("outputs").mkdir()
    assert run(["eval", "list"]) == 0
    assert "No runs under outputs" in capsys.readouterr().out
    assert run(["eval", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []


def test_ages() -> None:
    assert [age(s) for s in (0, 59, 60, 7_200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
