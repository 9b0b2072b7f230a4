"""The section that takes the questions apart by topic, answer type and the word they ask with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE, measured
from slmx.eval.page.parts import Cell, Column, Section, Table
from slmx.eval.statistics import bootstrap_interval


def groups(material: Material) -> Section | None:
    """Right answers by group, a table for every way of grouping that the questions offer."""
    tables = [_by(material, title, names) for title, names in material.groupings.items()]
    if not tables:
        return None
    return Section(
        "groups",
        f"By {' and '.join(material.groupings)}",
        "The same shares of right answers for parts of the questions. The intervals are wide where a group is small; "
        "a group that stands out among many may do so by chance.",
        tables,
    )


def _by(material: Material, title: str, names: Sequence[str]) -> Table:
    sizes = Counter(name for name in names if name)
    rows: list[list[Cell]] = [
        [name, f"{size:,}", *(_share(material, run, names, name) for run in material.runs)]
        for name, size in sizes.most_common()
    ]
    columns = [Column(title, "words"), Column("questions"), *(Column(run.key) for run in material.runs)]
    legend = "; ".join(run.named for run in material.runs)
    return Table(f"Right answers by {title}, % (95 % interval)", columns, rows, note=f"{legend}.", wide=True)


def _share(material: Material, run: Shown, names: Sequence[str], name: str) -> Cell:
    values = [float(right) for right, own in zip(run.right, names, strict=True) if own == name and right is not None]
    if not values:
        return NONE
    low, high = bootstrap_interval(values, seed=material.comparison.seed)
    return measured(sum(values) / len(values), (low, high))
