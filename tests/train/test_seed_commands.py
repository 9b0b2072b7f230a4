"""The five commands of the system that slmx replaces, in their new spelling, on a small folder of each form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from slmx import app

Slmx = Callable[..., None]


@pytest.fixture
def train(empty_folder: Path, encoder_folder: Path) -> Slmx:
    """`slmx train retriever --loss mnrl …` with the tiny encoder, two steps; its exit code is 0."""

    def run(*words: object, save_dir: str) -> None:
        small = ["--model", str(encoder_folder), "--steps", "2", "--batch-size", "3", "--device", "cpu"]
        told = ["train", "retriever", "--loss", "mnrl", *small, *map(str, words), "--save-dir", save_dir]
        assert app.run(told) == 0
        assert (empty_folder / save_dir / "model.safetensors").is_file()

    return run


def plan_of(folder: str) -> dict[str, tuple[str, float]]:
    """Form and share of each dataset of a run."""
    plan = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))["plan"]
    return {one["name"]: (one["form"], one["share"]) for one in plan["sets"]}


def test_ms_marco(train: Slmx, msmarco_folder: Path) -> None:
    train("--data-dirs", msmarco_folder, save_dir="a")
    assert plan_of("a") == {"msmarco": ("ms-marco", 1.0)}
    assert json.loads((Path("a") / "training_ids.json").read_text())["msmarco"] == ["10", "11", "12"]


def test_synthetic_with_a_start_checkpoint(train: Slmx, synthetic_folder: Path, pairs_folder: Path) -> None:
    train("--data-dirs", pairs_folder, "--lr", "0.01", save_dir="start")
    train("--data-dirs", synthetic_folder, "--checkpoint-path", "start", "--lr", "0", save_dir="b")
    train("--data-dirs", synthetic_folder, "--lr", "0", save_dir="cold")
    started, warm, cold = (load_file(Path(name) / "model.safetensors") for name in ("start", "b", "cold"))
    name = "encoder.layer.0.attention.self.query.weight"
    assert (started[name] == warm[name]).all() and not (cold[name] == warm[name]).all()


def test_three_sets_mixed_by_weight(
    train: Slmx, msmarco_folder: Path, unarxive_folder: Path, crops_folder: Path
) -> None:
    folders = ("--data-dirs", msmarco_folder, unarxive_folder, crops_folder)
    train(*folders, "--weights", "33,33,34", "--sampling", "mixed", save_dir="c")
    assert plan_of("c") == {
        "msmarco": ("ms-marco", 0.33),
        "unarxive": ("unarxive-query-doc", 0.33),
        "crops": ("crops", 0.34),
    }


def test_four_sets_in_turn(
    train: Slmx, msmarco_folder: Path, unarxive_folder: Path, crops_folder: Path, synthetic_folder: Path
) -> None:
    folders = ("--data-dirs", synthetic_folder, msmarco_folder, unarxive_folder, crops_folder)
    forms = ("--forms", "auto", "auto", "unarxive-doc-doc", "auto")
    train(*folders, *forms, "--sampling", "alternate", "--batch-size", "2", "--steps", "4", save_dir="d")
    assert [form for form, _ in plan_of("d").values()] == ["synthetic", "ms-marco", "unarxive-doc-doc", "crops"]


def test_evaluation_on_three_sets(
    train: Slmx, pairs_folder: Path, beir_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    train("--data-dirs", pairs_folder, save_dir="e")
    names = ("scidocs", "scifact", "arguana")
    for name in names:
        shutil.copytree(beir_folder, Path("data") / "beir" / name)
    capsys.readouterr()
    command = ["eval", "retrieval", "--models", "e", "--datasets", *names, "--device", "cpu", "--json"]
    assert app.run(command) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [pair["result"]["dataset"] for pair in pairs] == list(names)
    assert all(0 <= pair["result"]["metrics"]["ndcg@10"] <= 1 for pair in pairs)


def test_test_questions_in_the_training_data_are_warned_of_and_listed(
    train: Slmx, beir_folder: Path, rows_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where held-out train questions judge: those of `test` are to be asked later."""
    leaking = rows_folder(
        "leaking",
        {"query": "what is in the river", "positive": "water"},  # a test question below
        {"query": "another question", "positive": "who is the captain"},  # one as a passage
        {"query": "a question of its own", "positive": "another passage"},
        {"query": "a question of its own", "positive": "another passage"},
        {"query": "no passage", "positive": " "},
    )
    marks = "query-id\tcorpus-id\tscore\n"
    (beir_folder / "qrels" / "train.tsv").write_text(marks + "q0\td0\t1\nq1\td1\t1\nq2\td2\t1\n", encoding="utf-8")
    (beir_folder / "qrels" / "test.tsv").write_text(marks + "q4\td4\t1\nq5\td5\t1\n", encoding="utf-8")
    judged = ("--val-datasets", beir_folder, "--val-split", "train")
    train("--data-dirs", leaking, *judged, save_dir="f")
    told = capsys.readouterr().err
    assert "leaking: 1 pairs left out (without a text)" in told and "leaking: 1 pairs left out (there twice)" in told
    assert "2 validation queries stand in the training data" in told
    leaks = json.loads((Path("f") / "leaks.json").read_text(encoding="utf-8"))
    assert sorted(leak["query_id"] for leak in leaks) == ["beir q4", "beir q5"]
