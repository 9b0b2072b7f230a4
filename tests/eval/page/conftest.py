"""Small runs with known outcomes, some of whose texts try to break the page; a browser for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slmx.records import Question
from tests.browser import Browser, Unavailable, open_browser
from tests.eval.made_runs import cell, make_run

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!-- <script>",
    "<img src=x onerror=alert(3)>",
    "\"quotes\" 'and' `ticks` & &amp; ]]>",
    "line\u2028separator\u2029and\x00null\x07bell",
    "right-to-left \u202e desrever \u2066 isolate",
    "${alert(4)} {{braces}} %s \\u003c <|im_end|> <P>",
)


def questions(count: int = 60) -> list[Question]:
    """Questions "what is thing N" whose gold is "gold N", in three topics; the first ones hold hostile text."""
    made = []
    for number in range(count):
        hostile = HOSTILE[number] if number < len(HOSTILE) else ""
        made.append(
            Question(
                question_id=f"q{number}",
                question=f"what is thing {number} {hostile}".strip(),
                answers=[f"gold{number} {hostile}".strip()],
                metadata={"topic": ("Art", "Sports", "<b>Science</b>")[number % 3], "answer_type": "Other"},
            )
        )
    return made


def answers(asked: Sequence[Question], right: Sequence[bool], wrong: str = "no idea at all") -> list[str]:
    """The gold in a few words where it is to be right, else something wrong (hostile where the question is)."""
    told = []
    for question, is_right in zip(asked, right, strict=True):
        gold = question.answers[0]
        told.append(f"It is {gold} indeed" if is_right else f"{wrong} {gold.partition(' ')[2]}".strip())
    return told


def share(count: int, wanted: int, first: int = 0) -> list[bool]:
    """True for `wanted` questions from `first` on."""
    return [first <= number < first + wanted for number in range(count)]


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of a model: 6 known; bm25 right on 20, hybrid on 44 (18 of bm25's), oracle on 54 of 60."""
    folder = tmp_path_factory.mktemp("outputs")
    asked = questions()
    n = len(asked)
    passages = [[f"Passage one about gold{i} {HOSTILE[i % 8]}", f"Passage two of question {i}"] for i in range(n)]
    bm25, hybrid = share(n, 20), share(n, 44, first=2)
    make_run(folder, cell("tiny", "none"), asked, answers(asked, share(n, 6), wrong=""), stop="length")
    make_run(folder, cell("tiny", "retrieved", "bm25"), asked, answers(asked, bm25), passages)
    make_run(
        folder,
        cell("tiny", "retrieved", "hybrid"),
        asked,
        answers(asked, hybrid),
        passages,
        cost={"duration_seconds": 50.0},
    )
    make_run(folder, cell("tiny", "oracle"), asked, answers(asked, share(n, 54)), [texts[:1] for texts in passages])
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; tests that need it skip where there is none and none can be installed."""
    try:
        with open_browser(tmp_path_factory.mktemp("browser")) as opened:
            yield opened
    except Unavailable as reason:
        pytest.skip(str(reason))
