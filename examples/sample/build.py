"""Build the sample dataset of `slmx/sample/` from `articles.yaml`.

The articles and questions are plain text that a person can read and change. This script gives them the two forms in
which public question-answer sets arrive: the merged Natural Questions form (tokens, HTML tags, token offsets) and the
SimpleQA form with documents (one CSV). The same YAML gives the same bytes on every machine.

    python examples/sample/build.py            # writes into slmx/sample
    python examples/sample/build.py --to DIR

Every offset is checked against the answer that it stands for; a slip in the YAML stops the build with the question's
text.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

HERE = Path(__file__).resolve().parent
NQ_FILE = "NQ-open.dev.merged.jsonl"
CSV_FILE = "simple_qa_test_set_with_documents.csv"
CSV_COLUMNS = (
    "metadata",
    "problem",
    "answer",
    "documents",
    "num_documents",
    "document_formats",
    "avg_document_length_words",
    "answer_found_in_documents",
    "answer_position_words",
    "answer_position_chars",
    "answer_found_in_doc_index",
)
ANSWER_TYPES = frozenset({"Date", "Person", "Number", "Place", "Other"})

# Written as words in the YAML, since nobody sees the difference between two spaces in a diff.
MARKERS = {"{nbsp}": "\u00a0", "{thin}": "\u2009"}

OPENING = "([{\"'«„“$£€"
CLOSING = ".,;:?!)]}\"'»”%"
ABBREVIATION = re.compile(r"(?:[A-ZА-Я]\.)+|St\.|Dr\.|Mt\.")
INNER_DASH = re.compile(r"([-–—])")
ASCII_WORD = re.compile(r"[^ ]+")
DASHES = {"–": "--"}


class SampleError(Exception):
    """Something in `articles.yaml` does not hold; the message names the article or the question."""


@dataclass(frozen=True)
class Block:
    """One piece of an article: a paragraph (p), a heading (h), a list (l) or a table (t), as rows of cells."""

    key: str
    kind: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Question:
    """One question, the block that answers it, its short answers there (maybe none) and the accepted answers."""

    text: str
    at: str
    shorts: tuple[str, ...]
    answers: tuple[str, ...]
    topic: str
    answer_type: str
    has_documents: bool

    @property
    def example_id(self) -> int:
        """A positive 62-bit number made of the text, so that an id stays when questions are added."""
        return int.from_bytes(hashlib.sha256(self.text.encode()).digest()[:8], "big") >> 2


@dataclass(frozen=True)
class Article:
    """One article with its questions; `near` is the title of the article that is easily taken for it."""

    title: str
    near: str
    lang: str
    blocks: tuple[Block, ...]
    questions: tuple[Question, ...]

    @property
    def url(self) -> str:
        """An address in one of the forms that the public sets use; the revision number is made up."""
        name = quote(self.title.replace(" ", "_"), safe="()',_")
        if self.lang == "ru":
            return f"https://ru.wikipedia.org/wiki/{name}"
        digest = hashlib.sha256(self.title.encode()).digest()
        if digest[0] % 5 == 0:
            return f"https://en.wikipedia.org/wiki/{name}"
        revision = 700_000_000 + int.from_bytes(digest[:4], "big") % 140_000_000
        return f"https://en.wikipedia.org//w/index.php?title={name}&oldid={revision}"

    def plain(self) -> str:
        """The article as a web page's text: all whitespace is one plain space, as in the public file."""
        cells = [self.title, *(cell for block in self.blocks for row in block.rows for cell in row)]
        return " ".join(" ".join(cells).split())


@dataclass(frozen=True)
class Page:
    """An article in the simplified Natural Questions form: tokens and candidates, and each block's place among them."""

    tokens: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]
    # Block key → (index of its candidate, start token, end token); headings are no candidates.
    spans: dict[str, tuple[int, int, int]]


