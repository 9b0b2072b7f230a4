"""The tables against numbers counted by hand from the runs of conftest.

Of 60 questions the model knows 0–5; with bm25 0–19 are right, with hybrid 2–45, with the gold passage 0–53.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slmx.eval.compare import compare
from slmx.eval.join import join
from slmx.eval.page.cost import frontier, seconds
from slmx.eval.page.material import Material, answer_classes, gather
from slmx.eval.page.parts import Measured, Table
from slmx.eval.page.verdict import verdict
from slmx.eval.report import compose
from slmx.eval.runs import find_runs, order
from slmx.records import Question
from tests.eval.made_runs import cell, make_run

Rows = Callable[[str, int], dict[str, dict[str, str]]]


@pytest.fixture(scope="module")
def material(outputs: Path) -> Material:
    joined = join(sorted(find_runs([outputs]), key=order))
    return gather(joined, compare(joined))


@pytest.fixture(scope="module")
def rows(material: Material) -> Rows:
    """The rows of a section's table by their first cell; cells by the heads of their columns, without interval."""
    sections = {section.anchor: section for section in compose(material).sections}

    def read(anchor: str, place: int = 0) -> dict[str, dict[str, str]]:
        tables = [block for block in sections[anchor].blocks if isinstance(block, Table)]
        heads = [column.head for column in tables[place].columns]
        return {
            str(row[0]): {
                head: cell.value if isinstance(cell, Measured) else getattr(cell, "words", str(cell))
                for head, cell in zip(heads, row, strict=True)
            }
            for row in tables[place].rows
        }

    return read


def test_the_matrix_of_model_and_mode(rows: Rows) -> None:
    assert rows("quality", 0)["tiny"] == {
        "model": "tiny",
        "no context": "10.0",
        "bm25, k=5": "33.3",
        "hybrid, k=5": "73.3",
        "gold passage (oracle)": "90.0",
    }


def test_losses_add_up_to_what_is_missing(rows: Rows) -> None:
    table = rows("losses", 0)
    told = {
        name: [row[head] for head in ("right", "retrieval loss", "reading loss", "knowledge")]
        for name, row in table.items()
    }
    assert told == {
        "B · bm25, k=5": ["33.3", "56.7", "10.0", "10.0"],
        "C · hybrid, k=5": ["73.3", "16.7", "10.0", "10.0"],
        "D · oracle": ["90.0", "–", "10.0", "10.0"],
    }


def test_helped_and_hurt(rows: Rows) -> None:
    table = rows("flows", 0)
    heads = ("helped", "hurt", "both right", "both wrong")
    told = {name: [row[head] for head in heads] for name, row in table.items()}
    assert told == {
        "bm25, k=5 → hybrid, k=5 (B → C)": ["26", "2", "18", "14"],
        "none → bm25, k=5 (A → B)": ["14", "0", "6", "40"],
        "none → hybrid, k=5 (A → C)": ["40", "2", "4", "14"],
        "none → oracle (A → D)": ["48", "0", "6", "6"],
    }


def test_known_and_unknown(rows: Rows) -> None:
    hybrid = rows("known", 0)["C · hybrid, k=5"]
    assert (hybrid["right of the known"], hybrid["known"]) == ("66.7", "6")
    assert (hybrid["right of the unknown"], hybrid["unknown"]) == ("74.1", "54")


def test_a_difference_with_its_verdict(rows: Rows) -> None:
    between = rows("differences", 0)["bm25, k=5 → hybrid, k=5 (B → C)"]
    assert (between["points"], between["p"], between["real?"]) == ("+40.0", "< 0.001", "yes: C is better")


def test_utilisation_stands_beside_coverage(rows: Rows) -> None:
    hybrid = rows("passages", 0)["C · hybrid, k=5"]
    assert (hybrid["coverage"], hybrid["right"], hybrid["right where covered"]) == ("100.0", "73.3", "73.3")


def test_utilisation_needs_one_run_alone(tmp_path: Path) -> None:
    asked = [Question(question_id=str(i), question="what", answers=["x"]) for i in range(4)]
    passages = [["the x"], ["the x"], ["the x"], ["nothing"]]
    make_run(tmp_path, cell("one", "retrieved", "bm25"), asked, ["x", "x", "y", "y"], passages)
    make_run(tmp_path, cell("two", "none"), asked, ["y"] * 4)
    joined = join(find_runs([tmp_path]))
    section = next(s for s in compose(gather(joined, compare(joined))).sections if s.anchor == "passages")
    assert [str(row[-1]).split()[0] for row in section.blocks[0].rows] == ["66.7"]  # type: ignore[union-attr]


