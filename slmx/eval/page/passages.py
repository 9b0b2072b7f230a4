"""The section on passages: how well they were found, beside what the model made of them."""

from __future__ import annotations

from slmx.eval.page.material import Material
from slmx.eval.page.numbers import estimated, measured
from slmx.eval.page.parts import Cell, Column, Section, Table

_METRICS = {
    "answer_coverage": "coverage",
    "ndcg": "nDCG@k",
    "recall_at_k": "recall@k",
    "mrr": "MRR@k",
    "hit": "hit@k",
}


def passages(material: Material) -> Section | None:
    """Retrieval metrics beside right answers and utilisation."""
    runs = [run for run in material.runs if run.context != "none"]
    there = {name: title for name, title in _METRICS.items() if any(run.mean(name) is not None for run in runs)}
    if not runs or not there:
        return None
    rows: list[list[Cell]] = []
    for run in runs:
        found = [measured(run.mean(name), run.interval(name)) for name in there]
        rows.append([run.named, *found, estimated(material.right(run)), estimated(material.utilisation(run))])
    columns = [
        Column("run", "words"),
        *(Column(title) for title in there.values()),
        Column("right"),
        Column("right where covered"),
    ]
    return Section(
        "passages",
        "What was found, and what was made of it",
        "Coverage: a gold answer stands in the passages retrieved, which bounds what can be read from them. nDCG, "
        "recall, MRR and hit judge the ranking by the marked gold passages. Right where covered (utilisation): of the "
        "questions whose passages hold the answer, the share that the model answers right. Passages count as they were "
        "retrieved: what did not fit into the prompts stands under “Form of the answers”.",
        [Table("Retrieval beside answers, % (95 % interval)", columns, rows, wide=True)],
    )
