"""What `slmx eval run` shows a person: the plan before it runs, and a table of all metrics with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slmx.eval.metrics import METRICS
from slmx.eval.plan import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.eval.cell import CellRun
    from slmx.eval.run import RunReport

TITLES = {
    "token_recall": "token recall",
    "em": "EM",
    "f1": "F1",
    "match": "match",
    "k_precision": "k-precision",
    "answer_coverage": "coverage",
    "ndcg": "nDCG@k",
    "recall_at_k": "recall@k",
    "simpleqa_correct": "correct",
    "simpleqa_incorrect": "incorrect",
    "simpleqa_not_attempted": "not attempted",
    "simpleqa_accuracy_given_attempted": "correct of attempted",
    "simpleqa_f1": "SimpleQA F1",
    "answer_words": "words",
    "empty": "empty",
    "hit_cap": "cut off",
    "context_echo": "echo",
}
NOT_SHOWN = ("mrr", "hit", "precision", "recall")


def render_plan(plan: Plan) -> RenderableType:
    """The cells of a plan."""
    from slmx.console import table

    questions = f"{plan.questions} questions" + (" (a seeded sample)" if plan.sampled else "")
    rows = [[c.model, c.mode, c.retriever, str(c.k or ""), f"{plan.output_dir}/{c.folder}"] for c in plan.cells]
    title = f"Plan: {len(plan.cells)} cells on {plan.dataset}, {questions} each"
    return table(title, ["model", "mode", "retriever", "k", "folder"], rows, left=5)


def render_report(report: RunReport) -> RenderableType:
    """One row a cell: every metric × 100 with its 95 % interval below."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    names = [n for n in TITLES if any(cell.results.get("n", {}).get(n) for cell in report.cells)]
    names += [n for n in METRICS if n not in (*TITLES, *NOT_SHOWN) and any(n in c.results for c in report.cells)]
    rows = [_row(cell, names) for cell in report.cells]
    columns = ["model", "mode", "n", *(TITLES.get(name, name) for name in names), "questions/s"]
    told = Text("Percent, with the 95 % bootstrap interval below; words: mean length of an answer.\n" + _notes(report))
    return Group(table("", columns, rows, left=2), told)


def _row(run: CellRun, names: list[str]) -> list[str]:
    cell, results = run.cell, run.results
    mode = cell.mode.removesuffix("_context")
    if cell.context == "retrieved":
        mode = f"{cell.retriever}, k={cell.k}"
    numbers = [shown(results, name) for name in names]
    return [cell.model, mode, str(results["num_examples"]), *numbers, f"{results['questions_per_second']:.1f}"]


def shown(results: dict[str, Any], name: str) -> str:
    """A mean with its interval on a line of its own: percent with one decimal, except for lengths."""
    mean = results.get(name)
    if mean is None:
        return "–"
    factor = 1 if name in METRICS and METRICS[name].unit == "words" else 100
    low, high = (factor * end for end in results["intervals_95"][name])
    return f"{factor * mean:.1f}\n{low:.1f}–{high:.1f}"


def _notes(report: RunReport) -> str:
    """Counts that a reader of the means should know of, one line each, and where the files are."""
    lines = []
    for run in report.cells:
        prompts, failed = run.results["prompts"], run.results["failed_generations"]
        facts = [
            (failed, "failed generations"),
            (prompts["without_context"], "questions without context"),
            (prompts["prompts_shortened"], "prompts shortened"),
            (prompts["answers_cut"], "answers cut with them"),
        ]
        told = ", ".join(f"{count} {what}" for count, what in facts if count)
        lines.append(f"{run.folder}" + (f": {told}" if told else ""))
    return "Files: results.json, predictions.json, memory_usage.json, run.json and run.log in\n  " + "\n  ".join(lines)
