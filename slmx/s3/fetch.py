"""One object into one file: read in pieces, verified, and only then under its final name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from slmx.files import atomic_write
from slmx.pool import TICK, Pool, Stopped, settle
from slmx.s3.objects import Remote
from slmx.s3.problems import S3Error
from slmx.s3.retries import again
from slmx.s3.store import Store
from slmx.s3.verify import Verified, matches_etag, spans
from slmx.signals import Stop

SMALL = 4 << 20  # up to this, one request and one buffer; as many of them at once as there are threads
WINDOW = 4  # pieces of a large object in memory


@dataclass(frozen=True)
class Arrived:
    """What came: its SHA-256 and by what it was verified."""

    sha256: str
    verified: Verified


class _Doubtful(Exception):
    """The content does not fit what the server says about it; it was not given its final name."""

    def __init__(self, digest: str, *, kept: bool) -> None:
        self.digest, self.kept = digest, kept


def fetch(
    store: Store, remote: Remote, path: Path, *, pool: Pool, stop: Stop, overwrite: bool, moved: Callable[[int], None]
) -> Arrived:
    """Download one object; a broken line is taken up again at the piece that broke.

    What does not fit its SHA-256 or ETag is fetched once more. An ETag that fits neither time, while both times the
    same bytes came, is taken for no MD5 (encrypted buckets have such): then nothing is claimed ("unverified").

    Args:
        pool: threads for the pieces of a large object; a small one is read without them.
        moved: told the bytes that arrived, as they do.

    Raises:
        S3Error: kind "damaged" when the content does not fit, "precondition" when the object changed meanwhile, ….
        Stopped: somebody asked to stop. Whatever is raised, no temporary file stays.
    """
    first: _Doubtful | None = None
    while True:
        try:
            with atomic_write(path, overwrite=overwrite, buffer=4096) as out:
                return _receive(_pieces(store, remote, pool, stop), store, remote, out, pool, moved, first)
        except _Doubtful as doubt:
            if first is not None:
                raise S3Error(
                    f"{remote.url}: the content does not fit its {'SHA-256' if doubt.kept else 'ETag'}, twice.",
                    kind="damaged",
                    hint="Something on the way or on the server damages it; upload it again from a good copy.",
                ) from None
            first = doubt
            moved(-remote.size)


def _pieces(store: Store, remote: Remote, pool: Pool, stop: Stop) -> Iterator[tuple[bytes | memoryview, Remote]]:
    """The content in order, each piece with what the server said about the object."""
    if remote.size > SMALL:
        yield from _in_order(store, remote, pool, stop)
        return
    piece = again(lambda: store.quick.read(remote), tries=store.s3.retries, stop=stop)
    if stop.asked:
        raise Stopped
    yield piece.content, piece.remote


def _receive(
    pieces: Iterable[tuple[bytes | memoryview, Remote]],
    store: Store,
    remote: Remote,
    out: BinaryIO,
    pool: Pool,
    moved: Callable[[int], None],
    first: _Doubtful | None,
) -> Arrived:
    """Write the pieces, hash them on the way, and compare with what the server keeps of the object."""
    digest, seen = sha256(), remote
    for content, found in pieces:
        # Both let other threads run: a large piece is hashed while it is written. What was listed as small is read in
        # a thread of the pool, which must not wait for another one of it, even where the object has grown since.
        aside = min(len(content), remote.size) > SMALL
        hashed = pool.submit(lambda content=content: digest.update(content)) if aside else None  # type: ignore[misc]
        out.write(content)
        if hashed is None:
            digest.update(content)
        else:
            hashed.result()
        moved(len(content))
        seen = found
    fits: bool | None = None
    if not seen.sha256:
        out.flush()
        fits = matches_etag(Path(out.name), store, seen)
    return Arrived(digest.hexdigest(), _judge(seen, digest.hexdigest(), fits, first))


def _in_order(store: Store, remote: Remote, pool: Pool, stop: Stop) -> Iterator[tuple[memoryview, Remote]]:
    """The pieces of an object one after the other, while the next ones are on their way.

    Each lies in a buffer that is filled anew once the next piece is asked for.
    """
    todo = list(spans(remote.size))
    largest = max(last - first for first, last in todo)
    free = [memoryview(bytearray(largest)) for _ in range(min(WINDOW, store.s3.concurrency, len(todo)))]
    waiting: deque[tuple[memoryview, Future[Remote]]] = deque()
    coming = iter(todo)

    def fill(first: int, view: memoryview) -> Remote:
        return again(lambda: store.quick.read_span(remote, first, view), tries=store.s3.retries, stop=stop)

    try:
        while True:
            while free and (span := next(coming, None)):
                view = free.pop()[: span[1] - span[0]]
                waiting.append((view, pool.submit(lambda first=span[0], view=view: fill(first, view))))  # type: ignore[misc]
            if not waiting:
                return
            view, future = waiting[0]
            while not wait([future], timeout=TICK).done:
                if stop.asked:
                    raise Stopped
            if stop.asked:
                raise Stopped
            yield view, future.result()
            waiting.popleft()
            if isinstance(view.obj, bytearray):
                free.append(memoryview(view.obj))
    finally:
        settle((future for _, future in waiting), seconds=0)  # they only read: nobody needs to wait for them


def _judge(remote: Remote, digest: str, fits: bool | None, first: _Doubtful | None) -> Verified:
    if remote.sha256:
        if digest != remote.sha256:
            raise _Doubtful(digest, kept=True)
        return "sha256"
    if fits is None:
        return "unverified"
    if fits:
        return "etag"
    if first is not None and first.digest == digest:
        return "unverified"
    raise _Doubtful(digest, kept=False)