def test_groups_of_the_metadata(rows: Rows) -> None:
    topics = rows("groups", 0)
    assert {name: row["questions"] for name, row in topics.items()} == {
        "Art": "20",
        "Sports": "20",
        "<b>Science</b>": "20",
    }
    assert [topics["Art"][key] for key in "ABCD"] == ["10.0", "35.0", "75.0", "90.0"]


def test_the_audit_of_answers(rows: Rows) -> None:
    audit = rows("form", 1)
    assert audit["A · none"]["cut off at the cap"] == "100.0"
    assert audit["A · none"]["empty"] == "86.7", "52 of 60: six are right, two are wrong and hostile"
    assert audit["C · hybrid, k=5"]["leaked tags"] == "1.7", "one answer holds <|im_end|> and <P>"
    assert rows("form", 0)["A · none"]["median words"] == "0"


def test_speed_and_machine(rows: Rows) -> None:
    assert rows("cost", 0)["B · bm25, k=5"]["questions/s"] == "25.0"
    assert rows("cost", 1)["B · bm25, k=5"]["machine"] == "cpu made up float32"


def test_a_killed_run_costs_what_its_timed_questions_cost(tmp_path: Path) -> None:
    n = 60
    asked = [Question(question_id=str(i), question="what", answers=["x"]) for i in range(n)]
    slow = {"retrieve_seconds": 6.0, "generate_seconds": 12.0, "duration_seconds": 18.0, "timed_questions": 3}
    whole = {"retrieve_seconds": 6.0, "generate_seconds": 30.0, "duration_seconds": 36.0, "timed_questions": n}
    for retriever, cost in (("bm25", slow), ("hybrid", whole)):
        make_run(tmp_path, cell("tiny", "retrieved", retriever), asked, ["x"] * n, [["one"]] * n, cost=cost)
    joined = join(find_runs([tmp_path]))
    made = gather(joined, compare(joined))
    assert [seconds(run) for run in made.runs] == pytest.approx([6 / n + 12 / 3, 36 / n])
    assert any("The fastest here was hybrid" in line for line in verdict(made))
    (cost_section,) = (section for section in compose(made).sections if section.anchor == "cost")
    (note,) = (block.note for block in cost_section.blocks if isinstance(block, Table) and block.caption == "Speed")
    assert f"known of 3 of {n} questions" in note and note.count("was killed") == 1


def test_equal_answers_share_a_number(tmp_path: Path) -> None:
    asked = [Question(question_id=str(i), question="what", answers=["x"]) for i in range(3)]
    make_run(tmp_path, cell("a", "none"), asked, ["The Lamp!", "one", ""])
    make_run(tmp_path, cell("b", "none"), asked, ["lamp", "two", "The"])
    make_run(tmp_path, cell("c", "none"), asked, ["a lamp", "one", " "])
    joined = join(find_runs([tmp_path]))
    classes = answer_classes(joined)
    for first in range(3):
        for second in range(3):
            same = [a == b for a, b in zip(classes[first], classes[second], strict=True)]
            assert same == joined.same_answer(first, second)


def test_the_frontier_leaves_the_gold_passage_out(material: Material) -> None:
    assert frontier([(5 / 60, 0.1), (5 / 60, 0.33), (50 / 60, 0.73)]) == [False, True, True]
    drawing = next(s for s in compose(material).sections if s.anchor == "cost").blocks[0]
    assert [key.colour for key in drawing.legend] == ["c-none", "c-helped", "c-helped", "c-none"]  # type: ignore[union-attr]


def test_progress_and_memory_become_curves(tmp_path: Path) -> None:
    asked = [Question(question_id=str(i), question="what", answers=["x"]) for i in range(3)]
    folder = make_run(tmp_path, cell("a", "none"), asked, ["x"] * 3)
    lines = [
        f"2026-01-01T00:00:0{second}.000+00:00 {folder.name}: {done} of 300 questions 10.0 questions/s"
        for second, done in ((0, 100), (5, 200), (7, 300))
    ]
    (folder / "run.log").write_text("\n".join(["2026-01-01T00:00:00.000+00:00 bm25: 300 questions", *lines]))
    joined = join(find_runs([folder]))
    made = gather(joined, compare(joined))
    assert made.runs[0].progress == [(0.0, 100), (5.0, 200), (7.0, 300)]
    titles = [block.caption for s in compose(made).sections if s.anchor == "cost" for block in s.blocks]
    assert titles[-2:] == ["Speed over time", "Resident memory over time"]
