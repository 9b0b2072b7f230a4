"""Stopping in good order: the first Ctrl-C or SIGTERM asks, work ends at a safe place and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from slmx.errors import INTERRUPTED, TERMINATED, SlmxError
from slmx.events import Listener, Notice, Progress


class Stop:
    """Whether somebody asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def asked(self) -> bool:
        """True from the first signal on."""
        return self.signal != 0

    def error(self, what: str, *, hint: str) -> SlmxError:
        """The error that ends the command after a clean stop: exit code 130 or 143."""
        return SlmxError(what, hint=hint, code=TERMINATED if self.signal == signal.SIGTERM else INTERRUPTED)

    def watched(self, listen: Listener, what: str, *, hint: str) -> Listener:
        """A listener that passes on what it hears, and ends the work that tells it once somebody asked to stop."""

        def heard(event: Progress | Notice) -> None:
            listen(event)
            if self.asked:
                raise self.error(what, hint=hint)

        return heard


@contextmanager
def stopping(say: Callable[[str], None] = lambda _text: None) -> Iterator[Stop]:
    """Take Ctrl-C and SIGTERM as a request for the length of a block; a second Ctrl-C interrupts at once.

    `say` is told when the request comes, since what is at hand may take a while.

    In a thread other than the main one signals cannot be taken, and `asked` stays false.
    """
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number
        say("Stopping at the next safe place; Ctrl-C again stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
