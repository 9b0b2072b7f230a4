"""The sample dataset: the committed files are what the YAML says, and their offsets point at the answers."""

from __future__ import annotations

import ast
import csv
import html
import importlib.util
import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "slmx" / "sample"
NQ_FILE = SAMPLE / "NQ-open.dev.merged.jsonl"
CSV_FILE = SAMPLE / "simple_qa_test_set_with_documents.csv"
QUESTIONS = 150
ARTICLES = 60


@cache
def nq_rows() -> list[dict[str, Any]]:
    with NQ_FILE.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


@cache
def csv_rows() -> list[dict[str, str]]:
    with CSV_FILE.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@cache
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_build", ROOT / "examples" / "sample" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name while it is being executed.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def letters(text: str) -> str:
    """Letters and digits alone, so that spaces and punctuation of tokens do not matter."""
    return "".join(re.findall(r"\w", html.unescape(text).lower()))


def document_letters(row: dict[str, Any]) -> str:
    return letters(" ".join(token for token in row["document_text"].split(" ") if not re.fullmatch(r"</?\w+>", token)))


def test_rebuilding_gives_the_committed_bytes(tmp_path: Path) -> None:
    assert builder().main(["--to", str(tmp_path)]) == 0
    for committed in (NQ_FILE, CSV_FILE):
        same = (tmp_path / committed.name).read_bytes() == committed.read_bytes()
        assert same, f"{committed.name} is stale: run python examples/sample/build.py"


def test_counts_and_size() -> None:
    rows = nq_rows()
    assert len(rows) == len(csv_rows()) == QUESTIONS
    assert len({row["document_url"] for row in rows}) == len({row["document_text"] for row in rows}) == ARTICLES
    assert sum("ru.wikipedia.org" in row["document_url"] for row in rows) == 20
    assert NQ_FILE.stat().st_size + CSV_FILE.stat().st_size < 1_000_000


def test_ids_and_questions_are_unique() -> None:
    rows = nq_rows()
    assert len({row["example_id"] for row in rows}) == QUESTIONS
    assert len({row["question"].strip().lower() for row in rows}) == QUESTIONS
    assert all(isinstance(row["example_id"], int) and 0 < row["example_id"] < 2**63 for row in rows)


def test_short_answers_are_accepted_answers_inside_their_long_answer() -> None:
    without_short = 0
    for row in nq_rows():
        tokens = row["document_text"].split(" ")
        accepted = [letters(answer) for answer in row["answer"]]
        spans = [
            (span["start_token"], span["end_token"], note["long_answer"])
            for note in row["annotations"]
            for span in note["short_answers"]
        ]
        without_short += not spans
        for start, end, long_answer in spans:
            assert long_answer["start_token"] < start < end < long_answer["end_token"], row["question"]
            assert letters(" ".join(tokens[start:end])) in accepted, row["question"]
    assert 3 <= without_short <= 8


def test_long_answers_are_candidates_that_start_and_end_with_their_tag() -> None:
    for row in nq_rows():
        tokens = row["document_text"].split(" ")
        assert "" not in tokens
        for candidate in row["long_answer_candidates"]:
            first, last = tokens[candidate["start_token"]], tokens[candidate["end_token"] - 1]
            assert (first, last) in {(f"<{tag}>", f"</{tag}>") for tag in ("P", "Table", "Tr", "Ul", "Li")}
            assert candidate["top_level"] == (first in {"<P>", "<Table>", "<Ul>"})
        assert 1 <= len(row["annotations"]) <= 3
        chosen = [note["long_answer"] for note in row["annotations"] if note["long_answer"]["candidate_index"] != -1]
        assert chosen, row["question"]
        for long_answer in chosen:
            candidate = row["long_answer_candidates"][long_answer["candidate_index"]]
            assert [candidate[key] for key in ("start_token", "end_token")] == [
                long_answer[key] for key in ("start_token", "end_token")
            ]


def test_every_form_of_annotation_occurs() -> None:
    rows = nq_rows()
    assert set(Counter(len(row["annotations"]) for row in rows)) == {1, 2, 3}
    assert any(note["long_answer"]["candidate_index"] == -1 for row in rows for note in row["annotations"])
    assert any(len(note["short_answers"]) > 1 for row in rows for note in row["annotations"])
    text = " ".join(row["document_text"] for row in rows)
    assert all(token in text for token in (" `` ", " '' ", " 's ", " &amp; ", " &lt; ", " <Table> ", " <Li> "))


def test_a_whitespace_split_would_shift_the_offsets_of_some_answers() -> None:
    shifted = set()
    for row in nq_rows():
        tokens, wrong = row["document_text"].split(" "), row["document_text"].split()
        for note in row["annotations"]:
            for span in note["short_answers"]:
                start, end = span["start_token"], span["end_token"]
                if tokens[start:end] != wrong[start:end]:
                    shifted.add(row["document_url"])
    assert len(shifted) >= 3
    text = "".join(row["document_text"] for row in nq_rows())
    assert "\u00a0" in text
    assert "\u2009" in text


def test_an_accepted_answer_stands_in_its_own_article() -> None:
    for row in nq_rows():
        assert any(letters(answer) in document_letters(row) for answer in row["answer"]), row["question"]


def test_csv_rows_are_the_same_questions_with_true_positions() -> None:
    empty = 0
    for nq, row in zip(nq_rows(), csv_rows(), strict=True):
        assert (row["problem"], row["answer"]) == (nq["question"], nq["answer"][0])
        metadata, documents = ast.literal_eval(row["metadata"]), ast.literal_eval(row["documents"])
        assert metadata.keys() == {"topic", "answer_type", "urls"}
        assert nq["document_url"] in metadata["urls"]
        assert metadata["answer_type"] in {"Date", "Person", "Number", "Place", "Other"}
        assert int(row["num_documents"]) == len(documents)
        words = [len(document.split()) for document in documents]
        assert float(row["avg_document_length_words"]) == (sum(words) / len(words) if words else 0.0)
        if not documents:
            empty += 1
            assert row["answer_found_in_documents"] == "False"
            continue
        title = unquote(nq["document_url"]).split("/")[-1].split("title=")[-1].split("&oldid=")[0].replace("_", " ")
        assert any(document.startswith(title) for document in documents)
        if row["answer_found_in_documents"] == "True":
            document = documents[int(row["answer_found_in_doc_index"])]
            at = int(row["answer_position_chars"])
            assert document[at : at + len(row["answer"])].lower() == row["answer"].lower()
            assert int(row["answer_position_words"]) == len(document[:at].split())
    assert empty == 3
    assert {int(row["num_documents"]) for row in csv_rows()} == {0, 1, 2}
