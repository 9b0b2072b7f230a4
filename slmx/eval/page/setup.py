"""The section that says how it was measured: which runs, on what, with what, when."""

from __future__ import annotations

from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE
from slmx.eval.page.parts import Cell, Column, Section, Table


def setup(material: Material) -> Section:
    """The runs with their folders and configuration, and the rules that hold for all of them."""
    comparison = material.comparison
    rows: list[list[Cell]] = [[run.named, *_facts(run)] for run in material.runs]
    heads = ("folder or file", "dataset", "questions", "made with", "on", "created")
    columns = [Column("run", "words"), *(Column(head, "words") for head in heads)]
    rules: list[list[Cell]] = [
        ["right by", comparison.right_by],
        ["normalisers", ", ".join(comparison.normalisers)],
        ["intervals", f"95 %, percentile bootstrap over questions, 10,000 resamples, seed {comparison.seed}"],
        [
            "tests",
            "McNemar's exact test for right and wrong, paired bootstrap for the rest, Holm over each metric's pairs",
        ],
        ["smallest visible difference", "80 % power at 5 %, before Holm's correction, from the scatter of these pairs"],
    ]
    return Section(
        "setup",
        "How it was measured",
        "Everything is in each run's own files: results.json, predictions.json, run.json.",
        [
            Table("The runs", columns, rows),
            Table("The rules", [Column("what", "words"), Column("how", "words")], rules),
        ],
    )


def _facts(run: Shown) -> list[str]:
    file = run.run.run_file
    n = f"{len(run.said):,}"
    if file is None:
        return [run.run.name, run.run.cell.dataset or NONE, n, NONE, NONE, NONE]
    of = run.facts.get("dataset_questions")
    engine = [f"slmx {file.slmx}", *(f"{name} {file.versions[name]}" for name in ("torch",) if name in file.versions)]
    machine = " ".join(str(file.machine[name]) for name in ("device", "chip", "dtype") if file.machine.get(name))
    sampled = f"{n} of {of:,}" if isinstance(of, int) and of > len(run.said) else n
    return [run.run.name, run.run.cell.dataset, sampled, ", ".join(engine), machine, file.created]
