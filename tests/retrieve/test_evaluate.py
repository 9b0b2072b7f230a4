"""The BEIR evaluator: the same numbers as trec_eval on the same run, own documents out, what is absent counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmx.data.beir import read_run, write_run
from slmx.errors import SlmxError
from slmx.events import Notice, nobody
from slmx.records import Hit, Question, Ranking
from slmx.retrieve.evaluate import evaluate, without_own
from slmx.retrieve.retrievers import open_retriever

pytrec_eval = pytest.importorskip("pytrec_eval")
NAMES = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "hit": "success", "p": "P"}
KS = (1, 3, 5, 10, 100)


def reference(qrels: dict[str, dict[str, int]], rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    """pytrec_eval's values of every query by our names."""
    run = {r.question_id: {hit.passage_id: hit.score for hit in r.hits} for r in rankings}
    cuts = ",".join(map(str, KS))
    measures = {"map", *(f"{theirs}.{cuts}" for theirs in NAMES.values())}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    values = {
        q: {f"{ours}@{k}": row[f"{theirs}_{k}"] for ours, theirs in NAMES.items() for k in KS}
        for q, row in found.items()
    }
    for k in KS:
        cut = {
            q: dict(sorted(row.items(), key=lambda i: (np.float32(i[1]), i[0]), reverse=True)[:k])
            for q, row in run.items()
        }
        ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
        for query, row in ranks.items():
            values[query][f"mrr@{k}"] = row["recip_rank"]
    for query, row in found.items():
        values[query]["map"] = row["map"]
    return values


def check_against_reference(dataset: Any, retriever: Any) -> Any:
    evaluation, rankings = evaluate(dataset, retriever, KS)
    qrels = dataset.qrels()
    expected = reference(qrels, rankings)
    for query, row in expected.items():
        for name, value in row.items():
            assert evaluation.per_query[query][name] == pytest.approx(value, abs=1e-6), (query, name)
    for name in evaluation.metrics:
        mean = sum(row[name] for row in expected.values()) / len(qrels)
        assert evaluation.metrics[name] == pytest.approx(mean, abs=1e-6), name
    return evaluation


class Judged:
    """The small corpus with questions and marks; q3's own document has its id, as in ArguAna."""

    name = "small"

    def __init__(self, corpus: Any) -> None:
        corpus.texts["q3"] = ("Harbour", "oil and water of the harbour")
        self._corpus = corpus
        self.corpus_hash = corpus.corpus_hash
        self.passages = corpus.passages
        self.marks = {"q1": {"p1": 2, "p2": 1}, "q2": {"p5": 1, "gone": 1}, "q3": {"p2": 1}}

    def questions(self) -> list[Question]:
        texts = {"q1": "oil lamp", "q2": "столица", "q3": "oil and water of the harbour", "q4": "not judged"}
        return [Question(question_id=i, question=text, answers=[]) for i, text in texts.items()]

    def qrels(self, split: str = "test") -> dict[str, dict[str, int]]:
        return self.marks


def test_every_metric_equals_pytrec_eval(corpus: Any, tmp_path: Path) -> None:
    dataset = Judged(corpus)
    evaluation = check_against_reference(dataset, open_retriever("bm25", dataset, cache_dir=tmp_path))
    assert evaluation.queries == 3
    assert 0 < evaluation.metrics["ndcg@10"] < 1


def test_the_questions_own_document_is_taken_out_and_counted(corpus: Any, tmp_path: Path) -> None:
    dataset = Judged(corpus)
    evaluation, rankings = evaluate(dataset, open_retriever("bm25", dataset, cache_dir=tmp_path))
    assert evaluation.own_excluded == 1
    assert all(hit.passage_id != r.question_id for r in rankings for hit in r.hits)
    assert evaluation.per_query["q3"]["ndcg@1"] == 1.0


def test_a_ranking_is_full_without_the_own_document() -> None:
    hits = [Hit(passage_id=p, score=-float(n)) for n, p in enumerate(["a", "q", "b", "c"])]
    assert [h.passage_id for h in without_own(Ranking(question_id="q", hits=hits), 3).hits] == ["a", "b", "c"]


def test_absent_passages_and_questions_are_counted_and_told(corpus: Any, tmp_path: Path) -> None:
    dataset = Judged(corpus)
    dataset.marks["lost"] = {"p1": 1}
    told: list[Any] = []
    retriever = open_retriever("bm25", dataset, cache_dir=tmp_path)
    evaluation, _ = evaluate(dataset, retriever, listen=told.append)
    assert (evaluation.qrels_absent, evaluation.without_text, evaluation.missing) == (1, 1, ["lost"])
    assert evaluation.queries == 4
    warnings = [event.text for event in told if isinstance(event, Notice) and event.level == "warning"]
    assert any("1 judged passages are not in the corpus" in text for text in warnings)
    assert evaluation.per_query["q2"]["ndcg@10"] < 1  # all relevant passages count, also those that cannot be found


def test_marks_of_other_questions_are_an_error(corpus: Any, tmp_path: Path) -> None:
    dataset = Judged(corpus)
    dataset.marks = {"other": {"p1": 1}}
    with pytest.raises(SlmxError, match="None of the questions"):
        evaluate(dataset, open_retriever("bm25", dataset, cache_dir=tmp_path), listen=nobody)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected", "within"), [("scifact", 0.687, 0.010), ("arguana", 0.493, 0.015)])
def test_bm25_on_beir(test_data: Path, tmp_path: Path, name: str, expected: float, within: float) -> None:
    from slmx.data.datasets import open_dataset

    dataset = open_dataset(str(test_data / "beir" / name), data_dir=tmp_path, cache_dir=tmp_path)
    retriever = open_retriever("bm25", dataset, cache_dir=tmp_path)
    evaluation = check_against_reference(dataset, retriever)
    assert evaluation.metrics["ndcg@10"] == pytest.approx(expected, abs=within)
    _, rankings = evaluate(dataset, retriever, KS)
    write_run(tmp_path / "run.trec", rankings, tag="bm25")
    assert read_run(tmp_path / "run.trec") == [ranking for ranking in rankings if ranking.hits]
