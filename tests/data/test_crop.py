"""Cropping: pieces of one document, the same for the same seed, document and pass; and the command that writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from slmx.data.crop import FILE, Cropping, crop
from slmx.errors import RefusedError, SlmxError, UsageError

TITLE = "The lamp"
TEXT = (
    f"{TITLE} It was lit every single evening by the keeper. Nobody knew why it was ever lit. Oil. And so it burned on."
)


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(0, 30),
    st.integers(),
)
def test_spans_are_runs_of_the_words_and_keep_to_the_limits(words: list[str], low: int, high: int, seed: int) -> None:
    cropping = Cropping("spans", low, high and max(low, high))
    for piece in cropping.cut(" ".join(words), "", seed, 1, 0):
        got = piece.split()
        assert any(got == words[n : n + len(got)] for n in range(len(words)))
        assert len(got) >= min(low, len(words))
        assert not cropping.max_words or len(got) <= cropping.max_words


def test_the_same_seed_document_and_pass_give_the_same_pieces() -> None:
    cut = Cropping(min_words=2).cut
    assert cut(TEXT, TITLE, 1, 2, 3) == cut(TEXT, TITLE, 1, 2, 3)
    assert len({cut(TEXT, TITLE, *place) for place in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3)]}) == 4


def test_a_sentence_and_the_rest() -> None:
    queries, kept = set(), 0
    for passed in range(400):
        query, passage = Cropping("sentence").cut(TEXT, TITLE, 0, 0, passed)
        queries.add(query)
        kept += query in passage
        assert query in TEXT
    assert len(queries) == 3 and "Oil." not in queries  # too short to be asked
    assert 20 < kept < 70  # one in ten
    assert Cropping("sentence").cut("One sentence alone", "", 0, 0, 0) == ("One sentence alone", "One sentence alone")


def test_a_title_and_the_text() -> None:
    query, passage = Cropping("title").cut(TEXT, TITLE, 0, 0, 0)
    assert (query, passage) == (TITLE, TEXT.removeprefix(TITLE).strip())
    assert len(Cropping("title", 3, 5).cut(TEXT, TITLE, 0, 0, 0)[1].split()) <= 5
    query, _ = Cropping("title").cut(TEXT, "", 0, 0, 0)
    assert query in TEXT and query != TEXT  # without a title, a sentence


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"_id": str(n), "title": f"Title {n}", "text": f"{TEXT} Number {n} of them."} for n in range(5)]
    rows.append({"_id": "5", "title": "", "text": ""})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(source: Path, to: Path, **settings: Any) -> Any:
    plain = {"data_dir": source, "cache_dir": source / "cache", "cropping": Cropping()}
    return crop(str(source), to, **{**plain, **settings})


def test_the_folder_is_the_same_each_time(corpus_folder: Path, tmp_path: Path) -> None:
    cropped = run(corpus_folder, tmp_path / "a", passes=2)
    assert (cropped.documents, cropped.pairs, cropped.without_text) == (6, 10, 1)
    run(corpus_folder, tmp_path / "b", passes=2)
    run(corpus_folder, tmp_path / "c", passes=2, seed=1)
    first, again, other = ((tmp_path / name / FILE).read_bytes() for name in "abc")
    assert first == again != other
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["positive_id"] for row in rows] == [str(n) for n in range(5) for _ in range(2)]
    assert len({row["query"] for row in rows}) > 5  # passes differ


def test_tsv_folders_and_files_are_cropped_too(tmp_path: Path) -> None:
    (tmp_path / "tsv").mkdir()
    (tmp_path / "tsv" / "corpus_train.tsv").write_text(f"title\tabstract\nThe lamp\t{TEXT}\n", encoding="utf-8")
    run(tmp_path / "tsv", tmp_path / "out", cropping=Cropping("title"))
    assert json.loads((tmp_path / "out" / FILE).read_text(encoding="utf-8"))["query"] == "The lamp"


def test_what_cannot_be_cropped_is_said(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no style of crops "span"') as caught:
        run(corpus_folder, tmp_path / "a", cropping=Cropping("span"))
    assert 'Did you mean "spans"?' in caught.value.hint
    with pytest.raises(UsageError, match="10 to 5 words"):
        run(corpus_folder, tmp_path / "a", cropping=Cropping("spans", 10, 5))
    with pytest.raises(UsageError, match="no dataset, file or folder"):
        run(tmp_path / "absent", tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RefusedError, match=r"holds no about\.json"):
        run(corpus_folder, tmp_path / "a", overwrite=True)
    (corpus_folder / "corpus.jsonl").write_text('{"_id": "1", "title": "", "text": " "}\n', encoding="utf-8")
    with pytest.raises(SlmxError, match="no document with a text"):
        run(corpus_folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_command(corpus_folder: Path, empty_folder: Path) -> None:
    command = [sys.executable, "-m", "slmx", "data", "crop", str(corpus_folder), "--to", "out", "--crop", "sentence"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=empty_folder)
    assert done.returncode == 0, done.stderr
    assert "5 pairs of 6 documents (1 without a text left out)" in done.stdout
    again = subprocess.run(command, check=False, capture_output=True, text=True, cwd=empty_folder)
    assert again.returncode == 4 and "--overwrite" in again.stderr