def fill_markers(text: str) -> str:
    """Put the exotic spaces where the YAML names them."""
    for marker, character in MARKERS.items():
        text = text.replace(marker, character)
    return text


def read_block(key: str, value: object, title: str) -> Block:
    """One entry of `body`; the first letter of its key tells the kind."""
    kind = key[0]
    if kind in "ph" and isinstance(value, str):
        return Block(key, kind, ((fill_markers(value),),))
    if kind == "l" and isinstance(value, list):
        return Block(key, kind, tuple((fill_markers(item),) for item in value))
    if kind == "t" and isinstance(value, list) and len({len(row) for row in value}) == 1:
        return Block(key, kind, tuple(tuple(fill_markers(cell) for cell in row) for row in value))
    raise SampleError(f"{title}: block {key} is no paragraph (p), heading (h), list (l) or table (t) of even rows")


def read_question(raw: dict[str, Any], title: str) -> Question:
    """One entry of `questions`; `short` is the first accepted answer unless given, and empty for a long answer only."""
    unknown = raw.keys() - {"q", "at", "answers", "short", "topic", "type", "documents"}
    if unknown or not raw.get("answers") or raw.get("type") not in ANSWER_TYPES:
        raise SampleError(
            f"{title}: question {raw.get('q')!r}: unknown keys {sorted(unknown)}, no answers or a wrong type"
        )
    short = raw.get("short", raw["answers"][0])
    return Question(
        text=raw["q"],
        at=raw["at"],
        shorts=tuple(short) if isinstance(short, list) else (short,) if short else (),
        answers=tuple(raw["answers"]),
        topic=raw["topic"],
        answer_type=raw["type"],
        has_documents=raw.get("documents") != "none",
    )


def read_articles(path: Path) -> list[Article]:
    """Read and check the YAML."""
    # The base loader reads every scalar as text: a year stays "1889", and "no" stays a word.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    articles = []
    for raw in yaml.load(path.read_text(encoding="utf-8"), Loader=loader):
        title = raw["title"]
        if any(len(entry) != 1 for entry in raw["body"]):
            raise SampleError(f"{title}: each entry of body has one key")
        blocks = tuple(read_block(key, value, title) for entry in raw["body"] for key, value in entry.items())
        questions = tuple(read_question(entry, title) for entry in raw["questions"])
        articles.append(Article(title, raw["near"], raw.get("lang", "en"), blocks, questions))
    check_names(articles)
    return articles


def check_names(articles: list[Article]) -> None:
    """Titles, block keys, questions and ids are unique, and every name that is used exists."""
    titles = [article.title for article in articles]
    questions = [question for article in articles for question in article.questions]
    for what, names in (
        ("title", titles),
        ("question", [question.text.lower() for question in questions]),
        ("id", [str(question.example_id) for question in questions]),
        *((f"block of {article.title}", [block.key for block in article.blocks]) for article in articles),
    ):
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise SampleError(f"{what} used twice: {sorted(double)}")
    for article in articles:
        if article.near == article.title or article.near not in titles:
            raise SampleError(f"{article.title}: near names no other article: {article.near!r}")


def split_word(word: str) -> Iterator[str]:
    """One word between plain spaces as tokens: punctuation, dashes and 's stand alone, quotes are `` and ''."""
    head: list[str] = []
    tail: list[str] = []
    while len(word) > 1 and word[0] in OPENING:
        head.append("``" if word[0] == '"' else word[0])
        word = word[1:]
    while len(word) > 1 and word[-1] in CLOSING and not ABBREVIATION.fullmatch(word):
        tail.insert(0, "''" if word[-1] == '"' else word[-1])
        word = word[:-1]
    if word.endswith("'s") and len(word) > 2:
        word = word[:-2]
        tail.insert(0, "'s")
    yield from head
    for piece in INNER_DASH.split(word):
        if piece:
            yield DASHES.get(piece, piece)
    yield from tail


