"""Many files, up or down: what is there is compared, what differs needs `overwrite`, each file ends in a `Moved`.

    store = Store(settings.load().s3)
    for moved in upload_all(store, jobs, Options()): ...

Nothing is moved before everything that exists was compared: a run that would be refused leaves both sides as they were.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from slmx.errors import REFUSED, RefusedError, SlmxError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.pool import Pool, Stopped, outcomes
from slmx.records import Record
from slmx.s3.fetch import SMALL, fetch
from slmx.s3.listing import human_size
from slmx.s3.objects import Remote
from slmx.s3.problems import Kind, S3Error
from slmx.s3.send import Atomic, Upload, keeps_conditions, send
from slmx.s3.store import Store
from slmx.s3.verify import MIB, same_content
from slmx.signals import Stop

HOPELESS: frozenset[Kind] = frozenset({"credentials", "no-bucket", "tls", "clock"})  # true of every further file too
GONE: frozenset[Kind] = frozenset({"unreachable", "timeout"})
TELL_EVERY = 0.1  # seconds between two events of the whole run
GIVE_UP = 4  # files in a row that end so, every one after all its retries: the server is gone

Action = Literal["new", "replaced", "same", "failed", "would add", "would replace"]


class Moved(Record, frozen=True):
    """What became of one file.

    Attributes:
        name: what the person knows it by.
        local: the file.
        remote: s3://bucket/key
        size: bytes.
        action: new, replaced, same (nothing was moved), failed; with --dry-run what would be done.
        verified: "sha256" (the one kept with the object), "etag" (an MD5), "read back" (the object was fetched again),
            "unverified" (the store keeps nothing to compare with), "" where nothing was moved.
        sha256: of the content, as far as it was computed.
        atomic: of an upload that must not replace anything: does the server keep to that? yes, no, unknown.
        seconds: how long it took.
        error: why it failed.
    """

    name: str
    local: str
    remote: str
    size: int
    action: Action
    verified: str = ""
    sha256: str = ""
    atomic: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Job:
    """One file and one object.

    Attributes:
        name: what the person knows it by.
        path: the file.
        remote: the object; of an upload to a new key, what it is going to be.
        exists: something stands at the target.
        action: set by the comparison.
        moves: bytes to move where they are not the object's: of an upload that replaces one.
    """

    name: str
    path: Path
    remote: Remote
    exists: bool
    action: Action = "new"
    moves: int | None = None

    @property
    def size(self) -> int:
        """Bytes to move."""
        return self.moves if self.moves is not None else self.remote.size


@dataclass(frozen=True)
class Options:
    """How transfers behave."""

    overwrite: bool = False
    dry_run: bool = False
    stop: Stop = field(default_factory=Stop)
    listen: Listener = nobody


def download_all(store: Store, jobs: Sequence[Job], options: Options) -> Iterator[Moved]:
    """Objects into files. A job `exists` when something stands at its path.

    Raises:
        RefusedError: files differ and `overwrite` is off, or the disk is too small. Nothing was moved then.
        S3Error: something that is true of all files (keys, bucket, certificate, clock, a server that is gone).
        SlmxError: somebody asked to stop.
    """
    yield from _Transfer(store, options, "download").run(jobs)


def upload_all(store: Store, jobs: Sequence[Job], options: Options) -> Iterator[Moved]:
    """Files into objects. A job `exists` when there is an object under its key. Raises as `download_all` does."""
    yield from _Transfer(store, options, "upload").run(jobs)


class _Ending(Stop):
    """Asked as soon as somebody asks the command to stop, or when the run ends before its last file."""

    def __init__(self, outer: Stop) -> None:
        super().__init__()
        self._outer, self.over = outer, False

    @property
    def asked(self) -> bool:
        return self.over or self._outer.asked


class _Transfer:
    """One run: compares, refuses or moves, counts."""

    def __init__(self, store: Store, options: Options, direction: Literal["upload", "download"]) -> None:
        self.store, self.options, self.direction = store, options, direction
        self.stop = _Ending(options.stop)
        self.pool = Pool(store.s3.concurrency)
        self._lock = threading.Lock()
        self._files = self._bytes = self._all_files = self._all_bytes = 0
        self._lost_in_a_row = 0
        self._told: set[str] = set()
        self._condition_lock = threading.Lock()
        self._keeps_conditions: Atomic = ""
        self._began = time.monotonic()
        self._last_told = 0.0

    def run(self, jobs: Sequence[Job]) -> Iterator[Moved]:
        """Compare everything, then move what is new or differs."""
        done = 0
        try:
            todo: list[Job] = []
            for row in self._compare(jobs):
                if isinstance(row, Moved):
                    done += 1
                    yield row
                else:
                    todo.append(row)
            self._refuse(todo)
            if self.options.dry_run:
                for job in todo:
                    yield self._row(job, "would add" if job.action == "new" else "would replace")
                return
            self._all_files, self._all_bytes = len(todo), sum(job.size for job in todo)
            for row in self._move(todo):
                done += row.action != "failed"
                yield row
        except Stopped:
            raise self.options.stop.error(
                f"Stopped: {done} of {len(jobs)} files are done, and nothing unfinished is left behind.",
                hint="The same command goes on: what is there already is skipped.",
            ) from None
        finally:
            self.stop.over = True
            self.pool.close()

    def _compare(self, jobs: Sequence[Job]) -> Iterator[Moved | Job]:
        """A Job for what has to be moved, a Moved for what has not or cannot."""
        yield from (job for job in jobs if not job.exists)
        there = [job for job in jobs if job.exists]
        with closing(outcomes(self.pool, there, self._same, stop=self.stop)) as compared:
            for number, (job, future) in enumerate(compared, 1):
                self.options.listen(Progress("compare", number, len(there), "files"))
                try:
                    yield self._row(job, "same") if future.result() else replace(job, action="replaced")
                except (SlmxError, OSError) as error:
                    yield self._failed(job, error)

    def _same(self, job: Job) -> bool:
        if job.path.is_dir():
            raise SlmxError(f"{job.path} is a folder; a file is needed here.")
        return same_content(job.path, self.store, job.remote, self.stop)

    def _refuse(self, todo: Sequence[Job]) -> None:
        if self.options.dry_run:
            return
        differ = [job for job in todo if job.action == "replaced"]
        if differ and not self.options.overwrite:
            there = [str(job.path) if self.direction == "download" else job.remote.url for job in differ]
            raise RefusedError(
                f"There already, with other content: {', '.join(there[:5])}"
                + (f" and {len(there) - 5} more." if len(there) > 5 else "."),
                hint="Give --overwrite to replace them; nothing was moved.",
            )
        if self.direction == "download" and todo:
            _check_space(todo)

    def _move(self, todo: Sequence[Job]) -> Iterator[Moved]:
        """Small files side by side; then large ones one by one, each with several pieces on their way."""
        one = self._fetch if self.direction == "download" else self._send
        small = [job for job in todo if job.size <= SMALL]
        with closing(outcomes(self.pool, small, one, stop=self.stop)) as moved:
            for job, future in moved:
                yield self._finished(job, future.result)
        for job in todo:
            if job.size > SMALL:
                if self.stop.asked:
                    raise Stopped
                yield self._finished(job, lambda job=job: one(job))  # type: ignore[misc]

    def _finished(self, job: Job, outcome: Callable[[], Moved]) -> Moved:
        try:
            row = outcome()
            self._lost_in_a_row = 0
        except (SlmxError, OSError) as error:
            row = self._failed(job, error)
        with self._lock:
            self._files += 1
            self._total()
        return row

    def _failed(self, job: Job, error: SlmxError | OSError) -> Moved:
        """The row of a file that failed; raised instead where it would be true of every further file."""
        kind = error.kind if isinstance(error, S3Error) else None
        self._lost_in_a_row = self._lost_in_a_row + 1 if kind in GONE else 0
        known = _explained(error, job) if isinstance(error, OSError) else error
        full = known is not error and known.code == REFUSED
        if kind in HOPELESS or self._lost_in_a_row >= GIVE_UP or full:
            self.stop.over = True  # nobody waits for the tries of those on their way
            raise known
        return self._row(job, "failed", error=known.what)

    def _fetch(self, job: Job) -> Moved:
        began = time.monotonic()
        arrived = fetch(
            self.store,
            job.remote,
            job.path,
            pool=self.pool,
            stop=self.stop,
            overwrite=job.action == "replaced",
            moved=self._counter(job),
        )
        return self._row(job, job.action, verified=arrived.verified, sha256=arrived.sha256, began=began)

    def _send(self, job: Job) -> Moved:
        began = time.monotonic()
        remote, overwrite = job.remote, job.action == "replaced"
        pool = None if job.size <= SMALL else self.pool
        upload = Upload(self.store, job.path, remote.bucket, remote.key, overwrite, pool, self.stop, self._counter(job))
        sent = send(upload)
        atomic = sent.atomic
        if atomic == "unknown" and job.size <= SMALL:
            atomic = self._condition(upload)
        self._tell(atomic, job)
        return self._row(job, job.action, verified=sent.verified, sha256=sent.sha256, atomic=atomic, began=began)

    def _condition(self, upload: Upload) -> Atomic:
        """Asked once a run: the server's answer to a condition that cannot hold."""
        with self._condition_lock:
            if not self._keeps_conditions:
                try:
                    self._keeps_conditions = keeps_conditions(upload)
                except S3Error as problem:
                    self._keeps_conditions = "unknown"
                    said = f"Whether this server keeps to If-None-Match could not be found out: {problem.what}"
                    self._notice("unknown", said)
        return self._keeps_conditions

    def _tell(self, atomic: Atomic, job: Job) -> None:
        text = {
            "no": "This server ignores If-None-Match: of two who write one key at the same moment, the later one wins.",
            "unknown": f"{job.name}: that nobody else writes this key at the same moment is not certain; no server "
            "promises it for multipart uploads.",
        }.get(atomic)
        if text:
            self._notice(atomic, text)

    def _notice(self, about: str, text: str) -> None:
        """Said once a run."""
        with self._lock:
            if about not in self._told:
                self._told.add(about)
                self.options.listen(Notice(text))

    def _counter(self, job: Job) -> Callable[[int], None]:
        """Tells the progress of this file, if it is large, and of the whole run."""
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            with self._lock:
                done += count
                self._bytes += count
                if job.size > SMALL:
                    total = -(-job.size // MIB)
                    self.options.listen(Progress(job.name, total if done == job.size else done // MIB, total, "MiB"))
                self._total()

        return moved

    def _total(self) -> None:
        now = time.monotonic()
        if now - self._last_told < TELL_EVERY and self._files < self._all_files:
            return
        self._last_told = now
        seconds = max(now - self._began, 1e-6)
        note = f"{human_size(self._bytes)} of {human_size(self._all_bytes)}, {human_size(int(self._bytes / seconds))}/s"
        self.options.listen(Progress(self.direction, self._files, self._all_files, "files", note))

    def _row(self, job: Job, action: Action, *, began: float | None = None, **more: str) -> Moved:
        seconds = round(time.monotonic() - began, 3) if began is not None else 0.0
        return Moved(
            name=job.name,
            local=str(job.path),
            remote=job.remote.url,
            size=job.size,
            action=action,
            seconds=seconds,
            **more,
        )


def _check_space(todo: Sequence[Job]) -> None:
    """RefusedError where a disk would not hold what is to come, each disk with a little to spare."""
    folders: dict[Path, int] = {}
    for job in todo:
        folders[job.path.parent] = folders.get(job.path.parent, 0) + job.size
    needed: dict[Path, int] = {}
    for folder, size in folders.items():
        there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        needed[there] = needed.get(there, 0) + size
    total = sum(needed.values())
    for folder in needed:
        free = shutil.disk_usage(folder).free
        if total > free:
            raise RefusedError(
                f"{folder} has {human_size(free)} free, and {human_size(total)} are to come.",
                hint="Make room or name another folder; nothing was moved.",
            )


def _explained(error: OSError, job: Job) -> SlmxError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RefusedError(f"The disk of {job.path.parent} is full.", hint="Make room; the same command goes on.")
    said = {
        errno.ENOENT: f"{job.path} is not there any more.",
        errno.EISDIR: f"{job.path} is a folder; a file is needed here.",
        errno.ENOTDIR: f"{job.path}: a file stands where a folder is needed.",
        errno.EEXIST: f"{job.path}: a file stands where a folder is needed.",
        errno.EACCES: f"{job.path}: permission denied.",
        errno.ENAMETOOLONG: f"{job.path}: the name is too long for this file system.",
    }.get(error.errno or 0)
    return SlmxError(said or f"{job.path}: {error.strerror or type(error).__name__}.")
