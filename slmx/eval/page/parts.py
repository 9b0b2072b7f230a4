"""What a report is made of, whichever form it is written in: sections with prose, tables and figures.

Text stays plain here and is escaped by whoever writes it (`slmx.eval.page.html`, `.markdown`, `.latex`). Drawings are
`Svg`, made by `slmx.eval.page.charts` alone; the forms without pictures leave them out, so whatever a drawing says must
stand in a table as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class Svg(str):
    """Markup that may stand in the page as it is. Only `charts` makes it, and it escapes what it is given."""

    __slots__ = ()


@dataclass(frozen=True)
class Link:
    """Words that lead to the explorer: the questions whose outcome between two runs is `outcome`.

    `base` and `other` are places in the report's list of runs. Other forms than HTML write the words alone.
    """

    words: str
    base: int
    other: int
    outcome: str


Cell = str | Svg | Link


@dataclass(frozen=True)
class Column:
    """A column: its head, and whether it holds words, numbers (set to the right) or drawings."""

    head: str
    kind: str = "number"  # "words", "number" or "drawing"


@dataclass(frozen=True)
class Table:
    """A table. The first column names its row. `heads` are columns; every row has as many cells."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    wide: bool = False  # many columns: on a phone it scrolls sideways instead of being broken into lines

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"A row of {self.caption!r} has not as many cells as there are columns.")


@dataclass(frozen=True)
class Key:
    """One entry of a legend: the class of the colour in page.css, and what it stands for."""

    colour: str
    words: str


@dataclass(frozen=True)
class Figure:
    """A drawing with a caption; `legend` explains its colours."""

    drawing: Svg
    caption: str
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Section:
    """A part of the report under one heading. `lead` says in a sentence or two what is to be seen here."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Table | Figure] = ()
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Report:
    """A whole report. `verdict` is the answer in plain sentences, `cautions` what must be known beside it."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    cautions: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)


def clean(text: str) -> str:
    """`text` as it may be written into any file: lone surrogates and characters that XML and HTML forbid become "�"."""
    return "".join(char if _allowed(char) else "\N{REPLACEMENT CHARACTER}" for char in text) if _doubtful(text) else text


def _doubtful(text: str) -> bool:
    return not text.isprintable() and not all(map(_allowed, text))


def _allowed(char: str) -> bool:
    code = ord(char)
    if code < 0x20:
        return char in "\t\n\r"
    return not (0x7F <= code < 0xA0 or 0xD800 <= code <= 0xDFFF or code & 0xFFFE == 0xFFFE)
