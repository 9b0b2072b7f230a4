"""Several retrievers as one: reciprocal rank fusion (Cormack, Clarke & Büttcher 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.records import Hit, Question, Ranking
from slmx.retrieve.opening import open_preset
from slmx.retrieve.retrievers import Opening, Retriever, check_k

VERSION = 2  # raised when the same parts come to give another ranking
DEPTH = 100  # places of each part that are fused, whatever k is


def fuse(rankings: Sequence[Ranking], k: int, rrf_k: int) -> Ranking:
    """Fuse rankings of one question: a passage scores the sum of 1 / (rrf_k + rank) over its ranks up to `DEPTH`.

    A passage that no ranking holds that high follows behind all those, scored 1 / (rrf_k + its best rank): so what
    lies deeper fills a larger k, and never changes the passages of a smaller one. Of equal scores, the passage that an
    earlier ranking holds at a better rank comes first.
    """
    scores: dict[str, float] = {}
    deeper: dict[str, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking.hits, 1):
            share = 1 / (rrf_k + rank)
            if rank <= DEPTH:
                scores[hit.passage_id] = scores.get(hit.passage_id, 0.0) + share
            else:
                deeper[hit.passage_id] = max(deeper.get(hit.passage_id, 0.0), share)
    below = {passage_id: score for passage_id, score in deeper.items() if passage_id not in scores}
    best = sorted((scores | below).items(), key=lambda item: -item[1])[:k]  # keeps the order of equal scores
    return Ranking(question_id=rankings[0].question_id, hits=[Hit(passage_id=p, score=s) for p, s in best])


class Hybrid:
    """Fuses what its parts find."""

    def __init__(self, name: str, parts: Sequence[Retriever], rrf_k: int) -> None:
        self.name = name
        self.parts = parts
        self._rrf_k = rrf_k

    def fingerprint(self) -> dict[str, Any]:
        """The parts' fingerprints and how they are fused."""
        parts = [part.fingerprint() for part in self.parts]
        return {"kind": "hybrid", "version": VERSION, "rrf_k": self._rrf_k, "depth": DEPTH, "parts": parts}

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """The k passages with the highest fused score (see `fuse`)."""
        check_k(k)
        found = [part.search(questions, max(k, DEPTH), listen=listen) for part in self.parts]
        return [fuse(rankings, k, self._rrf_k) for rankings in zip(*found, strict=True)]

    def index_bytes(self) -> int:
        """Bytes of all parts' indexes."""
        return sum(part.index_bytes() for part in self.parts)


def open_hybrid(opening: Opening) -> Hybrid:
    """The registered opener: opens every part over the same corpus."""
    names = opening.preset.parts
    if len(names) < 2:
        raise UsageError(f'The hybrid "{opening.name}" names no two parts.', hint="parts: [bm25, dense]")
    openings = [opening.of(name) for name in names]
    nested = [part.name for part in openings if part.preset.retriever == "hybrid"]
    if nested:
        raise UsageError(f'"{nested[0]}" is a hybrid itself; the parts of "{opening.name}" must not be.')
    return Hybrid(opening.name, [open_preset(part) for part in openings], opening.preset.rrf_k)
