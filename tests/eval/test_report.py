"""`slmx eval report` as a user meets it: what it says, in which form, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from slmx.app import run
from slmx.eval.report import Written, write_report
from slmx.records import Question
from tests.eval.made_runs import cell, make_run


def ask(count: int) -> list[Question]:
    return [Question(question_id=f"q{i}", question=f"what is thing {i}", answers=[f"gold{i}"]) for i in range(count)]


def make(
    folder: Path, rights: dict[str, Sequence[int]], *, model: str = "tiny", count: int = 200, **cost: float
) -> Path:
    """Runs of a model by what they show ("none", "oracle" or a retriever), right on the questions of these places."""
    asked = ask(count)
    for shows, right in rights.items():
        told = [f"It is gold{i}." if i in set(right) else "Hm." for i in range(count)]
        passages = [[f"About gold{i}."] for i in range(count)]
        if shows == "none":
            make_run(folder, cell(model, "none"), asked, told)
        elif shows == "oracle":
            make_run(folder, cell(model, "oracle"), asked, told, passages)
        else:
            make_run(folder, cell(model, "retrieved", shows), asked, told, passages, cost=dict(cost))
    return folder


def says(folder: Path) -> list[str]:
    return write_report([folder], folder / "report.md").verdict


def test_a_clear_winner_is_named_with_its_evidence(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(10), "bm25": range(80), "hybrid": range(10, 120), "oracle": range(160)})
    first, evidence, worth = says(tmp_path)
    assert first == "Use hybrid. It is better than bm25, and the difference is real, not chance."
    assert evidence.startswith(
        "hybrid answers 55.0 % right, bm25 40.0 %: a real difference, 15.0 points (95 % interval "
    )
    assert re.search(
        r"a difference shows from about \d+\.\d points on, before the correction for 6 comparisons\.$", evidence
    )
    assert "Without passages 5.0 % are right; hybrid helped on 110 questions and hurt on 10 (a real gain)." in worth
    assert "20.0 are lost in reading (wrong even with the gold passage), 25.0 in retrieval: finding passages" in worth


def test_a_tie_is_called_one_and_the_cheaper_retriever_is_named(tmp_path: Path) -> None:
    make(tmp_path, {"bm25": range(80)}, duration_seconds=2.0)
    make(tmp_path, {"hybrid": range(1, 83)}, duration_seconds=40.0)
    first, evidence = says(tmp_path)
    assert first.startswith("No real difference between hybrid and bm25 could be shown: on these 200 questions")
    assert first.endswith("The fastest here was bm25 (10 ms a question, the slowest 200).")
    assert "no real difference shown, 1.0 points" in evidence or "no real difference shown, 0.5 points" in evidence


def test_models_that_disagree_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, {"bm25": range(80), "hybrid": range(140)}, model="one")
    make(tmp_path, {"bm25": range(140), "hybrid": range(80)}, model="two")
    assert says(tmp_path)[0] == (
        "It depends on the model: with one use hybrid (a real difference); with two use bm25 (a real difference)."
    )


def test_models_that_agree_are_one_sentence(tmp_path: Path) -> None:
    for model in ("one", "two"):
        make(tmp_path, {"bm25": range(80), "hybrid": range(140)}, model=model)
    assert (
        says(tmp_path)[0]
        == "Use hybrid. It is better than bm25 with both models, and the difference is real, not chance."
    )


def test_passages_that_mislead_are_advised_against(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(120), "bm25": range(20)})
    assert says(tmp_path)[0].startswith("Do without bm25: its passages make answers worse")


def test_one_retriever_that_helps(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(20), "bm25": range(120)})
    assert says(tmp_path)[0].startswith("Use bm25 rather than no passages: retrieval helps")


def test_one_retriever_whose_help_cannot_be_seen(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(20), "bm25": range(21)})
    assert says(tmp_path)[0] == "Whether bm25 helps could not be shown on these 200 questions."


def test_k_is_named_where_runs_differ_in_it(tmp_path: Path) -> None:
    asked = ask(200)
    for k, right in ((3, 60), (5, 120)):
        told = [f"gold{i}" if i < right else "Hm." for i in range(200)]
        make_run(tmp_path, cell("tiny", "retrieved", "bm25", k=k), asked, told, [["a passage"]] * 200)
    assert says(tmp_path)[0].startswith("Use bm25 with k=5. It is better than bm25 with k=3")


def test_a_setting_of_the_model_is_no_merit_of_a_retriever(tmp_path: Path) -> None:
    asked, passages = ask(200), [["a passage"]] * 200
    told = [[f"gold{i}" if i < right else "Hm." for i in range(200)] for right in (60, 120)]
    settings = {"generator": {"name": "tiny", "chat": False}}
    make_run(tmp_path, cell("tiny", "retrieved", "bm25"), asked, told[0], passages)
    make_run(tmp_path, cell("tiny", "retrieved", "bm25"), asked, told[1], passages, changes=settings)
    first = says(tmp_path)[0]
    assert first == "Only one retriever was tried, bm25: there is nothing to compare it with."
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "yes: B is better" in page.partition("settings of one")[2]
    make_run(tmp_path, cell("tiny", "retrieved", "hybrid"), asked, told[1], passages)
    make_run(tmp_path, cell("tiny", "retrieved", "hybrid"), asked, told[0], passages, changes=settings)
    written = write_report([tmp_path], tmp_path / "all.md")
    assert written.verdict[0] == (
        "It depends on the settings: with tiny (A, C) use hybrid (a real difference); "
        "with tiny (B, D) use bm25 (a real difference)."
    )
    assert written.verdict[1].startswith("tiny (A, C): hybrid answers 60.0 % right, bm25 30.0 %")


def test_runs_of_one_retriever_over_two_corpora_are_told_apart(tmp_path: Path) -> None:
    asked, passages = ask(200), [["a passage"]] * 200
    told = [[f"gold{i}" if i < right else "Hm." for i in range(200)] for right in (60, 120)]
    other = {"retriever": {"kind": "bm25", "corpus": "another"}}
    plain = make_run(tmp_path, cell("tiny", "retrieved", "bm25"), asked, told[0], passages).name
    changed = make_run(tmp_path, cell("tiny", "retrieved", "bm25"), asked, told[1], passages, changes=other).name
    assert says(tmp_path)[0] == (
        f"Use B · bm25, k=5 ({changed}). It is better than A · bm25, k=5 ({plain}), "
        "and the difference is real, not chance."
    )


def test_runs_without_a_retriever_are_compared_by_model(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(20)}, model="small")
    make(tmp_path, {"none": range(120)}, model="large")
    first, second = says(tmp_path)
    assert first == "No retriever was tried. The most right answers: large, none, 60.0 %."
    assert second.startswith("Next is small, none, 10.0 %: a real difference, 50.0 points")


def test_a_single_run_says_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    make(tmp_path, {"none": range(20)})
    assert says(tmp_path)[0].startswith("One run: none answers 10.0 % of 200 questions right.")
    write_report([tmp_path], tmp_path / "one.html")


def test_questions_without_gold_answers_give_no_verdict(tmp_path: Path) -> None:
    asked = [Question(question_id=f"q{i}", question="what", answers=[]) for i in range(3)]
    make_run(tmp_path, cell("tiny", "none"), asked, ["a", "b", "c"])
    assert says(tmp_path) == ["No question has a gold answer, so nothing can be said of right and wrong."]
    write_report([tmp_path], tmp_path / "none.html")


def test_questions_that_are_in_no_share_may_lack_a_gold_or_a_grade(tmp_path: Path) -> None:
    asked = [*ask(3), Question(question_id="q", question="what", answers=[])]
    make_run(tmp_path, cell("tiny", "none"), asked, ["gold0", "a", "b", "c"])
    cautions = write_report([tmp_path], tmp_path / "r.md").cautions
    assert "1 questions have no gold answer or no grade and are in no share of right answers." in cautions


def test_cautions_name_what_makes_numbers_doubtful(tmp_path: Path) -> None:
    asked = ask(40)
    make_run(tmp_path, cell("tiny", "none"), asked, ["", *["gold <|im_end|>"] * 39], stop="length")
    written = write_report([tmp_path], tmp_path / "r.html")
    assert written.cautions == [
        "Only 40 questions: small differences cannot be seen.",
        "A · none: 100.0 % of the answers are cut off by the token cap, "
        "97.5 % of the answers hold leaked control tokens or tags.",
    ]


def test_metrics_of_another_version_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path, cell("tiny", "none"), ask(300), ["gold1"] * 300) / "results.json"
    assert write_report([tmp_path], tmp_path / "a.md").cautions == []
    results = json.loads(path.read_text(encoding="utf-8"))
    results["metric_versions"] |= {"em": "0", "f1": "0"}
    path.write_text(json.dumps(results), encoding="utf-8")
    [caution] = write_report([tmp_path], tmp_path / "b.md").cautions
    assert caution.startswith("A · none: em and f1 of results.json were measured by another version's rules")
    told = re.search("`slmx (eval rescore .*)`", caution)
    assert told is not None and run(told[1].split()) == 0
    capsys.readouterr()
    assert write_report([tmp_path], tmp_path / "c.md").cautions == []


def test_files_of_predictions_from_elsewhere_make_a_report(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": i,
            "question": f"what is thing {i}",
            "ground_truth": f"gold{i}",
            "predicted_answer": "gold1 <b>",
        }
        for i in range(30)
    ]
    for name in ("old.json", "older.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    written = write_report([tmp_path / "old.json", tmp_path / "older.json"], tmp_path / "r.html")
    assert (written.runs, written.questions) == (2, 30)
    assert "3.3" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return make(
        tmp_path / "outputs", {"none": range(10), "bm25": range(80), "hybrid": range(120), "oracle": range(160)}
    )


def test_the_page_is_one_file_that_asks_for_nothing(outputs: Path, tmp_path: Path) -> None:
    written = write_report([outputs], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(page.encode()) == written.size_bytes
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)|@import|url\(""", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    for told in ("Use hybrid.", "73.3" if "73.3" in page else "60.0", "What is lost where", "Is the difference real?"):
        assert told in page


