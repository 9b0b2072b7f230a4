"""docs/tutorial-small-model.md, command by command, on the sample's own texts and with fewer steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slmx.data import beir
from slmx.data.datasets import open_dataset

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial-small-model.md"
# What makes a command small; everything else is as the tutorial says.
SMALLER = {
    "train tokenizer": {"--vocab-size": "600"},
    "train lm": {"--steps": "4", "--batch-tokens": "256", "--context": "128"},
    "train sft": {"--epochs": None, "--steps": "3", "--batch-size": "2", "--context": "128"},
    "eval run": {"--max-samples": "2"},
}
MORE = {
    "train lm": ["--no-compile", "--dtype", "float32", "--val-tokens", "256", "--sample-interval", "0"],
    "train sft": ["--dtype", "float32", "--sample-interval", "0"],
    "eval run": ["--device", "cpu", "--max-new-tokens", "8"],
}


def commands() -> list[list[str]]:
    """The commands of the tutorial's console blocks, in order."""
    text = TUTORIAL.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^\$ slmx (.+)$", text, re.MULTILINE)]


def smaller(command: list[str]) -> list[str]:
    name = " ".join(command[:2])
    command = list(command)
    for option, value in SMALLER.get(name, {}).items():
        if option in command:
            place = command.index(option)
            del command[place : place + 2]
        if value is not None:
            command += [option, value]
    return command + MORE.get(name, [])


@pytest.fixture
def texts(empty_folder: Path) -> Path:
    """The files that the tutorial names, made of the passages and questions of the sample."""
    dataset = open_dataset("sample", data_dir=empty_folder, cache_dir=empty_folder / ".cache")
    passages = [passage.text for passage in beir.read_corpus(dataset.folder)]
    (empty_folder / "tinystories.txt").write_text("\n<|endoftext|>\n".join(passages * 2), encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {"instruction": "Answer in a few words.", "input": q.question, "output": q.answers[0]}
        for q in dataset.questions()
    ]
    (empty_folder / "instruction-data.json").write_text(json.dumps(rows * 2), encoding="utf-8")
    return empty_folder


def test_the_tutorial_names_every_step_in_order() -> None:
    steps = [" ".join(command[:2]) for command in commands()]
    wanted = ["train tokenizer", "data prepare", "train lm", "data prepare-sft", "train sft", "eval run"]
    assert [step for step in dict.fromkeys(steps) if step in wanted] == wanted


@pytest.mark.slow
def test_the_tutorial_runs_from_its_first_command_to_its_last(texts: Path) -> None:
    for command in commands():
        asked = [sys.executable, "-m", "slmx", *smaller(command)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=texts)
        assert done.returncode == 0, f"slmx {shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    results = list((texts / "outputs").rglob("results.json"))
    assert len(results) == 4
    assert all(json.loads(path.read_text())["num_examples"] == 2 for path in results)
