"""Prompts within a model's token budget. A prompt is data: a template of a preset, filled by plain replacement.

What does not fit goes in this order: whole passages, the lowest-ranked first; then the end of the one that is left. The
question and the template are never cut, and what was cut is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import msgspec

from slmx.errors import SlmxError, UsageError
from slmx.presets.rendering import render
from slmx.records import Passage, Prompt, Question
from slmx.text import holds_answer, normaliser_for

if TYPE_CHECKING:
    from slmx.models.generators import Window
    from slmx.presets import ModePreset

# Yields texts whose tokens are to be counted, is sent the counts, and returns the prompt that fits.
Fitting = Generator[str, int, Prompt]

_WORD = re.compile(r"\S+")


def build(mode: ModePreset, question: Question, passages: Sequence[Passage], window: Window | None) -> Prompt:
    """The prompt for one question with its passages, best first; see `build_all`."""
    return build_all(mode, [(question, passages)], window)[0]


def build_all(
    mode: ModePreset, asked: Sequence[tuple[Question, Sequence[Passage]]], window: Window | None
) -> list[Prompt]:
    """The prompts for questions with their passages (best first), each within the window; None cuts nothing.

    All prompts are counted in one call of the tokenizer; those that are too long are searched side by side, so that
    every further call serves all of them.

    Raises:
        UsageError: the template has no place for the question or the passages.
        SlmxError: a question does not fit even without passages; the message names it.
    """
    for placeholder in ("{question}",) if mode.context == "none" else ("{question}", "{passages}"):
        if placeholder not in mode.template:
            raise UsageError(f"The template of this mode has no {placeholder}.", hint="Add it in presets/modes.yaml.")
    if mode.context == "none":
        asked = [(question, ()) for question, _ in asked]
    if window is None:
        return [Prompt(text=render(mode, q, passages), passages=list(passages)) for q, passages in asked]
    searches = [_fit(mode, question, passages, window.budget) for question, passages in asked]
    prompts: list[Prompt | None] = [None] * len(searches)
    texts = {i: next(search) for i, search in enumerate(searches)}
    while texts:
        counts = window.count(list(texts.values()))
        waiting, texts = list(texts), {}
        for i, count in zip(waiting, counts, strict=True):
            try:
                texts[i] = searches[i].send(count)
            except StopIteration as end:
                prompts[i] = end.value
    return [prompt for prompt in prompts if prompt is not None]


def _fit(mode: ModePreset, question: Question, passages: Sequence[Passage], budget: int) -> Fitting:
    """The search for the longest prompt within the budget. Only texts that were counted and fit are returned."""
    whole = list(passages)
    text = render(mode, question, whole)
    if (yield text) <= budget:
        return Prompt(text=text, passages=whole)
    kept = yield from _most(len(whole) - 1, lambda n: render(mode, question, whole[:n]), budget)
    if kept is None:
        raise SlmxError(
            f"Question {question.question_id} does not fit the model's window, even without passages "
            f"({budget} tokens are left for the prompt): {_short(question.question)}",
            hint="Lower --max-new-tokens, shorten the mode's template, or leave the question out.",
        )
    if kept:
        return _cut(mode, question, whole, whole[:kept])
    first, ends = whole[0], [word.end() for word in _WORD.finditer(whole[0].text)]

    def trimmed(n: int) -> list[Passage]:
        return [msgspec.structs.replace(first, text=first.text[: ends[n - 1]])] if n else []

    words = yield from _most(len(ends) - 1, lambda n: render(mode, question, trimmed(n)), budget)
    return _cut(mode, question, whole, trimmed(words or 0))


def _most(limit: int, text_of: Callable[[int], str], budget: int) -> Generator[str, int, int | None]:
    """The largest n of 0 … limit whose text fits the budget, by bisection; None when even 0 does not (or limit < 0)."""
    low, high = -1, limit
    while low < high:
        middle = (low + high + 1) // 2
        if (yield text_of(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low if low >= 0 else None


def _cut(mode: ModePreset, question: Question, whole: Sequence[Passage], kept: list[Passage]) -> Prompt:
    """The prompt of the passages kept, with what was left out counted."""
    dropped = len(whole) - len(kept)
    trimmed = bool(kept) and kept[-1].text != whole[len(kept) - 1].text
    lost = whole[len(kept) - trimmed :]
    return Prompt(
        text=render(mode, question, kept),
        passages=kept,
        dropped=dropped,
        trimmed=trimmed,
        cut_answer=_holds(lost, question) and not _holds(kept, question),
    )


def _holds(passages: Sequence[Passage], question: Question) -> bool:
    normaliser = normaliser_for(question.question)
    return any(
        holds_answer(part, question.answers, normaliser)
        for passage in passages
        for part in (passage.title, passage.text)
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
