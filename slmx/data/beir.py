"""BEIR folders: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`; and TREC qrels and runs, the form of exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from slmx import files
from slmx.data.sources import BadRow, Item, decode_row, item
from slmx.data.stream import Head
from slmx.errors import SlmxError
from slmx.records import Gold, Hit, Passage, Question, Ranking

Qrels = dict[str, dict[str, int]]


class CorpusRow(msgspec.Struct):
    """One line of `corpus.jsonl`; `doc_id` is slmx's own addition."""

    id: str = msgspec.field(name="_id")
    text: str
    title: str | None = None
    doc_id: str = ""


class QueryRow(msgspec.Struct):
    """One line of `queries.jsonl`."""

    id: str = msgspec.field(name="_id")
    text: str
    metadata: dict[str, Any] | None = None


class OwnMetadata(msgspec.Struct):
    """What slmx keeps in a query's metadata."""

    answers: list[str]
    gold: Gold = Gold()
    source: dict[str, Any] = {}


def read_corpus(folder: Path) -> Iterator[Passage]:
    """The passages of a folder, streamed; SlmxError names the line of a bad one."""
    path = folder / "corpus.jsonl"
    decoder = msgspec.json.Decoder(CorpusRow)
    for line, raw in files.read_lines(path):
        row = decode_row(decoder, line, raw)
        if isinstance(row, BadRow):
            raise _bad(path, row)
        yield Passage(passage_id=row.id, text=row.text, title=row.title or "", doc_id=row.doc_id or row.id)


def passage_text(passage: Passage) -> str:
    """The text that is indexed, for words and vectors alike: title, a space and text, as BEIR joins them."""
    return f"{passage.title} {passage.text}".strip()


def read_queries(folder: Path) -> Iterator[Question]:
    """The questions of a folder. Where slmx wrote it they have answers and gold passages, else neither."""
    path = folder / "queries.jsonl"
    decoder = msgspec.json.Decoder(QueryRow)
    for line, raw in files.read_lines(path):
        row = decode_row(decoder, line, raw)
        if isinstance(row, BadRow):
            raise _bad(path, row)
        yield _question(row)


def _question(row: QueryRow) -> Question:
    metadata = row.metadata or {}
    if isinstance(metadata.get("answers"), list):
        try:
            own = msgspec.convert(metadata, OwnMetadata)
        except msgspec.ValidationError:  # somebody else's "answers"
            pass
        else:
            return Question(
                question_id=row.id, question=row.text, answers=own.answers, gold=own.gold, metadata=own.source
            )
    return Question(question_id=row.id, question=row.text, answers=[], metadata=metadata)


def _bad(path: Path, row: BadRow) -> SlmxError:
    hint = "Correct the line; a folder is read whole, since scores over a part of it would be wrong."
    return SlmxError(f"{path}, line {row.line}: {row.field}: {row.reason}.", hint=hint)


def splits(folder: Path) -> list[str]:
    """The names of a folder's qrels, "test" first."""
    found = sorted(p.stem for p in (folder / "qrels").glob("*.tsv"))
    return sorted(found, key=lambda name: name != "test")


def read_qrels(path: Path) -> Qrels:
    """Relevance marks, question → passage → grade: BEIR's three columns with a header or without, or TREC's four.

    Raises:
        SlmxError: a line has neither form, or a pair has two different grades.
    """
    qrels: Qrels = {}
    for line, raw in files.read_lines(path):
        cells = raw.decode(errors="replace").rstrip("\r\n").split("\t")
        if len(cells) < 3:
            cells = raw.decode(errors="replace").split()
        if len(cells) == 4:
            cells = [cells[0], cells[2], cells[3]]
        try:
            question_id, passage_id, grade = cells[0].strip(), cells[1].strip(), int(cells[2])
        except (IndexError, ValueError):
            if line == 1 and len(cells) == 3:
                continue  # the header
            raise SlmxError(
                f"{path}, line {line}: no qrels.", hint="A line is query-id, corpus-id, score; or qid 0 docid rel."
            ) from None
        if qrels.setdefault(question_id, {}).setdefault(passage_id, grade) != grade:
            raise SlmxError(f"{path}, line {line}: {question_id} and {passage_id} have two different grades.")
    return qrels


def write_qrels(path: Path, qrels: Qrels, *, trec: bool = False) -> None:
    """Write BEIR's form, or TREC's `qid 0 docid rel`."""
    with files.atomic_write(path) as out:
        if not trec:
            out.write(b"query-id\tcorpus-id\tscore\n")
        for question_id, marks in qrels.items():
            for passage_id, grade in marks.items():
                line = f"{question_id} 0 {passage_id} {grade}\n" if trec else f"{question_id}\t{passage_id}\t{grade}\n"
                out.write(line.encode())


def write_run(path: Path, rankings: Iterable[Ranking], tag: str) -> None:
    """Write rankings as a TREC run: `qid Q0 docid rank score tag`.

    Raises:
        SlmxError: an id with a space in it, which would be read back as another id.
    """
    name = files.slug(tag)
    with files.atomic_write(path) as out:
        for ranking in rankings:
            for rank, hit in enumerate(ranking.hits, 1):
                for own in (ranking.question_id, hit.passage_id):
                    if len(own.split()) != 1:
                        raise SlmxError(f"The id {own!r} cannot stand in a TREC run.", hint="Give ids without spaces.")
                out.write(f"{ranking.question_id} Q0 {hit.passage_id} {rank} {hit.score!r} {name}\n".encode())


def read_run(path: Path) -> list[Ranking]:
    """Read a TREC run. Its scores decide the order, as in trec_eval; its ranks are not looked at."""
    hits: dict[str, list[Hit]] = {}
    for line, raw in files.read_lines(path):
        cells = raw.decode(errors="replace").split()
        try:
            question_id, _, passage_id, _, score = cells[:5]
            hits.setdefault(question_id, []).append(Hit(passage_id=passage_id, score=float(score)))
        except ValueError:
            hint = "A line is: qid Q0 docid rank score tag."
            raise SlmxError(f"{path}, line {line} is no line of a TREC run.", hint=hint) from None
    return [
        Ranking(question_id=question_id, hits=sorted(found, key=lambda hit: -hit.score))
        for question_id, found in hits.items()
    ]


def absent(qrels: Mapping[str, Mapping[str, int]], known: set[str]) -> list[str]:
    """The passages that qrels name and the corpus does not have, each once."""
    return list(dict.fromkeys(p for marks in qrels.values() for p in marks if p not in known))


class _Beir:
    """A BEIR folder's questions as Items; for those without answers see `slmx.data.datasets`, which reads it whole."""

    about = "BEIR folder"

    def sniff(self, head: Head) -> bool:
        """A folder with questions, or with a corpus alone."""
        return head.layout == "folder" and bool(head.keys & {"queries.jsonl", "corpus.jsonl"})

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """Each question; one without answers is a BadRow."""
        for line, question in enumerate(read_queries(path), 1):
            yield item(
                line,
                question.question,
                question.answers,
                question_id=question.question_id,
                metadata=question.metadata,
            )


BEIR = _Beir()
