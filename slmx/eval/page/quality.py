"""Sections on the answers: how many are right, what is lost where, what retrieval changed, and is it more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from slmx.eval.compare import Pair, Test
from slmx.eval.page import charts
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE, estimate, is_real, p_value, percent, points, span, with_interval
from slmx.eval.page.parts import Cell, Column, Key, Link, Section, Svg, Table

_ANSWER_METRICS = {
    "token_recall": "token recall",
    "em": "EM",
    "f1": "F1",
    "k_precision": "k-precision",
    "simpleqa_correct": "SimpleQA correct",
    "simpleqa_accuracy_given_attempted": "of attempted",
    "simpleqa_not_attempted": "not attempted",
    "simpleqa_f1": "SimpleQA F1",
}
RIGHT = {"match": "a gold answer stands in the answer, word for word", "em": "the answer is a gold answer"}


def right_answers(material: Material) -> Section:
    """The matrix of model × mode, a bar for every run, and the other metrics of answers."""
    by = material.comparison.right_by
    told = RIGHT.get(by, by)
    runs = [
        [run.named, _level(material, run), estimate(material.right(run))]
        for run in material.runs
    ]
    bars = Table(
        "Right answers of every run, %",
        [Column("run", "words"), Column("right, with 95 % interval", "drawing"), Column("right (interval)")],
        runs,
    )
    return Section(
        "quality",
        "Right answers",
        f"An answer counts as right where {told} ({by}). The interval is where the share would lie with other questions "
        "of the same kind: a 95 % bootstrap over questions.",
        [*([_matrix(material)] if len(material.runs) > 1 else []), bars, _metrics(material)],
    )


def _matrix(material: Material) -> Table:
    """Model × mode; several runs of a model in one mode (another template, say) share a cell."""
    shows = list(dict.fromkeys(run.run.cell.shows for run in material.runs))
    rows: list[list[Cell]] = []
    for model in material.models:
        cells = []
        for context in shows:
            here = [run for run in material.runs if run.model == model and run.run.cell.shows == context]
            cells.append("; ".join(estimate(material.right(run)) for run in here) or NONE)
        rows.append([model, *cells])
    heads = {"none": "no context", "oracle": "gold passage (oracle)"}
    columns = [Column("model", "words"), *(Column(heads.get(context, context)) for context in shows)]
    return Table("Right answers by model and mode, % (95 % interval)", columns, rows)


def _level(material: Material, run: Shown) -> Svg | str:
    right = material.right(run)
    if right.mean is None or right.low is None or right.high is None:
        return NONE
    return charts.level(f"{run.label}: {estimate(right)} % right", right.mean, right.low, right.high)


def _metrics(material: Material) -> Table:
    there = {
        name: title
        for name, title in _ANSWER_METRICS.items()
        if any(run.mean(name) is not None for run in material.runs)
    }
    rows: list[list[Cell]] = [
        [run.named, *(with_interval(run.mean(name), run.interval(name)) for name in there)] for run in material.runs
    ]
    return Table(
        "Other metrics of the answers, % (95 % interval)",
        [Column("run", "words"), *(Column(title) for title in there.values())],
        rows,
        note="Token recall: the share of a gold answer's words that the answer holds. EM: the answer is a gold answer. "
        "F1: overlap of words both ways; low where answers are long. k-precision: the share of the answer's words that "
        "its passages hold. docs/metrics.md defines each.",
        wide=True,
    )


# ----------------------------------------------------------------------------------------------------- what is lost


def losses(material: Material) -> Section | None:
    """Knowledge, reading loss and retrieval loss of every model that has more than one run, as stacked bars."""
    rows: list[list[Cell]] = []
    for one in material.comparison.decompositions:
        for reading in one.contexts:
            right = reading.right.mean
            if right is None:
                continue
            lost = reading.retrieval_loss.mean if reading.retrieval_loss else None
            missed = max(lost or 0.0, 0.0)
            unread = (one.reading_loss.mean if one.reading_loss else None) is not None
            rest = max(1 - right - missed, 0.0)
            knowledge = one.knowledge.mean if one.knowledge else None
            parts = [
                charts.Part("c-right", right, "right"),
                charts.Part("c-retrieval", missed, "lost by the retriever"),
                charts.Part("c-reading" if unread else "c-wrong", rest, "lost in reading" if unread else "wrong"),
            ]
            bar = charts.stacked(
                f"{reading.run}: {percent(right)} % right, {percent(missed)} % lost by the retriever, "
                f"{percent(rest)} % {'lost in reading' if unread else 'wrong'}",
                parts,
                mark=knowledge,
                mark_words=f"known without passages: {percent(knowledge)} %",
            )
            rows.append(
                [
                    material.shown(reading.run).named,
                    bar,
                    percent(right),
                    estimate(reading.retrieval_loss),
                    estimate(one.reading_loss),
                    estimate(one.knowledge),
                ]
            )
    if not rows:
        return None
    columns = [
        Column("run", "words"),
        Column("of 100 questions", "drawing"),
        Column("right"),
        Column("retrieval loss"),
        Column("reading loss"),
        Column("knowledge"),
    ]
    return Section(
        "losses",
        "What is lost where",
        "Knowledge is what the model gets right without any passage. Reading loss is what it still gets wrong with the "
        "gold passage before it: no retriever can mend that. Retrieval loss is what it gets right with the gold "
        "passage but not with what the retriever found.",
        [Table("Right and lost, % of all questions (95 % interval)", columns, rows, note=_negative(material))],
        [
            Key("c-right", "right"),
            Key("c-retrieval", "lost by the retriever"),
            Key("c-reading", "lost in reading"),
            Key("c-ink", "line: known without passages"),
        ],
    )


def _negative(material: Material) -> str:
    gains = [
        reading.run
        for one in material.comparison.decompositions
        for reading in one.contexts
        if reading.retrieval_loss and (reading.retrieval_loss.mean or 0.0) < 0
    ]
    return f"A negative retrieval loss ({', '.join(gains)}): better with the found passages than with the gold ones." if gains else ""


# -------------------------------------------------------------------------------------------------- helped and hurt


def flows(material: Material) -> Section | None:
    """For every pair of runs of one model that differ in their passages: helped, hurt, both right, both wrong."""
    rows: list[list[Cell]] = []
    for first, second in _telling_pairs(material):
        pair = material.pair(first, second)
        if pair.n == 0:
            continue
        named = {
            "both_right": ("c-right", "right in both"),
            "helped": ("c-helped", "helped: wrong, then right"),
            "hurt": ("c-hurt", "hurt: right, then wrong"),
            "both_wrong": ("c-wrong", "wrong in both"),
        }
        parts = [charts.Part(colour, getattr(pair, name) / pair.n, words) for name, (colour, words) in named.items()]
        label = f"{first.label} to {second.label}: helped {pair.helped}, hurt {pair.hurt} of {pair.n}"
        rows.append(
            [
                f"{first.named} → {second.named}",
                charts.stacked(label, parts),
                *(
                    Link(f"{getattr(pair, name):,}", first.place, second.place, name.replace("_", "-"))
                    for name in ("helped", "hurt", "both_right", "both_wrong")
                ),
                Link(f"{pair.same_answer:,}", first.place, second.place, "ignored"),
            ]
        )
    if not rows:
        return None
    columns = [
        Column("from → to", "words"),
        Column("of 100 questions", "drawing"),
        *map(Column, ("helped", "hurt", "both right", "both wrong", "same answer")),
    ]
    return Section(
        "flows",
        "What the passages changed",
        "Question by question, from one run to another of the same model: helped went from wrong to right, hurt from "
        "right to wrong. A count leads to its questions. Same answer: word for word, right or wrong; from no context "
        "to passages that means the passages were ignored.",
        [Table("Questions whose answer changed", columns, rows)],
        [
            Key("c-right", "right in both"),
            Key("c-helped", "helped"),
            Key("c-hurt", "hurt"),
            Key("c-wrong", "wrong in both"),
        ],
    )


def _telling_pairs(material: Material) -> list[tuple[Shown, Shown]]:
    """Pairs of one model: no context to every other, and retriever to retriever; the gold passage is no alternative."""
    kept = []
    for one in material.comparison.decompositions:
        labels = [one.without, *(reading.run for reading in one.contexts)]
        runs = sorted((material.shown(label) for label in labels if label), key=lambda run: run.place)
        kept += [(a, b) for a, b in combinations(runs, 2) if a.context == "none" or "oracle" not in (a.context, b.context)]
    return kept


# ------------------------------------------------------------------------------------------------- is it more than chance


def differences(material: Material) -> Section | None:
    """The paired tests: effect, interval, adjusted p, and the smallest difference that could be seen."""
    pairs = _tested_pairs(material)
    if not pairs:
        return None
    metrics = material.comparison.metrics
    by = material.comparison.right_by
    tables = [
        table
        for metric in metrics
        if (table := _tests_table(material, pairs, metric, "right answers" if metric == by else metric.replace("_", " ")))
    ]
    return Section(
        "differences",
        "Is the difference real?",
        "Every pair of runs is compared on the same questions. A difference is called real where chance alone would "
        f"show one in fewer than 5 of 100 such families of comparisons (Holm's correction over {_family(material)} "
        "tests; McNemar's exact test for right and wrong, a paired bootstrap for the rest). “Could be seen” is the "
        "smallest true difference that so many questions show in four of five cases: below it, no difference shown "
        "does not mean none.",
        tables,
        [
            Key("c-helped", "second is better"),
            Key("c-hurt", "second is worse"),
            Key("c-none", "no difference shown"),
        ],
    )


def _family(material: Material) -> int:
    return max((test.family for pair in material.comparison.pairs for test in pair.tests), default=0)


def _tested_pairs(material: Material) -> list[tuple[Shown, Shown]]:
    """Retrievers of one model first, then no context against each, then models against each other in one context."""
    ordered: dict[tuple[int, int], tuple[Shown, Shown]] = {}
    within = _telling_pairs(material)
    across = [
        (a, b)
        for a, b in combinations(material.runs, 2)
        if a.model != b.model and a.run.cell.shows == b.run.cell.shows
    ]
    named = {(a.place, b.place) for a, b in within}
    others = [
        (a, b)
        for a, b in combinations(material.runs, 2)
        if a.model == b.model and (a.place, b.place) not in named
    ]
    for a, b in [*(p for p in within if p[0].context != "none"), *(p for p in within if p[0].context == "none"), *others, *across]:
        ordered[a.place, b.place] = (a, b)
    return list(ordered.values())


def _tests_table(
    material: Material, pairs: Sequence[tuple[Shown, Shown]], metric: str, title: str
) -> Table | None:
    tested = [
        (first, second, test)
        for first, second in pairs
        for test in material.pair(first, second).tests
        if test.metric == metric
    ]
    if not tested:
        return None
    reach = max(max(abs(test.low), abs(test.high)) for *_, test in tested)
    rows: list[list[Cell]] = [
        [
            f"{first.named} → {second.named}",
            charts.difference(
                f"{points(test.difference)} points ({span(test.low, test.high)})",
                test.difference,
                test.low,
                test.high,
                reach,
                real=is_real(test),
            ),
            points(test.difference),
            span(test.low, test.high),
            p_value(test.p_holm),
            _said(test, first, second),
            NONE if test.smallest_difference is None else f"{100 * test.smallest_difference:.1f}",
        ]
        for first, second, test in tested
    ]
    columns = [
        Column("from → to", "words"),
        Column(f"difference, 0 in the middle, ±{100 * reach:.0f}", "drawing"),
        Column("points"),
        Column("95 % interval"),
        Column("p (Holm)"),
        Column("real?", "words"),
        Column("could be seen"),
    ]
    return Table(f"Differences in {title}, points of 100", columns, rows)


def _said(test: Test, first: Shown, second: Shown) -> str:
    if not is_real(test):
        return "not shown"
    return f"yes: {second.key if test.difference > 0 else first.key} is better"


# ------------------------------------------------------------------------------------------------- known and unknown


def known(material: Material) -> Section | None:
    """What passages do for questions that the model knew, and for those that it did not."""
    rows: list[list[Cell]] = []
    for one in material.comparison.decompositions:
        for reading in one.contexts:
            if reading.known is None and reading.unknown is None:
                continue
            sizes = [str(made.n) if made else "0" for made in (reading.known, reading.unknown)]
            rows.append(
                [
                    material.shown(reading.run).named,
                    estimate(reading.known),
                    sizes[0],
                    estimate(reading.unknown),
                    sizes[1],
                ]
            )
    if not rows:
        return None
    columns = [
        Column("run", "words"),
        Column("right of the known"),
        Column("known"),
        Column("right of the unknown"),
        Column("unknown"),
    ]
    return Section(
        "known",
        "Known and unknown questions",
        "Known: the same model answers right without passages. Below 100 % of the known, passages mislead it; the "
        "share of the unknown is what retrieval adds.",
        [Table("Right answers with passages, % (95 % interval), by what the model knew", columns, rows)],
    )


def changed(pair: Pair) -> int:
    """How many questions went from right to wrong or back."""
    return pair.helped + pair.hurt
