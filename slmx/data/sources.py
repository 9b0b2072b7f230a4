"""What a reader of source files is, and which ones there are.

A reader turns one form of file into Items, one a row, and never loses a row in silence: a row that cannot be used comes
as a BadRow; a row that loses a part comes as an Item and a BadRow with `kept` set. The smallest complete reader:

    >>> class Plain:
    ...     about = "one question<TAB>answer a line"
    ...     def sniff(self, head: Head) -> bool:
    ...         return head.layout == "text" and "\\t" in head.start
    ...     def read(self, path: Path) -> Iterator[Item | BadRow]:
    ...         for line, raw in files.read_lines(path):
    ...             question, tab, answer = raw.decode().strip().partition("\\t")
    ...             yield item(line, question, [answer]) if tab else BadRow(line=line, field="answer", reason="no tab")

Registered in FORMATS, or as an entry point of the group `slmx.formats`, it serves every command that takes a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from slmx import files
from slmx.data.stream import Head, head, rows
from slmx.errors import SlmxError, UsageError
from slmx.records import Document, Passage, Question, Record, question_id_of
from slmx.registry import Registry

Span = tuple[int, int]


class Item(Record, frozen=True):
    """One row of a source: a question and what the source knows about it.

    `long_spans` are characters (start, end) of the first document's text, `long_answers` the same as text where the
    source has them; `short_contexts` are short answers as they stand in the document. `passages` are those that the
    source has cut itself; their gold marks stand in `question.gold`. A document with an empty id is named by content.
    """

    line: int
    question: Question
    documents: list[Document] = []
    long_spans: list[Span] = []
    long_answers: list[str] = []
    short_contexts: list[str] = []
    passages: list[Passage] = []


class BadRow(Record, frozen=True):
    """A row that was left out, or (`kept`) one that lost the part `field` and was kept."""

    line: int
    field: str
    reason: str
    kept: bool = False


class Reader(Protocol):
    """A form of source files."""

    about: str

    def sniff(self, head: Head) -> bool:
        """Does a file with this beginning have this form? No two forms say yes to one file."""
        ...

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """The rows of the file, streamed."""
        ...

    # A reader that looks at other files too also has `companions(path) -> list[Path]`: they are part of the content.


FORMATS = Registry(
    "format",
    {
        "nq-merged": "slmx.data.nq:MERGED",
        "nq-full": "slmx.data.nq:FULL",
        "nq-open": "slmx.data.nq:OPEN",
        "dpr": "slmx.data.nq:DPR",
        "lost-in-the-middle": "slmx.data.lost_in_the_middle:LOST_IN_THE_MIDDLE",
        "simple-qa-csv": "slmx.data.simple_qa:SIMPLE_QA_CSV",
        "simple-qa-json": "slmx.data.simple_qa:SIMPLE_QA_JSON",
        "qa-pairs": "slmx.data.qa_pairs:QA_PAIRS",
        "flashrag": "slmx.data.flashrag:FLASHRAG",
        "beir": "slmx.data.beir:BEIR",
    },
)


def detect(path: Path) -> str:
    """The name of a file's or folder's form, told by its content.

    Raises:
        SlmxError: there is no such file.
        UsageError: no form fits; the known ones are named.
    """
    seen = head(path)
    for name in FORMATS.names():
        reader: Reader = FORMATS.load(name)
        if reader.sniff(seen):
            return name
    if seen.keys >= {"question_text", "annotations"}:
        hint = "This is simplified NQ without answers: `slmx data merge-nq --open F --simplified F --to F` joins both."
        raise UsageError(f"{path} has questions and documents, but no answers.", hint=hint)
    found = f"Its first row has: {', '.join(sorted(seen.keys)[:12])}. " if seen.keys else ""
    raise UsageError(f"{path} has none of the known forms.", hint=f"{found}Known: {', '.join(FORMATS.names())}.")


def read(path: Path, format: str = "auto") -> Iterator[Item | BadRow]:
    """The rows of a source of any form."""
    reader: Reader = FORMATS.load(detect(path) if format == "auto" else format)
    return reader.read(path)


def item(
    line: int,
    question: str,
    answers: list[str] | str,
    *,
    question_id: str = "",
    metadata: dict[str, Any] | None = None,
    **parts: Any,
) -> Item | BadRow:
    """An Item, or a BadRow where the question is blank or no answer is left; blank answers are dropped."""
    golds = [a for a in ([answers] if isinstance(answers, str) else answers) if a.strip()]
    if not question.strip():
        return BadRow(line=line, field="question", reason="the question is empty")
    if not golds:
        return BadRow(line=line, field="answer", reason="there is no answer")
    made = Question(
        question_id=question_id or question_id_of(question), question=question, answers=golds, metadata=metadata or {}
    )
    return Item(line=line, question=made, **parts)


R = TypeVar("R")


@dataclass(frozen=True)
class RowReader(Generic[R]):
    """A reader of JSON rows: each is decoded as `row`, and `items(line, row, section)` says what it holds."""

    about: str
    row: type[R]
    fits: Callable[[frozenset[str]], bool]
    items: Callable[[int, R, str], Iterable[Item | BadRow]]

    def sniff(self, head: Head) -> bool:
        """Looks at the first row's keys."""
        return head.layout in ("array", "sections", "lines") and self.fits(head.keys)

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """Decode row after row."""
        decoder = msgspec.json.Decoder(self.row)
        for line, raw, section in rows(path):
            decoded = decode_row(decoder, line, raw)
            if isinstance(decoded, BadRow):
                yield decoded
            else:
                yield from self.items(line, decoded, section)


