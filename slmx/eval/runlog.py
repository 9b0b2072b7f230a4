"""`run.log`: what a cell told the person who waited, with times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from slmx.events import Listener, Notice, Progress

EVERY_SECONDS = 5.0


@contextmanager
def run_log(
    path: Path, listen: Listener, history: Sequence[Told] = (), also: Callable[[str], None] = lambda _line: None
) -> Iterator[Listener]:
    """A listener that passes everything on to `listen` and appends it to the log; how a failed run ended, too.

    `history` is what was told before the cell began: it stands first in the log. `also` gets every line of it.
    """
    with path.open("a", encoding="utf-8", buffering=1) as log:

        def keep(line: Told) -> None:
            log.write(f"{line.stamp} {line.text}\n")
            also(f"{line.stamp} {line.text}")

        recorder = Recorder(listen, keep)
        for line in history:
            keep(line)
        try:
            yield recorder
        except BaseException as error:
            recorder.write(f"error: {type(error).__name__}: {error}")
            raise


class Told(NamedTuple):
    """A line of the log and when it was told."""

    stamp: str
    text: str


class Recorder:
    """A listener that passes events on, and makes lines of them: every notice, and progress every few seconds."""

    def __init__(self, listen: Listener, keep: Callable[[Told], object]) -> None:
        self._listen, self._keep = listen, keep
        self._last = time.monotonic()

    def __call__(self, event: Progress | Notice) -> None:
        """Pass an event on, and keep it if it is due."""
        self._listen(event)
        if isinstance(event, Notice):
            self.write(f"warning: {event.text}" if event.level == "warning" else event.text)
        elif event.done == event.total or time.monotonic() - self._last >= EVERY_SECONDS:
            self._last = time.monotonic()
            self.write(f"{event.task}: {event.done} of {event.total} {event.unit} {event.note}".rstrip())

    def write(self, text: str) -> None:
        """Keep a line that nobody was told."""
        self._keep(Told(datetime.now(UTC).isoformat(timespec="milliseconds"), text))
