"""The nouns that all rooms share. Plain immutable records; msgspec turns them into JSON and back.

A question flows so: Question -> Ranking (of Passages) -> Request (a rendered prompt) -> Completion -> Prediction.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

import msgspec

GoldLevel = Literal["document", "long", "short"]
Context = Literal["none", "oracle", "retrieved"]
Stop = Literal["eos", "line", "question", "length", "none", "failed"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all records: immutable, named fields only, fields at their default left out of JSON."""


class Gold(Record, frozen=True):
    """Which passages of the corpus are gold for a question, as passage ids, best first.

    `long` holds the passages that a long answer covers, `short` those that hold a short answer on word boundaries,
    `document` all passages of the gold documents.
    """

    long: list[str] = []
    short: list[str] = []
    document: list[str] = []

    def at(self, level: GoldLevel) -> list[str]:
        """The ids at a level; `long` falls back on `short` where the source marks no long answer."""
        if level == "document":
            return self.document
        if level == "short":
            return self.short
        return self.long or self.short


class Question(Record, frozen=True):
    """One question with its accepted answers. `metadata` keeps what the source says (topic, answer_type, url …)."""

    question_id: str
    question: str
    answers: list[str]
    gold: Gold = Gold()
    metadata: dict[str, Any] = {}


class Document(Record, frozen=True):
    """A whole text, before it is cut into passages."""

    doc_id: str
    text: str
    title: str = ""
    url: str = ""


class Passage(Record, frozen=True):
    """What a retriever finds and a model reads: about 100 words of a document, or a BEIR document as it is."""

    passage_id: str
    text: str
    title: str = ""
    doc_id: str = ""


class Hit(Record, frozen=True):
    """One place of a ranking; `score` grows with relevance and is comparable within one ranking alone."""

    passage_id: str
    score: float


class Ranking(Record, frozen=True):
    """The passages that a retriever found for a question, best first."""

    question_id: str
    hits: list[Hit]


class Prompt(Record, frozen=True):
    """A rendered prompt and what had to be left out so that it fits the model's window.

    `passages` are those that the prompt holds, in rank order, the last one as trimmed. `dropped` counts whole
    passages left out, `trimmed` tells that the last one kept was cut, `cut_answer` that an answer went with them.
    """

    text: str
    passages: list[Passage] = []
    dropped: int = 0
    trimmed: bool = False
    cut_answer: bool = False


class Request(Record, frozen=True):
    """What a generator receives: the question, the passages kept, and the prompt as text."""

    question: Question
    prompt: Prompt


class Completion(Record, frozen=True):
    """What a generator gives back for one request.

    `stop` says which rule ended it; `thinking` is the block that was taken out of `text`, if there was one.
    Token counts are 0 for generators that have no tokens; `error` is the message of a failed generation. `log_prob` is
    the mean natural logarithm of the new tokens' probabilities, the ending one's among them; None unless asked for.
    """

    question_id: str
    text: str
    stop: Stop = "none"
    prompt_tokens: int = 0
    new_tokens: int = 0
    thinking: str = ""
    error: str = ""
    log_prob: float | None = None


class Prediction(Record, frozen=True, omit_defaults=False):
    """One answer as the journal keeps it and predictions.json shows it; the names are those that users' scripts read.

    `contexts` are the texts of the passages that the prompt held. `metadata` holds `question` (what the source says of
    it), `passage_ids`, `stop`, the token counts, what was cut, and in predictions.json the metrics of this answer.
    """

    question_id: str
    question: str
    predicted_answer: str
    ground_truth: list[str]
    contexts: list[str]
    context_type: Context
    model_name: str
    token_recall: float | None = None
    metadata: dict[str, Any] = {}
    prompt: str = ""


def question_id_of(question: str) -> str:
    """The id of a question whose source has none: 16 hex digits, so that the NQ files join."""
    return sha256(question.strip().lower().encode()).hexdigest()[:16]
