"""Retrieval metrics equal those of pytrec_eval, and coverage respects word boundaries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytrec_eval
from hypothesis import given, settings, strategies as st

from slmx.errors import SlmxError
from slmx.retrieve.metrics import answer_coverage_at_k, evaluate_rankings

KS = (1, 3, 5, 10)
THEIRS = {"ndcg_cut": "ndcg", "recall": "recall", "map_cut": "map", "success": "hit", "P": "p"}
DOCS = st.sampled_from([f"d{i}" for i in range(14)] + ["D1", "é", "я", "😀", "10", "9"])
SCORES = st.one_of(
    st.integers(-2, 2).map(float),  # many ties
    st.sampled_from([1.0, 1.0 + 1e-9, 1.0 + 1e-4]),  # the first two are equal in single precision
    st.floats(-1e3, 1e3),
)
QUERIES = st.sampled_from(["q1", "q2", "q3", "q4"])
# pytrec_eval crashes where all grades of a query are below -1.
GRADES = st.dictionaries(DOCS, st.integers(-2, 4), min_size=1).filter(lambda grades: max(grades.values()) >= -1)
QRELS = st.dictionaries(QUERIES, GRADES, min_size=1)
RUNS = st.dictionaries(QUERIES, st.dictionaries(DOCS, SCORES, max_size=20))


def referee(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """pytrec_eval's numbers of each query under our names; MRR@k by cutting its own order of places at k."""
    wanted = {f"{name}.{','.join(map(str, KS))}" for name in THEIRS} | {"map", "recip_rank"}
    found = {}
    for query, scores in pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run).items():
        ours = {f"{mine}@{k}": scores[f"{theirs}_{k}"] for theirs, mine in THEIRS.items() for k in KS}
        rank = scores["recip_rank"]
        ours |= {f"mrr@{k}": rank if rank and 1 / rank < k + 0.5 else 0.0 for k in KS}
        found[query] = ours | {"map": scores["map"]}
    return found


@settings(max_examples=300)
@given(QRELS, RUNS)
def test_every_metric_equals_pytrec_eval(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> None:
    ours = evaluate_rankings(qrels, run, KS)
    theirs = referee(qrels, run)
    assert ours.n == len(qrels)
    for query in qrels:
        zeros = dict.fromkeys(ours.mean, 0.0)
        assert ours.per_query[query] == pytest.approx(theirs.get(query, zeros), abs=1e-6)


@given(QRELS, RUNS)
def test_pairs_in_any_order_score_as_a_mapping_does(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> None:
    pairs = {query: list(reversed(scores.items())) for query, scores in run.items()}
    assert evaluate_rankings(qrels, pairs, KS) == evaluate_rankings(qrels, run, KS)


def test_equal_scores_are_placed_by_document_id_descending() -> None:
    tied = {"q": [("a", 1.0), ("b", 1.0)]}
    assert evaluate_rankings({"q": {"b": 1}}, tied, [1]).mean["hit@1"] == 1.0
    assert evaluate_rankings({"q": {"a": 1}}, tied, [1]).mean["hit@1"] == 0.0
    nearly = {"q": [("a", 1.0 + 1e-9), ("b", 1.0)]}
    assert evaluate_rankings({"q": {"a": 1}}, nearly, [1]).mean["hit@1"] == 0.0


def test_ndcg_normalises_by_all_relevant_documents_not_by_those_retrieved() -> None:
    scores = evaluate_rankings({"q": {"a": 1, "b": 1, "c": 1}}, {"q": [("a", 1.0)]}, [10]).mean
    assert scores["ndcg@10"] == pytest.approx(1 / (1 + 1 / 1.5849625 + 0.5), abs=1e-6)
    assert scores["recall@10"] == scores["map@10"] == pytest.approx(1 / 3)


def test_a_judged_query_without_a_ranking_counts_as_zero_and_is_named() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {"a": 0}}
    scores = evaluate_rankings(qrels, {"q1": {"a": 1.0}, "q2": {}, "q4": {"a": 1.0}, "stray": {"a": 1.0}}, [1])
    assert scores.n == 4 and scores.missing == ("q2", "q3") and scores.unjudged == 1
    assert set(scores.mean.values()) == {0.25}
    assert list(scores.per_query) == list(qrels) and not any(scores.per_query["q4"].values())


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(SlmxError, match='"a" stands twice'):
        evaluate_rankings({"q": {"a": 1}}, {"q": [("a", 1.0), ("a", 0.5)]})
    with pytest.raises(SlmxError, match="NaN"):
        evaluate_rankings({"q": {"a": 1}}, {"q": [("a", float("nan"))]})
    with pytest.raises(SlmxError, match="no relevance judgements"):
        evaluate_rankings({}, {})
    with pytest.raises(SlmxError, match="1 or more"):
        evaluate_rankings({"q": {"a": 1}}, {}, [0, 5])


def test_scores_beyond_single_precision_still_rank() -> None:
    run = {"q": {"a": float("inf"), "b": 1e300, "c": 0.0}}
    assert evaluate_rankings({"q": {"c": 1}}, run, KS).per_query == pytest.approx(
        {"q": pytest.approx(referee({"q": {"c": 1}}, run)["q"])}
    )


def test_coverage_asks_whether_an_answer_stands_in_the_top_k_on_word_boundaries() -> None:
    texts = ["About Russia.", "Made in the U.S.", "Nothing."]
    assert answer_coverage_at_k(texts, ["US"], ks=[1, 2, 5]) == {
        "answer_coverage@1": 0.0,
        "answer_coverage@2": 1.0,
        "answer_coverage@5": 1.0,
    }
    assert answer_coverage_at_k(["В селе «Ёлкино»"], ["Елкино"], "norm-u1", ks=[1]) == {"answer_coverage@1": 1.0}


def test_trap_1_an_answer_without_words_covers_nothing() -> None:
    assert not any(answer_coverage_at_k(["some text", ""], ["", "---", "the"]).values())
    assert not any(answer_coverage_at_k([], ["Paris"]).values())


def test_coverage_reads_no_passage_that_cannot_change_it() -> None:
    def passages() -> Iterator[str]:
        yield "no"
        yield "Paris"
        raise AssertionError("read too far")

    assert answer_coverage_at_k(passages(), ["Paris"], ks=[5])["answer_coverage@5"] == 1.0
    assert answer_coverage_at_k(passages(), ["Rome"], ks=[1, 2])["answer_coverage@2"] == 0.0
