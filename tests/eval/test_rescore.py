"""`slmx eval rescore`: metrics again from stored answers. The judge has its own file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmx.app import run
from slmx.eval.list import list_runs
from slmx.eval.runs import find_runs

MakeRun = Callable[..., Path]
SAID = ["Paris", "Anna", "1970", "«Москва»", "I do not know", "seven"]


@pytest.fixture
def folder(empty_folder: Path, make_run: MakeRun) -> Path:
    return make_run(Path("outputs/tiny_towns_oracle_context"), SAID, context="oracle", preset="squad")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_another_preset_is_written_beside_and_the_original_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(["eval", "rescore", str(folder), "--metrics-preset", "bergen"]) == 0
    shown = capsys.readouterr().out
    assert "6 answers scored again" in shown and "precision" in shown and "Unchanged: match, em, f1" in shown
    added = {path.name for path in folder.iterdir()} - set(before)
    assert added == {"predictions.rescored-bergen.json", "results.rescored-bergen.json"}
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    old, new = read(folder / "results.json"), read(folder / "results.rescored-bergen.json")
    assert "precision" not in old and new["precision"] == pytest.approx(4 / 6)  # "Anna"
    assert {name: new[name] for name in ("em", "f1", "num_examples", "duration_seconds", "dataset_questions")} == {
        name: old[name] for name in ("em", "f1", "num_examples", "duration_seconds", "dataset_questions")
    }
    assert new["rescored"] == {"preset": "bergen", "normaliser": ""}
    first = read(folder / "predictions.rescored-bergen.json")["predictions"][0]
    assert first["question_id"] == "q0" and first["metadata"]["metrics"]["precision"] == 1.0


def test_nothing_changes_where_nothing_has_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "rescore", str(folder), "--metrics-preset", "squad"]) == 0
    assert "6 answers scored again; nothing changed" in capsys.readouterr().out
    assert read(folder / "predictions.rescored-squad.json") == read(folder / "predictions.json")


def test_another_normaliser_says_which_answers_it_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "rescore", str(folder), "--normaliser", "norm", "--overwrite", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["runs"]
    changes = {change["metric"]: change for change in told["changes"]}
    # «Москва» in quotes is right for norm-u1 alone
    assert changes["match"]["answers"] == 1 and changes["match"]["after"] < changes["match"]["before"]
    results = read(folder / "results.json")
    assert results["normalisers"] == {"norm": 6} and results["rescored"]["normaliser"] == "norm"
    assert not list(folder.glob("*rescored*"))
    assert run(["eval", "rescore", str(folder), "--normaliser", "auto", "--overwrite", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["runs"]
    assert next(c for c in told["changes"] if c["metric"] == "match")["after"] == changes["match"]["before"]
    assert list_runs([folder]).runs[0].metrics["match"] == pytest.approx(0.5)


def test_a_normaliser_that_was_put_in_place_stays_when_the_run_is_scored_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "rescore", str(folder), "--normaliser", "norm", "--overwrite"]) == 0
    assert run(["eval", "rescore", str(folder), "--overwrite", "--json"]) == 0
    results = read(folder / "results.json")
    assert results["normalisers"] == {"norm": 6} and results["rescored"]["normaliser"] == "norm"
    [again] = find_runs([folder])
    assert {prediction.metadata["normaliser"] for prediction in again.predictions()} == {"norm"}


def test_an_old_flat_file_is_scored(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "question_id": 7,
            "question": "Who?",
            "ground_truth": "Anna Lee",
            "predicted_answer": "Anna Lee",
            "token_recall": 0.5,
        },
        {"question_id": 8, "question": "When?", "ground_truth": ["1969", "July 1969"], "predicted_answer": "in 1970"},
    ]
    Path("predictions_old.json").write_text(json.dumps(rows), encoding="utf-8")
    assert run(["eval", "rescore", "predictions_old.json"]) == 0
    shown = capsys.readouterr().out
    assert "2 answers scored again" in shown
    assert read(Path("predictions_old.json")) == rows
    results = read(Path("predictions_old.rescored-default.results.json"))
    assert (results["em"], results["num_examples"]) == (0.5, 2)
    content = read(Path("predictions_old.rescored-default.json"))
    assert [row["question_id"] for row in content["predictions"]] == ["7", "8"]
    assert content["predictions"][1]["ground_truth"] == ["1969", "July 1969"]
    assert run(["eval", "rescore", "predictions_old.rescored-default.json", "--quiet"]) == 0  # our own form, too


def test_wrong_usage_is_told_before_anything_is_written(
    folder: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in folder.iterdir()}
    assert run(["eval", "rescore", str(folder), "--normaliser", "nrm"]) == 2
    assert 'Did you mean "norm"?' in capsys.readouterr().err
    assert run(["eval", "rescore", str(folder), "--metrics-preset", "seed-v1"]) == 2
    assert "--vocabulary FILE" in capsys.readouterr().err
    make_run(Path("half"), SAID, answered=2)
    assert run(["eval", "rescore", "half"]) == 2
    assert "half is not finished" in capsys.readouterr().err
    assert run(["eval", "rescore", str(folder), "--dry-run"]) == 2
    assert run(["eval", "rescore", str(folder), "--judge-model", "m"]) == 2
    assert "A judge takes an address and a model" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == names


def test_a_whole_run_keeps_its_numbers(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "run", "--model", "extractive", "--mode", "oracle", "--dataset", "sample", "--quiet"]) == 0
    assert run(["eval", "rescore", "outputs", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["runs"]
    assert told["changes"] == [] and "token_recall" in told["unchanged"]
