"""What a report is made of, whichever form it is written in: sections with prose, tables and figures.

Text stays plain here and is escaped by whoever writes it (`slmx.eval.page.html`, `.markdown`, `.latex`). Drawings are
`Svg`, made by `slmx.eval.page.charts` alone; the forms without pictures leave them out, so whatever a drawing says must
stand in a table as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

_NONCHARACTERS = "".join(f"\\U{plane << 16 | end:08x}" for plane in range(17) for end in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(f"[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufdd0-\\ufdef{_NONCHARACTERS}]")


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


@dataclass(frozen=True)
class Measured:
    """A number with its interval, both as words; forms with little room write the interval below the number."""

    value: str
    interval: str

    def __str__(self) -> str:
        return f"{self.value} ({self.interval})"


Cell = str | Svg | Link | Measured


@dataclass(frozen=True)
class Column:
    """A column: its head, and whether it holds words, numbers (set to the right) or drawings."""

    head: str
    kind: Literal["words", "number", "drawing"] = "number"


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
    return text if text.isascii() and text.isprintable() else _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
