"""`slmx eval compare`: runs over the same questions: what did a context change, and is it more than chance?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import msgspec

from slmx.errors import UsageError
from slmx.eval.join import Joined, join
from slmx.eval.runs import Run, find_runs, open_run
from slmx.eval.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    smallest_paired_difference,
    smallest_unpaired_difference,
)
from slmx.files import hash_value
from slmx.records import Context, Record
from slmx.registry import unknown_name


class Estimate(Record, frozen=True, omit_defaults=False):
    """A mean over `n` questions with its 95 % bootstrap interval, 0 to 1; None for all where n is 0."""

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


class Test(Record, frozen=True, omit_defaults=False):
    """A paired test of one metric between two runs: second minus first, over the `n` questions that both define.

    `p_holm` is adjusted over the `family` of tests of this metric in this call. `smallest_difference` is what a test
    over so many questions finds in four of five cases (at 5 %, not adjusted); `smallest_unpaired` what it would take
    had the runs seen different questions.
    """

    metric: str
    test: Literal["mcnemar_exact", "paired_bootstrap"]
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    family: int
    smallest_difference: float | None
    smallest_unpaired: float | None


class Pair(Record, frozen=True, omit_defaults=False):
    """Two runs by label. helped + hurt + both_right + both_wrong = n; the same answers are counted beside them.

    `ignored` is `same_answer` where the runs are one model with and without context, else None.
    """

    first: str
    second: str
    n: int
    helped: int
    hurt: int
    both_right: int
    both_wrong: int
    same_answer: int
    ignored: int | None
    tests: list[Test]


class Reading(Record, frozen=True, omit_defaults=False):
    """What a model makes of one kind of context.

    `retrieval_loss` is oracle minus this; `coverage` the share of questions whose passages hold an answer (as they
    were retrieved, before any was cut to fit the prompt), and `utilisation` the share answered right among those;
    `known` and `unknown` the share right among the questions that the model answered right and wrong without context.
    None where the run that it takes is not there.
    """

    run: str
    context: Context
    right: Estimate
    retrieval_loss: Estimate | None
    coverage: Estimate | None
    utilisation: Estimate | None
    known: Estimate | None
    unknown: Estimate | None


class Decomposition(Record, frozen=True, omit_defaults=False):
    """The modes of one model: what it knows, what it loses in reading, and what each retriever loses."""

    model: str
    without: str | None
    oracle: str | None
    knowledge: Estimate | None
    reading_loss: Estimate | None
    contexts: list[Reading]


class Compared(Record, frozen=True, omit_defaults=False):
    """A run in a comparison."""

    label: str
    path: str
    model: str
    mode: str
    context: Context
    retriever: str
    k: int
    right: Estimate


class Comparison(Record, frozen=True, omit_defaults=False):
    """The result of `slmx eval compare`.

    `unscored` counts questions without a gold answer, or without a judge's grade in one of the runs: none counts them.
    """

    dataset: str
    questions: int
    unscored: int
    right_by: str
    normalisers: list[str]
    metrics: list[str]
    baseline: str | None
    seed: int
    runs: list[Compared]
    decompositions: list[Decomposition]
    pairs: list[Pair]
    notes: list[str]


def compare_runs(
    paths: Sequence[Path],
    *,
    right_by: str = "match",
    metrics: Sequence[str] = ("token_recall",),
    vocabulary: Path | None = None,
    baseline: Path | None = None,
    seed: int = 0,
) -> tuple[Joined, Comparison]:
    """Find the runs that paths name, join and compare them; see `find_runs`, `join` and `compare`.

    `baseline` is one of the runs, by its path or its folder's name; it may stand among the paths or not.

    Raises:
        UsageError: fewer than two runs, no such baseline or several, and what the others raise.
    """
    runs, place = find_runs(paths), None
    if baseline is not None:
        runs, place = _with_baseline(runs, baseline)
    if len(runs) < 2:
        raise UsageError(
            f"A comparison needs two runs; {runs[0].path} is one.",
            hint="Name another one, or a folder above several: slmx eval compare outputs",
        )
    joined = join(runs, right_by=right_by, metrics=metrics, vocabulary=vocabulary)
    return joined, compare(joined, baseline=place, seed=seed)


def _with_baseline(runs: list[Run], baseline: Path) -> tuple[list[Run], int]:
    """The runs with the baseline among them, and its place."""
    for place, run in enumerate(runs):
        if run.path.resolve() == baseline.resolve():
            return runs, place
    named = [place for place, run in enumerate(runs) if run.name == str(baseline)]
    if len(named) > 1:
        paths = ", ".join(str(runs[place].path) for place in named)
        raise UsageError(f"{len(named)} of these runs are called {baseline}.", hint=f"Name one by its path: {paths}.")
    if named:
        return runs, named[0]
    if not baseline.exists():
        raise unknown_name("run among these", str(baseline), [run.name for run in runs])
    return [open_run(baseline), *runs], 0


def compare(joined: Joined, *, baseline: int | None = None, seed: int = 0) -> Comparison:
    """Count and test every pair of runs, or every run against a baseline, and take the modes of each model apart.

    Args:
        joined: from `join`; all its metrics are tested, a family of Holm's correction each.
        baseline: the place of the run that all others are compared with; it is the first of every pair.
        seed: of the bootstrap.
    """
    places = range(len(joined.runs))
    chosen = list(combinations(places, 2)) if baseline is None else [(baseline, p) for p in places if p != baseline]
    tests = _tests(joined, chosen, seed)
    runs = [
        Compared(
            label=label,
            path=str(run.path),
            model=run.cell.model,
            mode=run.cell.mode,
            context=run.cell.context,
            retriever=run.cell.retriever,
            k=run.cell.k,
            right=_estimate(right, seed),
        )
        for run, label, right in zip(joined.runs, joined.labels, joined.right, strict=True)
    ]
    return Comparison(
        dataset=next((run.cell.dataset for run in joined.runs if run.cell.dataset), ""),
        questions=len(joined.question_ids),
        unscored=joined.right[0].count(None),
        right_by=joined.right_by,
        normalisers=sorted(set(joined.normalisers)),
        metrics=list(joined.values),
        baseline=None if baseline is None else joined.labels[baseline],
        seed=seed,
        runs=runs,
        decompositions=decompose(joined, seed=seed),
        pairs=[_pair(joined, pair, tests[pair]) for pair in chosen],
        notes=_notes(joined),
    )


def _estimate(values: Iterable[float | None], seed: int) -> Estimate:
    defined = [float(value) for value in values if value is not None]
    if not defined:
        return Estimate(n=0)
    low, high = bootstrap_interval(defined, seed=seed)
    return Estimate(n=len(defined), mean=sum(defined) / len(defined), low=low, high=high)


def _pair(joined: Joined, places: tuple[int, int], tests: list[Test]) -> Pair:
    first, second = places
    outcomes = [outcome for outcome in joined.outcomes(first, second) if outcome is not None]
    same = joined.same_answer(first, second)
    one, other = joined.runs[first], joined.runs[second]
    same_model = group_of(one) == group_of(other)
    with_and_without = same_model and (one.cell.context == "none") != (other.cell.context == "none")
    return Pair(
        first=joined.labels[first],
        second=joined.labels[second],
        n=len(outcomes),
        helped=outcomes.count("helped"),
        hurt=outcomes.count("hurt"),
        both_right=outcomes.count("both_right"),
        both_wrong=outcomes.count("both_wrong"),
        same_answer=sum(same),
        ignored=sum(same) if with_and_without else None,
        tests=tests,
    )


def _tests(joined: Joined, pairs: Sequence[tuple[int, int]], seed: int) -> dict[tuple[int, int], list[Test]]:
    """The tests of every pair, metric by metric, since a metric's pairs are one family."""
    tests: dict[tuple[int, int], list[Test]] = {pair: [] for pair in pairs}
    for metric, columns in joined.values.items():
        binary = all(value in (None, 0.0, 1.0) for column in columns for value in column)
        made = {pair: _test(metric, columns[pair[0]], columns[pair[1]], binary, seed) for pair in pairs}
        family = {pair: test for pair, test in made.items() if test is not None}
        adjusted = holm([test.p for test in family.values()])
        for (pair, test), p_holm in zip(family.items(), adjusted, strict=True):
            tests[pair].append(msgspec.structs.replace(test, p_holm=p_holm, family=len(family)))
    return tests


