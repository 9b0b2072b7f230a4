"""A report as one HTML file that asks for nothing from outside: style, script and data are in it.

All text is escaped here. The page's content policy admits the page's own style and script by their hashes and nothing
else, so that even markup that slipped through could neither run nor load anything.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template

from slmx import __version__
from slmx.eval.page.explorer import Packed, Questions
from slmx.eval.page.parts import Cell, Column, Figure, Key, Link, Measured, Report, Section, Svg, Table, clean


def render(report: Report, questions: Questions, packed: Packed) -> str:
    """The whole page."""
    style, script = _file("page.css"), _file("page.js")
    contents = [(section.anchor, section.title) for section in report.sections] + [("explorer", "All questions")]
    return Template(_file("page.html")).substitute(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        version=__version__,
        title=text(report.title),
        subtitle=text(report.subtitle),
        style=style,
        script=script,
        verdict=_verdict(report),
        contents="".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title in contents),
        sections="\n".join(map(_section, report.sections)),
        explorer=_explorer(questions, packed),
        blocks=packed.elements,
        footer=f"Written by slmx {__version__}. This file needs no network and holds no script but its own.",
    )


def text(value: str) -> str:
    """Plain text, escaped for content and for attributes."""
    return escape(clean(value), quote=True)


def _file(name: str) -> str:
    return (files("slmx.eval.page") / name).read_text(encoding="utf-8")


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(inline.encode()).digest()).decode()}'"


def _verdict(report: Report) -> str:
    first, *rest = report.verdict
    lists = (("support", "", rest), ("cautions", "<h3>To be known</h3>", report.cautions))
    return f"<p>{text(first)}</p>" + "".join(
        f'{head}<ul class="{kind}">{"".join(f"<li>{text(said)}</li>" for said in saying)}</ul>'
        for kind, head, saying in lists
        if saying
    )


def _section(section: Section) -> str:
    head = f"{section.anchor}-head"
    blocks = "\n".join(_table(block) if isinstance(block, Table) else _figure(block) for block in section.blocks)
    return (
        f'<section id="{section.anchor}" aria-labelledby="{head}"><h2 id="{head}">{text(section.title)}</h2>'
        f'<p class="lead">{text(section.lead)}</p>{_legend(section.legend)}{blocks}</section>'
    )


def _legend(keys: Sequence[Key]) -> str:
    items = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true"><rect class="{key.colour}" width="14" height="14"/></svg>'
        f"{text(key.words)}</li>"
        for key in keys
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def _figure(figure: Figure) -> str:
    caption = f"<figcaption>{text(figure.caption)}</figcaption>"
    return f"<figure>{caption}{_legend(figure.legend)}{figure.drawing}</figure>"


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col" class="{column.kind}">{text(column.head)}</th>' for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(cell, table.columns[at], first=at == 0) for at, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    kind = "wide" if table.wide else "folds"
    caption = f"<caption><span>{text(table.caption)}</span></caption>"
    scroll = f'<div class="scroll {kind}" role="region" aria-label="{text(table.caption)}" tabindex="0">'
    return f"{scroll}<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    if isinstance(cell, Svg):
        inside: str = cell
    elif isinstance(cell, Link):
        inside = f'<a href="#show-{cell.base}-{cell.other}-{cell.outcome}">{text(cell.words)}</a>'
    elif isinstance(cell, Measured):
        inside = f"{text(cell.value)} <small>{text(cell.interval)}</small>"
    else:
        inside = text(cell)
    if first:
        return f'<th scope="row" class="words">{inside}</th>'
    return f'<td class="{column.kind}" data-head="{text(column.head)}">{inside}</td>'


def _explorer(questions: Questions, packed: Packed) -> str:
    lead = "Every question with the answers of all runs side by side. Choose two runs, then what became of a question."
    if packed.kept_rank is not None:
        lead += f" To keep the file small, only the first {packed.kept_rank} passages of each question are in it."
    return Template(_file("explorer.html")).substitute(
        lead=text(lead), questions=f"{len(questions.ids):,}", group_name=text(questions.group_name or "Group")
    )
