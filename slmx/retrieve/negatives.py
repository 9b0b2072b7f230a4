"""Which passages are hard negatives of a pair.

For each pair the retriever ranks the corpus; from its first k passages those are taken as negatives, best first, that
no rule takes out. The rules, in this order:

- known positive: the passage is marked for this question, has the text of one that is, or the question's own id; in a
  corpus other than the source, whose ids are others, the text alone decides;
- same as query: its text is the question's;
- there twice: a passage with the same text stands above it;
- skipped ranks: the first `skip` of those that are left, among which unmarked answers are most likely;
- margin: it does not score below the positive by more than the margin (NV-Retriever, Moreira et al. 2024, calls the
  relative one TopK-PercPos). A positive that is not among the first k scores no more than any of them: none is taken;
- bounds: its score is above `max_score` or below `min_score`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

from slmx.data.forms.example import Example
from slmx.data.passage_texts import Texts
from slmx.files import key_of
from slmx.records import Hit, Question
from slmx.retrieve.rerank import CrossEncoder
from slmx.retrieve.retrievers import Retriever

Pick = Literal["top", "random"]


@dataclass(frozen=True)
class MineOptions:
    """What the command line asks for; the defaults are those of the command.

    Attributes:
        source: a training folder with queries and positives, or the name of a BEIR set.
        corpus: where negatives come from: a dataset or folder; None: the source's own passages.
        k: places of a ranking that are looked at.
        negatives: how many are taken at most.
        margin, relative_margin: what the positive must score above a negative, as a difference, and as a share of the
            positive's own score. Either None: without that rule.
        pick: "top" takes the best that are left, "random" any of them, drawn from the seed.
        teacher: a cross-encoder whose scores are held against margin and bounds, and written, in place of the
            retriever's.
    """

    source: str
    to: Path
    data_dir: Path
    cache_dir: Path
    retriever: str = "bm25"
    corpus: str | None = None
    form: str = "auto"
    split: str = "train"
    k: int = 100
    negatives: int = 8
    skip: int = 0
    margin: float | None = None
    relative_margin: float | None = 0.05
    max_score: float = math.inf
    min_score: float = -math.inf
    pick: str = "top"
    seed: int = 0
    teacher: str | None = None
    language: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False


class MinedPair(Example, frozen=True):
    """One line of mined.jsonl: a pair with its negatives.

    `ranks` are the places of the negatives in the ranking, from 1; `found` whether the positive is in it; `left_out`
    counts the passages that each rule took out.
    """

    ranks: list[int] = []
    found: bool = False
    left_out: dict[str, int] = {}


class Positives:
    """What is known to answer each question: 8 bytes a text and an id, and a small object a question."""

    def __init__(self, examples: Iterator[Example]) -> None:
        self.pairs = 0
        self._known: dict[int, set[int]] = {}
        for example in examples:
            self.pairs += 1
            keys = self._known.setdefault(key_of(example.query), set())
            keys.add(key_of(example.positive))
            if example.positive_id:
                keys.add(key_of("id", example.positive_id))

    def has(self, query_key: int, passage_id: str, text_key: int) -> bool:
        """Is the passage known to answer the question, by its id (unless that is empty) or by its text?"""
        known = self._known[query_key]
        return text_key in known or (bool(passage_id) and key_of("id", passage_id) in known)


@dataclass(frozen=True)
class _Candidate:
    rank: int
    place: int
    passage_id: str
    score: float


class Miner:
    """Finds the negatives of some pairs; what it finds depends on them and the options alone.

    Args:
        same_ids: whether the pairs name passages as the corpus does; else equal ids mean nothing, and texts decide.
    """

    def __init__(
        self,
        options: MineOptions,
        retriever: Retriever,
        teacher: CrossEncoder | None,
        texts: Texts,
        positives: Positives,
        *,
        same_ids: bool = True,
    ) -> None:
        self.options, self.positives = options, positives
        self._same_ids = same_ids
        self._retriever, self._teacher, self._texts = retriever, teacher, texts

    def mine(self, examples: Sequence[Example]) -> list[MinedPair]:
        """Each pair with its negatives."""
        texts = list(dict.fromkeys(example.query for example in examples))
        asked = [Question(question_id=str(number), question=text, answers=[]) for number, text in enumerate(texts)]
        rankings = dict(zip(texts, self._retriever.search(asked, self.options.k), strict=True))
        return [self._pair(example, rankings[example.query].hits) for example in examples]

    def _pair(self, example: Example, hits: Sequence[Hit]) -> MinedPair:
        left_out: Counter[str] = Counter()
        own, candidates = self._candidates(example, hits, left_out)
        found = own is not None
        if self._teacher is not None and candidates:
            own, candidates = self._taught(self._teacher, example, candidates)
        chosen = self._choose(example, self._below(own, candidates, left_out))
        return MinedPair(
            query=example.query,
            positive=example.positive,
            negatives=[self._texts.text(one.place) for one in chosen],
            query_id=example.query_id,
            positive_id=example.positive_id,
            negative_ids=[one.passage_id for one in chosen],
            scores=[own, *(one.score for one in chosen)] if own is not None and chosen else [],
            ranks=[one.rank for one in chosen],
            found=found,
            left_out=dict(sorted(left_out.items())),
        )

    def _candidates(
        self, example: Example, hits: Sequence[Hit], left_out: Counter[str]
    ) -> tuple[float | None, list[_Candidate]]:
        """The positive's score, None where it was not found; and what is left by the rules of ids, texts and ranks."""
        query, positive = key_of(example.query), key_of(example.positive)
        own: float | None = None
        left: list[_Candidate] = []
        seen: set[int] = set()
        for rank, hit in enumerate(hits, 1):
            place = self._texts.place(hit.passage_id)
            assert place is not None  # retriever and texts are of one corpus
            text = self._texts.key(place)
            own_id = hit.passage_id if self._same_ids else ""
            if own is None and (text == positive or (own_id and own_id == example.positive_id)):
                own = hit.score
            if (own_id and own_id == example.query_id) or self.positives.has(query, own_id, text):
                left_out["known positive"] += 1
            elif text == query:
                left_out["same as query"] += 1
            elif text in seen:
                left_out["there twice"] += 1
            else:
                left.append(_Candidate(rank, place, hit.passage_id, hit.score))
            seen.add(text)
        skipped = min(self.options.skip, len(left))
        left_out.update({"skipped ranks": skipped} if skipped else {})
        return own, left[skipped:]

    def _taught(
        self, teacher: CrossEncoder, example: Example, candidates: Sequence[_Candidate]
    ) -> tuple[float, list[_Candidate]]:
        """The positive's score and the candidates with theirs, by the teacher."""
        passages = [example.positive, *(self._texts.text(one.place) for one in candidates)]
        scores = teacher.score([(example.query, text) for text in passages])
        return scores[0], [replace(one, score=score) for one, score in zip(candidates, scores[1:], strict=True)]

    def _below(
        self, own: float | None, candidates: Sequence[_Candidate], left_out: Counter[str]
    ) -> Iterator[_Candidate]:
        """What is left by the rules of scores."""
        options = self.options
        limit = math.inf
        if options.margin is not None or options.relative_margin is not None:
            # The positive, where it was not found, scores no more than the last of them.
            limit = -math.inf if own is None else own
            limit -= max(options.margin or 0.0, (options.relative_margin or 0.0) * abs(limit) if own else 0.0)
        for one in candidates:
            if one.score >= limit:
                left_out["margin"] += 1
            elif not (options.min_score <= one.score <= options.max_score):
                left_out["bounds"] += 1
            else:
                yield one

    def _choose(self, example: Example, candidates: Iterator[_Candidate]) -> list[_Candidate]:
        found, wanted = list(candidates), self.options.negatives
        if self.options.pick == "random" and len(found) > wanted:
            draw = Random(f"{self.options.seed} {key_of(example.query)}")
            found = sorted(draw.sample(found, wanted), key=lambda one: one.rank)
        return found[:wanted]