def test_the_same_runs_give_the_same_bytes(outputs: Path, tmp_path: Path) -> None:
    write_report([outputs], tmp_path / "a.html")
    write_report([outputs], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("ending", ["html", "md", "tex"])
def test_every_form_holds_the_same_numbers(outputs: Path, tmp_path: Path, ending: str) -> None:
    to = tmp_path / f"report.{ending}"
    write_report([outputs], to)
    text = to.read_text(encoding="utf-8")
    for number in ("40.0", "60.0", "80.0", "+20.0"):
        assert number in text
    assert "Use hybrid." in text


def test_the_command_prints_the_answer_and_where_the_page_is(
    outputs: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "report", str(outputs)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Use hybrid. It is better than bm25, and the difference is real, not chance.")
    assert "Written: report.html (" in out
    assert "Reading 4 runs" in err
    assert (empty_folder / "report.html").is_file()
    assert run(["eval", "report", str(outputs)]) == 4
    assert "--overwrite" in capsys.readouterr().err
    assert run(["--json", "eval", "report", str(outputs), "--overwrite"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == set(Written.__struct_fields__)
    assert (told["form"], told["runs"], told["questions"]) == ("html", 4, 200)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["outputs", "--to", "report.pdf"], 2, "--to FILE ends with .html, .htm, .md, .tex."),
        (["nowhere"], 2, "There is no run nowhere."),
        (["outputs", "--right-by", "mtach"], 2, "match"),
        ([], 2, "RUN"),
    ],
)
def test_wrong_usage_is_told(
    outputs: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert run(["eval", "report", *arguments]) == code
    assert said in capsys.readouterr().err
    assert not list(empty_folder.glob("report.*"))


def test_runs_over_other_questions_are_refused(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(outputs, cell("other", "none"), ask(7), ["Hm."] * 7)
    assert run(["eval", "report", str(outputs), "--to", str(outputs / "r.html")]) == 4
    assert "Different questions" in capsys.readouterr().err


def test_one_dataset_under_two_names_makes_a_report(tmp_path: Path) -> None:
    asked = ask(200)
    told = {right: [f"gold{i}" if i < right else "Hm." for i in range(200)] for right in (20, 120, 160)}
    passages = [["a passage"]] * 200
    make_run(tmp_path, cell("tiny", "retrieved", "bm25", dataset="nq"), asked, told[120], passages)
    make_run(tmp_path, cell("tiny", "none", dataset="nq_full"), asked, told[20])
    make_run(tmp_path, cell("tiny", "oracle", dataset="a"), asked, told[160], passages)
    written = write_report([tmp_path], tmp_path / "report.md")
    assert written.verdict[0].startswith("Use bm25 rather than no passages")
    assert "bm25 helped on 100 questions and hurt on 0" in written.verdict[1]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for step in ("none → bm25, k=5 (A → B)", "none → oracle (A → C)", "bm25, k=5 → oracle (B → C)"):
        assert step in page
