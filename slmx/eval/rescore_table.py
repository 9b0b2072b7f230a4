"""What `slmx eval rescore` shows a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmx.eval.judge import Waiting
from slmx.eval.metrics import GRADES, METRICS
from slmx.eval.rescore import Change, Rescored, RescoreReport

if TYPE_CHECKING:
    from rich.console import RenderableType

_SAID = {"correct": "correct", "incorrect": "incorrect", "not_attempted": "not attempted"}


def render(report: RescoreReport) -> RenderableType:
    """For each run what changed, what a judge said, and where the files are."""
    from rich.console import Group

    return Group(*(part for one in report.runs for part in _parts(one)))


def _parts(one: Rescored) -> list[RenderableType]:
    from rich.text import Text

    from slmx.console import table

    parts: list[RenderableType] = []
    if one.changes:
        rows = [[c.metric, _number(c, c.before), _number(c, c.after), _count(c.answers)] for c in one.changes]
        heads = ["metric", "before", "after", "answers\nchanged"]
        parts.append(table(f"{one.run}: {one.n} answers scored again", heads, rows))
        if one.unchanged:
            parts.append(Text(f"Unchanged: {', '.join(one.unchanged)}."))
    else:
        parts.append(Text(f"{one.run}: {one.n} answers scored again; nothing changed.", style="bold"))
    if one.judge:
        parts += _judge(one.judge)
    parts.append(Text(f"Written: {one.predictions}\n         {one.results}\n"))
    return parts


def _judge(judge: Mapping[str, Any]) -> list[RenderableType]:
    """How many answers have a grade, and where it is not that of the strings."""
    from rich.text import Text

    from slmx.console import table

    lines = [f"{judge['model']} graded {judge['graded']} of {judge['answers']} answers by {judge['template']}."]
    if judge["unparsed"]:
        lines.append(f"{judge['unparsed']} replies name no grade and are left out: {_some(judge['unparsed_ids'])}.")
    if judge["failed"]:
        lines.append(f"{judge['failed']} answers have no reply: the same command asks again.")
    confusion = judge["by_strings_and_judge"]
    rows = [[_SAID[one], *(str(confusion[one][other]) for other in GRADES)] for one in GRADES]
    shown = table("Grade by strings (rows) and by the judge (columns)", ["", *_SAID.values()], rows)
    share = f" ({100 * judge['same_grade'] / judge['compared']:.1f} %)" if judge["compared"] else ""
    after = [
        f"The same grade: {judge['same_grade']} of {judge['compared']}{share}.",
        f"Correct for the judge alone: {judge['right_by_judge_alone']}{_named(judge['right_by_judge_alone_ids'])}.",
        f"Correct for match alone: {judge['right_by_match_alone']}{_named(judge['right_by_match_alone_ids'])}.",
    ]
    return [Text("\n" + "\n".join(lines) + "\n"), shown, Text("\n".join(after))]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def _named(ids: Sequence[str]) -> str:
    return f" ({_some(ids)})" if ids else ""


def _number(change: Change, value: float | None) -> str:
    if value is None:
        return "–"
    in_words = change.metric in METRICS and METRICS[change.metric].unit == "words"
    return f"{value:.2f}" if in_words else f"{100 * value:.2f}"


def _count(answers: int | None) -> str:
    return "–" if answers is None else str(answers)


def render_waiting(waiting: Sequence[Waiting]) -> RenderableType:
    """What a judge would be asked."""
    from slmx.console import table

    rows = [[one.run, str(one.answers), str(one.graded), str(one.requests), str(one.prompt_words)] for one in waiting]
    total = sum(one.requests for one in waiting)
    heads = ["run", "answers", "graded", "requests", "words in\nprompts"]
    return table(f"{total} requests to {waiting[0].model}", heads, rows)