def _test(
    metric: str, first: Sequence[float | None], second: Sequence[float | None], binary: bool, seed: int
) -> Test | None:
    """One test, not yet adjusted; None where no question has the metric in both runs."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    left, right = [a for a, _ in both], [b for _, b in both]
    differences = [b - a for a, b in both]
    effect = paired_bootstrap(differences, seed=seed)
    p = mcnemar_exact(differences.count(1.0), differences.count(-1.0)) if binary else effect.p
    return Test(
        metric=metric,
        test="mcnemar_exact" if binary else "paired_bootstrap",
        n=len(both),
        first=sum(left) / len(both),
        second=sum(right) / len(both),
        difference=effect.difference,
        low=effect.low,
        high=effect.high,
        p=p,
        p_holm=p,
        family=1,
        smallest_difference=smallest_paired_difference(differences),
        smallest_unpaired=smallest_unpaired_difference(left, right),
    )


# --------------------------------------------------------------------------------------------- the modes of one model


def decompose(joined: Joined, *, seed: int = 0) -> list[Decomposition]:
    """Knowledge, reading loss, retrieval loss and utilisation of every model that has more than one run."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(joined.runs):
        groups.setdefault(group_of(run), []).append(place)
    return [_decomposition(joined, places, seed) for places in groups.values() if len(places) > 1]


