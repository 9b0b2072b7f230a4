"""Text of simplified NQ and of web pages as a person would read it, with the way back to the raw characters.

Simplified NQ is tokens joined by single spaces, HTML tags among them. Cleaning drops the tags (a block ends a line,
table cells are set apart by " | "), decodes entities, turns `` and '' into quotes and joins punctuation to its word.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from html import unescape
from typing import NamedTuple

_TAG = re.compile(
    r"(?<![^ ])<(?P<end>/?)(?P<name>h[1-6]|p|table|caption|thead|tbody|tfoot|tr|td|th|ul|ol|li|dl|dd|dt|div|br|hr"
    r"|pre|blockquote|center|form|section)(?:_[^ ]*)?/?>(?![^ ])",
    re.IGNORECASE,
)
_ENTITY = r"(?<=&)(?:\#\d{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});"
_WHITE = r"(?<=[ ])\s+|(?<=[^\S ])\s*"
# Each begins with a set of characters, so that the engine skips at once to the few places that can matter.
_PLAIN = re.compile(rf"[\s&](?:{_WHITE}|{_ENTITY})", re.VERBOSE)
_TOKENISED = re.compile(
    rf"""[\s&`'(\[](?:
      (?<=[ ])(?=\W|n't)(?:\s+|(?:&nbsp;[ ]?)+|''(?=\ |$)|(?=(?:[,.;:!?%)\]]|'(?:s|re|ve|ll|d|m)|n't)(?:\ |$)))
    | (?<=[^\S ])\s*
    | {_ENTITY}
    | (?<=`)`[ ]?
    | (?<=')'
    | (?<=[ ][(\[])[ ]
    )""",
    re.VERBOSE,
)


class Cleaned(NamedTuple):
    """A cleaned text. `clean_at` and `raw_at` are places that correspond; between two of them both run alike."""

    text: str
    headings: frozenset[int]
    clean_at: list[int]
    raw_at: list[int]

    def raw(self, start: int, end: int) -> tuple[int, int]:
        """The raw characters that a not empty range of the cleaned text was made from."""
        return self._raw(start), self._raw(end - 1) + 1

    def part(self, start: int, end: int) -> str:
        """The cleaned text of a range of raw characters."""
        return self.text[self._clean(start) : self._clean(end)].strip(" \n|")

    def _raw(self, place: int) -> int:
        found = bisect_right(self.clean_at, place) - 1
        return self.raw_at[found] + place - self.clean_at[found]

    def _clean(self, place: int) -> int:
        found = bisect_right(self.raw_at, place) - 1
        if found < 0:
            return 0
        end = self.clean_at[found + 1] if found + 1 < len(self.clean_at) else len(self.text)
        return min(self.clean_at[found] + place - self.raw_at[found], end)


class _Writer:
    """Collects cleaned pieces and remembers which raw place each begins at."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.size = 0
        self.clean_at: list[int] = []
        self.raw_at: list[int] = []

    def put(self, piece: str, raw: int) -> None:
        if piece:
            self.clean_at.append(self.size)
            self.raw_at.append(raw)
            self.pieces.append(piece)
            self.size += len(piece)

    def run(self, text: str, start: int, end: int, edits: re.Pattern[str]) -> None:
        """Write text[start:end] with its edits."""
        at = start
        for edit in edits.finditer(text, start, end):
            self.put(text[at : edit.start()], at)
            self.put(_replacement(edit.group()), edit.start())
            at = edit.end()
        self.put(text[at:end], at)


def _replacement(found: str) -> str:
    """What an edit puts in the place of what it found."""
    if found == " ":
        return ""  # before a comma, a full stop, 's …
    if found[0] == "&":
        return " ".join(unescape(found).split()) or " "
    if "`" in found or "''" in found:
        return '"'
    if found[0] in "([":
        return found[0]
    return "\n" if "\n" in found else " "


def clean(text: str, *, tokenised: bool | None = None) -> Cleaned:
    """The text without markup. Its lines are paragraphs, headings, list items and table rows.

    `tokenised` says that punctuation stands apart, as in simplified NQ; unset: where there is an HTML token.
    """
    writer = _Writer()
    headings: set[int] = set()
    if tokenised is None:
        tokenised = _TAG.search(text) is not None
    edits = _TOKENISED if tokenised else _PLAIN
    at, gap, heading = 0, "", False
    for tag in _TAG.finditer(text):
        if _segment(writer, text, (at, tag.start()), gap, edits, headings if heading else None):
            gap = ""
        at = tag.end()
        name = tag["name"].lower()
        if name not in ("td", "th"):
            gap = "\n"
        elif not gap:
            gap = " | "
        heading = name in ("h1", "h2", "h3", "h4", "h5", "h6") and not tag["end"]
    _segment(writer, text, (at, len(text)), gap, edits, None)
    return Cleaned("".join(writer.pieces), frozenset(headings), writer.clean_at, writer.raw_at)


def _segment(
    writer: _Writer, text: str, span: tuple[int, int], gap: str, edits: re.Pattern[str], headings: set[int] | None
) -> bool:
    """Write what stands between two tags, behind its gap; False where that is nothing but white space."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start == end:
        return False
    if writer.size:
        writer.put(gap, start)
    if headings is not None:
        headings.add(writer.size)
    writer.run(text, start, end, edits)
    return True
