"""Small runs as `slmx eval run` leaves them, written from lists of answers, for whatever reads runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slmx.eval.cell import RunFile
from slmx.eval.journal import open_journal
from slmx.eval.plan import CANONICAL, Cell
from slmx.eval.results import metric_names, predictions_record, results_record, score_all
from slmx.files import hash_value, write_json
from slmx.records import Context, Prediction
from slmx.text import normaliser_for

GOLDS = {"q0": "Paris", "q1": "Anna Lee", "q2": "1969", "q3": "Москва", "q4": "the Nile", "q5": "seven"}


def write_run(
    folder: Path,
    said: Sequence[str],
    *,
    context: Context = "none",
    retriever: str = "",
    k: int = 0,
    model: str = "tiny",
    dataset: str = "towns",
    cut: str = "",
    golds: dict[str, str] | None = None,
    covered: Sequence[bool] | None = None,
    answered: int | None = None,
    with_cell: bool = True,
    preset: str = "default",
    **changes: Any,
) -> Path:
    """A run that answered `said`; of an unfinished one the first `answered`.

    `cut` changes the dataset's hash; `changes` go into the configuration.
    """
    golds = GOLDS if golds is None else golds
    questions = {
        name: f"Which one is it, {name}?" if gold != "Москва" else "Какой город?" for name, gold in golds.items()
    }
    cell = Cell(
        model=model,
        dataset=dataset,
        mode=CANONICAL[context],
        context=context,
        preset=CANONICAL[context],
        retriever="oracle" if context == "oracle" else retriever,
        k=k,
    )
    configuration = {
        "format": 1,
        "mode": {"name": cell.mode, "preset": cell.preset, "template": "{question}"},
        "k": k,
        "generator": {"name": model, "weights": hash_value(model)},
        "batch_size": None,
        "dataset": {"name": dataset, "hash": hash_value(dataset + cut), "questions": len(golds)},
        "questions_hash": hash_value(list(golds)),
        "retriever": {"kind": cell.retriever} if cell.retriever else {},
        "oracle": "",
        **changes,
    }
    predictions = [
        Prediction(
            question_id=name,
            question=questions[name],
            predicted_answer=answer,
            ground_truth=[gold] if gold else [],
            contexts=[] if context == "none" else [f"A passage about {gold}."],
            context_type=context,
            model_name=model,
            metadata={
                "normaliser": normaliser_for(questions[name]),
                "stop": "eos",
                **(
                    {"retrieval": {"answer_coverage": 1.0 if covered is None else float(covered[place])}}
                    if context != "none"
                    else {}
                ),
            },
            prompt=questions[name],
        )
        for place, ((name, gold), answer) in enumerate(zip(golds.items(), said, strict=True))
    ]
    # Batches in another order than the dataset's, as a run plans them: longest first.
    places = list(reversed(range(len(predictions))))
    batches = [places[i : i + 2] for i in range(0, len(places), 2)]
    run_file = RunFile(
        format=1,
        slmx="0.1.0",
        identity=hash_value(configuration),
        configuration=configuration,
        options={"max_samples": None, "seed": 0, "generator": {"temperature": 0.0}},
        batches=batches,
        versions={},
        machine={},
        created="2026-01-05T10:00:00+00:00",
        cell=cell if with_cell else None,
        cost={"duration_seconds": 1.5},
        finished=answered is None,
    )
    with open_journal(folder, [[predictions[i].question_id for i in batch] for batch in batches]) as journal:
        for batch in batches if answered is None else batches[: answered // 2]:
            journal.append([predictions[i] for i in batch])
    write_json(folder / "run.json", run_file)
    if answered is None:
        rows = score_all(predictions, metric_names(preset, simple_qa=False))
        facts = {"dataset_questions": len(golds), "rows_left_out": 0}
        write_json(folder / "predictions.json", predictions_record(predictions, rows))
        write_json(
            folder / "results.json", results_record(predictions, rows, seed=0, cost=run_file.cost, dataset=facts)
        )
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """See `write_run`."""
    return write_run
