"""From a cell's predictions to results.json and predictions.json. Reads the journal's records, never a model.

The names at the top level of results.json are plain numbers that users' scripts read; intervals, n and versions stand
beside them. Shares are 0 to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from slmx.eval.metrics import FACTS, SIMPLE_QA, Row, Scored, aggregate, preset_metrics, score
from slmx.records import Prediction

NAMED_IDS = 20  # how many ids of questions without context are named in full

RETRIEVAL_VERSIONS = dict.fromkeys(("answer_coverage", "ndcg", "recall_at_k", "mrr", "hit"), "1")


def metric_names(preset: str, *, simple_qa: bool) -> tuple[str, ...]:
    """The metrics of a run: the preset's, those every run needs, the facts of form, SimpleQA's grades where asked."""
    names = (*preset_metrics(preset), "token_recall", "match", *FACTS, *(SIMPLE_QA if simple_qa else ()))
    return tuple(dict.fromkeys(names))


def score_all(predictions: Iterable[Prediction], names: Sequence[str], *, vocabulary: Path | None = None) -> list[Row]:
    """The metrics of every prediction; retrieval numbers that the journal holds are put beside them."""
    rows: list[Row] = []
    for prediction in predictions:
        meta = prediction.metadata
        scored = Scored(
            prediction=prediction.predicted_answer,
            answers=prediction.ground_truth,
            contexts=prediction.contexts,
            question=prediction.question,
            normaliser=meta.get("normaliser", ""),
            hit_cap=(meta["stop"] == "length") if meta.get("new_tokens") else None,
            vocabulary=vocabulary,
        )
        rows.append({**score(scored, names), **meta.get("retrieval", {})})
    return rows


def predictions_record(predictions: Sequence[Prediction], rows: Sequence[Row]) -> dict[str, Any]:
    """The content of predictions.json: every prediction with its metrics, and their means by kind of context."""
    with_metrics = [
        msgspec.structs.replace(p, token_recall=row["token_recall"], metadata={**p.metadata, "metrics": row})
        for p, row in zip(predictions, rows, strict=True)
    ]
    by_context: dict[str, dict[str, float | int]] = {}
    for context in dict.fromkeys(p.context_type for p in predictions):
        chosen = [row for p, row in zip(predictions, rows, strict=True) if p.context_type == context]
        by_context[context] = {"count": len(chosen), **_plain_means(chosen)}
    statistics = {
        "total_predictions": len(predictions),
        "metrics_by_context": by_context,
        "unique_models": sorted({p.model_name for p in predictions}),
    }
    return {"predictions": with_metrics, "statistics": statistics}


def _plain_means(rows: Sequence[Row]) -> dict[str, float]:
    means = {}
    for name in rows[0]:
        defined = [value for row in rows if (value := row[name]) is not None]
        if defined:
            means[name] = sum(defined) / len(defined)
    return means


def results_record(
    predictions: Sequence[Prediction],
    rows: Sequence[Row],
    *,
    seed: int,
    cost: Mapping[str, float],
    dataset: Mapping[str, int],
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        predictions: of the cell, in the dataset's order.
        rows: their metrics, from `score_all`.
        seed: of the bootstrap intervals.
        cost: durations, sizes and memory, under the names of results.json.
        dataset: how many questions there are in all, and how many rows of the source could not be used.
        versions: of metrics in the rows that are neither ours nor the retriever's.
    """
    summaries = aggregate(rows, seed=seed, versions={**RETRIEVAL_VERSIONS, **(versions or {})})
    stops = Counter(str(p.metadata.get("stop", "")) for p in predictions)
    return {
        **{name: summary.mean for name, summary in summaries.items()},
        "num_examples": len(predictions),
        **dataset,
        "prompt_tokens": sum(p.metadata.get("prompt_tokens", 0) for p in predictions),
        "new_tokens": sum(p.metadata.get("new_tokens", 0) for p in predictions),
        **cost,
        "intervals_95": {name: [s.low, s.high] for name, s in summaries.items() if s.n},
        "n": {name: s.n for name, s in summaries.items()},
        "metric_versions": {name: s.version for name, s in summaries.items()},
        "bootstrap_seed": seed,
        "normalisers": dict(sorted(Counter(str(p.metadata.get("normaliser")) for p in predictions).items())),
        "stops": dict(sorted(stops.items())),
        "failed_generations": stops["failed"],
        "prompts": _prompt_facts(predictions),
    }


def _prompt_facts(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What was cut from prompts, and which questions had no context although the mode gives one."""
    without = [p.question_id for p in predictions if p.context_type != "none" and not p.contexts]
    facts: dict[str, Any] = {
        "passages_dropped": sum(p.metadata.get("dropped", 0) for p in predictions),
        "prompts_shortened": sum(bool(p.metadata.get("dropped") or p.metadata.get("trimmed")) for p in predictions),
        "answers_cut": sum(bool(p.metadata.get("cut_answer")) for p in predictions),
        "without_context": len(without),
    }
    if without:
        facts["without_context_ids"] = without[:NAMED_IDS]
    return facts
