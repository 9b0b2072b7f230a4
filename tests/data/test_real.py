"""The real files, where they are at hand (SLMX_TEST_DATA)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slmx.data import sources
from slmx.data.convert import convert
from slmx.data.datasets import open_dataset
from slmx.data.describe import describe
from slmx.text import WordText, normaliser_for


def test_lost_in_the_middle(test_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(test_data / "nq/nq-open-oracle.jsonl.gz"), data_dir=test_data, cache_dir=tmp_path)
    questions, corpus = dataset.questions(), {p.passage_id: p.text for p in dataset.passages()}
    assert (len(questions), len(corpus)) == (2655, 2600)
    assert len({q.question_id for q in questions}) == 2655
    assert all(q.gold.at("long")[0] in corpus for q in questions)
    held = sum(
        WordText(corpus[q.gold.at("long")[0]], normaliser_for(q.question)).holds_any(q.answers) for q in questions
    )
    assert held > 0.98 * 2655


@pytest.mark.parametrize(
    ("file", "format", "rows"),
    [
        ("nq/NQ-open.dev.jsonl", "nq-open", 3610),
        ("nq/dpr-nq-dev.tsv", "dpr", 8757),
        ("simple_qa/simple_qa_test_set.csv", "simple-qa-csv", 4326),
        ("simple_qa/simple_qa_with_long_answer_10rows.csv", "simple-qa-csv", 10),
        ("nq/nq-open-oracle.jsonl.gz", "lost-in-the-middle", 2655),
    ],
)
def test_every_row_converts(test_data: Path, tmp_path: Path, file: str, format: str, rows: int) -> None:
    result = convert(test_data / file, tmp_path / "o.json", split=0.8)
    assert (result.format, result.written, result.left_out, result.warned) == (format, rows, 0, 0)
    assert len(json.loads((tmp_path / "o.json").read_text())) == rows
    assert sources.detect(tmp_path / "o.json") in ("qa-pairs", "simple-qa-json")


def test_the_enriched_rows_become_passages(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "simple_qa/simple_qa_with_long_answer_10rows.csv"
    dataset = open_dataset(str(path), data_dir=test_data, cache_dir=tmp_path)
    found = describe(str(path), data_dir=test_data)
    assert dataset.stored is not None and dataset.stored.counts.documents == 25
    assert sum(bool(q.gold.at("long")) for q in dataset.questions()) == found.found_on_words == 8
    assert found.found_as_string == 9 and found.documents_a_question.mean == 3.3
    converted = tmp_path / "c.json"
    convert(path, converted)
    again = open_dataset(str(converted), data_dir=test_data, cache_dir=tmp_path)
    assert again.corpus_hash == dataset.corpus_hash


def test_beir_folders(test_data: Path, tmp_path: Path) -> None:
    for name, documents in (("scifact", 5183), ("arguana", 8674)):
        dataset = open_dataset(name, data_dir=test_data, cache_dir=tmp_path)
        known = {p.passage_id for p in dataset.passages()}
        assert len(known) == documents
        assert sum(p not in known for marks in dataset.qrels().values() for p in marks) == (
            5 if name == "arguana" else 0
        )


def test_the_generated_file_matches_its_truth(test_data: Path, tmp_path: Path) -> None:
    tool = test_data.parent / "tools" / "make_nq_merged.py"
    if not tool.is_file():
        pytest.skip("needs the generator beside the data")
    source, truth = tmp_path / "m.jsonl", tmp_path / "truth.jsonl"
    command = [str(source), "--rows", "400", "--mean-chars", "4000", "--bad-every", "7", "--truth", str(truth)]
    subprocess.run([sys.executable, str(tool), *command], check=True)
    result = convert(source, tmp_path / "o.json", allow_errors=True)
    rows = {r["id"]: r for r in json.loads((tmp_path / "o.json").read_text())}
    expected = [json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines()]
    assert (result.left_out, result.warned) == (28, 15) and len(rows) == 372
    for row in expected:
        found = rows[row["id"]]
        assert (found["long_context"], found["short_context"]) == (row["long"], row["short"])
