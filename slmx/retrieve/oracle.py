"""The oracle as one more retriever: it finds the gold passages, so the pipeline has no special case for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmx.events import Listener, nobody
from slmx.records import GoldLevel, Hit, Question, Ranking
from slmx.retrieve.retrievers import Opening, check_k


class Oracle:
    """The gold passages of each question, best first; none for a question without gold."""

    def __init__(self, name: str, level: GoldLevel, corpus_hash: str) -> None:
        self.name = name
        self.level = level
        self._corpus_hash = corpus_hash

    def fingerprint(self) -> dict[str, Any]:
        """The level and the corpus; the gold ids themselves belong to the questions."""
        return {"kind": "oracle", "level": self.level, "corpus": self._corpus_hash}

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """The first k gold passages, scored 1, 1/2, 1/3 … so that the order survives a TREC run."""
        check_k(k)
        return [
            Ranking(
                question_id=question.question_id,
                hits=[Hit(passage_id=p, score=1 / rank) for rank, p in enumerate(question.gold.at(self.level)[:k], 1)],
            )
            for question in questions
        ]

    def index_bytes(self) -> int:
        """No index."""
        return 0


def open_oracle(opening: Opening) -> Oracle:
    """The registered opener."""
    return Oracle(opening.name, opening.oracle, opening.corpus.corpus_hash)
