"""What the sections are written from: the compared runs with what only their files tell, read once and streamed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from slmx.eval.compare import Comparison, Decomposition, Estimate, Pair, Reading, Test, group_of, utilisation
from slmx.eval.join import Joined
from slmx.eval.metrics import aggregate
from slmx.eval.results import RETRIEVAL_VERSIONS, metric_names, score_all
from slmx.eval.runs import Run
from slmx.files import read_json
from slmx.records import Context
from slmx.text import words

_FEWEST_GROUPS, _MOST_GROUPS, _FEWEST_IN_GROUP = 2, 40, 10
_GROUPINGS = {"topic": "topic", "answer_type": "answer type"}  # of the questions' metadata
_ANSWERED = re.compile(r"(?P<stamp>\S+) (?P<task>.+): (?P<done>\d+) of \d+ questions\b")  # see slmx.eval.runlog
_ASKING = re.compile(
    r"\b(who|whom|whose|when|where|which|what|how|why|кто|когда|где|какой|какая|какие|что|как|почему)\b"
)


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it. `key` is its letter; lists have one element a question, in the order of `Joined`.

    `facts` is what results.json holds, `memory` what memory_usage.json does; `progress` tells how many questions were
    answered after so many seconds.
    """

    key: str
    label: str
    run: Run
    place: int
    right: Sequence[bool | None]
    said: Sequence[str]
    contexts: Sequence[Sequence[str]]
    stops: Mapping[str, int]
    facts: Mapping[str, Any]
    memory: Mapping[str, Any]
    progress: Sequence[tuple[float, int]]

    @property
    def context(self) -> Context:
        """none, retrieved or oracle."""
        return self.run.cell.context

    @property
    def model(self) -> str:
        """The model's name."""
        return self.run.cell.model

    @property
    def named(self) -> str:
        """Letter and label, as tables name a run."""
        return f"{self.key} · {self.label}"

    def mean(self, metric: str) -> float | None:
        """A metric's mean, 0 to 1 (words for lengths); None where it is not defined."""
        value = self.facts.get(metric)
        return float(value) if isinstance(value, int | float) else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The metric's 95 % interval."""
        ends = self.facts.get("intervals_95", {}).get(metric)
        return (float(ends[0]), float(ends[1])) if ends else None