def tokenize(text: str) -> list[str]:
    """Tokens of a text. Only the plain space parts words: a no-break or thin space stays inside its token."""
    return [html.escape(token, quote=False) for word in ASCII_WORD.findall(text) for token in split_word(word)]


def untoken(tokens: list[str]) -> str:
    """The text that tokens stand for, without any space: the way back from `tokenize`, to check it."""
    text = html.unescape("".join(tokens)).replace("``", '"').replace("''", '"').replace("--", "–")
    return "".join(text.split())


def make_page(article: Article) -> Page:
    """The tokens of an article with a candidate for every paragraph, table, row, list and item."""
    tokens = ["<H1>", *tokenize(article.title), "</H1>"]
    candidates: list[dict[str, Any]] = []
    spans: dict[str, tuple[int, int, int]] = {}

    def open_candidate(tag: str, top_level: bool) -> int:
        candidates.append({"start_token": len(tokens), "end_token": -1, "top_level": top_level})
        tokens.append(f"<{tag}>")
        return len(candidates) - 1

    def close_candidate(index: int, tag: str) -> None:
        tokens.append(f"</{tag}>")
        candidates[index]["end_token"] = len(tokens)

    for block in article.blocks:
        if block.kind == "h":
            tokens += ["<H2>", *tokenize(block.rows[0][0]), "</H2>"]
            continue
        tag = {"p": "P", "l": "Ul", "t": "Table"}[block.kind]
        index = open_candidate(tag, True)
        for number, row in enumerate(block.rows):
            if block.kind == "p":
                tokens += tokenize(row[0])
                continue
            inner = "Li" if block.kind == "l" else "Tr"
            child = open_candidate(inner, False)
            for cell in row:
                if block.kind == "l":
                    tokens += tokenize(cell)
                else:
                    cell_tag = "Th" if number == 0 else "Td"
                    tokens += [f"<{cell_tag}>", *tokenize(cell), f"</{cell_tag}>"]
            close_candidate(child, inner)
        close_candidate(index, tag)
        spans[block.key] = (index, candidates[index]["start_token"], candidates[index]["end_token"])
    return Page(tuple(tokens), tuple(candidates), spans)


def find_tokens(page: Page, block: str, text: str) -> list[tuple[int, int]]:
    """Every place in a block where the tokens of a text stand."""
    _, start, end = page.spans[block]
    wanted = tokenize(text)
    return [
        (at, at + len(wanted))
        for at in range(start, end - len(wanted) + 1)
        if list(page.tokens[at : at + len(wanted)]) == wanted
    ]


def short_span(page: Page, question: Question, short: str) -> dict[str, int]:
    """The one place of a short answer, checked against the joined text as well as against its tokens."""
    if question.at not in page.spans:
        raise SampleError(f"{question.text}: no paragraph, list or table {question.at!r}")
    places = find_tokens(page, question.at, short)
    if len(places) != 1:
        raise SampleError(f"{question.text}: {short!r} stands {len(places)} times in {question.at}, not once")
    start, end = places[0]
    document = " ".join(page.tokens).split(" ")
    if untoken(document[start:end]) != "".join(short.split()):
        raise SampleError(f"{question.text}: tokens {document[start:end]} are not {short!r}")
    return {"start_token": start, "end_token": end}


def annotate(page: Page, question: Question) -> list[dict[str, Any]]:
    """One to three annotators: some see no answer, some only the paragraph, some mark another accepted answer."""
    shorts = [short_span(page, question, short) for short in question.shorts]
    index, start, end = page.spans[question.at]
    long_answer = {"start_token": start, "end_token": end, "candidate_index": index}
    no_long = {"start_token": -1, "end_token": -1, "candidate_index": -1}
    others = [
        {"start_token": places[0][0], "end_token": places[0][1]}
        for answer in question.answers
        if len(places := find_tokens(page, question.at, answer)) == 1
    ]

    def annotation(long: dict[str, int], spans: list[dict[str, int]]) -> dict[str, Any]:
        return {"long_answer": dict(long), "short_answers": [dict(span) for span in spans], "yes_no_answer": "NONE"}

    gold = annotation(long_answer, shorts)
    none = annotation(no_long, [])
    long_only = annotation(long_answer, [])
    other = annotation(long_answer, others[-1:] if shorts else [])
    patterns = (
        [gold],
        [gold, gold],
        [gold, none, other],
        [none, gold],
        [gold, long_only, other],
        [gold],
        [other, gold, gold],
    )
    return patterns[question.example_id % len(patterns)]


