from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from slmx.data.beir import read_corpus, read_queries
from slmx.data.clean import clean
from slmx.data.passages import LONGEST, Held, build, cut
from slmx.errors import PartlyDone, RefusedError, SlmxError, UsageError
from slmx.records import Document

Write = Callable[..., Path]
Row = Callable[..., dict[str, Any]]


def of(text: str, **sizes: int) -> list[str]:
    return [c.passage.text for c in cut(Document(doc_id="d", text=text), **sizes)]


# ------------------------------------------------------------------------------------------------------------ cleaning


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<P> One , two . </P> <P> Three ! </P>", "One, two.\nThree!"),
        ("<H1> Title </H1> <Ul> <Li> a </Li> <Li> b ; c </Li> </Ul>", "Title\na\nb; c"),
        ('<Table> <Tr> <Th> A </Th> <Th_colspan="2"> B </Th> </Tr> <Tr> <Td> 1 </Td> </Tr> </Table>', "A | B\n1"),
        ("<P> He said `` no '' ( once ) [ 1 ] and did n't </P>", 'He said "no" (once) [1] and didn\'t'),
        ("<P> the man 's dog , they 're here </P>", "the man's dog, they're here"),
        ("<P> AT&amp;T &nbsp; &lt;x&gt; 5 % </P>", "AT&T <x> 5%"),
        ("<P> a\u2003\u00a0b </P>", "a b"),
        ("<P> 3 < 5 > 2 <unk> </P>", "3 < 5 > 2 <unk>"),
        ("<h1> lower </h1> <li> x </li>", "lower\nx"),
        ("<P> </P> <P> only </P> <Td> </Td>", "only"),
        ("plain , text  with\tspaces\n\nand lines &eacute;", "plain , text with spaces\nand lines é"),
        ("", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw).text == cleaned


PIECES = st.sampled_from(
    [
        "<P>",
        "</P>",
        "<H2>",
        "</H2>",
        "<Td>",
        "<Tr>",
        "word",
        "Berg",
        ",",
        ".",
        "(",
        ")",
        "``",
        "''",
        "'s",
        "&amp;",
        "x\u2003y",
        "",
    ]
)


@given(st.lists(PIECES, max_size=60))
@settings(max_examples=300, deadline=None)
def test_every_cleaned_range_knows_its_raw_characters(pieces: list[str]) -> None:
    raw = " ".join(pieces)
    cleaned = clean(raw)
    for word in ("word", "Berg"):
        at = cleaned.text.find(word)
        while at >= 0:
            start, end = cleaned.raw(at, at + len(word))
            assert raw[start:end] == word
            assert cleaned.part(start, end) == word
            at = cleaned.text.find(word, at + 1)
    assert cleaned.text.count("word") == pieces.count("word")
    assert cleaned.text == cleaned.text.strip() and "  " not in cleaned.text


# ------------------------------------------------------------------------------------------------------------- cutting


def sentence(n: int, name: str = "word") -> str:
    return "The " + " ".join([name] * (n - 1)) + "."


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40),
    words=st.integers(10, 120),
    share=st.floats(0, 0.5),
    headings=st.booleans(),
)
@example(lengths=[42], words=28, share=0.0, headings=True)  # a heading makes a sentence too long
@settings(max_examples=150, deadline=None)
def test_passages_hold_whole_sentences_in_order(lengths: list[int], words: int, share: float, headings: bool) -> None:
    overlap = int(words * share)
    parts = [sentence(n, f"w{place}") for place, n in enumerate(lengths)]
    raw = "".join(
        f"{'<H2> Head </H2> ' if headings and n % 7 == 0 else ''}<P> {p} </P> "
        for n, p in zip(lengths, parts, strict=True)
    )
    found = of(raw, words=words, overlap=overlap)
    for text in found:
        assert len(text.split()) <= LONGEST * words
    for place, part in enumerate(parts):
        holding = [n for n, text in enumerate(found) if part in text]
        if lengths[place] <= words:
            assert holding, "a sentence was cut or lost"
        if not overlap:
            assert len(holding) <= 1
    order = [text.find("w0") for text in found]
    assert order[0] >= 0


def test_nothing_is_lost_and_nothing_comes_twice() -> None:
    text = " ".join(sentence(n, f"w{n}") for n in range(3, 200))
    found = of(text)
    assert " ".join(found).split() == text.split()


def test_headings_open_passages_and_stay_with_their_text() -> None:
    body = " ".join(sentence(15) for _ in range(5))
    raw = f"<H1> Top </H1> <P> {body} </P> <H2> Early life </H2> <P> {body} </P> <H2> Late life </H2> <P> {body} </P>"
    found = of(raw)
    assert [text.split("\n")[0] for text in found] == ["Top", "Early life", "Late life"]


def test_overlap_repeats_whole_sentences() -> None:
    text = " ".join(sentence(20, f"w{n}") for n in range(20))
    found = of(text, words=100, overlap=40)
    for before, after in pairwise(found):
        assert after.startswith(before.split(". ")[-2])


def test_sizes_that_make_no_sense_are_refused() -> None:
    for sizes in ({"words": 5}, {"words": 100, "overlap": 60}, {"words": 100, "overlap": -1}):
        with pytest.raises(UsageError):
            of("x", **sizes)


def test_ids_are_readable_and_stable() -> None:
    document = Document(doc_id="", title="River Berg", text="One. Two.")
    first = cut(document)[0].passage
    assert first.passage_id.startswith("River_Berg-") and first.passage_id.endswith("#0")
    assert first == cut(document)[0].passage
    other = cut(Document(doc_id="", title="River Berg", text="One. Three."))[0].passage
    assert other.doc_id != first.doc_id


