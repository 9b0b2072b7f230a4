"""The section on chance: the paired tests between retrievers, against no passages and the gold ones, between models."""

from __future__ import annotations

from collections.abc import Sequence

from slmx.eval.compare import Test
from slmx.eval.page import charts
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE, is_real, p_value, points, span
from slmx.eval.page.parts import Cell, Column, Key, Measured, Section, Svg, Table

_NAMES = {"token_recall": "token recall", "match": "match", "em": "EM"}
_STAR = "* not shown to be real in this metric, after Holm's correction over its own family."


def differences(material: Material) -> Section | None:
    """Effect, interval, adjusted p and the smallest visible difference, for every pair that tells something."""
    kinds = {
        "Between retrievers": material.pairs_of_retrievers(),
        "Passages against none": material.pairs_with_nothing(),
        "The gold passage against what was found": material.pairs_with_gold(),
        "Between models, or settings of one": material.pairs_of_models(),
    }
    tables = [table for title, pairs in kinds.items() if (table := _table(material, title, pairs))]
    if not tables:
        return None
    return Section(
        "differences",
        "Is the difference real?",
        "Runs are compared on the same questions. A difference is called real where chance would show one in fewer "
        f"than 5 of 100 such families of comparisons (p after Holm's correction for {_family(material)} tests: "
        "McNemar's exact test for right and wrong, a paired bootstrap for the rest). “Could be seen” is the smallest "
        "true difference that so many questions show in four of five cases, before that correction; below it, “not "
        "shown” does not mean none.",
        tables,
        [
            Key("c-helped", "the second is better"),
            Key("c-hurt", "the second is worse"),
            Key("c-none", "no difference shown"),
        ],
    )


def _family(material: Material) -> int:
    return max((test.family for pair in material.comparison.pairs for test in pair.tests), default=0)


def _table(material: Material, title: str, pairs: Sequence[tuple[Shown, Shown]]) -> Table | None:
    tested = [(first, second, test) for first, second in pairs if (test := material.test(first, second))]
    if not tested:
        return None
    reach = max(max(abs(test.low), abs(test.high)) for *_, test in tested)
    others = material.comparison.metrics[1:]
    rows: list[list[Cell]] = [
        [
            material.step(first, second),
            _drawing(test, reach),
            Measured(points(test.difference), span(test.low, test.high)),
            p_value(test.p_holm),
            _said(test, first, second),
            NONE if test.smallest_difference is None else f"{100 * test.smallest_difference:.1f}",
            *(_other(material, first, second, name) for name in others),
        ]
        for first, second, test in tested
    ]
    columns = [
        Column("from → to", "words"),
        Column(f"difference in right answers, −{100 * reach:.0f} to +{100 * reach:.0f}", "drawing"),
        Column("points"),
        Column("p"),
        Column("real?"),
        Column("could be seen"),
        *(Column(_NAMES.get(name, name)) for name in others),
    ]
    return Table(
        f"{title}: points of 100 (95 % interval)",
        columns,
        rows,
        note=_STAR if any("*" in str(cell) for row in rows for cell in row) else "",
    )


def _drawing(test: Test, reach: float) -> Svg:
    label = f"{points(test.difference)} points ({span(test.low, test.high)})"
    return charts.difference(label, test.difference, test.low, test.high, reach, real=is_real(test))


def _said(test: Test, first: Shown, second: Shown) -> str:
    if not is_real(test):
        return "not shown"
    return f"yes: {second.key if test.difference > 0 else first.key} is better"


def _other(material: Material, first: Shown, second: Shown, metric: str) -> Cell:
    """The difference in another metric; a star where it is not shown to be real."""
    for test in material.pair(first, second).tests:
        if test.metric == metric:
            return Measured(points(test.difference) + ("" if is_real(test) else "*"), span(test.low, test.high))
    return NONE