_MISSING = re.compile(r"required field `([^`]*)`")
_AT = re.compile(r"at `\$\.?([^`]*)`")


def decode_row(decoder: msgspec.json.Decoder[R], line: int, raw: bytes) -> R | BadRow:
    """Decode one row, or say which field is wrong and why."""
    if not raw:
        return BadRow(line=line, field="row", reason="the file ends inside this row or before its array is closed")
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        said = str(error)
        missing, at = _MISSING.search(said), _AT.search(said)
        field = ".".join(f for f in (at[1] if at else "", missing[1] if missing else "") if f)
        return BadRow(line=line, field=field or "row", reason=said.partition(" - at ")[0])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BadRow(line=line, field="row", reason=f"not valid JSON: {error}")
    except RecursionError:
        return BadRow(line=line, field="row", reason="nested too deep")


class BadRows:
    """Counts rows, keeps the bad ones in a file beside the output, and decides what they mean for the whole.

    Use: `add` for everything that a reader yields; `judge` when it is through.
    """

    LIMIT = 0.05

    def __init__(self, *, strict: bool = False, allow: bool = False) -> None:
        self.strict, self.allow = strict, allow
        self.seen = self.left_out = self.warned = 0
        self._first_left_out: BadRow | None = None
        self._warned_line = -1

    def add(self, row: Item | BadRow) -> None:
        """Count a row; SlmxError at a bad one when strict."""
        if isinstance(row, Item):
            self.seen += 1
            return
        if self.strict:
            raise SlmxError(
                f"Line {row.line}: {row.field}: {row.reason}.",
                hint="Correct the row, or leave out --strict to go on without it.",
            )
        if row.kept:
            self.warned += row.line != self._warned_line
            self._warned_line = row.line
        else:
            self._first_left_out = self._first_left_out or row
            self.seen += 1
            self.left_out += 1

    def judge(self, path: Path, see: str, *, go_on: str = "--allow-errors goes on without them.") -> None:
        """SlmxError when nothing can be used, or more than one row in twenty was left out and that is not allowed.

        `see` is a sentence that says where all bad rows are named; `go_on` one that says how to go on without them.
        """
        useless = 0 < self.left_out == self.seen
        if not useless and (self.allow or self.left_out <= self.LIMIT * self.seen):
            return
        first = self._first_left_out
        said = f"The first: line {first.line}, {first.field}: {first.reason}. {see}" if first else see
        hint = said if useless else f"{said} {go_on}"
        raise SlmxError(f"{self.left_out} of {self.seen} rows of {path} cannot be used.", hint=hint)


def hash_source(path: Path, format: str) -> str:
    """The hash of a source's content: its file, those that its reader takes from beside it, or a folder's files."""
    companions = getattr(FORMATS.load(format), "companions", None)
    inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    beside = [p for p in companions(path) if p not in inside] if companions else []
    names = [p.relative_to(path).as_posix() if path.is_dir() else "" for p in inside] + [p.name for p in beside]
    hashes = [files.hash_file(p) for p in (*inside, *beside)]
    return files.hash_value(list(zip(names, hashes, strict=True)))
