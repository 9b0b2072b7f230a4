"""Runs whose answers are made up, in the files that real runs have: for tests and benchmarks of what reads runs.

The journal, run.json and memory_usage.json are written as `slmx eval run` writes them, and results.json is derived from
the journal by slmx itself; only the answers, the passages and the cost are invented.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from slmx.eval.cell import FORMAT, RUN_FILE, RunFile
from slmx.eval.journal import open_journal
from slmx.eval.plan import CANONICAL, Cell
from slmx.eval.results import metric_names, predictions_record, results_record, score_all
from slmx.files import hash_value, write_json
from slmx.records import Context, Prediction, Question
from slmx.text import normaliser_for

COST = {"retrieve_seconds": 1.0, "generate_seconds": 4.0, "duration_seconds": 5.0, "questions_per_second": 25.0}


def cell(model: str, context: Context, retriever: str = "", k: int = 5, dataset: str = "made-up") -> Cell:
    """A cell of a plan."""
    mode = CANONICAL[context]
    if context == "retrieved":
        return Cell(model=model, dataset=dataset, mode=mode, context=context, preset=mode, retriever=retriever, k=k)
    return Cell(model=model, dataset=dataset, mode=mode, context=context, preset=mode)


def make_run(
    outputs: Path,
    cell: Cell,
    questions: Sequence[Question],
    answers: Sequence[str],
    contexts: Sequence[Sequence[str]] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    cost: dict[str, Any] | None = None,
    stop: str = "eos",
    changes: dict[str, Any] | None = None,
) -> Path:
    """A finished run in `outputs`; returns its folder. `metrics` are those of results.json (default: the preset's).

    `changes` go into the configuration, and the folder's name gets a hash as that of a run with other settings does.
    """
    folder = outputs / (f"{cell.folder}-{hash_value(changes)[:8]}" if changes else cell.folder)
    predictions = [
        _prediction(cell, question, answer, contexts[place] if contexts else [], stop)
        for place, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    with open_journal(folder, [[question.question_id for question in questions]]) as journal:
        journal.append(predictions)
    rows = score_all(predictions, metrics or metric_names("default", simple_qa=False))
    spent = COST | (cost or {})
    facts = {"dataset_questions": len(questions), "rows_left_out": 0}
    write_json(folder / "results.json", results_record(predictions, rows, seed=0, cost=spent, dataset=facts))
    write_json(folder / "predictions.json", predictions_record(predictions, rows))
    write_json(folder / "memory_usage.json", {"detailed_log": _marks(), "peak_usage": {}})
    write_json(folder / RUN_FILE, _run_file(cell, questions, spent, changes or {}))
    return folder


def _prediction(cell: Cell, question: Question, answer: str, passages: Sequence[str], stop: str) -> Prediction:
    words = len(answer.split())
    metadata: dict[str, Any] = {
        "question": question.metadata,
        "normaliser": normaliser_for(question.question),
        "stop": stop,
        "prompt_tokens": 100,
        "new_tokens": words,
    }
    if cell.context != "none":
        covered = any(gold.lower() in passage.lower() for gold in question.answers for passage in passages)
        metadata["retrieval"] = {"answer_coverage": float(covered)}
    return Prediction(
        question_id=question.question_id,
        question=question.question,
        predicted_answer=answer,
        ground_truth=question.answers,
        contexts=list(passages),
        context_type=cell.context,
        model_name=cell.model,
        metadata=metadata,
        prompt=question.question,
    )


def _run_file(cell: Cell, questions: Sequence[Question], cost: dict[str, Any], changes: dict[str, Any]) -> RunFile:
    configuration = {
        "format": FORMAT,
        "mode": {"name": cell.mode, "preset": cell.preset},
        "k": cell.k,
        "generator": {"name": cell.model},
        "dataset": {
            "name": cell.dataset,
            "hash": hash_value([msgspec.to_builtins(question) for question in questions]),
            "questions": len(questions),
        },
        "retriever": {"kind": cell.retriever},
        **changes,
    }
    return RunFile(
        format=FORMAT,
        slmx="0.1.0",
        identity=hash_value(configuration),
        configuration=configuration,
        options={},
        batches=[list(range(len(questions)))],
        versions={"torch": "2.13.0"},
        machine={"device": "cpu", "chip": "made up", "dtype": "float32"},
        created="2026-01-01T00:00:00+00:00",
        cell=cell,
        cost=cost,
        finished=True,
    )


def _marks() -> list[dict[str, Any]]:
    return [
        {
            "component": "system",
            "operation": "experiment_start",
            "timestamp": "2026-01-01T00:00:00.000+00:00",
            "cpu_ram_used_mb": 100.0,
        },
        {
            "component": "model",
            "operation": "before_generate",
            "timestamp": "2026-01-01T00:00:01.000+00:00",
            "cpu_ram_used_mb": 700.0,
        },
        {
            "component": "system",
            "operation": "experiment_end",
            "timestamp": "2026-01-01T00:00:05.000+00:00",
            "cpu_ram_used_mb": 750.0,
        },
    ]
