"""The one policy of retries."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from slmx.pool import pause
from slmx.s3.problems import Kind, S3Error
from slmx.signals import Stop

R = TypeVar("R")
PASSING: frozenset[Kind] = frozenset({"busy", "timeout", "unreachable"})  # what another try may cure
LONGEST_PAUSE = 10.0  # seconds


def again(work: Callable[[], R], *, tries: int, stop: Stop, kinds: frozenset[Kind] = PASSING) -> R:
    """Call `work` until it succeeds, up to `tries` more times, with growing pauses, where the failure may pass."""
    for number in range(tries + 1):
        try:
            return work()
        except S3Error as problem:
            if problem.kind not in kinds or number == tries:
                raise
        pause(min(LONGEST_PAUSE, 0.2 * 2**number) * random.uniform(0.5, 1.0), stop)
    raise AssertionError("unreachable")
