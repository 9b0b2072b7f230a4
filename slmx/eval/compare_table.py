"""What `slmx eval compare` shows a person, and what it writes: pairs as CSV, questions as JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmx.errors import RefusedError, UsageError
from slmx.eval.compare import Comparison, Decomposition, Estimate, Pair, Test
from slmx.eval.join import Joined
from slmx.eval.page.numbers import NONE, REAL, is_real, percent, points, span
from slmx.files import write_bytes, write_jsonl

if TYPE_CHECKING:
    from rich.console import RenderableType

CSV_TO_STDOUT = "csv"
ENDINGS = (".csv", ".jsonl")
SHOWN_PAIRS = 10  # of more, a terminal shows those whose runs differ in one respect
COLUMNS = (
    *("first", "second", "n", "helped", "hurt", "both_right", "both_wrong", "same_answer", "ignored", "metric", "test"),
    *("tested", "first_mean", "second_mean", "difference", "low", "high", "p", "p_holm", "family"),
    *("smallest_difference", "smallest_unpaired"),
)


def render(comparison: Comparison) -> RenderableType:
    """Tables: the modes of each model taken apart, what changed between runs, and whether it is more than chance."""
    from rich.console import Group
    from rich.text import Text

    unscored = f", {comparison.unscored} without a gold answer or a grade left out" if comparison.unscored else ""
    head = f"{len(comparison.runs)} runs over {comparison.questions} questions of {comparison.dataset or 'a file'}"
    head += f"{unscored}. Right = {comparison.right_by}; percent, 95 % interval below.\n"
    shown, hidden = _shown(comparison)
    parts: list[RenderableType] = [Text(head)]
    parts += [_decomposition(one, named=len(comparison.decompositions) > 1) for one in comparison.decompositions]
    if not comparison.decompositions:
        parts.append(_runs(comparison))
    parts.append(_changes(shown))
    parts += [table for metric in comparison.metrics if (table := _tests(metric, shown)) is not None]
    notes = list(comparison.notes)
    if hidden:
        notes.append(f"{hidden} more pairs differ in model and context both: --json and --to have them.")
    notes.append(_legend(comparison))
    return Group(*parts, Text("\n".join(notes)))


def _shown(comparison: Comparison) -> tuple[list[Pair], int]:
    """The pairs for a terminal, and how many are left out: of many, those whose runs differ in one respect."""
    if len(comparison.pairs) <= SHOWN_PAIRS or comparison.baseline is not None:
        return comparison.pairs, 0
    runs = {run.label: run for run in comparison.runs}
    chosen = []
    for pair in comparison.pairs:
        one, other = runs[pair.first], runs[pair.second]
        same_context = (one.context, one.retriever, one.k) == (other.context, other.retriever, other.k)
        if one.model == other.model or same_context:
            chosen.append(pair)
    return chosen, len(comparison.pairs) - len(chosen)


def _cell(estimate: Estimate | None, n: int = 0, *, interval: bool = True) -> str:
    """A mean, its interval on a line of its own, and n on another where it is not that of the table."""
    if estimate is None or estimate.mean is None or estimate.low is None or estimate.high is None:
        return NONE
    lines = [percent(estimate.mean)]
    lines += [span(estimate.low, estimate.high)] if interval else []
    lines += [f"n={estimate.n}"] if estimate.n != n else []
    return "\n".join(lines)


def _runs(comparison: Comparison) -> RenderableType:
    from slmx.console import table

    rows = [[run.label, str(run.right.n), _cell(run.right, run.right.n)] for run in comparison.runs]
    return table("Runs", ["run", "n", "right"], rows)


def _decomposition(one: Decomposition, *, named: bool) -> RenderableType:
    """The modes of a model; in a narrow terminal without the intervals, then without the split by what is known."""
    from slmx.console import Fitting, table

    n = max(estimate.n for estimate in (one.knowledge, *(c.right for c in one.contexts)) if estimate is not None)
    title = f"Where answers are lost: {one.model}" if named else "Where answers are lost"
    heads = ["context", "right", "covered", "right of\ncovered", "right of\nknown", "right of\nunknown", "lost in"]
    title = f"{title}, n={n}"
    forms = [(heads, _modes(one, n, interval=interval)) for interval in (True, False)]
    without_split = [(heads[:4] + heads[-1:], [row[:4] + row[-1:] for row in rows]) for _, rows in forms]
    forms = [*forms, without_split[1]] if one.without is not None else without_split
    return Fitting([table(title, columns, rows) for columns, rows in forms])


def _modes(one: Decomposition, n: int, interval: bool) -> list[list[str]]:
    rows = []
    if one.knowledge is not None:
        rows.append([str(one.without), _cell(one.knowledge, n, interval=interval), *[NONE] * 5])
    for reading in one.contexts:
        oracle = reading.run == one.oracle
        lost, stage = (one.reading_loss, "reading") if oracle else (reading.retrieval_loss, "retrieval")
        shares = [reading.right, reading.coverage, reading.utilisation, reading.known, reading.unknown]
        told = NONE if lost is None else f"{stage}\n{_cell(lost, n, interval=interval)}"
        rows.append([reading.run, *(_cell(share, n, interval=interval) for share in shares), told])
    return rows


def _changes(pairs: Sequence[Pair]) -> RenderableType:
    from slmx.console import table

    rows = []
    for pair in pairs:
        counts = [pair.helped, pair.hurt, pair.both_right, pair.both_wrong, pair.same_answer]
        rows.append([f"{pair.first} → {pair.second}", *map(str, counts)])
    heads = ["from → to", "helped", "hurt", "both\nright", "both\nwrong", "same\nanswer"]
    return table("What changed, in questions", heads, rows)


def _tests(metric: str, pairs: Sequence[Pair]) -> RenderableType | None:
    """The tests of a metric; in a narrow terminal without intervals and the p before Holm, then without the means."""
    from slmx.console import Fitting, table

    tests = [(pair, test) for pair in pairs for test in pair.tests if test.metric == metric]
    if not tests:
        return None
    wide, narrow = [], []
    for pair, test in tests:
        name = f"{pair.first} → {pair.second}"
        fewer = f"\nn={test.n}" if test.n != pair.n else ""  # k-precision and the like have no value for some
        means = [percent(test.first), percent(test.second)]
        difference, interval = points(test.difference), f"{points(test.low)} to {points(test.high)}"
        least = percent(test.smallest_difference)
        wide.append(
            [name, *means, f"{difference}\n{interval}{fewer}", _p(test.p), _p(test.p_holm), least, verdict(test)]
        )
        narrow.append([name, *means, f"{difference}{fewer}", _p(test.p_holm), least, verdict(test)])
    how = "McNemar, exact" if tests[0][1].test == "mcnemar_exact" else "paired bootstrap"
    title = f"Is it more than chance? {metric} ({how}; Holm over {tests[0][1].family})"
    heads = ["from → to", "from", "to", "points", "p", "p Holm", "shows\nfrom", "verdict"]
    narrow_heads = [head for head in heads if head != "p"]
    narrowest = [[row[0], row[3], row[4], row[6]] for row in narrow]
    forms = [(heads, wide), (narrow_heads, narrow), ([heads[0], "points", "p Holm", "verdict"], narrowest)]
    return Fitting([table(title, columns, rows) for columns, rows in forms])


def verdict(test: Test) -> str:
    """What a test says, in a word: judged by the adjusted p."""
    if not is_real(test):
        return "not shown"
    return "more" if test.difference > 0 else "less"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _legend(comparison: Comparison) -> str:
    lines = [
        "helped: wrong → right; hurt: right → wrong; same answer: between no context and a context, it was ignored.",
        "covered: the passages retrieved hold an answer. known, unknown: answered right, wrong without context.",
        "lost in reading: 100 − oracle; in retrieval: oracle − this context.",
        f"more, less: p Holm below {REAL}. shows from: the smallest difference that n questions show 4 times in 5,"
        " before Holm's correction.",
    ]
    return "\n".join(lines if comparison.decompositions else [lines[0], lines[3]])


def check_target(to: str, *, overwrite: bool = False, as_json: bool = False) -> None:
    """Can a comparison be written there? To be asked before the runs are read.

    Args:
        to: a file's name, or "csv" for stdout.
        overwrite: may a file be replaced?
        as_json: is stdout taken for JSON?

    Raises:
        UsageError: an ending that says no form, or CSV and JSON both for stdout.
        RefusedError: the file is there, and `overwrite` is false.
    """
    if to == CSV_TO_STDOUT:
        if as_json:
            hint = "Give --to FILE.csv, or leave one of the two out."
            raise UsageError("--json and --to csv both want stdout.", hint=hint)
        return
    path = Path(to)
    if path.suffix.lower() not in ENDINGS:
        hint = f"--to FILE ends with {' or '.join(ENDINGS)}; --to {CSV_TO_STDOUT} writes to stdout."
        raise UsageError(f"{path} has an ending that says no form.", hint=hint)
    if path.exists() and not overwrite:
        raise RefusedError(f"{path} exists.", hint="Give --overwrite to replace it, or another name.")


def write(path: Path, joined: Joined, comparison: Comparison, *, overwrite: bool = False) -> None:
    """Write a comparison: a line a question as JSON where the name ends in .jsonl, else a line a pair as CSV.

    Raises:
        RefusedError: the file is there, and `overwrite` is false.
    """
    if path.suffix.lower() == ".jsonl":
        write_jsonl(path, question_rows(joined), overwrite=overwrite)
    else:
        write_bytes(path, "".join(f"{line}\r\n" for line in csv_lines(comparison)).encode(), overwrite=overwrite)


def question_rows(joined: Joined) -> Iterator[dict[str, object]]:
    """Every question with the answer of each run, by label, and whether it counts as right."""
    for place, question_id in enumerate(joined.question_ids):
        yield {
            "question_id": question_id,
            "question": joined.questions[place],
            "ground_truth": joined.ground_truth[place],
            "right": {label: right[place] for label, right in zip(joined.labels, joined.right, strict=True)},
            "answers": {label: said[place] for label, said in zip(joined.labels, joined.said, strict=True)},
        }


def csv_lines(comparison: Comparison) -> Iterator[str]:
    """The comparison as CSV: a line a pair and metric, the columns of COLUMNS first; shares 0 to 1."""
    yield _line(COLUMNS)
    for pair in comparison.pairs:
        counts = (pair.n, pair.helped, pair.hurt, pair.both_right, pair.both_wrong, pair.same_answer, pair.ignored)
        for test in pair.tests:
            effect = (test.metric, test.test, test.n, test.first, test.second, test.difference, test.low, test.high)
            sure = (test.p, test.p_holm, test.family, test.smallest_difference, test.smallest_unpaired)
            yield _line((pair.first, pair.second, *counts, *effect, *sure))


def _line(cells: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()
