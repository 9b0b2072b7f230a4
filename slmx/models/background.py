"""Work in the background with a bounded queue: memory does not grow with the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any


def blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The texts in lists of `size`, the last one shorter."""
    stream = iter(texts)
    while block := list(islice(stream, size)):
        yield block


def one_ahead(pool: ThreadPoolExecutor, function: Any, items: Iterable[Any]) -> Iterator[Any]:
    """`map(function, items)`, the next result being made in the background while the last one is used."""
    pending: Future[Any] | None = None
    for item in items:
        following = pool.submit(function, item)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


def bounded_map(pool: ThreadPoolExecutor, function: Any, items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """`pool.map` that holds at most `ahead` items at a time, and drops those that wait when the caller stops."""
    stream = iter(items)
    waiting: list[Future[Any]] = []
    try:
        while True:
            waiting += [pool.submit(function, item) for item in islice(stream, ahead - len(waiting))]
            if not waiting:
                return
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()
