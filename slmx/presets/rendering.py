"""Prompts from the templates of modes, by plain replacement: the same text wherever a mode is asked or taught."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmx.presets import ModePreset
    from slmx.records import Passage, Question

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def render(mode: ModePreset, question: Question, passages: Sequence[Passage]) -> str:
    """The text of a prompt that holds these passages whole; braces in questions and passages stay as they are."""
    shown = [
        fill(mode.passage, {"rank": str(rank), "title": passage.title, "text": passage.text})
        for rank, passage in enumerate(passages, 1)
    ]
    return fill(mode.template, {"question": question.question, "passages": mode.separator.join(shown)})


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` of `values` replaced, in one pass; other braces are plain text.

    A line that is blank only because its values are empty is left out, with one of two blank lines around it, so that
    an empty title or an empty list of passages leaves no gap.
    """
    lines: list[str] = []
    gap = False
    for line in template.split("\n"):
        filled = _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), line)
        if not filled.strip() and line.strip():
            gap = not lines or not lines[-1].strip()
        elif not (gap and not filled.strip()):
            lines.append(filled)
            gap = False
    return "\n".join(lines)
