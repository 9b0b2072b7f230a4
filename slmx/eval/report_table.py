"""What `slmx eval run` shows a person: the plan before it runs, and a table of all metrics with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slmx.eval.metrics import METRICS
from slmx.eval.plan import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.eval.cell import CellRun
    from slmx.eval.run import RunReport

PASSAGES = "Passages given"
FORM = "Form of the answers, and speed"
TABLES: dict[str, dict[str, str]] = {
    "Answers": {
        "token_recall": "token\nrecall",
        "em": "EM",
        "f1": "F1",
        "match": "match",
        "k_precision": "k-pre-\ncision",
        "precision": "precision",
        "recall": "recall",
        "substring_recall": "substring\nrecall",
        "token_recall@wordset": "recall@\nwordset",
        "token_recall@bert": "recall@\nbert",
    },
    "SimpleQA, by match and abstention (a lower bound without a judge)": {
        "simpleqa_correct": "correct",
        "simpleqa_incorrect": "incorrect",
        "simpleqa_not_attempted": "not at-\ntempted",
        "simpleqa_accuracy_given_attempted": "of at-\ntempted",
        "simpleqa_f1": "F1",
    },
    PASSAGES: {
        "answer_coverage": "coverage",
        "ndcg": "nDCG@k",
        "recall_at_k": "recall@k",
        "mrr": "MRR@k",
        "hit": "hit@k",
    },
    FORM: {
        "answer_words": "words",
        "empty": "empty",
        "hit_cap": "cut off",
        "context_echo": "copied",
    },
}


def render_plan(plan: Plan) -> RenderableType:
    """The cells of a plan."""
    from slmx.console import table

    questions = f"{plan.questions} questions{_sampled(plan)}"
    rows = [[cell.model, cell.mode, cell.retriever, str(cell.k or "")] for cell in plan.cells]
    cells = "1 cell" if len(plan.cells) == 1 else f"{len(plan.cells)} cells"
    title = f"Plan: {cells} on {plan.dataset}, {questions} each, into {plan.output_dir}"
    return table(title, ["model", "mode", "retriever", "k"], rows, left=3)


def _sampled(plan: Plan) -> str:
    return f" (a seeded sample of {plan.of})" if plan.questions < plan.of else ""


def render_report(report: RunReport) -> RenderableType:
    """Tables with a row a cell: every metric × 100 with its interval below, n and speed."""
    from rich.console import Group
    from rich.text import Text

    tables = [_table(title, names, report.cells) for title, names in TABLES.items()]
    told = f"{report.plan.questions} questions of {report.plan.dataset}{_sampled(report.plan)}. "
    told += "Percent, with the seeded 95 % bootstrap interval below; words: mean length of an answer.\n"
    return Group(*(table for table in tables if table is not None), Text(told + _notes(report)))


def _table(title: str, titles: dict[str, str], cells: Sequence[CellRun]) -> RenderableType | None:
    from slmx.console import table

    names = [name for name in titles if any(cell.results["n"].get(name) for cell in cells)]
    lines: dict[tuple[str, ...], None] = {}
    for run in cells:
        counts = [run.results["n"].get(name, 0) for name in names]
        if not any(counts):
            continue
        model = [] if title == PASSAGES else [run.cell.model]  # what was retrieved is the same for all models
        speed = [f"{run.results['questions_per_second']:.1f}"] if title == FORM else []
        numbers = [shown(run.results, name, max(counts)) for name in names]
        lines[*model, run.cell.shows, str(max(counts)), *numbers, *speed] = None
    if not lines:
        return None
    heads = ["context", "n", *(titles[name] for name in names)]
    heads = heads if title == PASSAGES else ["model", *heads]
    heads += ["ques-\ntions/s"] if title == FORM else []
    return table(title, heads, list(lines), left=heads.index("n"))


def shown(results: dict[str, Any], name: str, n: int) -> str:
    """A mean with its interval on a line of its own: percent with one decimal, except for lengths.

    Where it is over fewer answers than the row's `n`, a third line says over how many.
    """
    mean = results.get(name)
    if mean is None:
        return "–"
    factor = 1 if name in METRICS and METRICS[name].unit == "words" else 100
    low, high = (f"{factor * end:.1f}".replace("100.0", "100") for end in results["intervals_95"][name])
    fewer = f"\nn={own}" if (own := results["n"][name]) < n else ""
    return f"{factor * mean:.1f}\n{low}–{high}{fewer}"


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
