"""`run.log`: what a cell told the person who waited, with times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from slmx.events import Listener, Notice, Progress

EVERY_SECONDS = 5.0


@contextmanager
def run_log(path: Path, listen: Listener) -> Iterator[Listener]:
    """A listener that passes everything on to `listen` and appends it to the log; how a failed run ended, too."""
    with path.open("a", encoding="utf-8") as log:
        last = time.monotonic()

        def write(text: str) -> None:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n")
            log.flush()

        def told(event: Progress | Notice) -> None:
            nonlocal last
            listen(event)
            if isinstance(event, Notice):
                write(f"warning: {event.text}" if event.level == "warning" else event.text)
            elif event.done == event.total or time.monotonic() - last >= EVERY_SECONDS:
                last = time.monotonic()
                write(f"{event.task}: {event.done} of {event.total} {event.unit} {event.note}".rstrip())

        try:
            yield told
        except BaseException as error:
            write(f"error: {type(error).__name__}: {error}")
            raise
