"""`slmx eval report`: runs over the same questions as one page, or as tables in Markdown or LaTeX."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmx.errors import RefusedError, UsageError
from slmx.eval.compare import compare
from slmx.eval.join import join
from slmx.eval.page import cost, differences, form, groups, html, latex, markdown, passages, quality, setup, verdict
from slmx.eval.page.explorer import Questions, RunColumn, pack
from slmx.eval.page.material import Material, answer_classes, gather
from slmx.eval.page.parts import Report, Section
from slmx.eval.runs import find_runs, order
from slmx.events import Listener, Notice, nobody
from slmx.files import write_bytes
from slmx.records import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMS = {".html": "html", ".htm": "html", ".md": "markdown", ".tex": "latex"}


class Written(Record, frozen=True, omit_defaults=False):
    """A report that was written: where and in which form, of how many runs and questions, and what it says first."""

    path: str
    form: str
    runs: int
    questions: int
    verdict: list[str]
    cautions: list[str]
    size_bytes: int
    seconds: float


def write_report(
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
        raise UsageError(f"{to} has an ending that says no form.", hint=f"--to FILE ends with {', '.join(FORMS)}.")
    if to.exists() and not overwrite:  # before the runs are read, not after
        raise RefusedError(f"{to} exists.", hint="Give --overwrite to replace it, or another name.")
    runs = sorted(find_runs(paths), key=order)
    listen(Notice(f"Reading {_runs(len(runs))}"))
    joined = join(runs, right_by=right_by)
    material = gather(joined, compare(joined, seed=seed))
    report = compose(material)
    content = _written(kind, report, material).encode()
    write_bytes(to, content, overwrite=overwrite)
    return Written(
        path=str(to),
        form=kind,
        runs=len(runs),
        questions=len(joined.question_ids),
        verdict=list(report.verdict),
        cautions=list(report.cautions),
        size_bytes=len(content),
        seconds=round(time.perf_counter() - begin, 2),
    )


def compose(material: Material) -> Report:
    """All sections that the runs have something for, in the order in which a reader asks."""
    comparison = material.comparison
    made: Sequence[Section | None] = [
        quality.right_answers(material),
        differences.differences(material),
        quality.losses(material),
        quality.flows(material),
        quality.known(material),
        passages.passages(material),
        cost.cost(material),
        groups.groups(material),
        form.form(material),
        setup.setup(material),
    ]
    return Report(
        title=f"What was retrieval worth? {comparison.dataset}".strip(),
        subtitle=f"{_runs(len(material.runs))} over the same {comparison.questions:,} questions",
        verdict=verdict.verdict(material),
        cautions=verdict.cautions(material),
        sections=[section for section in made if section],
    )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _written(kind: str, report: Report, material: Material) -> str:
    if kind == "html":
        questions = _questions(material)
        return html.render(report, questions, pack(questions))
    return markdown.render(report) if kind == "markdown" else latex.render(report)


def _questions(material: Material) -> Questions:
    joined = material.joined
    name, groups_of = next(iter(material.groupings.items()), ("", []))
    return Questions(
        ids=joined.question_ids,
        questions=joined.questions,
        golds=joined.ground_truth,
        runs=[
            RunColumn(
                key=run.key,
                name=run.label,
                answers=run.said,
                right=run.right,
                recall=joined.values["token_recall"][run.place],
                same=same,
                contexts=run.contexts,
            )
            for run, same in zip(material.runs, answer_classes(joined), strict=True)
        ],
        pair=_first_pair(material),
        groups=groups_of,
        group_name=name,
    )


def _first_pair(material: Material) -> tuple[int, int]:
    """The two runs that the explorer compares at first: two retrievers of a model, else whatever two there are."""
    retrieved = [run for run in material.runs if run.context == "retrieved"]
    same_model = [run for run in retrieved if run.model == retrieved[0].model]
    chosen = same_model if len(same_model) > 1 else list(material.runs)
    return chosen[0].place, chosen[-1].place


def render(written: Written) -> RenderableType:
    """What a person sees: the answer in short, and where the report is."""
    from rich.console import Group
    from rich.text import Text

    size = f"{written.size_bytes / 1e6:.1f} MB" if written.size_bytes >= 100_000 else f"{written.size_bytes:,} bytes"
    return Group(
        *(Text(sentence) for sentence in written.verdict),
        *(Text(f"Note: {caution}") for caution in written.cautions),
        Text(""),
        Text(f"Written: {written.path} ({size}, {_runs(written.runs)}, {written.questions:,} questions)"),
    )
