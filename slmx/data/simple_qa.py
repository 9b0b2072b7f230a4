"""SimpleQA: the CSV test set (plain, with documents, with long answers) and the converted JSON in both its layouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.literals import strings, value
from slmx.data.sources import BadRow, Item, RowReader, item
from slmx.data.stream import CsvRow, Head, csv_rows
from slmx.records import Document

BETWEEN = "\n\n"  # stands between two documents of a converted row's context
_PAGE_TITLE = re.compile(r"\s*(\S[^\n]{1,90}?)\s+[-–—|·]\s")


def document_of(text: str) -> Document:
    """A web page's text as a document; its title is what stands before the first dash or bar, as in browsers."""
    found = _PAGE_TITLE.match(text[:100])
    return Document(doc_id="", text=text, title=found[1] if found else "")


class _Csv:
    """All three CSV forms: the columns that are there are read."""

    about = "SimpleQA CSV: plain, with documents, with long answers"

    def sniff(self, head: Head) -> bool:
        """Looks at the columns."""
        return head.layout == "text" and head.keys >= {"problem", "answer"}

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """Row after row; `id` in the metadata is the row's number from 0."""
        for number, row in enumerate(csv_rows(path)):
            if row.problem:
                yield BadRow(line=row.line, field="row", reason=row.problem)
            else:
                yield from _from_csv(number, row)


def _from_csv(number: int, row: CsvRow) -> Iterator[Item | BadRow]:
    problems: list[BadRow] = []

    def lost(field: str, reason: str) -> None:
        problems.append(BadRow(line=row.line, field=field, reason=reason, kept=True))

    metadata = value(row.cells.get("metadata", ""))
    if not isinstance(metadata, dict):
        if metadata is not None:
            lost("metadata", "not a Python or JSON dict")
        metadata = {}
    texts = strings(row.cells.get("documents", ""))
    if texts is None:
        lost("documents", "not a list of strings")
    long_answers = strings(row.cells.get("long_answer", ""))
    if long_answers is None:
        lost("long_answer", "not a list of strings")
    made = item(
        row.line,
        row.cells.get("problem", ""),
        row.cells.get("answer", ""),
        metadata={"id": number, **{str(k): v for k, v in metadata.items()}, "source": "simple_qa"},
        documents=[document_of(text) for text in texts or [] if text.strip()],
        long_answers=[text for text in long_answers or [] if text.strip()],
    )
    yield made
    if isinstance(made, Item):
        yield from problems


class ConvertedRow(msgspec.Struct, omit_defaults=True):
    """One row of `simple_qa_converted.json`, read and written.

    `context` is all documents; `metadata.document_chars` (slmx's own) tells how long each is, so that they come apart
    again. `long_answer` is a list where there are several.
    """

    question: str
    answer: list[str] | str
    context: str | None = msgspec.field(default_factory=str)
    long_answer: list[str] | str | None = None
    metadata: dict[str, Any] | None = msgspec.field(default_factory=dict)


def converted(made: Item) -> ConvertedRow:
    """An item as a row of the converted file."""
    texts = [d.text for d in made.documents]
    metadata = dict(made.question.metadata)
    if len(texts) > 1:
        metadata["document_chars"] = [len(text) for text in texts]
    answers, long = made.question.answers, made.long_answers
    return ConvertedRow(
        question=made.question.question,
        answer=answers[0] if len(answers) == 1 else answers,
        context=BETWEEN.join(texts),
        long_answer=long[0] if len(long) == 1 else long or None,
        metadata=metadata,
    )


def _texts(context: str, chars: Any) -> list[str]:
    """The documents of a context, by their lengths; the whole context where these do not fit."""
    if isinstance(chars, list) and all(isinstance(n, int) and n >= 0 for n in chars):
        at, texts = 0, []
        for n in chars:
            texts.append(context[at : at + n])
            at += n + len(BETWEEN)
        if BETWEEN.join(texts) == context:
            return texts
    return [context]


def _converted(line: int, row: ConvertedRow, section: str) -> Iterator[Item | BadRow]:
    metadata = dict(row.metadata or {})
    texts = _texts(row.context or "", metadata.pop("document_chars", None))
    if section:
        metadata["split"] = section
    long = row.long_answer or []
    yield item(
        line,
        row.question,
        row.answer,
        metadata=metadata,
        documents=[document_of(text) for text in texts if text.strip()],
        long_answers=[long] if isinstance(long, str) else long,
    )


SIMPLE_QA_CSV = _Csv()
SIMPLE_QA_JSON = RowReader(
    "simple_qa_converted.json: an array, or {train, eval}",
    ConvertedRow,
    lambda keys: keys >= {"question", "answer", "context"} and not keys & {"long_context", "short_context", "title"},
    _converted,
)