@pytest.mark.parametrize("unit", ["word ", "x", "A. ", "&amp;", "<P> a </P> ", "(", "\u2003", "`` '' "])
def test_half_a_million_characters_of_anything_take_no_long(unit: str) -> None:
    text = unit * (515_000 // len(unit))
    begin = time.perf_counter()
    of(text)
    assert time.perf_counter() - begin < 30  # a guard against quadratic work, not a measurement


# -------------------------------------------------------------------------------------------------------- gold marks


def test_gold_marks_by_raw_span_and_answer(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    filler = " ".join(f"<P> {sentence(40).replace('.', ' .')} </P>" for _ in range(4))
    row = merged_row(1)
    row["document_text"] += f" {filler} <P> Later Anna Berg came back . </P>"
    again = {**row, "question": "how long is river 1", "answer": ["120 km"], "example_id": 5, "annotations": []}
    stored = build(write_lines("m.jsonl", [row, again]), tmp_path / "out")
    first, second = read_queries(tmp_path / "out")
    corpus = {p.passage_id: p for p in read_corpus(tmp_path / "out")}
    assert stored.counts.documents == 1 and stored.counts.passages == len(corpus) > 2
    assert len(first.gold.long) == 1 and len(first.gold.short) == 2
    assert "Its source was found in 1871 by Anna Berg, who walked there." in corpus[first.gold.long[0]].text
    assert "Later Anna Berg" in corpus[first.gold.short[1]].text
    assert second.gold.long == [] and second.gold.at("long") == second.gold.short == first.gold.long
    assert first.gold.document == second.gold.document == list(corpus)


def test_long_passages_that_hold_an_answer_come_first(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    paragraphs = " ".join(f"<P> {sentence(90).replace('.', ' .')} </P>" for _ in range(2))
    text = f"<Ul> {paragraphs} <P> It was Anna Berg . </P> </Ul> <P> {sentence(90)} </P>"
    end = text.split(" ").index("</Ul>") + 1
    annotation = {"long_answer": {"start_token": 0, "end_token": end, "candidate_index": 0}}
    candidates = [{"start_token": 0, "end_token": end}]
    row = merged_row(document_text=text, annotations=[annotation], long_answer_candidates=candidates)
    build(write_lines("m.jsonl", [row]), tmp_path / "out")
    (question,) = read_queries(tmp_path / "out")
    numbers = [p.rpartition("#")[2] for p in question.gold.long]
    assert len(numbers) > 1 and numbers[1:] == sorted(numbers[1:])
    assert question.gold.long[0] == question.gold.short[0] and numbers[0] != "0"


def test_a_possessive_hides_no_answer() -> None:
    assert Held("It is Schiller's poem.", "norm").any_of(["Schiller"])
    assert Held("McDonald's has more.", "norm").any_of(["McDonald 's"])
    assert Held("McDonald’s has more.", "norm-u1").any_of(["McDonald's"])
    assert not Held("It is Schillers poem.", "norm").any_of(["Schiller"])


def test_the_same_question_twice_has_two_ids(write_lines: Write, tmp_path: Path) -> None:
    build(write_lines("o.jsonl", [{"question": "q", "answer": ["a"]}] * 2), tmp_path / "out")
    first, second = read_queries(tmp_path / "out")
    assert second.question_id == f"{first.question_id}-2"
    assert not (tmp_path / "out" / "corpus.jsonl").exists()


@pytest.mark.parametrize("ids", [["a", "a", "a-2"], ["a-2", "a", "a"], ["a", "a", "a", "a-2", "a-2", "a-3"]])
def test_no_two_questions_get_one_id(ids: list[str], write_lines: Write, tmp_path: Path) -> None:
    rows = [{"question_id": own, "question": f"q {n}", "answer": ["a"]} for n, own in enumerate(ids)]
    build(write_lines("p.jsonl", rows), tmp_path / "out")
    made = {q.question_id: q.question for q in read_queries(tmp_path / "out")}
    assert list(made.values()) == [f"q {n}" for n in range(len(ids))]
    assert next(iter(made)) == ids[0]


def test_a_folder_of_somebody_else_is_never_replaced(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [merged_row(0)])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    build(source, theirs, overwrite=True)  # it was empty
    (theirs / "dataset.json").unlink()
    (theirs / "thesis.txt").write_text("mine")
    before = sorted(p.name for p in theirs.rglob("*"))
    with pytest.raises(RefusedError, match=r"holds no dataset\.json") as caught:
        build(source, theirs, overwrite=True)
    assert caught.value.code == 4
    assert sorted(p.name for p in theirs.rglob("*")) == before


def test_strict_fails_at_the_first_bad_row(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    source = write_lines("m.jsonl", [*[merged_row(n) for n in range(30)], "{broken"])
    with pytest.raises(SlmxError, match="Line 31"):
        build(source, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_whole_or_absent(write_lines: Write, merged_row: Row, tmp_path: Path) -> None:
    bad = write_lines("bad.jsonl", [merged_row(0), "{broken"])
    with pytest.raises(SlmxError, match="1 of 2 rows"):
        build(bad, tmp_path / "out", format="nq-merged")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]
    stored = build(bad, tmp_path / "out", format="nq-merged", allow_errors=True)
    assert stored.counts.left_out == 1 and (tmp_path / "out" / "errors.jsonl").is_file()
    with pytest.raises(PartlyDone, match="left out"):
        stored.check(tmp_path / "out")
    good = write_lines("good.jsonl", [merged_row(0)])
    with pytest.raises(RefusedError, match="exists"):
        build(good, tmp_path / "out")
    again = build(good, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "errors.jsonl").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl", "out"]
    assert msgspec.json.decode((tmp_path / "out" / "dataset.json").read_bytes())["corpus_hash"] == again.corpus_hash
