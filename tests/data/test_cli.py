from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]
Row = Callable[..., dict[str, Any]]


def slmx(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slmx", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(empty_folder: Path, write_lines: Write, merged_row: Row) -> Path:
    return write_lines("m.jsonl", [*[merged_row(n) for n in range(30)], "{broken"])


def test_exit_codes_and_the_result_on_stdout(source: Path) -> None:
    first = slmx("--json", "data", "convert", source, "--to", "o.json")
    assert first.returncode == 3 and json.loads(first.stdout)["left_out"] == 1
    assert "o.json.errors.jsonl" in first.stderr
    assert slmx("data", "convert", source, "--to", "o.json").returncode == 4
    assert slmx("data", "convert", source, "--to", "p.json", "--strict").returncode == 1
    wrong = slmx("data", "convert", source, "--to", "p.json", "--format", "nq-merge")
    assert wrong.returncode == 2 and "nq-merged" in wrong.stderr


def test_passages_then_check_then_describe(source: Path) -> None:
    assert slmx("data", "passages", source, "--to", "made", "--strict").returncode == 1
    made = slmx("--json", "data", "passages", source, "--to", "made", "--words", "20")
    assert made.returncode == 3 and json.loads(made.stdout)["counts"]["documents"] == 30
    checked = slmx("--json", "data", "check", "made")
    assert checked.returncode == 0 and {x["state"] for x in json.loads(checked.stdout)["lines"]} <= {"ok", "warn"}
    described = slmx("data", "describe", "made")
    assert described.returncode == 0 and "passage words" in described.stdout
    assert slmx("data", "check", "nowhere").returncode == 1


def test_the_hint_at_too_many_bad_rows_names_a_command_that_goes_on(source: Path) -> None:
    with source.open("a") as out:
        out.write("{broken\n" * 3)
    failed = slmx("eval", "run", "--model", "extractive", "--mode", "no_context", "--dataset", source)
    said = " ".join(failed.stderr.split())
    assert failed.returncode == 1 and "4 of 34 rows" in said
    assert "--to FOLDER --allow-errors` goes on" in said and "FOLDER as the dataset" in said
    assert slmx("data", "passages", source, "--to", "made", "--allow-errors").returncode == 3
    on = slmx("eval", "run", "--model", "extractive", "--mode", "no_context", "--dataset", "made")
    assert "m.jsonl: 4 rows left out" in " ".join(on.stderr.split())
