"""`slmx eval compare`: joining runs, counting, testing, and what a person and a pipe see."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from slmx.app import run
from slmx.errors import SlmxError
from slmx.eval.compare import Comparison, compare, compare_runs
from slmx.eval.join import Outcome, join, outcome
from slmx.eval.runs import find_runs

MakeRun = Callable[..., Path]
OUTCOMES = get_args(Outcome)
NONE = ["Paris", "Anna", "1970", "Казань", "I do not know", "seven"]
BM25 = ["It is Paris.", "Anna Lee", "1970", "Казань", "Nile", "Seven, of course"]
HYBRID = ["Lyon", "Anna Lee", "in 1969", "Москва", "the Nile", "seven"]
ORACLE = ["Paris", "Anna Lee", "1969", "Москва!", "Nile", "six"]


@pytest.fixture
def runs(empty_folder: Path, make_run: MakeRun) -> Path:
    """Four runs of one model, of which what they got right can be seen above."""
    make_run(Path("outputs/tiny_towns_no_context"), NONE)
    covered = [True, True, False, False, True, True]
    make_run(
        Path("outputs/tiny_towns_retriever_context_bm25_k5"),
        BM25,
        context="retrieved",
        retriever="bm25",
        k=5,
        covered=covered,
    )
    make_run(
        Path("outputs/tiny_towns_retriever_context_hybrid_k5"), HYBRID, context="retrieved", retriever="hybrid", k=5
    )
    make_run(Path("outputs/tiny_towns_oracle_context"), ORACLE, context="oracle")
    return Path("outputs")


def compared(folder: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["eval", "compare", str(folder), *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_outcomes_are_those_one_counts_by_hand(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = compared(runs, capsys=capsys)
    assert [one["label"] for one in told["runs"]] == ["none", "bm25, k=5", "hybrid, k=5", "oracle"]
    pairs = {(pair["first"], pair["second"]): pair for pair in told["pairs"]}
    assert len(pairs) == 6 and told["questions"] == 6 and told["unscored"] == 0
    # right: none q0 q5; bm25 q0 q1 q4 q5; hybrid q1 q2 q3 q4 q5; oracle all but q5
    none_bm25 = pairs["none", "bm25, k=5"]
    assert [none_bm25[name] for name in OUTCOMES] == [2, 0, 2, 2]
    assert none_bm25["same_answer"] == none_bm25["ignored"] == 2  # 1970 and Казань
    bm25_hybrid = pairs["bm25, k=5", "hybrid, k=5"]
    assert [bm25_hybrid[name] for name in OUTCOMES] == [2, 1, 3, 0]
    # "Anna Lee" in both, and "the Nile" and "Nile" are the same words; nothing was ignored, since both had context
    assert bm25_hybrid["same_answer"] == 2 and bm25_hybrid["ignored"] is None
    test = none_bm25["tests"][0]
    assert test["metric"] == "match" and test["test"] == "mcnemar_exact" and test["p"] == 0.5 and test["family"] == 6
    assert test["difference"] == pytest.approx(2 / 6)


def test_the_modes_of_a_model_are_taken_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [one] = compared(runs, capsys=capsys)["decompositions"]
    assert one["knowledge"]["mean"] == pytest.approx(2 / 6)
    assert one["reading_loss"]["mean"] == pytest.approx(1 / 6)
    bm25, hybrid, oracle = one["contexts"]
    assert bm25["retrieval_loss"]["mean"] == pytest.approx(5 / 6 - 4 / 6)
    assert (
        hybrid["retrieval_loss"]["mean"] == 0.0
        and hybrid["retrieval_loss"]["low"] < 0 < hybrid["retrieval_loss"]["high"]
    )
    assert oracle["retrieval_loss"] is None
    assert (bm25["coverage"]["mean"], bm25["utilisation"]["mean"], bm25["utilisation"]["n"]) == (
        pytest.approx(4 / 6),
        1.0,
        4,
    )
    assert (bm25["known"]["mean"], bm25["known"]["n"]) == (1.0, 2)
    assert (bm25["unknown"]["mean"], bm25["unknown"]["n"]) == (0.5, 4)
    assert (hybrid["known"]["mean"], hybrid["unknown"]["mean"]) == (0.5, 1.0)


def test_the_tables_say_it_in_a_wide_and_in_a_narrow_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (140, 80, 50):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["eval", "compare", str(runs)]) == 0
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= columns
        assert "4 runs over 6 questions of towns" in shown
        for title in ("Where answers are lost", "What changed", "Is it more than chance? match", "token_recall"):
            assert title in shown
        assert "66.7" in shown and "not shown" in shown and "oracle" in shown


def test_of_many_pairs_a_terminal_shows_those_that_differ_in_one_respect(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("outputs/other_no_context"), NONE, model="other")
    make_run(Path("outputs/other_oracle_context"), ORACLE, context="oracle", model="other")
    assert run(["eval", "compare", str(runs)]) == 0
    shown = capsys.readouterr().out
    # 15 pairs: 6 within tiny, 1 within other, none with none, oracle with oracle
    assert "6 more pairs differ in model and context both" in shown
    assert "other, none → tiny, none" in shown and "other, none → tiny, oracle" not in shown
    assert "Holm over 15" in shown
    assert len(compared(runs, capsys=capsys)["pairs"]) == 15


def test_a_baseline_is_the_first_of_every_pair_and_makes_a_smaller_family(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = compared(runs, "--baseline", "outputs/tiny_towns_oracle_context", capsys=capsys)
    assert told["baseline"] == "oracle" and {pair["first"] for pair in told["pairs"]} == {"oracle"}
    assert [pair["tests"][0]["family"] for pair in told["pairs"]] == [3, 3, 3]
    two = [str(runs / "tiny_towns_no_context"), "--baseline", str(runs / "tiny_towns_oracle_context")]
    assert run(["eval", "compare", *two, "--quiet"]) == 0  # a baseline need not stand among the runs
    assert run(["eval", "compare", str(runs), "--baseline", "tiny_town_oracle_context"]) == 2
    assert 'Did you mean "tiny_towns_oracle_context"?' in capsys.readouterr().err


def test_a_baseline_whose_name_two_runs_bear_is_named_by_its_path(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("outputs/again/tiny_towns_no_context"), ORACLE)
    assert run(["eval", "compare", str(runs), "--baseline", "tiny_towns_no_context"]) == 2
    assert "outputs/again/tiny_towns_no_context" in capsys.readouterr().err
    told = compared(runs, "--baseline", "outputs/again/tiny_towns_no_context", capsys=capsys)
    assert "again" in told["baseline"]


def test_csv_has_a_line_a_pair_and_metric(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "compare", str(runs), "--to", "pairs.csv", "--metric", "em,f1", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(io.StringIO(Path("pairs.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 6 * 3 and {row["metric"] for row in rows} == {"match", "em", "f1"}
    assert all(sum(int(row[name]) for name in OUTCOMES) == int(row["n"]) == 6 for row in rows)
    assert run(["eval", "compare", str(runs), "--to", "pairs.csv"]) == 4
    assert run(["eval", "compare", str(runs), "--to", "pairs.csv", "--overwrite"]) == 0
    capsys.readouterr()
    assert run(["eval", "compare", str(runs), "--to", "csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 6 * 2


def test_where_to_write_is_looked_at_before_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.csv").write_text("mine")
    broken = "nowhere"  # a run that is not there would be refused later, with exit code 2
    for to, code, said in (
        ("pairs.json", 2, "--to FILE ends with .csv or .jsonl"),
        ("pairs", 2, "--to csv writes to stdout"),
        ("there.csv", 4, "there.csv exists"),
    ):
        assert run(["eval", "compare", broken, "--to", to]) == code
        assert said in capsys.readouterr().err
    assert run(["eval", "compare", str(runs), "--to", "csv", "--json"]) == 2
    captured = capsys.readouterr()
    assert "both want stdout" in captured.err and captured.out == ""
    assert not Path("pairs.json").exists() and Path("there.csv").read_text() == "mine"


def test_a_metric_that_needs_a_vocabulary_can_be_given_one(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["eval", "compare", str(runs), "--metric", "token_recall@bert"]
    assert run(asked) == 2
    assert "--vocabulary FILE" in capsys.readouterr().err
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "anna", "lee"]))
    told = compared(runs, "--metric", "token_recall@bert", "--vocabulary", "vocab.txt", capsys=capsys)
    assert told["metrics"] == ["match", "token_recall@bert"]


def test_every_question_is_written_with_what_each_run_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "compare", str(runs), "--to", "questions.jsonl", "--quiet"]) == 0
    rows = [json.loads(line) for line in Path("questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(6)]
    assert rows[2]["ground_truth"] == ["1969"] and rows[2]["answers"]["hybrid, k=5"] == "in 1969"
    assert rows[2]["right"] == {"none": False, "bm25, k=5": False, "hybrid, k=5": True, "oracle": True}
    assert run(["eval", "compare", str(runs), "--to", "questions.jsonl"]) == 4


def test_right_can_be_em(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = compared(runs, "--right-by", "em", capsys=capsys)
    assert told["metrics"][0] == "em" and told["runs"][1]["right"]["mean"] == pytest.approx(2 / 6)  # Anna Lee, Nile
    assert run(["eval", "compare", str(runs), "--right-by", "f1"]) == 2
    assert run(["eval", "compare", str(runs), "--metric", "mach"]) == 2
    assert 'Did you mean "match"?' in capsys.readouterr().err


def test_a_metric_that_only_some_runs_have_is_tested_between_those(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = compared(runs, "--metric", "k_precision", capsys=capsys)
    tested = [test for pair in told["pairs"] for test in pair["tests"] if test["metric"] == "k_precision"]
    assert len(tested) == 3 and {test["family"] for test in tested} == {3}


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(capsys: pytest.CaptureFixture[str], code: int, *paths: str) -> str:
    assert run(["eval", "compare", *paths]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_runs_that_do_not_belong_together_are_refused_and_the_reason_is_named(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(runs / "tiny_towns_no_context")
    golds = {"q0": "Paris", "q1": "Anna Lee", "q9": "nine"}
    make_run(Path("sample"), ["a", "b", "c"], golds=golds)
    told = refused(capsys, 4, one, "sample")
    assert "2 are in both tiny_towns_no_context and sample, 4 only in the first, 1 only in the second" in told
    make_run(Path("cities"), NONE, dataset="cities")
    assert "tiny_towns_no_context is over towns, cities over cities" in refused(capsys, 4, one, "cities")
    other_golds = {"q0": "Lutetia", "q1": "Anna Lee", "q2": "1969", "q3": "Москва", "q4": "the Nile", "q5": "7"}
    make_run(Path("golds"), NONE, golds=other_golds)
    assert "Different gold answers in tiny_towns_no_context and golds: 2 questions (q0, q5)" in refused(
        capsys, 4, one, "golds"
    )
    assert run(["eval", "rescore", str(runs / "tiny_towns_oracle_context"), "--normaliser", "norm", "--overwrite"]) == 0
    capsys.readouterr()
    told = refused(capsys, 4, one, str(runs / "tiny_towns_oracle_context"))
    assert "Different normalisers" in told and "1 question (q3)" in told and "slmx eval rescore" in told


def test_what_is_no_run_or_not_finished_is_wrong_usage(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(runs / "tiny_towns_no_context")
    assert "A comparison needs two runs" in refused(capsys, 2, one)
    assert "A comparison needs two runs" in refused(capsys, 2, one, one)
    assert "There is no run nowhere" in refused(capsys, 2, one, "nowhere")
    Path("empty").mkdir()
    assert "empty holds no run" in refused(capsys, 2, one, "empty")
    make_run(Path("half"), NONE, answered=4)
    assert "Not finished: half" in refused(capsys, 2, one, "half")
    Path("text.json").write_text('{"results": 1}')
    assert "text.json holds no predictions" in refused(capsys, 2, one, "text.json")
    Path("flat.json").write_text('[{"question_id": "q0", "question": "?"}]')
    assert "flat.json, prediction 1" in refused(capsys, 2, one, "flat.json")
    Path("twice.json").write_text(
        json.dumps([{"question_id": "q0", "question": "?", "ground_truth": "x", "predicted_answer": "y"}] * 2)
    )
    assert "1 of its predictions repeat a question id" in refused(capsys, 4, "twice.json", one)


def test_the_same_dataset_cut_in_another_way_is_compared_with_a_note(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("outputs/longer"), ORACLE, context="retrieved", retriever="bm25", k=5, cut="in longer passages")
    told = compared(runs, capsys=capsys)
    assert any("cut or read in different ways" in note for note in told["notes"])
    labels = [one["label"] for one in told["runs"]]
    assert "bm25, k=5 (longer)" in labels and len(set(labels)) == 5


def test_questions_without_a_gold_answer_are_counted_and_in_no_number(
    empty_folder: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    golds = {"q0": "Paris", "q1": "", "q2": "1969"}
    make_run(Path("runs/a"), ["Paris", "Anna", "1970"], golds=golds)
    make_run(Path("runs/b"), ["Paris", "Anna", "1969"], golds=golds, context="oracle")
    told = compared(Path("runs"), capsys=capsys)
    [pair] = told["pairs"]
    assert told["questions"] == 3 and told["unscored"] == 1 and pair["n"] == 2
    assert sum(pair[name] for name in OUTCOMES) == 2


def test_old_files_and_runs_of_an_earlier_version_are_compared_too(
    runs: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(Path("early_retriever_context_my-own_k3"), BM25, context="retrieved", retriever="x", k=3, with_cell=False)
    [early] = find_runs([Path("early_retriever_context_my-own_k3")])
    assert (early.cell.retriever, early.cell.k, early.cell.context) == ("my-own", 3, "retrieved")
    content = json.loads((runs / "tiny_towns_oracle_context" / "predictions.json").read_text(encoding="utf-8"))
    flat = [
        {name: row[name] for name in ("question_id", "question", "ground_truth", "predicted_answer")}
        for row in content["predictions"]
    ]
    Path("old.json").write_text(json.dumps(flat), encoding="utf-8")
    assert run(["eval", "compare", "old.json", str(runs / "tiny_towns_oracle_context"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"][0]["both_right"] == 5 and told["pairs"][0]["same_answer"] == 6
    assert any("No run.json beside" in note for note in told["notes"])


# ----------------------------------------------------------------------------------- against others, and what must hold


def plain_runs(folder: Path, outcomes: np.ndarray[Any, Any], make_run: MakeRun) -> list[Path]:
    """A run a column: 1 answers right, 0 wrong."""
    golds = {f"q{i}": f"gold{i}" for i in range(len(outcomes))}
    return [
        make_run(
            folder / f"run{c}",
            [f"gold{i}" if o else "no" for i, o in enumerate(outcomes[:, c])],
            golds=golds,
            model=f"m{c}",
        )
        for c in range(outcomes.shape[1])
    ]


def test_tests_equal_those_of_scipy_and_statsmodels_on_the_same_pairs(tmp_path: Path, make_run: MakeRun) -> None:
    rng = np.random.default_rng(11)
    known = rng.random(300) < 0.4
    noisy = [np.where(rng.random(300) < flip, ~known, known) for flip in (0.0, 0.05, 0.3)]
    outcomes = np.stack([*noisy, known | (rng.random(300) < 0.2)], axis=1)
    _, told = compare_runs(plain_runs(tmp_path, outcomes, make_run))
    tests = [pair.tests[0] for pair in told.pairs]
    columns = {f"m{c}, none": outcomes[:, c] for c in range(4)}
    theirs = []
    for pair, test in zip(told.pairs, tests, strict=True):
        first, second = columns[pair.first], columns[pair.second]
        table = [
            [int((first & second).sum()), int((first & ~second).sum())],
            [int((~first & second).sum()), int((~first & ~second).sum())],
        ]
        assert [[pair.both_right, pair.hurt], [pair.helped, pair.both_wrong]] == table
        exact = mcnemar(table, exact=True).pvalue
        assert test.p == pytest.approx(exact, rel=1e-9)
        assert test.p == pytest.approx(binomtest(pair.helped, pair.helped + pair.hurt).pvalue, rel=1e-9)
        theirs.append(exact)
    assert [test.p_holm for test in tests] == pytest.approx(multipletests(theirs, method="holm")[1].tolist(), rel=1e-9)
    assert {test.p_holm < 0.05 for test in tests} == {True, False}


@settings(max_examples=15, deadline=None)
@example([(False, False)] * 5 + [(True, False)] * 2)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_outcomes_are_a_partition_and_the_two_directions_mirror_each_other(
    tmp_path_factory: pytest.TempPathFactory, rights: list[tuple[bool, bool]]
) -> None:
    from tests.eval.conftest import write_run

    folder = tmp_path_factory.mktemp("pairs")
    paths = plain_runs(folder, np.array(rights), write_run)
    one, other = compare_runs(paths)[1], compare_runs(paths[::-1])[1]
    forth, back = one.pairs[0], other.pairs[0]
    assert forth.helped + forth.hurt + forth.both_right + forth.both_wrong == forth.n == len(rights)
    assert (forth.helped, forth.hurt, forth.both_right) == (back.hurt, back.helped, back.both_right)
    a, b = forth.tests[0], back.tests[0]
    assert a.p == b.p and a.difference == -b.difference
    assert (a.low, a.high) == (-b.high, -b.low) and 0 < a.p <= a.p_holm <= 1
    assert a.difference == pytest.approx((forth.helped - forth.hurt) / forth.n)


def test_outcomes_by_name() -> None:
    assert [outcome(a, b) for a, b in ((False, True), (True, False), (True, True), (False, False))] == list(OUTCOMES)
    assert outcome(None, True) is None


def test_the_order_of_the_journal_does_not_matter(runs: Path) -> None:
    joined = join(find_runs([runs]))
    assert list(joined.question_ids) == [f"q{i}" for i in range(6)] and list(joined.said[0]) == NONE


def test_a_seed_gives_the_same_comparison_again(runs: Path) -> None:
    def again(seed: int) -> Comparison:
        return compare(join(find_runs([runs])), seed=seed)

    assert again(3) == again(3) != again(4)


def test_a_damaged_journal_is_named(runs: Path) -> None:
    journal = runs / "tiny_towns_no_context" / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"question_id"', b'"id"', 1))
    with pytest.raises(SlmxError, match=r"predictions\.jsonl, line 1"):
        compare_runs([runs])


@pytest.mark.slow
def test_on_the_2655_questions_the_table_is_right(test_data: Path, empty_folder: Path) -> None:
    """bm25 with one passage against five, so that answers are hurt as well; counted from predictions.json alone."""
    dataset = test_data / "nq" / "nq-open-oracle.jsonl.gz"
    modes = ["--mode", "no_context", "oracle", "retriever", "--k", "1", "5", "--quiet"]
    assert run(["eval", "run", "--dataset", str(dataset), "--model", "extractive", *modes]) == 0
    _, told = compare_runs([Path("outputs")])
    matched: dict[str, list[float]] = {}
    for one in told.runs:
        rows = json.loads((Path(one.path) / "predictions.json").read_bytes())["predictions"]
        matched[one.label] = [row["metadata"]["metrics"]["match"] for row in rows]
    assert told.questions == 2655 and len(told.pairs) == 6
    for pair in told.pairs:
        both = list(zip(matched[pair.first], matched[pair.second], strict=True))
        counted = [both.count((0.0, 1.0)), both.count((1.0, 0.0)), both.count((1.0, 1.0)), both.count((0.0, 0.0))]
        assert [pair.helped, pair.hurt, pair.both_right, pair.both_wrong] == counted
        p = binomtest(pair.helped, pair.helped + pair.hurt).pvalue
        assert pair.tests[0].p == pytest.approx(p, rel=1e-9)
    one_five = next(pair for pair in told.pairs if (pair.first, pair.second) == ("bm25, k=1", "bm25, k=5"))
    assert one_five.hurt > 0 and one_five.helped > 0