def nq_line(article: Article, page: Page, question: Question) -> str:
    """One line of the merged Natural Questions file."""
    row = {
        "question": question.text,
        "answer": list(question.answers),
        "document_text": " ".join(page.tokens),
        "document_url": article.url,
        "annotations": annotate(page, question),
        "long_answer_candidates": list(page.candidates),
        "example_id": question.example_id,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def csv_row(article: Article, near: Article, question: Question) -> dict[str, object]:
    """One row of the SimpleQA file: positions are those of the first document that holds the answer, in any case."""
    # About two questions in five have the neighbouring article beside their own, half of them before it.
    turn = question.example_id // 7 % 5
    chosen = [[near, article], [article, near], [article], [article], [article]][turn] if question.has_documents else []
    documents = [one.plain() for one in chosen]
    words = [len(document.split()) for document in documents]
    answer = question.answers[0]
    found = [(index, at) for index, text in enumerate(documents) if (at := text.lower().find(answer.lower())) >= 0]
    index, at = found[0] if found else (-1, -1)
    urls = [one.url for one in (chosen or [article])]
    return {
        "metadata": repr({"topic": question.topic, "answer_type": question.answer_type, "urls": urls}),
        "problem": question.text,
        "answer": answer,
        "documents": repr(documents),
        "num_documents": len(documents),
        "document_formats": ",".join("html" for _ in documents),
        "avg_document_length_words": sum(words) / len(words) if words else 0.0,
        "answer_found_in_documents": bool(found),
        "answer_position_words": len(documents[index][:at].split()) if found else "",
        "answer_position_chars": at if found else "",
        "answer_found_in_doc_index": index if found else "",
    }


def build(articles: list[Article]) -> dict[str, bytes]:
    """File name → content. Rows are ordered by id: neighbours in the YAML lie apart, a new question is one new line."""
    by_title = {article.title: article for article in articles}
    pages = {article.title: make_page(article) for article in articles}
    for article in articles:
        for question in article.questions:
            if not any(" ".join(answer.split()).lower() in article.plain().lower() for answer in question.answers):
                raise SampleError(f"{question.text}: no accepted answer stands in {article.title}")
    rows = sorted(
        ((article, question) for article in articles for question in article.questions),
        key=lambda row: row[1].example_id,
    )
    table = io.StringIO()
    writer = csv.DictWriter(table, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_row(article, by_title[article.near], question) for article, question in rows)
    lines = "".join(nq_line(article, pages[article.title], question) for article, question in rows)
    return {NQ_FILE: lines.encode(), CSV_FILE: table.getvalue().encode()}


def main(arguments: list[str] | None = None) -> int:
    """Write both files and say how much was written."""
    parser = argparse.ArgumentParser(description="Build the sample dataset from articles.yaml.")
    parser.add_argument("--to", type=Path, default=HERE.parents[1] / "slmx" / "sample", help="folder to write into")
    to: Path = parser.parse_args(arguments).to
    try:
        articles = read_articles(HERE / "articles.yaml")
        files = build(articles)
    except SampleError as error:
        print(f"articles.yaml: {error}", file=sys.stderr)
        return 1
    to.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (to / name).write_bytes(content)
    questions = sum(len(article.questions) for article in articles)
    print(f"{len(articles)} articles, {questions} questions, {sum(map(len, files.values())):,} bytes in {to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
