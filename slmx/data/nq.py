"""Natural Questions: merged with documents, the converted array, NQ-open, and DPR's two columns.

Token offsets of NQ count the pieces of `document_text.split(" ")`. A plain `split()` would also cut at the exotic
spaces that stand inside tokens, and shift every offset behind them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, unquote_plus

import msgspec

from slmx import files
from slmx.data.literals import value
from slmx.data.sources import BadRow, Item, RowReader, Span, item
from slmx.data.stream import Head
from slmx.records import Document

_TITLE = re.compile(r"(?:^|&)title=([^&]+)")

# ------------------------------------------------------------------------------------------------------------- merged


class Tokens(msgspec.Struct, gc=False):
    """A range of tokens, the end left out; -1 is "none"."""

    start_token: int = -1
    end_token: int = -1


class LongAnswer(Tokens, gc=False):
    """An annotator's choice among the candidates; -1 is "none"."""

    candidate_index: int | None = None


class Annotation(msgspec.Struct):
    """What one annotator said."""

    long_answer: LongAnswer | None = None
    short_answers: list[Tokens] = []


class MergedRow(msgspec.Struct):
    """One line of NQ merged."""

    question: str
    answer: list[str] | str
    document_text: str
    example_id: int | str = ""
    document_url: str = ""
    annotations: list[Annotation] = []
    long_answer_candidates: list[Tokens] | None = None


def token_starts(text: str, wanted: Sequence[int]) -> dict[int, int]:
    """Where the wanted tokens of `text.split(" ")` begin, in characters; those past the end are absent.

    The token behind the last one "begins" at len(text) + 1, so that a range of tokens (a, b) is always
    `text[starts[a] : starts[b] - 1]`. Counts spaces and makes no list: tens of times less work than to split.
    """
    starts: dict[int, int] = {}
    token = at = 0
    for want in sorted(set(wanted)):
        at = _behind_space(text, at, want - token)
        if at < 0:
            break
        token, starts[want] = want, at
    return starts


def _behind_space(text: str, at: int, spaces: int) -> int:
    """The place behind the nth space from `at`, where the end of the text counts as one more space; -1 past it."""
    end, stride = len(text), 4  # a token and its space are rarely shorter: most of the way in few steps, none too far
    if at > end:
        return -1 if spaces else at
    while spaces > 4:
        found = text.count(" ", at, at + spaces * stride)
        if found >= spaces and stride > 1:
            stride = 1  # n characters hold no more than n spaces
            continue
        at += spaces * stride
        spaces -= found
        if spaces and at >= end:
            return end + 1 if spaces == 1 else -1
    for left in range(spaces, 0, -1):
        at = text.find(" ", at) + 1
        if not at:
            return end + 1 if left == 1 else -1
    return at


class _Ranges:
    """Token ranges of one row, checked against the document; what is wrong with them is kept as BadRows."""

    def __init__(self, line: int, row: MergedRow) -> None:
        self.line, self.row = line, row
        self.problems: list[BadRow] = []
        self.long: list[tuple[str, Tokens]] = []
        self.short: list[tuple[str, Tokens]] = []
        for number, annotation in enumerate(row.annotations):
            where = f"annotations[{number}]"
            if annotation.long_answer is not None:
                self._add_long(f"{where}.long_answer", annotation.long_answer)
            for place, short in enumerate(annotation.short_answers):
                self._add(self.short, f"{where}.short_answers[{place}]", short)
        ends = [n for _, r in (*self.long, *self.short) for n in (r.start_token, r.end_token)]
        self.starts = token_starts(row.document_text, ends)

    def _add_long(self, where: str, answer: LongAnswer) -> None:
        candidates, index = self.row.long_answer_candidates, answer.candidate_index
        if candidates is None or index is None:
            self._add(self.long, where, answer)
        elif index >= len(candidates):
            self._report(f"{where}.candidate_index", f"{index} is past the end of {len(candidates)} candidates")
        elif index >= 0:
            self._add(self.long, where, candidates[index])

    def _add(self, to: list[tuple[str, Tokens]], where: str, tokens: Tokens) -> None:
        if tokens.start_token < 0 or tokens.end_token < 0:
            return
        if tokens.start_token >= tokens.end_token:
            self._report(where, f"tokens {tokens.start_token} to {tokens.end_token} are no range")
        else:
            to.append((where, tokens))

    def _report(self, where: str, reason: str) -> None:
        self.problems.append(BadRow(line=self.line, field=where, reason=reason, kept=True))

    def spans(self, ranges: list[tuple[str, Tokens]]) -> list[Span]:
        """The ranges as characters of the document."""
        spans = []
        for where, tokens in ranges:
            start, end = self.starts.get(tokens.start_token), self.starts.get(tokens.end_token)
            if start is None or end is None:
                self._report(where, f"token {tokens.end_token} is past the end of the document")
            else:
                spans.append((start, end - 1))
        return spans


