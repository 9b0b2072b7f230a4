"""A report's tables as LaTeX with booktabs, to be brought into a paper with \\input{report.tex}."""

from __future__ import annotations

import re

from slmx.eval.page.parts import Cell, Link, Report, Svg, Table, clean

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"{\textquotesingle}",
    "`": r"{\textasciigrave}",
    "–": "--",
    "−": r"\ensuremath{-}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "·": r"\ensuremath{\cdot}",
    "→": r"\ensuremath{\to}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "…": r"\dots{}",
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPES)))


def render(report: Report) -> str:
    """All tables, each a `table` environment with a label; the verdict as a comment before them."""
    lines = [
        "% Written by `slmx eval report`. Needs the packages booktabs, graphicx, textcomp and fontenc with T1;",
        "% text in Cyrillic and other scripts needs XeLaTeX or LuaLaTeX.",
        *(f"% {' '.join(clean(sentence).split())}" for sentence in (*report.verdict, *report.cautions)),
    ]
    for section in report.sections:
        tables = [block for block in section.blocks if isinstance(block, Table)]
        for number, table in enumerate(tables, 1):
            lines += ["", *_table(table, f"{section.anchor}-{number}" if len(tables) > 1 else section.anchor)]
    return "\n".join(lines) + "\n"


def text(value: str) -> str:
    """Plain text on one line, every special character of LaTeX escaped."""
    return _SPECIAL.sub(lambda found: _ESCAPES[found.group()], " ".join(clean(value).split()))


def _table(table: Table, label: str) -> list[str]:
    kept = [place for place, column in enumerate(table.columns) if column.kind != "drawing"]
    shape = "".join("l" if not place or table.columns[place].kind == "words" else "r" for place in kept)
    note = f" {text(table.note)}" if table.note else ""
    return [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{text(table.caption)}.{note}}}",
        rf"\label{{tab:slmx-{label}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",  # only what is too wide
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        _row([text(table.columns[place].head) for place in kept]),
        r"\midrule",
        *(_row([_cell(row[place]) for place in kept]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _row(cells: list[str]) -> str:
    first, *rest = cells
    first = f"{{}}{first}" if first.startswith("[") else first  # after \\ a bracket would be an optional argument
    return f"{' & '.join([first, *rest])} \\\\"


def _cell(cell: Cell) -> str:
    return "" if isinstance(cell, Svg) else text(cell.words if isinstance(cell, Link) else str(cell))
