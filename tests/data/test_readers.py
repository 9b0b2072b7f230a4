"""Every form: what it gives, how it is told apart, and what becomes of its bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from slmx.data import sources
from slmx.data.nq import title_of, token_starts
from slmx.data.sources import BadRow, Item
from slmx.errors import SlmxError, UsageError
from slmx.records import question_id_of

Write = Callable[..., Path]
Row = Callable[..., dict[str, Any]]


def read(path: Path) -> tuple[list[Item], list[BadRow]]:
    rows = list(sources.read(path))
    return [r for r in rows if isinstance(r, Item)], [r for r in rows if isinstance(r, BadRow)]


# ------------------------------------------------------------------------------------------------------ token offsets


@given(st.text(alphabet=" ab\u00a0\u2003\u2009\t\n", max_size=200), st.lists(st.integers(0, 120), max_size=6))
def test_tokens_are_the_pieces_of_split_space(text: str, wanted: list[int]) -> None:
    pieces = text.split(" ")
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece) + 1)
    assert token_starts(text, wanted) == {n: starts[n] for n in wanted if n <= len(pieces)}


def test_an_exotic_space_in_a_token_shifts_no_offset(write_lines: Write, merged_row: Row) -> None:
    plain, exotic = merged_row(1), merged_row(1)
    exotic["document_text"] = exotic["document_text"].replace("River 1", "Riv\u2003\u00a0er 1")
    items, bad = read(write_lines("m.jsonl", [plain, exotic]))
    assert not bad
    assert items[0].short_contexts == items[1].short_contexts == ["Anna Berg"]
    assert items[0].long_answers == items[1].long_answers


# --------------------------------------------------------------------------------------------------------- NQ merged


def test_nq_merged(write_lines: Write, merged_row: Row) -> None:
    path = write_lines("m.jsonl", [merged_row(3)])
    (item,), bad = read(path)
    assert sources.detect(path) == "nq-merged" and not bad
    assert item.question.question_id == "1003" and item.question.answers == ["Anna Berg"]
    assert item.documents[0].title == "River 3"
    assert item.long_answers == ["<P> Its source was found in 1871 by Anna Berg , who walked there . </P>"]
    (start, end), text = item.long_spans[0], item.documents[0].text
    assert text[start:end] == item.long_answers[0]
    assert item.short_contexts == ["Anna Berg"]


NONE = {"start_token": -1, "end_token": -1}


@pytest.mark.parametrize(
    ("annotation", "field"),
    [
        ({"long_answer": {**NONE, "candidate_index": -1}, "short_answers": [NONE]}, ""),
        (
            {"long_answer": {"candidate_index": 10**6}, "short_answers": []},
            "annotations[0].long_answer.candidate_index",
        ),
        ({"short_answers": [{"start_token": 10**7, "end_token": 10**7 + 1}]}, "annotations[0].short_answers[0]"),
        ({"short_answers": [{"start_token": 5, "end_token": 5}]}, "annotations[0].short_answers[0]"),
        ({"long_answer": None}, ""),
    ],
)
def test_minus_one_is_none_and_an_index_past_the_end_is_reported(
    write_lines: Write, merged_row: Row, annotation: dict[str, Any], field: str
) -> None:
    items, bad = read(write_lines("m.jsonl", [merged_row(annotations=[annotation, *merged_row()["annotations"]])]))
    assert len(items) == 1 and len(items[0].long_answers) == 1 and items[0].short_contexts == ["Anna Berg"]
    assert [(b.line, b.field, b.kept) for b in bad] == ([(1, field, True)] if field else [])


def test_the_last_token_may_end_a_range(write_lines: Write, merged_row: Row) -> None:
    n = len(merged_row()["document_text"].split(" "))
    annotation = {"short_answers": [{"start_token": n - 1, "end_token": n}, {"start_token": n - 1, "end_token": n + 1}]}
    items, bad = read(write_lines("m.jsonl", [merged_row(annotations=[annotation])]))
    assert items[0].short_contexts == ["</Table>"] and len(bad) == 1


def test_rows_that_cannot_be_used_are_named_by_line_and_field(write_lines: Write, merged_row: Row) -> None:
    without = merged_row(2)
    del without["document_text"]
    rows = [
        merged_row(0),
        json.dumps(merged_row(1))[:200],
        "",
        without,
        merged_row(3, answer=[]),
        merged_row(4, question=" "),
        merged_row(5, answer=[1]),
        merged_row(6, annotations=[{"short_answers": [{"start_token": "x"}]}]),
        merged_row(7, answer="a bare string"),
        merged_row(8, document_text=""),
    ]
    items, bad = read(write_lines("m.jsonl", rows))
    assert [i.line for i in items] == [1, 9] and items[1].question.answers == ["a bare string"]
    assert [(b.line, b.field) for b in bad] == [
        (2, "row"),
        (4, "document_text"),
        (5, "answer"),
        (6, "question"),
        (7, "answer[0]"),
        (8, "annotations[0].short_answers[0].start_token"),
        (10, "document_text"),
    ]
    assert not any(b.kept for b in bad)


@pytest.mark.parametrize(
    ("url", "title"),
    [
        ("https://en.wikipedia.org//w/index.php?title=Email_marketing&amp;oldid=814071202", "Email marketing"),
        ("https://en.wikipedia.org/w/index.php?oldid=1&title=Caf%C3%A9_au_lait", "Café au lait"),
        ("http://www.wikipedia.org/Google", "Google"),
        ("https://en.wikipedia.org/wiki/R%C3%B6ntgen_(unit)#History", "Röntgen (unit)"),
        ("https://en.wikipedia.org/wiki/C%2B%2B", "C++"),
        ("https://en.wikipedia.org/wiki/Rhine/", "Rhine"),
        ("https://en.wikipedia.org", ""),
        ("", ""),
        ("http://[bad", ""),
    ],
)
def test_titles_from_urls(url: str, title: str) -> None:
    assert title_of(url) == title


# ---------------------------------------------------------------------------------------------- the other NQ forms


def test_nq_full_and_its_bad_parts(write_lines: Write) -> None:
    row = {
        "question": "q",
        "answer": ["a"],
        "context": "<P> one </P> <P> two </P>",
        "long_context": ["<P> two </P>", "not there"],
        "short_context": ["two"],
        "id": "7",
        "url": "https://example.org/wiki/A_B",
        "title": "A B",
    }
    path = write_lines("full.json", ["[", json.dumps(row), "]"])
    (item,), (bad,) = read(path)
    assert sources.detect(path) == "nq-full"
    assert item.question.question_id == "7" and item.documents[0].title == "A B"
    assert [item.documents[0].text[a:b] for a, b in item.long_spans] == ["<P> two </P>"]
    assert (bad.line, bad.field, bad.kept) == (2, "long_context[1]", True)


def test_nq_open_dpr_and_flashrag_join_by_question(write_lines: Write) -> None:
    nq = write_lines("o.jsonl", [{"question": "Who is it?", "answer": ["x", "y"]}])
    dpr = write_lines("d.tsv", ['who is it? \t"[\'x\', ""y\'s""]"\r', "no tab", "q\t[broken", "q\t[]"])
    flash = write_lines("f.jsonl", [{"id": 5, "question": "q", "golden_answers": ["g"], "metadata": {"a": 1}}])
    assert [sources.detect(p) for p in (nq, dpr, flash)] == ["nq-open", "dpr", "flashrag"]
    items, bad = read(dpr)
    assert items[0].question.answers == ["x", "y's"]
    assert items[0].question.question_id == read(nq)[0][0].question.question_id == question_id_of("who is it?")
    assert [b.line for b in bad] == [2, 3, 4]
    assert read(flash)[0][0].question.question_id == "5"


def test_lost_in_the_middle(write_lines: Write) -> None:
    gold = {"title": "T", "text": "The answer is Berg.", "isgold": True, "hasanswer": True}
    other = {"title": "U", "text": "Nothing here.", "isgold": False}
    annotated = {"title": "T", "long_answer": "long", "chunked_long_answer": "chunk", "short_answers": ["Berg"]}
    rows = [
        {"question": "q1", "answers": ["berg"], "ctxs": [other, gold], "nq_annotated_gold": annotated},
        {"question": "q2", "answers": ["berg"], "ctxs": [], "nq_annotated_gold": annotated},
        {"question": "q3", "answers": ["berg"], "ctxs": [other]},
    ]
    path = write_lines("l.jsonl", rows)
    items, bad = read(path)
    assert sources.detect(path) == "lost-in-the-middle"
    first = items[0]
    assert [p.text for p in first.passages] == ["Nothing here.", "The answer is Berg."]
    assert first.question.gold.long == first.question.gold.short == [first.passages[1].passage_id]
    assert items[1].passages[0].text == "chunk"
    assert [(b.line, b.kept) for b in bad] == [(3, True)]


# ------------------------------------------------------------------------------------------------------------ SimpleQA

META = {"topic": "Art", "answer_type": "Person", "urls": ["https://example.org/a"]}


def csv_line(*cells: str) -> str:
    return ",".join('"' + c.replace('"', '""') + '"' for c in cells)


def test_simple_qa_csv_in_its_three_forms(write_lines: Write) -> None:
    documents = ["It's a page - Site one", 'A "second" page']
    plain = write_lines("p.csv", ["metadata,problem,answer", csv_line(repr(META), "q?", "a")])
    with_documents = write_lines(
        "d.csv",
        [
            "metadata,problem,answer,documents,num_documents",
            csv_line(json.dumps(META), "q?", "a", repr(documents), "2"),
        ],
    )
    long = write_lines(
        "l.csv",
        [
            "metadata,problem,answer,documents,long_answer",
            csv_line(repr(META), "q1", "a", repr(documents), '["one", "two"]'),
            csv_line(repr(META), "q2", "a", json.dumps(documents), "['one']"),
            csv_line(repr(META), "q3", "a", "", "plain [text]"),
            csv_line(repr(META), "q4", "a", "only one", ""),
            csv_line("{broken", "q5", "a", "['cut", ""),
        ],
    )
    for path in (plain, with_documents, long):
        assert sources.detect(path) == "simple-qa-csv"
    (item,), _ = read(plain)
    assert item.question.metadata == {"id": 0, **META, "source": "simple_qa"} and item.documents == []
    (item,), _ = read(with_documents)
    assert [d.text for d in item.documents] == documents and item.documents[0].title == "It's a page"
    items, bad = read(long)
    assert [i.long_answers for i in items] == [["one", "two"], ["one"], ["plain [text]"], [], []]
    assert [len(i.documents) for i in items] == [2, 2, 0, 1, 0]
    assert [(b.line, b.field, b.kept) for b in bad] == [(6, "metadata", True), (6, "documents", True)]


def test_simple_qa_json_in_both_layouts(write_lines: Write) -> None:
    row = {"question": "q", "answer": "a", "context": "one\n\ntwo", "metadata": {**META, "id": 3}}
    array = write_lines("a.json", [json.dumps([{**row, "long_answer": ["x"]}])])
    halves = write_lines("o.json", [json.dumps({"train": [row], "eval": [row], "total_items": 2, "source": "s"})])
    assert sources.detect(array) == sources.detect(halves) == "simple-qa-json"
    assert read(array)[0][0].long_answers == ["x"]
    items, _ = read(halves)
    assert [i.question.metadata["split"] for i in items] == ["train", "eval"]
    assert [d.text for d in items[0].documents] == ["one\n\ntwo"]


# ------------------------------------------------------------------------------------------------------------ qa_pairs


def test_qa_pairs_with_chunks(write_lines: Write) -> None:
    path = write_lines(
        "qa_pairs.jsonl",
        [
            {"question_id": 1, "question": "q", "answer": "bare"},
            "",
            {"question_id": 2, "question": "r", "answer": ["s"]},
        ],
    )
    chunks = [{"id": "d1_0", "text": "zero"}, {"id": 1, "text": "one"}]
    write_lines(
        "chunks_collection.jsonl",
        [
            {"doc_id": "d1", "url": "", "title": "T", "question_id": 1, "chuks": chunks},
            {"doc_id": "d2", "url": "", "title": "U", "question_id": 2, "chunks": chunks[1:]},
            "{broken",
        ],
    )
    marks = {"doc_id": "d1", "chunks": [{"id": "d1_0", "relevant": False}, {"id": 1, "relevant": True}]}
    write_lines("chunk_relevance.jsonl", [{"question_id": 1, "documents": [marks]}])
    items, bad = read(path)
    assert sources.detect(path) == sources.detect(path.parent) == "qa-pairs"
    assert items[0].question.answers == ["bare"]
    assert [p.passage_id for p in items[0].passages] == ["d1_0", "d1#1"]
    assert items[0].question.gold.long == ["d1#1"]
    assert [p.passage_id for p in items[1].passages] == ["d2#1"] and items[1].question.gold.long == []
    assert [(b.line, b.kept) for b in bad] == [(3, True)] and "chunks_collection.jsonl" in bad[0].field


def test_qa_pairs_with_documents(write_lines: Write) -> None:
    path = write_lines("qa_pairs.jsonl", [{"question_id": "1", "question": "q", "answer": "a"}])
    write_lines("documents_collection.jsonl", [{"doc_id": "d", "question_id": "1", "title": "T", "text": "Text."}])
    (item,), _ = read(path)
    assert item.documents[0].doc_id == "d" and item.documents[0].text == "Text."


# ------------------------------------------------------------------------------------------------------- telling apart


def test_an_unknown_form_names_the_known_ones(write_lines: Write, tmp_path: Path) -> None:
    for name, rows in (("a.jsonl", [{"foo": 1}]), ("b.txt", ["hello"]), ("c.jsonl", [""])):
        with pytest.raises(UsageError, match="nq-merged"):
            sources.detect(write_lines(name, rows))
    with pytest.raises(UsageError, match="merge-nq"):
        sources.detect(write_lines("s.jsonl", [{"question_text": "q", "document_text": "d", "annotations": []}]))
    with pytest.raises(SlmxError, match="no file"):
        sources.detect(tmp_path / "absent")


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_junk_gives_bad_rows_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "f"
    path.write_bytes(junk)
    for name in sources.FORMATS.names():
        if name == "beir":
            continue
        try:
            rows = list(sources.read(path, name))
        except SlmxError:
            continue
        assert all(isinstance(r, (Item, BadRow)) for r in rows)


ANSWERS = st.lists(st.text(max_size=10), max_size=3)
TOKENS = st.fixed_dictionaries({"start_token": st.integers(-2, 12), "end_token": st.integers(-2, 12)})


@given(
    text=st.text(alphabet="ab <P>\u2003", max_size=30),
    answers=ANSWERS,
    shorts=st.lists(TOKENS, max_size=3),
    candidates=st.lists(TOKENS, max_size=3),
    index=st.integers(-2, 4),
)
@settings(max_examples=200, deadline=None)
def test_no_annotation_crashes_the_merged_reader(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    answers: list[str],
    shorts: list[dict[str, int]],
    candidates: list[dict[str, int]],
    index: int,
) -> None:
    row = {
        "question": "q",
        "answer": answers,
        "document_text": text,
        "annotations": [{"long_answer": {"candidate_index": index}, "short_answers": shorts}],
        "long_answer_candidates": candidates,
    }
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    pieces = text.split(" ")
    for found in sources.read(path, "nq-merged"):
        if isinstance(found, Item):
            good = [s for s in shorts if 0 <= s["start_token"] < s["end_token"] <= len(pieces)]
            assert found.short_contexts == [" ".join(pieces[s["start_token"] : s["end_token"]]) for s in good]
