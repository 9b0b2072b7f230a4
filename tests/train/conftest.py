"""Small training folders of every form, and options for the tiny encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slmx.train.retriever_options import TrainOptions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products cost more in the waiting of threads for each other than in the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LINES = [
    ("who kept the lamp", "the keeper filled the lamp with oil"),
    ("what ran on oil", "the engine of the ship ran on oil and water"),
    ("where is the tower", "a tower of stone stands above the river"),
    ("who built the harbour", "the builder of the harbour was a captain"),
    ("what is in the river", "water and stone and a ship"),
    ("who is the captain", "the captain of the ship is the keeper of the tower"),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.parent


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    rows = [{"query": q, "positive": p, "negatives": [LINES[n - 1][1]]} for n, (q, p) in enumerate(LINES)]
    return write_lines(tmp_path / "pairs" / "train.jsonl", rows)


@pytest.fixture
def beir_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, (_, text) in enumerate(LINES)]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": query} for n, (query, _) in enumerate(LINES)])
    (folder / "qrels").mkdir()
    marks = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(len(LINES)))
    (folder / "qrels" / "train.tsv").write_text(marks + "q0\td5\t1\nq0\td1\t0\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(marks, encoding="utf-8")
    return folder


@pytest.fixture
def autorag_folder(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "autorag"
    folder.mkdir()
    corpus = {"doc_id": [f"d{n}" for n in range(6)], "contents": [text for _, text in LINES]}
    pq.write_table(pa.table(corpus), folder / "corpus.parquet")
    gold = [[[f"d{n}"]] for n in range(5)] + [[["d5"], ["d3"]]]
    asked = {"qid": list(range(6)), "query": [query for query, _ in LINES], "retrieval_gt": gold}
    pq.write_table(pa.table(asked), folder / "qa.parquet")
    return folder


@pytest.fixture
def crops_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    rows = [f"title{n}\t{' '.join(f'{text} {n}' for _ in range(4))}" for n, (_, text) in enumerate(LINES)]
    (folder / "corpus_train.tsv").write_text("title\tabstract\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def synthetic_folder(tmp_path: Path) -> Path:
    rows = [{"question": query, "doc_text": text, "doc_id": n} for n, (query, text) in enumerate(LINES)]
    return write_lines(tmp_path / "synthetic" / "inpars.jsonl", rows)


@pytest.fixture
def asked(tmp_path: Path, encoder_folder: Path) -> Callable[..., TrainOptions]:
    """Options for a quick run of the tiny encoder."""

    def make(*folders: Path, **settings: Any) -> TrainOptions:
        plain: dict[str, Any] = {
            "save_dir": tmp_path / "run",
            "data_dir": tmp_path,
            "cache_dir": tmp_path / "cache",
            "model": str(encoder_folder),
            "batch_size": 4,
            "steps": 4,
            "lr": 1e-3,
            "device": "cpu",
        }
        return TrainOptions(data_dirs=folders, **{**plain, **settings})

    return make


@pytest.fixture
def lines() -> list[tuple[str, str]]:
    """The queries and passages that all folders hold."""
    return LINES


@pytest.fixture
def rows_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines into a folder of its own."""
    return lambda name, *rows: write_lines(tmp_path / name / "a.jsonl", list(rows))
