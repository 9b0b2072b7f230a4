"""Generators that need no weights: what a sentence, a passage or the gold answer itself scores.

They read the passages that the prompt kept, so that they see what a model would see.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from slmx.models.generators import Opening
from slmx.records import Completion, Passage, Request
from slmx.text import normaliser_for, sentences, words

BATCH = 256
_CYRILLIC = re.compile("[Ѐ-ӿ]")


class _Baseline:
    """What the baselines share; a subclass says how it answers."""

    kind = ""
    version = 1  # raised when the rule changes, so that old answers are not taken for new ones

    def __init__(self, opening: Opening) -> None:
        self.name = opening.name

    def answer(self, request: Request) -> str:
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        return {"generator": self.kind, "version": self.version}

    def describe(self) -> dict[str, str]:
        return {}

    def size_bytes(self) -> int:
        return 0

    def window(self) -> None:
        return None

    def load(self) -> float:
        return 0.0

    def plan(self, requests: Sequence[Request], batch_size: int | None) -> list[list[int]]:
        step = batch_size or BATCH
        return [list(range(i, min(i + step, len(requests)))) for i in range(0, len(requests), step)]

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return [Completion(question_id=r.question.question_id, text=self.answer(r)) for r in batch]

    def close(self) -> None:
        pass


class Extractive(_Baseline):
    """The sentence of the passages that shares most with the question (see `nearest_sentence`); without any, ""."""

    kind = "extractive"

    def answer(self, request: Request) -> str:
        """The nearest sentence to the question."""
        return nearest_sentence(request.question.question, request.prompt.passages)


class FirstPassage(_Baseline):
    """The text of the first passage as it stands; without passages, ""."""

    kind = "first-passage"

    def answer(self, request: Request) -> str:
        """The first passage's text."""
        return request.prompt.passages[0].text if request.prompt.passages else ""


class OracleAnswer(_Baseline):
    """The first gold answer: every metric of answers must give it 1.0, which checks the metrics."""

    kind = "oracle-answer"

    def answer(self, request: Request) -> str:
        """The first gold answer."""
        return request.question.answers[0] if request.question.answers else ""


def nearest_sentence(question: str, passages: Sequence[Passage]) -> str:
    """The sentence with the highest IDF-weighted overlap of stemmed words with the question; the first of equals.

    With N sentences in the passages given, df(w) of which hold the stem w, idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))
    (the form that BM25 uses, always above 0). A sentence scores the sum of idf over the distinct stems that it shares
    with the question. Titles do not count. "" without passages.
    """
    normaliser = normaliser_for(question)
    asked = set(stems(words(question, normaliser)))
    found = [p.text[start:end] for p in passages for start, end in sentences(p.text)]
    shared = [asked.intersection(stems(words(sentence, normaliser))) for sentence in found]
    df = Counter(stem for held in shared for stem in held)
    idf = {stem: math.log(1 + (len(found) - n + 0.5) / (n + 0.5)) for stem, n in df.items()}
    # math.fsum: the same sum for the same stems in any order of the set, so that ties are ties.
    scores = [math.fsum(idf[stem] for stem in held) for held in shared]
    return found[max(range(len(found)), key=scores.__getitem__)] if found else ""


def stems(of: Sequence[str]) -> list[str]:
    """The Snowball stem of each word: the Russian one for words with a Cyrillic letter, else the English one."""
    return [_stemmer("russian" if _CYRILLIC.search(word) else "english").stemWord(word) for word in of]


@cache
def _stemmer(language: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(language)
