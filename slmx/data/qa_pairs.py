"""`qa_pairs.jsonl` and its companions: documents, ready-cut chunks, and which chunks are relevant to a question.

The companions lie beside it: `chunks_collection.jsonl` (cut by somebody, with relevance in `chunk_relevance.jsonl`) or,
where there are no chunks, `documents_collection.jsonl`. Each is read once to note where every question's lines begin;
the texts are read when the question comes, so memory holds places and never texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import msgspec

from slmx import files
from slmx.data.sources import BadRow, Item, decode_row, item
from slmx.data.stream import Head, rows
from slmx.errors import SlmxError
from slmx.records import Document, Gold, Passage

NAME = "qa_pairs.jsonl"
CHUNKS, DOCUMENTS, RELEVANCE = "chunks_collection.jsonl", "documents_collection.jsonl", "chunk_relevance.jsonl"


class PairRow(msgspec.Struct):
    """One line of `qa_pairs.jsonl`, read and written."""

    question_id: str | int
    question: str
    answer: list[str] | str


class Chunk(msgspec.Struct):
    """A ready-cut passage."""

    id: str | int
    text: str


class ChunksRow(msgspec.Struct):
    """One document's chunks; the list goes by `chuks` (so spelled in the old files) or `chunks`."""

    doc_id: str | int
    question_id: str | int
    title: str | None = None
    chuks: list[Chunk] = []
    chunks: list[Chunk] = []


class DocumentRow(msgspec.Struct):
    """One document."""

    doc_id: str | int
    text: str
    question_id: str | int = ""
    title: str | None = None
    url: str | None = None


class Mark(msgspec.Struct):
    """Is a chunk relevant?"""

    id: str | int
    relevant: bool | int | None = None


class MarkedDocument(msgspec.Struct):
    """The marks of one document's chunks."""

    doc_id: str | int
    chunks: list[Mark] = []


class RelevanceRow(msgspec.Struct):
    """The marks for one question."""

    question_id: str | int
    documents: list[MarkedDocument] = []


R = TypeVar("R", ChunksRow, DocumentRow, RelevanceRow)


class _Companion(Generic[R]):
    """A companion file by question: where its lines begin, and its rows when they are asked for."""

    def __init__(self, path: Path, row: type[R]) -> None:
        self.path, self.problems = path, list[BadRow]()
        self._decoder: msgspec.json.Decoder[R] = msgspec.json.Decoder(row)
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._stream: BinaryIO | None = None
        if not path.is_file():
            return
        self._stream = files.open_bytes(path)
        at, number = 0, 0
        while line := self._stream.readline(files.MAX_ROW + 1):
            number += 1
            if len(line) > files.MAX_ROW:
                raise SlmxError(f"{path}, line {number} is longer than {files.MAX_ROW >> 20} MiB.")
            if line.strip():
                found = decode_row(self._decoder, number, line)
                if isinstance(found, BadRow):
                    field = f"{path.name}: {found.field}"
                    self.problems.append(msgspec.structs.replace(found, field=field, kept=True))
                else:
                    self._places[str(found.question_id)].append((at, number))
            at += len(line)

    def of(self, question_id: str) -> Iterator[R]:
        """The rows of a question, in the file's order."""
        for at, number in self._places.get(question_id, ()):
            assert self._stream is not None  # there are places only where there is a file
            self._stream.seek(at)
            found = decode_row(self._decoder, number, self._stream.readline())
            if not isinstance(found, BadRow):
                yield found

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


class _QaPairs:
    """The pairs with what their companions know."""

    about = "qa_pairs.jsonl with its companions"

    def sniff(self, head: Head) -> bool:
        """Looks at the first row's keys, or for the file's name in a folder."""
        if head.layout == "folder":
            return NAME in head.keys
        return head.layout in ("array", "lines") and head.keys >= {"question_id", "question", "answer"}

    def companions(self, path: Path) -> list[Path]:
        """The companion files that are there."""
        folder = path if path.is_dir() else path.parent
        return [p for p in (folder / name for name in (CHUNKS, DOCUMENTS, RELEVANCE)) if p.is_file()]

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """Pair after pair."""
        pairs = path / NAME if path.is_dir() else path
        decoder = msgspec.json.Decoder(PairRow)
        chunks = _Companion(pairs.parent / CHUNKS, ChunksRow)
        documents = _Companion(pairs.parent / DOCUMENTS, DocumentRow)
        relevance = _Companion(pairs.parent / RELEVANCE, RelevanceRow)
        try:
            for companion in (chunks, documents, relevance):
                yield from companion.problems
            for line, raw, _ in rows(pairs):
                row = decode_row(decoder, line, raw)
                yield row if isinstance(row, BadRow) else _pair(line, row, chunks, documents, relevance)
        finally:
            for companion in (chunks, documents, relevance):
                companion.close()


def _pair(
    line: int,
    row: PairRow,
    chunks: _Companion[ChunksRow],
    documents: _Companion[DocumentRow],
    relevance: _Companion[RelevanceRow],
) -> Item | BadRow:
    question_id = str(row.question_id)
    passages = [
        Passage(
            passage_id=_chunk_id(document.doc_id, chunk.id),
            text=chunk.text,
            title=document.title or "",
            doc_id=str(document.doc_id),
        )
        for document in chunks.of(question_id)
        for chunk in (document.chuks or document.chunks)
        if chunk.text.strip()
    ]
    whole = [
        Document(doc_id=str(d.doc_id), text=d.text, title=d.title or "", url=d.url or "")
        for d in documents.of(question_id)
        if not passages and d.text.strip()
    ]
    made = item(line, row.question, row.answer, question_id=question_id, documents=whole, passages=passages)
    if isinstance(made, BadRow) or not passages:
        return made
    relevant = {
        _chunk_id(document.doc_id, mark.id)
        for marks in relevance.of(question_id)
        for document in marks.documents
        for mark in document.chunks
        if mark.relevant
    }
    ids = [p.passage_id for p in passages]
    gold = Gold(long=[p for p in ids if p in relevant], document=ids)
    return msgspec.structs.replace(made, question=msgspec.structs.replace(made.question, gold=gold))


def _chunk_id(doc_id: str | int, chunk_id: str | int) -> str:
    """A chunk's id in the corpus: its own where it names its document already, else both."""
    own = str(chunk_id)
    return own if own.startswith(str(doc_id)) and own != str(doc_id) else f"{doc_id}#{own}"


QA_PAIRS = _QaPairs()
