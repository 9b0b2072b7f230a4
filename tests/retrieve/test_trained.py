"""A retriever's folder says what it was trained on; who evaluates is warned where questions meet."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from slmx import app
from slmx.errors import SlmxError
from slmx.retrieve.trained import seen_in_training


@pytest.fixture
def trained(encoder_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    shutil.copytree(encoder_folder, folder)
    (folder / "training_ids.json").write_text(json.dumps({"nq": ["a", "b", "c"], "crops": [], "other": ["z"]}))
    return folder


def test_ids_are_counted_by_training_set(trained: Path, encoder_folder: Path) -> None:
    assert seen_in_training(str(trained), {"b", "c", "d"}) == {"nq": 2}
    assert seen_in_training(str(trained), {"d"}) == {}
    for name in (str(encoder_folder), "bm25", "oracle", "dense"):
        assert seen_in_training(name, {"b"}) == {}


def test_a_hybrid_has_seen_what_its_parts_have(trained: Path, empty_folder: Path) -> None:
    presets = f"mine: {{retriever: dense, model: {trained}}}\nboth: {{retriever: hybrid, parts: [bm25, mine]}}\n"
    (empty_folder / "presets").mkdir()
    (empty_folder / "presets" / "retrievers.yaml").write_text(presets, encoding="utf-8")
    assert seen_in_training("both", {"a", "z"}) == {"nq": 1, "other": 1}


def test_a_damaged_list_is_named(trained: Path) -> None:
    (trained / "training_ids.json").write_text('{"nq": "a"}')
    with pytest.raises(SlmxError, match=r"training_ids\.json cannot be read"):
        seen_in_training(str(trained), {"a"})


def test_eval_run_warns_and_its_split_asks_the_others(
    trained: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(files("slmx") / "sample" / "NQ-open.dev.merged.jsonl")
    (empty_folder / "data" / "nq").mkdir(parents=True)
    shutil.copy(source, "data/nq/NQ-open.dev.merged.jsonl")
    assert app.run(["data", "convert", source, "--to", "data/nq/nq_converted.json", "--split", "0.8"]) == 0
    ids = [row["id"] for row in json.loads(Path("data/nq/nq_converted_train.json").read_text(encoding="utf-8"))]
    (trained / "training_ids.json").write_text(json.dumps({"nq_converted_train": ids}))
    run = ["eval", "run", "--model", "first-passage", "--mode", "retriever", "--dataset", "nq"]
    run += ["--retriever", str(trained), "--dry-run"]
    capsys.readouterr()
    assert app.run(run) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"was trained on {len(ids)} of these 150 questions (nq_converted_train in its training_ids.json)" in told
    assert "--split eval asks those that training had not" in told
    assert app.run([*run, "--split", "eval"]) == 0
    shown = capsys.readouterr()
    assert "was trained on" not in shown.err and f"nq_eval, {150 - len(ids)} questions" in shown.out
    assert app.run([*run, "--split", "train"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"was trained on {len(ids)} of these {len(ids)} questions" in told
    assert app.run([*run, "--split", "test"]) == 2
    assert "has no part 'test' here" in capsys.readouterr().err


def test_the_part_of_a_file_lies_beside_it(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(files("slmx") / "sample" / "NQ-open.dev.merged.jsonl")
    assert app.run(["data", "convert", source, "--to", "mine.json", "--split", "0.8"]) == 0
    run = ["eval", "run", "--model", "extractive", "--mode", "oracle", "--dataset", "mine.json", "--split", "eval"]
    assert app.run(run) == 0
    count = len(json.loads(Path("mine_eval.json").read_text(encoding="utf-8")))
    results = json.loads(Path("outputs/extractive_mine_eval_oracle_context/results.json").read_text(encoding="utf-8"))
    assert results["num_examples"] == count < 150
    Path("mine_eval.json").unlink()
    capsys.readouterr()
    assert app.run([*run, "--name", "again"]) == 2
    assert "slmx data convert mine.json --to FILE --split 0.8" in capsys.readouterr().err
