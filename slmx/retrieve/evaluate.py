"""The BEIR evaluator: a retriever over a dataset with relevance marks, scored as trec_eval scores.

As in BEIR, a question's own document (the same id, as in ArguAna) is taken out of its ranking, and the questions are
those that the split judges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from slmx.errors import SlmxError
from slmx.events import Listener, Notice, nobody
from slmx.records import Question, Ranking, Record
from slmx.retrieve.metrics import KS, evaluate_rankings
from slmx.retrieve.retrievers import Corpus, Retriever

DEPTH = 100  # places of a ranking that are kept at least, whatever the cut-offs: MAP reads them


class Judged(Corpus, Protocol):
    """A corpus with questions and relevance marks; `slmx.data.datasets.Dataset` is one."""

    @property
    def name(self) -> str:
        """What it is called in tables and files."""
        ...

    def questions(self) -> list[Question]:
        """All questions, of every split."""
        ...

    def qrels(self, split: str = "test") -> dict[str, dict[str, int]]:
        """Question id -> passage id -> grade."""
        ...


class Evaluation(Record, frozen=True):
    """Metrics of one retriever on one split, 0 to 1.

    `queries` is the number of judged questions, over which `metrics` are means. Counted beside them: `own_excluded`
    documents that were taken out as the question's own; `qrels_absent` of the passages that the marks name are not in
    the corpus, and lower what can be reached; `without_text` judged questions are not among the questions, and
    `missing` had no ranking; both score 0.
    """

    dataset: str
    split: str
    retriever: str
    queries: int
    passages: int
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    depth: int
    own_excluded: int
    qrels_absent: int
    without_text: int
    missing: list[str]
    index_bytes: int
    search_seconds: float
    fingerprint: dict[str, Any]


def evaluate(
    dataset: Judged,
    retriever: Retriever,
    ks: Sequence[int] = KS,
    split: str = "test",
    *,
    listen: Listener = nobody,
) -> tuple[Evaluation, list[Ranking]]:
    """Search all judged questions of a split and score the rankings; the rankings are those that were scored.

    Raises:
        UsageError: no such split, or a cut-off below 1.
        SlmxError: none of the judged questions is in the dataset.
    """
    qrels = dataset.qrels(split)
    questions = [question for question in dataset.questions() if question.question_id in qrels]
    if not questions:
        raise SlmxError(
            f"None of the questions that the {split} marks of {dataset.name} judge is in it.",
            hint="Do queries.jsonl and the qrels belong together?",
        )
    known = {passage.passage_id for passage in dataset.passages()}
    depth = max(DEPTH, *ks)
    started = time.perf_counter()
    # One more, so that a ranking is still full when the question's own document is out.
    found = retriever.search(questions, depth + 1, listen=listen)
    seconds = time.perf_counter() - started
    rankings = [without_own(ranking, depth) for ranking in found]
    scores = evaluate_rankings(qrels, {r.question_id: [(h.passage_id, h.score) for h in r.hits] for r in rankings}, ks)
    evaluation = Evaluation(
        dataset=dataset.name,
        split=split,
        retriever=retriever.name,
        queries=scores.n,
        passages=len(known),
        metrics=scores.mean,
        per_query=scores.per_query,
        depth=depth,
        own_excluded=sum(any(h.passage_id == r.question_id for h in r.hits) for r in found),
        qrels_absent=len({passage for marks in qrels.values() for passage in marks} - known),
        without_text=len(qrels) - len(questions),
        missing=list(scores.missing),
        index_bytes=retriever.index_bytes(),
        search_seconds=seconds,
        fingerprint=retriever.fingerprint(),
    )
    _tell(evaluation, listen)
    return evaluation, rankings


def without_own(ranking: Ranking, k: int) -> Ranking:
    """The first k of a ranking without the passage that has the question's own id."""
    hits = [hit for hit in ranking.hits if hit.passage_id != ranking.question_id]
    return Ranking(question_id=ranking.question_id, hits=hits[:k])


def _tell(evaluation: Evaluation, listen: Listener) -> None:
    """Warn of what lowers the scores and lies in the data."""
    where = f"{evaluation.dataset} ({evaluation.split})"
    if evaluation.qrels_absent:
        listen(Notice(f"{where}: {evaluation.qrels_absent} judged passages are not in the corpus.", "warning"))
    if evaluation.without_text:
        listen(Notice(f"{where}: {evaluation.without_text} judged questions have no text; they score 0.", "warning"))
