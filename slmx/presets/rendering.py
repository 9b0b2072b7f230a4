"""Prompts from the templates of modes, by plain replacement: the same text wherever a mode is asked or taught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmx.text import fill

if TYPE_CHECKING:
    from slmx.presets import ModePreset
    from slmx.records import Passage, Question


def render(mode: ModePreset, question: Question, passages: Sequence[Passage]) -> str:
    """The text of a prompt that holds these passages whole; braces in questions and passages stay as they are."""
    shown = [
        fill(mode.passage, {"rank": str(rank), "title": passage.title, "text": passage.text})
        for rank, passage in enumerate(passages, 1)
    ]
    return fill(mode.template, {"question": question.question, "passages": mode.separator.join(shown)})
