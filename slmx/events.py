"""What long work tells while it runs. Logic sends events and never prints; the console (or a test) listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a task are finished; the last event of a task has done == total.

    `total` is None while it is unknown. `note` is short and changes with time ("412 tokens/s").
    """

    task: str
    done: int
    total: int | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """One line for the person who waits."""

    text: str
    level: Literal["note", "warning"] = "note"


Listener = Callable[[Progress | Notice], None]


def nobody(_event: Progress | Notice) -> None:
    """The listener of those who do not listen."""