def group_of(run: Run) -> str:
    """Runs of one model: the same weights, template and generation settings, where run.json tells."""
    generator = run.configuration.get("generator")
    return hash_value(generator) if generator else run.cell.model


def _first(joined: Joined, places: Sequence[int], context: Context) -> int | None:
    return next((place for place in places if joined.runs[place].cell.context == context), None)


def _decomposition(joined: Joined, places: Sequence[int], seed: int) -> Decomposition:
    without, oracle = _first(joined, places, "none"), _first(joined, places, "oracle")
    losses = None if oracle is None else [None if right is None else float(not right) for right in joined.right[oracle]]
    return Decomposition(
        model=joined.runs[places[0]].cell.model,
        without=None if without is None else joined.labels[without],
        oracle=None if oracle is None else joined.labels[oracle],
        knowledge=None if without is None else _estimate(joined.right[without], seed),
        reading_loss=None if losses is None else _estimate(losses, seed),
        contexts=[
            _reading(joined, place, without, oracle, seed)
            for place in places
            if joined.runs[place].cell.context != "none"
        ],
    )


def _reading(joined: Joined, place: int, without: int | None, oracle: int | None, seed: int) -> Reading:
    context, right = joined.runs[place].cell.context, joined.right[place]
    covered = joined.covered[place]
    known = None if without is None else joined.right[without]
    lost = None
    if oracle is not None and context == "retrieved":
        pairs = zip(joined.right[oracle], right, strict=True)
        lost = _estimate([None if a is None or b is None else float(a) - float(b) for a, b in pairs], seed)
    return Reading(
        run=joined.labels[place],
        context=context,
        right=_estimate(right, seed),
        retrieval_loss=lost,
        coverage=_estimate(covered, seed) if any(value is not None for value in covered) else None,
        utilisation=utilisation(joined, place, seed=seed),
        known=None if known is None else _share(right, known, True, seed),
        unknown=None if known is None else _share(right, known, False, seed),
    )


def utilisation(joined: Joined, place: int, *, seed: int = 0) -> Estimate | None:
    """The share of a run's answers that are right among the questions whose passages hold an answer.

    None without context.
    """
    return _share(joined.right[place], joined.covered[place], True, seed)


def _share(right: Sequence[bool | None], given: Sequence[bool | None], state: bool, seed: int) -> Estimate | None:
    """The share right among the questions for which `given` is `state`; None where it is nowhere defined."""
    if all(value is None for value in given):
        return None
    return _estimate([r for r, value in zip(right, given, strict=True) if value is state], seed)


def _notes(joined: Joined) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    hashes = {run.configuration["dataset"]["hash"] for run in joined.runs if run.configuration}
    if len(hashes) > 1:
        notes.append("The questions are the same, but the dataset's passages were cut or read in different ways.")
    if unknown := [label for run, label in zip(joined.runs, joined.labels, strict=True) if not run.configuration]:
        notes.append(f"No run.json beside {', '.join(unknown)}: only the texts tell that the dataset is the same.")
    kinds: dict[tuple[str, Context], list[str]] = {}
    for run, label in zip(joined.runs, joined.labels, strict=True):
        if run.cell.context != "retrieved":
            kinds.setdefault((group_of(run), run.cell.context), []).append(label)
    for (_, context), same in kinds.items():
        if len(same) > 1:
            notes.append(f"{len(same)} runs of one model have the context {context}; losses are against {same[0]}.")
    return notes
