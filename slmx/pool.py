"""Threads that do not keep a stopped command waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

from slmx.signals import Stop

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 8  # jobs a thread that are handed to the pool, so that no thread waits for the next one
LULL = 0.02  # seconds in which finished jobs gather
TICK = 0.1  # seconds between two looks at whether somebody asked to stop


class Stopped(Exception):
    """Somebody asked to stop; whoever holds files or uploads lets go of them on the way up."""


class Pool:
    """A few daemon threads. concurrent.futures would wait for a stalled request when the process ends; these do not."""

    def __init__(self, threads: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[object], Callable[[], object]] | None] = queue.SimpleQueue()
        self.threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run it in one of the threads."""
        future: Future[T] = Future()
        self._jobs.put((future, job))  # type: ignore[arg-type]  # the queue holds jobs of every kind
        return future

    def close(self) -> None:
        """No more jobs; threads end after the one at hand."""
        for _ in range(self.threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            del item, future, job  # a thread that waits must not hold the last piece


def outcomes(
    pool: Pool, jobs: Iterable[T], work: Callable[[T], R], *, stop: Stop, ahead: int = AHEAD
) -> Generator[tuple[T, Future[R]], None, None]:
    """Run `work` over jobs in the pool's threads; yields each with its future soon after it has finished.

    Whoever may leave before its end closes it (contextlib.closing): in the traceback of an error it would stay
    open, and jobs would go on beginning until the process dies in the middle of them.

    Args:
        ahead: jobs a thread that are handed over at a time; 1 where a failure should keep the next from beginning.

    Raises:
        Stopped: somebody asked; what had not begun is cancelled, what runs is left to itself for up to five seconds.
    """
    running: dict[Future[R], T] = {}
    finished: queue.SimpleQueue[Future[R]] = queue.SimpleQueue()
    waiting = iter(jobs)
    try:
        while True:
            while len(running) < ahead * pool.threads and (job := next(waiting, None)) is not None:
                future = pool.submit(lambda job=job: work(job))  # type: ignore[misc]
                running[future] = job
                future.add_done_callback(finished.put)
            if not running:
                return
            if stop.asked:
                raise Stopped
            try:
                done = [finished.get(timeout=TICK)]
            except queue.Empty:
                continue
            if len(running) > pool.threads:  # jobs enough: to be woken for each would cost as much as a small file
                time.sleep(LULL)
            while not finished.empty():
                done.append(finished.get())
            for future in done:
                yield running.pop(future), future
    finally:
        settle(running)


def settle(futures: Iterable[Future[R]], seconds: float = 5.0) -> None:
    """Cancel what has not begun and give the rest a moment to end."""
    left = [future for future in futures if not future.cancel()]
    wait(left, timeout=seconds)


def pause(seconds: float, stop: Stop) -> None:
    """Sleep; Stopped as soon as somebody asks."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop.asked:
            raise Stopped
        time.sleep(min(TICK, left))
    if stop.asked:
        raise Stopped