@dataclass(frozen=True)
class Material:
    """Everything that is known of the runs of a report. `groupings` name a group for each question ("" for none)."""

    joined: Joined
    comparison: Comparison
    runs: Sequence[Shown]
    groupings: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def shown(self, label: str) -> Shown:
        """The run with this label."""
        return next(run for run in self.runs if run.label == label)

    def right(self, run: Shown) -> Estimate:
        """The share of its answers that are right."""
        return self.comparison.runs[run.place].right

    @property
    def models(self) -> list[str]:
        """The models in the order of the runs."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @cached_property
    def groups(self) -> list[list[Shown]]:
        """The runs that share weights, template and settings, in the order of the runs: a model may have several."""
        groups: dict[str, list[Shown]] = {}
        for run in self.runs:
            groups.setdefault(group_of(run.run), []).append(run)
        return list(groups.values())

    def pairs_of_retrievers(self) -> list[tuple[Shown, Shown]]:
        """Two retrievers, or two k, with the same model."""
        return [(a, b) for a, b in self._within_models() if (a.context, b.context) == ("retrieved", "retrieved")]

    def pairs_with_nothing(self) -> list[tuple[Shown, Shown]]:
        """No context against each kind of passages, with the same model."""
        return [(a, b) for a, b in self._within_models() if a.context == "none" and b.context != "none"]

    def pairs_with_gold(self) -> list[tuple[Shown, Shown]]:
        """Each retriever against the gold passage, with the same model."""
        return [(a, b) for a, b in self._within_models() if (a.context, b.context) == ("retrieved", "oracle")]

    def pairs_of_models(self) -> list[tuple[Shown, Shown]]:
        """Two models, or one with two settings, with the same kind of context."""
        pairs = [(a, b) for a, b in combinations(self.runs, 2) if a.run.cell.shows == b.run.cell.shows]
        return [(a, b) for a, b in pairs if group_of(a.run) != group_of(b.run)]

    def _within_models(self) -> list[tuple[Shown, Shown]]:
        """All pairs of runs that share weights, template and settings, in the order of the runs."""
        return [pair for group in self.groups for pair in combinations(group, 2)]

    def step(self, first: Shown, second: Shown) -> str:
        """From one run to another: "bm25, k=5 → hybrid, k=5 (C → D)", with the model where there are several."""
        keys = f"{first.key} → {second.key}"
        if first.model != second.model:
            return f"{first.model} → {second.model} ({first.run.cell.shows}; {keys})"
        model = f"{first.model}; " if len(self.models) > 1 else ""
        return f"{first.run.cell.shows} → {second.run.cell.shows} ({model}{keys})"

    def decomposition(self, run: Shown) -> Decomposition | None:
        """The decomposition that a run takes part in."""
        for one in self.comparison.decompositions:
            if run.label in (one.without, one.oracle, *(reading.run for reading in one.contexts)):
                return one
        return None

    def reading(self, run: Shown) -> Reading | None:
        """What the run's model makes of the run's passages; None for runs without context, or without others."""
        one = self.decomposition(run)
        return next((reading for reading in one.contexts if reading.run == run.label), None) if one else None

    def utilisation(self, run: Shown) -> Estimate | None:
        """The share right where the passages hold an answer; None without context."""
        return utilisation(self.joined, run.place, seed=self.comparison.seed)

    def pair(self, first: Shown, second: Shown) -> Pair:
        """The comparison of two runs, `first` being the one that comes first in the list of runs."""
        return next(p for p in self.comparison.pairs if (p.first, p.second) == (first.label, second.label))

    def test(self, first: Shown, second: Shown) -> Test | None:
        """The test of right and wrong between two runs, in the order of the runs."""
        by = self.comparison.metrics[0]  # what `right_by` says, as a column of numbers
        return next((test for test in self.pair(first, second).tests if test.metric == by), None)


def gather(joined: Joined, comparison: Comparison) -> Material:
    """Read what the joined runs hold beside their answers: passages, stops, costs, memory, groups of questions."""
    place_of = {question_id: place for place, question_id in enumerate(joined.question_ids)}
    groupings: dict[str, Sequence[str]] = {}
    runs = [_shown(joined, place, place_of, groupings) for place in range(len(joined.runs))]
    asked = [_asking(question) for question in joined.questions]
    if _useful(asked):
        groupings["question word"] = asked
    return Material(joined, comparison, runs, groupings)


def _shown(joined: Joined, place: int, place_of: Mapping[str, int], groupings: dict[str, Sequence[str]]) -> Shown:
    run = joined.runs[place]
    n = len(joined.question_ids)
    contexts: list[Sequence[str]] = [()] * n
    metadata: list[Mapping[str, Any]] = [{}] * n
    stops: Counter[str] = Counter()
    texts: dict[str, str] = {}  # a passage that was given to many questions is held once
    for _, prediction in run.stream():
        at = place_of[prediction.question_id]
        contexts[at] = [texts.setdefault(text, text) for text in prediction.contexts]
        metadata[at] = prediction.metadata
        stops[str(prediction.metadata.get("stop", ""))] += 1
    if place == 0:
        groupings.update(_groupings(metadata))
    path = run.path / "memory_usage.json"
    return Shown(
        key=_key(place),
        label=joined.labels[place],
        run=run,
        place=place,
        right=joined.right[place],
        said=joined.said[place],
        contexts=contexts,
        stops=stops,
        facts=run.results or _computed(run, joined),
        memory=read_json(path) if path.is_file() else {},
        progress=_progress(run.path / "run.log"),
    )


def _progress(log: Path) -> list[tuple[float, int]]:
    """How the answering went on, from the run's log: (seconds since the first such line, questions answered)."""
    if not log.is_file():
        return []
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        told = _ANSWERED.match(line)
        if told and told["task"] == log.parent.name:
            found.append((datetime.fromisoformat(told["stamp"]), int(told["done"])))
    return [((time - found[0][0]).total_seconds(), done) for time, done in found]


def _computed(run: Run, joined: Joined) -> dict[str, Any]:
    """The numbers of a file of predictions that has no results.json beside it."""
    rows = score_all(run.predictions(), metric_names("default", simple_qa=False))
    means = aggregate(rows, versions=RETRIEVAL_VERSIONS)
    return {
        **{name: summary.mean for name, summary in means.items()},
        "intervals_95": {name: [s.low, s.high] for name, s in means.items() if s.n},
        "num_examples": len(joined.question_ids),
    }


def _key(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"R{place + 1}"


def _groupings(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """What the source says of its questions, where it sorts them into a few groups."""
    found: dict[str, Sequence[str]] = {}
    for name, title in _GROUPINGS.items():
        values = [str(meta.get("question", {}).get(name, "") or "") for meta in metadata]
        if _useful(values):
            found[title] = values
    return found


def _useful(values: Sequence[str]) -> bool:
    sizes = Counter(value for value in values if value)
    large = [name for name, size in sizes.items() if size >= _FEWEST_IN_GROUP]
    return len(large) >= _FEWEST_GROUPS and len(sizes) <= _MOST_GROUPS


def _asking(question: str) -> str:
    """The word that a question asks with: the first of who, when, where …"""
    found = _ASKING.search(question.lower())
    return found.group() if found else "other"


def answer_classes(joined: Joined) -> list[list[int]]:
    """For every run, the number of its answer among the different answers to the same question over all runs."""
    classes: list[list[int]] = [[] for _ in joined.runs]
    for place, normaliser in enumerate(joined.normalisers):
        known: dict[tuple[str, ...], int] = {}
        heard: dict[str, int] = {}
        for column, said in zip(classes, joined.said, strict=True):
            text = said[place]
            if text not in heard:
                heard[text] = known.setdefault(tuple(words(text, normaliser)), len(known))
            column.append(heard[text])
    return classes
