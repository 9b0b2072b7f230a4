"""Validation: the model as it stands, on BEIR folders, by the evaluator behind `slmx eval retrieval`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slmx.data.beir import Qrels
from slmx.data.datasets import Dataset, open_dataset
from slmx.errors import UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import hash_value, key_of
from slmx.records import Passage, Question
from slmx.retrieve.evaluate import evaluate
from slmx.retrieve.folders import FORMAT
from slmx.retrieve.opening import open_retriever
from slmx.train.checkpoints import VALIDATING
from slmx.train.towers import Tower

METRIC = "ndcg@10"


@dataclass(frozen=True)
class ValSet:
    """A dataset that judges checkpoints: a split of it, or the part of that split that is held out by hash.

    Attributes:
        split: which relevance marks.
        held_out: the share of the split's questions that judge; 1: all. Those of a share are always the same ones.
    """

    dataset: Dataset
    split: str
    held_out: float = 1.0

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.dataset.name

    @property
    def corpus_hash(self) -> str:
        """The dataset's."""
        return self.dataset.corpus_hash

    @property
    def content(self) -> str:
        """A hash of what judges: the passages, the questions and their marks."""
        asked = [[question.question_id, question.question] for question in self.questions()]
        return hash_value([self.corpus_hash, asked, self.qrels(self.split)])

    def passages(self) -> Iterator[Passage]:
        """All passages of the dataset."""
        return self.dataset.passages()

    def questions(self) -> list[Question]:
        """The questions that judge."""
        marks = self.dataset.qrels(self.split)
        asked = [question for question in self.dataset.questions() if question.question_id in marks]
        return [question for question in asked if is_held_out(question.question, self.held_out)]

    def qrels(self, split: str = "test") -> Qrels:
        """Relevance marks of the questions that judge."""
        judging = {question.question_id for question in self.questions()}
        return {own: marks for own, marks in self.dataset.qrels(split).items() if own in judging}


def is_held_out(text: str, share: float) -> bool:
    """Does a question belong to the share that is held out? Decided by a hash of its text alone."""
    return (key_of(text) & 0xFFFFFF) < share * 0x1000000


def open_val_sets(
    names: Sequence[str],
    *,
    split: str,
    held_out: float = 1.0,
    data_dir: Path,
    cache_dir: Path,
    listen: Listener = nobody,
) -> list[ValSet]:
    """Open validation sets by name or folder; UsageError when a split is missing or no question is held out."""
    found = []
    for name in names:
        one = ValSet(open_dataset(name, data_dir=data_dir, cache_dir=cache_dir, listen=listen), split, held_out)
        one.dataset.qrels(split)
        if not one.dataset.has_passages:
            raise UsageError(f"{one.name} has no corpus.jsonl to search.", hint="Give a whole BEIR folder.")
        if not one.questions():
            raise UsageError(f"No question of {one.name} ({split}) judges the model.", hint="Give a larger --hold-out.")
        found.append(one)
    return found


class Validated(NamedTuple):
    """nDCG@10 (0 to 1) by validation set, and where the vectors lie that were made for it."""

    scores: dict[str, float]
    cached: list[Path]


def validate(
    tower: Tower, sets: Sequence[ValSet], *, beside: Path, cache_dir: Path, device: str, listen: Listener = nobody
) -> Validated:
    """nDCG@10 of the model as it stands.

    It is written to a folder in `beside` and read back by the retriever, so that what is measured is what is saved. The
    vectors go to the cache under the content of the weights: whoever validates or evaluates the same ones finds them.
    """
    scores: dict[str, float] = {}
    cached: list[Path] = []

    def told(event: Progress | Notice) -> None:
        if isinstance(event, Progress):
            listen(event)

    with tempfile.TemporaryDirectory(prefix=VALIDATING, dir=beside) as place:
        folder = Path(place) / "model"
        tower.save(folder)
        for one in sets:
            retriever = open_retriever(str(folder), one, cache_dir=cache_dir, device=device, listen=told)
            evaluation, _ = evaluate(one, retriever, (10,), one.split, listen=told)
            scores[one.name] = evaluation.metrics[METRIC]
            cached += _cached(retriever.fingerprint(), cache_dir)
    return Validated(scores, list(dict.fromkeys(cached)))


def _cached(fingerprint: Mapping[str, Any], cache_dir: Path) -> list[Path]:
    """The folders in the cache of a dense retriever's index and of its encoder's vectors."""
    index = {name: value for name, value in fingerprint.items() if name != "dimension"}
    encoder = {name: value for name, value in index.items() if name not in ("kind", "corpus", "query_prompt")}
    return [cache_dir / "indexes" / hash_value([FORMAT, index]), cache_dir / "vectors" / hash_value(encoder)]


def forget(cached: Sequence[Path]) -> None:
    """Remove vectors of weights that nobody will ask for again."""
    for folder in cached:
        shutil.rmtree(folder, ignore_errors=True)
