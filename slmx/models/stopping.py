"""Where an answer ends, and what of it was thinking: rules over plain text, the same for every engine.

An answer ends at its first line (blank lines before it are skipped) or where the model begins a question of its own,
whichever comes first; never at a full stop, which would cut "St. Louis". A thinking block at the very start is taken
out once, and no rule looks into it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from slmx.records import Stop

OPEN, CLOSE = "<think>", "</think>"
_RULES: dict[str, re.Pattern[str]] = {
    "line": re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"),
    "question": re.compile(r"(?<!\w)(?:Question|Q|Вопрос)\s?:"),
}


@dataclass(frozen=True)
class Reading:
    """An answer as far as it was written: `stop` names the rule that ended it, None while it may go on."""

    text: str
    thinking: str = ""
    stop: Stop | None = None


def read(raw: str, rules: Collection[str] = ("line", "question"), *, opened: bool = False) -> Reading:
    """Read what a model wrote so far.

    A block that is never closed is thinking to the end, and the text is empty. `<think>` later in the text, or a second
    block, is text.

    Args:
        raw: the decoded new tokens.
        rules: names among "line" and "question".
        opened: the prompt itself ended with an open `<think>`.
    """
    thinking, body = _split_thinking(raw, opened)
    if body is None:
        return Reading("", thinking)
    body = body.lstrip()
    found = [(hit.start(), rule) for rule in rules if (hit := _RULES[rule].search(body))]
    if not found:
        return Reading(body.rstrip(), thinking)
    end, rule = min(found)
    return Reading(body[:end].rstrip(), thinking, "line" if rule == "line" else "question")


def _split_thinking(raw: str, opened: bool) -> tuple[str, str | None]:
    """The block at the start and the text after it; the text is None while the block is open."""
    start = raw.lstrip()
    if not opened and not start.startswith(OPEN):
        return "", raw
    inside, closed, after = start.removeprefix(OPEN).partition(CLOSE)
    return inside.strip(), after if closed else None
