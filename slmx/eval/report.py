"""`slmx eval report`: runs over the same questions as one page, or as tables in Markdown or LaTeX."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from slmx.errors import UsageError
from slmx.eval.compare import compare
from slmx.eval.join import join
from slmx.eval.page import cost, form, groups, html, latex, markdown, passages, quality, setup, verdict
from slmx.eval.page.explorer import Questions, RunColumn, pack
from slmx.eval.page.material import Material, answer_classes, gather
from slmx.eval.page.parts import Report, Section
from slmx.eval.runs import find_runs
from slmx.events import Listener, Notice, nobody
from slmx.files import write_bytes
from slmx.records import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMS = {".html": "html", ".htm": "html", ".md": "markdown", ".tex": "latex"}


class Written(Record, frozen=True, omit_defaults=False):
    """A report that was written: where, of how many runs and questions, what it says first, and its size and time."""

    path: str
    form: str
    runs: int
    questions: int
    verdict: list[str]
    size_bytes: int
    seconds: float


def report(
    paths: Iterable[Path],
    to: Path,
    *,
    right_by: str = "match",
    seed: int = 0,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Written:
    """Write the report of the runs that `paths` name (see `find_runs`); the ending of `to` says in which form.

    Raises:
        UsageError: an ending that is none of FORMS; a path without runs; an unfinished run.
        RefusedError: `to` exists; the runs are not over the same questions.
    """
    begin = time.perf_counter()
    kind = FORMS.get(to.suffix.lower())
    if kind is None:
        raise UsageError(f"{to} has an unknown ending.", hint=f"--to FILE ends with {', '.join(FORMS)}.")
    _check_place(to, overwrite)
    runs = find_runs(paths)
    listen(Notice(f"Reading {len(runs)} {'run' if len(runs) == 1 else 'runs'}"))
    joined = join(runs, right_by=right_by)
    material = gather(joined, compare(joined, seed=seed))
    made = compose(material)
    text = {"html": _page, "markdown": lambda r, _: markdown.render(r), "latex": lambda r, _: latex.render(r)}[kind](
        made, material
    )
    content = text.encode()
    write_bytes(to, content)
    return Written(
        path=str(to),
        form=kind,
        runs=len(runs),
        questions=len(joined.question_ids),
        verdict=list(made.verdict),
        size_bytes=len(content),
        seconds=round(time.perf_counter() - begin, 2),
    )
