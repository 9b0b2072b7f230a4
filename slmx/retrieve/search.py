"""`slmx retrieve search`: one query over an index folder, ranked passages out."""

from __future__ import annotations

import time
from pathlib import Path

from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.records import Question, Record
from slmx.retrieve.index import open_index
from slmx.retrieve.retrievers import find_passages


class Found(Record, frozen=True):
    """One passage of the answer; a greater score is better and means nothing across retrievers."""

    rank: int
    score: float
    passage_id: str
    title: str
    text: str


class Answer(Record, frozen=True):
    """What a search found. `seconds` is the search alone, without opening the index and loading the model."""

    query: str
    retriever: str
    hits: list[Found]
    seconds: float


def search(
    folder: Path,
    query: str,
    *,
    cache_dir: Path,
    k: int = 5,
    reranker: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listener = nobody,
) -> Answer:
    """The k best passages of an index for a query.

    Raises:
        UsageError: an empty query, or a k below 1.
        SlmxError: the index cannot be opened (see `open_index`).
    """
    if not query.strip():
        raise UsageError("The query is empty.", hint='slmx retrieve search DIR "what you look for"')
    retriever, corpus = open_index(
        folder, cache_dir=cache_dir, reranker=reranker, device=device, dtype=dtype, listen=listen
    )
    started = time.perf_counter()
    (ranking,) = retriever.search([Question(question_id="query", question=query, answers=[])], k, listen=listen)
    seconds = time.perf_counter() - started
    passages = find_passages(corpus, {hit.passage_id for hit in ranking.hits})
    hits = [
        Found(rank=rank, score=hit.score, passage_id=p.passage_id, title=p.title, text=p.text)
        for rank, hit in enumerate(ranking.hits, 1)
        for p in (passages[hit.passage_id],)
    ]
    return Answer(query=query, retriever=retriever.name, hits=hits, seconds=seconds)
