"""The questions of a report as data for the page's script: columns of JSON, each passage once, gzip in base64.

One block holds what every question needs; the passages lie in blocks of their own that are unpacked when a question is
opened. Compressed text cannot end a <script> element, whatever a model wrote.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from slmx.eval.page.parts import clean

BLOCK_BYTES = 256 << 10  # of passages' text before it is compressed: unpacked in a few milliseconds
BUDGET_BYTES = 11 << 20  # of all passages in the page; a page of more than 15 MB is slow to send and to open
_SLOWEST_WORTH_IT = 6  # gzip's level: 9 takes three times as long for one percent


@dataclass(frozen=True)
class RunColumn:
    """What the explorer shows of one run; every list has one value a question, in the same order.

    `right` is None where the question has no gold. `same` numbers the different answers to a question over all runs:
    two runs gave the same answer where the numbers are equal. `contexts` are the passages' texts, best first.
    """

    key: str
    name: str
    answers: Sequence[str]
    right: Sequence[bool | None]
    recall: Sequence[float | None]
    same: Sequence[int]
    contexts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Questions:
    """All questions of a report and what the runs said. `groups` names one for each question ("" for none).

    `pair` are the places of the two runs that are compared at first.
    """

    ids: Sequence[str]
    questions: Sequence[str]
    golds: Sequence[Sequence[str]]
    runs: Sequence[RunColumn]
    pair: tuple[int, int]
    groups: Sequence[str] = field(default_factory=list)
    group_name: str = ""


@dataclass(frozen=True)
class Packed:
    """The blocks as elements of the page, and how many passages of each run stand in them (None: all)."""

    elements: str
    kept_rank: int | None


def pack(questions: Questions, *, budget: int = BUDGET_BYTES) -> Packed:
    """The questions as `<script type="application/json+gzip">` elements.

    Where the passages do not fit in `budget` bytes, those of the lowest ranks are left out, the same number of every
    run, and `kept_rank` says how many each question keeps.
    """
    deepest = max((len(texts) for run in questions.runs for texts in run.contexts), default=0)
    depth = deepest
    while True:
        places, blocks, starts = _passages(questions, depth)
        if (taken := sum(map(len, blocks))) <= budget:
            break
        depth = min(depth - 1, int(depth * budget / taken))
    main = _element("explorer-data", _compressed(_columns(questions, places, starts)))
    elements = [main, *(_element(f"passages-{number}", block) for number, block in enumerate(blocks))]
    return Packed("\n".join(elements), depth if depth < deepest else None)


def _columns(questions: Questions, places: list[list[list[int]]], starts: list[int]) -> dict[str, Any]:
    return {
        "ids": [clean(text) for text in questions.ids],
        "questions": [clean(text) for text in questions.questions],
        "golds": [[clean(text) for text in golds] for golds in questions.golds],
        "runs": [{"key": run.key, "name": clean(run.name)} for run in questions.runs],
        "pair": questions.pair,
        "groups": sorted({clean(name) for name in questions.groups if name}),
        "group_of": [clean(name) for name in questions.groups] or [""] * len(questions.ids),
        "answers": [[clean(text) for text in run.answers] for run in questions.runs],
        "right": ["".join("-" if value is None else str(int(value)) for value in run.right) for run in questions.runs],
        "recall": [[-1 if value is None else round(100 * value) for value in run.recall] for run in questions.runs],
        "same": [list(run.same) for run in questions.runs],
        "passages": places,
        "blocks": starts,
    }


def _passages(questions: Questions, depth: int) -> tuple[list[list[list[int]]], list[str], list[int]]:
    """The places of each run's passages, question by question; the compressed blocks; each block's first place."""
    number: dict[str, int] = {}
    places: list[list[list[int]]] = [[] for _ in questions.runs]
    for question in range(len(questions.ids)):  # neighbours in the list lie in the same block
        for run, column in zip(places, questions.runs, strict=True):
            run.append([number.setdefault(text, len(number)) for text in column.contexts[question][:depth]])
    blocks: list[str] = []
    starts: list[int] = []
    waiting: list[str] = []
    size, first = 0, 0
    for place, text in enumerate(number):
        waiting.append(clean(text))
        size += len(text)
        if size >= BLOCK_BYTES or place == len(number) - 1:
            blocks.append(_compressed(waiting))
            starts.append(first)
            waiting, size, first = [], 0, place + 1
    return places, blocks, starts


def _compressed(value: Any) -> str:
    packed = gzip.compress(msgspec.json.encode(value), _SLOWEST_WORTH_IT, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _element(name: str, text: str) -> str:
    return f'<script type="application/json+gzip" id="{name}">{text}</script>'
