"""Which files belong to which objects: names that lead out of a folder, glob filters, folders and prefixes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.files import safe_join
from slmx.s3.objects import Remote
from slmx.s3.store import Store
from slmx.s3.transfer import Job, Moved

URL = re.compile(r"s3://([^/]+)/?(.*)", re.S)
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # what slmx.files.atomic_write names an unfinished file


@dataclass(frozen=True)
class Filter:
    """Glob patterns over names with slashes: in, when one of `include` fits (or there is none), and none of `exclude`.

    `*` crosses slashes; a pattern without a slash is compared with the last part too.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def takes(self, name: str) -> bool:
        """Is this name wanted?"""
        return (not self.include or _fits(name, self.include)) and not _fits(name, self.exclude)

    def __str__(self) -> str:
        return ", ".join([*self.include, *(f"not {pattern}" for pattern in self.exclude)])


EVERYTHING = Filter()


def _fits(name: str, patterns: Sequence[str]) -> bool:
    last = name.rpartition("/")[2]
    return any(fnmatchcase(name, p) or ("/" not in p and fnmatchcase(last, p)) for p in patterns)


@dataclass(frozen=True)
class Side:
    """One end of `sync` and `check`: a folder (`path`), or a prefix in a bucket."""

    path: Path | None = None
    bucket: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"s3://{self.bucket}/{self.prefix}"


def side(text: str) -> Side:
    """`s3://bucket/prefix` or a folder. A prefix that is not empty ends with a slash: it names a folder too."""
    found = URL.fullmatch(text)
    if not found:
        if text.startswith("s3:"):
            raise UsageError(f"{text!r} is no address of a bucket.", hint="Write s3://bucket/prefix.")
        return Side(path=Path(text))
    prefix = found[2] if not found[2] or found[2].endswith("/") else f"{found[2]}/"
    return Side(bucket=found[1], prefix=prefix)


def local_files(folder: Path, wanted: Filter) -> Iterator[tuple[str, Path]]:
    """Every file below a folder with its name relative to it, sorted; without unfinished downloads.

    Raises:
        SlmxError: there is no such folder.
    """
    if not folder.is_dir():
        there = "is a file; a folder is needed here" if folder.exists() else "does not exist"
        raise SlmxError(f"The folder {folder} {there}.", hint="Check the path; relative paths start here.")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not TEMPORARY.fullmatch(path.name) and wanted.takes(name):
            yield name, path


def remote_files(store: Store, bucket: str, prefix: str, wanted: Filter) -> Iterator[tuple[str, Remote]]:
    """Every object under a prefix with its name behind the prefix."""
    for remote in store.list(bucket, prefix):
        name = remote.key.removeprefix(prefix)
        if name and wanted.takes(name):
            yield name, remote


class Folder:
    """A folder that names from outside may not leave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inside: set[str] = set()
        self._taken: dict[str, str] = {}

    def place(self, name: str) -> Path:
        """Where the object of this name goes.

        Raises:
            RefusedError: the name leads out of the folder (`..`, absolute and drive paths, a link that points outside),
                is none (an empty last part), or another name already took its place.
        """
        path = safe_join(self.path, name)
        if "\0" in name or name.endswith(("/", "\\")) or path == self.path:
            raise RefusedError(f"The name {name!r} cannot be a file's.")
        where, _, _ = (text := str(path)).rpartition(os.sep)
        if where not in self._inside:
            if not path.parent.resolve().is_relative_to(self.path.resolve()):
                raise RefusedError(f"The name {name!r} leads out of {self.path} through a link.")
            self._inside.add(where)
        if self._taken.setdefault(text, name) != name:
            raise RefusedError(f"{self._taken[text]!r} and {name!r} would be the same file {path}.")
        return path


def download_jobs(found: Iterable[tuple[str, Remote]], folder: Folder) -> tuple[list[Job], list[Moved]]:
    """A job for every object, and a failed row for every name that cannot be a file below the folder."""
    jobs, refused = [], []
    for name, remote in found:
        try:
            path = folder.place(name)
        except RefusedError as problem:
            refused.append(
                Moved(name=name, local="", remote=remote.url, size=remote.size, action="failed", error=problem.what)
            )
            continue
        jobs.append(Job(name, path, remote, exists=path.exists()))
    return jobs, refused


def upload_job(name: str, path: Path, bucket: str, key: str, there: Remote | None) -> Job:
    """A job for a file: `there` is the object under its key now."""
    try:
        size = path.stat().st_size
    except OSError:  # gone since it was listed: at its turn it fails alone, and says why
        size = 0
    return Job(name, path, there or Remote(bucket, key, size, ""), exists=there is not None, moves=size)


def upload_jobs(found: Sequence[tuple[str, Path]], store: Store, bucket: str, prefix: str) -> list[Job]:
    """A job for every file. Many are compared with one listing of the prefix, a few by looking at each key."""
    if len(found) > 8:
        there = {remote.key: remote for remote in store.list(bucket, prefix)}
    else:
        looked = [store.look(bucket, prefix + name) for name, _ in found]
        there = {remote.key: remote for remote in looked if remote is not None}
    return [upload_job(name, path, bucket, prefix + name, there.get(prefix + name)) for name, path in found]
