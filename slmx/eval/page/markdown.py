"""A report as Markdown (GitHub's tables): the verdict and all tables, without drawings."""

from __future__ import annotations

import re

from slmx.eval.page.parts import Cell, Link, Report, Section, Svg, Table, clean

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def render(report: Report) -> str:
    """The whole text."""
    lines = [f"# {text(report.title)}", "", text(report.subtitle), ""]
    first, *rest = report.verdict
    lines += [f"**{text(first)}**", "", *(f"- {text(said)}" for said in (*rest, *report.cautions))]
    for section in report.sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def text(value: str) -> str:
    """Plain text on one line, with everything escaped that Markdown or HTML would take for markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(clean(value).split()))


def _section(section: Section) -> list[str]:
    tables = [line for block in section.blocks if isinstance(block, Table) for line in _table(block)]
    return ["", f"## {text(section.title)}", "", text(section.lead), "", *tables] if tables else []


def _table(table: Table) -> list[str]:
    kept = [place for place, column in enumerate(table.columns) if column.kind != "drawing"]
    rules = [":--" if table.columns[place].kind == "words" or not place else "--:" for place in kept]
    lines = [f"**{text(table.caption)}**", "", _row([text(table.columns[place].head) for place in kept]), _row(rules)]
    lines += [_row([_cell(row[place]) for place in kept]) for row in table.rows]
    return [*lines, "", *([text(table.note), ""] if table.note else [])]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return "" if isinstance(cell, Svg) else text(cell.words if isinstance(cell, Link) else str(cell))
