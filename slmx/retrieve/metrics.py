"""How good a ranking is: nDCG, recall, MRR, MAP, hit and precision against relevance judgements, and answer coverage.

The numbers are those of trec_eval (and so of pytrec_eval, BEIR and MTEB) on the same run:

- Places follow the scores, not the order given: score descending, and equal scores by document id descending, compared
  as strings. trec_eval keeps scores in single precision, so scores that agree in their first 24 bits are equal.
- A document is relevant if its judgement is 1 or more; unjudged ones, 0 and negative ones are not.
- nDCG takes the judgement itself as gain (linear, not 2^grade - 1), discounts by log2(place + 1), and divides by the
  best value that ALL relevant documents of the query could give, retrieved or not (Järvelin & Kekäläinen 2002).

A judged query without a relevant document counts as 0, as in trec_eval. One without a ranking, or with an empty one,
counts as 0 too and is named in `missing`: pytrec_eval and BEIR leave it out, so that their mean is over fewer queries.
Rankings of queries that nobody judged are left out and counted in `unjudged`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from slmx.errors import SlmxError, UsageError
from slmx.text import WordText

KS = (1, 3, 5, 10, 100)
Ranked = Mapping[str, float] | Sequence[tuple[str, float]]


@dataclass(frozen=True)
class RankingScores:
    """Retrieval metrics of a run, 0 to 1, named "ndcg@10", "recall@10", "mrr@10", "map@10", "hit@10", "p@10", "map".

    `per_query` follows the order of the judgements, `mean` is over all `n` judged queries, `missing` names those of
    them that had no ranking, and `unjudged` counts the rankings that were left out.
    """

    per_query: dict[str, dict[str, float]]
    mean: dict[str, float]
    n: int
    missing: tuple[str, ...] = ()
    unjudged: int = 0


def evaluate_rankings(
    qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Ranked], ks: Iterable[int] = KS
) -> RankingScores:
    """Score rankings against judgements, as trec_eval does (see the module for ties, grades and missing queries).

    Args:
        qrels: query id -> document id -> grade, an integer; 1 or more is relevant.
        rankings: query id -> (document id, score) pairs in any order, or a mapping of the same.
        ks: the cut-offs, 1 or more each.

    Raises:
        UsageError: a cut-off below 1.
        SlmxError: no query is judged, a document stands twice in a ranking, or a score is NaN.
    """
    if not qrels:
        raise SlmxError("There are no relevance judgements to score the rankings against.")
    cuts = _checked(ks)
    per_query = {}
    for query, grades in qrels.items():
        places = _places(query, rankings.get(query, ()))
        per_query[query] = _scores([grades.get(doc, 0) for doc in places], grades.values(), cuts)
    n = len(per_query)
    mean = {name: math.fsum(scores[name] for scores in per_query.values()) / n for name in _scores([], [], cuts)}
    missing = tuple(query for query in qrels if not rankings.get(query))
    return RankingScores(per_query, mean, n, missing, unjudged=sum(query not in qrels for query in rankings))


def _checked(ks: Iterable[int]) -> list[int]:
    cuts = sorted(set(ks))
    if cuts and cuts[0] < 1:
        raise UsageError(f"A cut-off k must be 1 or more, not {cuts[0]}.")
    return cuts


def _places(query: str, ranked: Ranked) -> list[str]:
    """The document ids by place, as trec_eval sorts them: score descending, then id descending."""
    pairs = list(ranked.items() if isinstance(ranked, Mapping) else ranked)
    docs = [doc for doc, _ in pairs]
    if len(set(docs)) < len(docs):
        twice = next(doc for doc in docs if docs.count(doc) > 1)
        raise SlmxError(f'Document "{twice}" stands twice in the ranking of query "{query}".')
    scores = array("f", [score for _, score in pairs])  # single precision, in which trec_eval compares
    if any(map(math.isnan, scores)):
        raise SlmxError(f'A score in the ranking of query "{query}" is NaN.')
    return [doc for _, doc in sorted(zip(scores, docs, strict=True), reverse=True)]


def _scores(found: Sequence[int], judged: Iterable[int], cuts: Sequence[int]) -> dict[str, float]:
    """All metrics of one query from the grades by place (0 for unjudged) and the grades of all judged documents."""
    ideal = sorted((grade for grade in judged if grade > 0), reverse=True)
    places = [place for place, grade in enumerate(found, start=1) if grade > 0]  # of the relevant documents
    scores = {}
    for k in cuts:
        top = [place for place in places if place <= k]
        best = _dcg(ideal[:k])
        scores[f"ndcg@{k}"] = _dcg(found[:k]) / best if best else 0.0
        scores[f"recall@{k}"] = len(top) / len(ideal) if ideal else 0.0
        scores[f"mrr@{k}"] = 1 / top[0] if top else 0.0
        scores[f"map@{k}"] = _average_precision(top, len(ideal))
        scores[f"hit@{k}"] = float(bool(top))
        scores[f"p@{k}"] = len(top) / k
    scores["map"] = _average_precision(places, len(ideal))
    return scores


def _dcg(grades: Iterable[int]) -> float:
    return sum(grade / math.log2(place + 1) for place, grade in enumerate(grades, start=1) if grade > 0)


def _average_precision(places: Sequence[int], relevant: int) -> float:
    """Precision at the place of each relevant document found, averaged over all that exist."""
    return sum(hits / place for hits, place in enumerate(places, start=1)) / relevant if relevant else 0.0


def answer_coverage_at_k(
    texts_by_rank: Iterable[str], answers: Sequence[str], normaliser: str = "norm", ks: Iterable[int] = KS
) -> dict[str, float]:
    """Does an answer stand, on word boundaries, in one of the top k passages? For corpora without judgements.

    Args:
        texts_by_rank: the passages of one question, best first; read no further than the first that holds an answer.
        answers: the golds of the question; a blank one stands nowhere.
        normaliser: a name from `slmx.text`.
        ks: the cut-offs, 1 or more each.

    Returns:
        {"answer_coverage@5": 1.0, …} with 1 or 0 for each k.
    """
    cuts = _checked(ks)
    ranks = enumerate(islice(texts_by_rank, max(cuts, default=0)), start=1)
    first = next((rank for rank, text in ranks if WordText(text, normaliser).holds_any(answers)), math.inf)
    return {f"answer_coverage@{k}": float(first <= k) for k in cuts}