def _merged(line: int, row: MergedRow, _section: str) -> Iterator[Item | BadRow]:
    if not row.document_text.strip():
        yield BadRow(line=line, field="document_text", reason="the document is empty")
        return
    ranges = _Ranges(line, row)
    text = row.document_text
    long_spans, short_spans = ranges.spans(ranges.long), ranges.spans(ranges.short)
    yield item(
        line,
        row.question,
        row.answer,
        question_id=str(row.example_id),
        documents=[Document(doc_id="", text=text, title=title_of(row.document_url), url=row.document_url)],
        long_spans=long_spans,
        long_answers=[text[a:b] for a, b in long_spans],
        short_contexts=[text[a:b] for a, b in short_spans],
    )
    yield from ranges.problems


def title_of(url: str) -> str:
    """A page's title: the `title` parameter of `index.php?title=X`, else the last segment of the path, decoded."""
    address, _, query = url.replace("&amp;", "&").partition("#")[0].partition("?")
    asked = _TITLE.search(query)
    if asked:
        title = unquote_plus(asked[1])
    else:
        scheme, _, rest = address.rpartition("://")
        path = rest.partition("/")[2] if scheme else rest
        title = unquote(path.rstrip("/").rpartition("/")[2])
    return title.replace("_", " ").strip()


# ------------------------------------------------------------------------------------------------- converted and open


class FullRow(msgspec.Struct, omit_defaults=False):
    """One row of `nq_full_dataset.json`, read and written."""

    question: str
    answer: list[str] | str
    context: str
    long_context: list[str] = []
    short_context: list[str] = []
    id: str | int = ""
    url: str = ""
    title: str = ""


def _full(line: int, row: FullRow, section: str) -> Iterator[Item | BadRow]:
    spans: list[Span] = []
    problems: list[BadRow] = []
    for place, long in enumerate(row.long_context):
        start = row.context.find(long) if long else -1
        if start >= 0:
            spans.append((start, start + len(long)))
        else:
            reason = "does not stand in the context"
            problems.append(BadRow(line=line, field=f"long_context[{place}]", reason=reason, kept=True))
    document = Document(doc_id="", text=row.context, title=row.title or title_of(row.url), url=row.url)
    made = item(
        line,
        row.question,
        row.answer,
        question_id=str(row.id),
        metadata={"split": section} if section else None,
        documents=[document] if row.context.strip() else [],
        long_spans=spans,
        long_answers=row.long_context,
        short_contexts=row.short_context,
    )
    yield made
    if isinstance(made, Item):
        yield from problems


class OpenRow(msgspec.Struct):
    """One line of NQ-open."""

    question: str
    answer: list[str] | str


def _open(line: int, row: OpenRow, section: str) -> Iterator[Item | BadRow]:
    yield item(line, row.question, row.answer, metadata={"split": section} if section else None)


class _Dpr:
    """DPR's form: `question<TAB>['a', 'b']`, the answers as a Python literal; quoted as in CSV where it has a `"`."""

    about = "DPR: question, tab, Python list of answers"

    def sniff(self, head: Head) -> bool:
        """Two columns, the second one a list."""
        first = head.start.partition("\n")[0].rstrip().partition("\t")[2]
        return head.layout == "text" and bool(re.fullmatch(r'"?\[.*\]"?', first))

    def read(self, path: Path) -> Iterator[Item | BadRow]:
        """Line after line; the literal parser runs no code."""
        for line, raw in files.read_lines(path):
            try:
                cells = next(csv.reader([raw.decode()], delimiter="\t"))
            except (UnicodeDecodeError, csv.Error) as error:
                yield BadRow(line=line, field="row", reason=str(error))
                continue
            answers = value(cells[1]) if len(cells) == 2 else None
            if isinstance(answers, list) and all(isinstance(a, str) for a in answers):
                yield item(line, cells[0], answers)
            else:
                yield BadRow(line=line, field="answer", reason="not a Python list of strings behind a tab")


MERGED = RowReader(
    "NQ merged: NQ-open with the documents of simplified NQ",
    MergedRow,
    lambda keys: keys >= {"question", "document_text"},
    _merged,
)
FULL = RowReader(
    "nq_full_dataset.json and its splits",
    FullRow,
    lambda keys: keys >= {"question", "answer", "context"} and bool(keys & {"long_context", "short_context", "title"}),
    _full,
)
OPEN = RowReader(
    "NQ-open: question and answer",
    OpenRow,
    lambda keys: keys >= {"question", "answer"} and not keys & {"question_id", "context", "document_text", "documents"},
    _open,
)
DPR = _Dpr()
