"""`slmx s3 download`: the known files of a mode, one object, or all that fits patterns, into the data folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmx.errors import SlmxError, UsageError
from slmx.events import Notice
from slmx.s3 import known
from slmx.s3.client import data_bucket
from slmx.s3.objects import Remote
from slmx.s3.plan import EVERYTHING, Filter, Folder, download_jobs, remote_files
from slmx.s3.problems import S3Error
from slmx.s3.store import Store
from slmx.s3.transfer import Job, Moved, Options, download_all

SHARED_BUCKET = "datasets"  # by convention; looked in for what the own bucket lacks
NOT_THERE = ("no-bucket", "no-key", "denied")


@dataclass(frozen=True)
class Request:
    """What was asked for, on either way.

    Attributes:
        mode: nq, simple_qa, both, or custom.
        data_dir: the local side of known files, and where a download goes without `local`.
        bucket: "" for that of the settings.
        prefix: before every key.
        local: of custom: the file, or the folder with `key` ending in a slash or absent.
        key: of custom: the object's key (behind the prefix).
        wanted: of custom: patterns.
    """

    mode: str
    data_dir: Path
    bucket: str = ""
    prefix: str = ""
    local: Path | None = None
    key: str = ""
    wanted: Filter = EVERYTHING


def download(store: Store, asked: Request, options: Options) -> Iterator[Moved]:
    """Find what was asked for, then move it.

    Raises:
        UsageError: it was not said what to download.
        SlmxError: nothing was found; told apart: an empty bucket, nothing under the prefix, no such key.
        and what download_all raises.
    """
    bucket = data_bucket(store.s3, asked.bucket)
    if asked.mode != "custom":
        jobs = _known(store, asked, bucket, options)
    elif asked.key and not asked.key.endswith("/"):
        jobs = [_single(store, asked, bucket)]
    else:
        prefix = asked.prefix + asked.key
        if not prefix and not asked.wanted.include:
            raise UsageError(
                "What shall be downloaded?",
                hint="Give --mode, --s3-key, --prefix, or --include '*' for the whole bucket.",
            )
        found = list(remote_files(store, bucket, prefix, asked.wanted))
        if not found:
            raise nothing_found(store, bucket, prefix, asked.wanted)
        jobs, refused = download_jobs(found, Folder(asked.local or asked.data_dir))
        yield from refused
    yield from download_all(store, jobs, options)


def find(store: Store, bucket: str, keys: Sequence[str]) -> Remote | None:
    """The first of these keys that exists, in the bucket, then in the one called `datasets`; None without any."""
    for place in dict.fromkeys([bucket, SHARED_BUCKET]):
        for key in keys:
            try:
                found = store.look(place, key)
            except S3Error as problem:
                if place == bucket or problem.kind not in NOT_THERE:
                    raise
                break  # the shared bucket is a custom, not a promise
            if found is not None:
                return found
    return None


def nothing_found(store: Store, bucket: str, prefix: str, wanted: Filter) -> SlmxError:
    """Why a listing gave nothing: an empty bucket, an empty prefix, or patterns that fit nothing."""
    if next(store.list(bucket), None) is None:
        return SlmxError(f"The bucket {bucket} is empty.", hint="Check --bucket; `slmx s3 test` lists the buckets.")
    if prefix and next(store.list(bucket, prefix), None) is None:
        return SlmxError(f"There is nothing under s3://{bucket}/{prefix}", hint="`slmx s3 browse` shows what there is.")
    patterns = ", ".join([*wanted.include, *(f"not {pattern}" for pattern in wanted.exclude)])
    return SlmxError(
        f"Nothing under s3://{bucket}/{prefix} fits {patterns}.", hint="Quote patterns: --include '*.json'."
    )


def _known(store: Store, asked: Request, bucket: str, options: Options) -> list[Job]:
    files = [file for mode in known.modes(asked.mode) for file in known.files_of(mode)]
    jobs, missing = [], []
    for file in files:
        remote = find(store, bucket, file.keys(asked.prefix))
        if remote is None:
            missing.append(file.name)
        else:
            path = file.local(asked.data_dir)
            jobs.append(Job(file.name, path, remote, exists=path.exists()))
    if not jobs:
        raise SlmxError(
            f"None of the files of mode {asked.mode} is in {bucket} or in a bucket {SHARED_BUCKET}.",
            hint="Check --bucket and --prefix; `slmx s3 test --check-datasets` shows where it looks.",
        )
    if missing:
        options.listen(Notice(f"Not in {bucket}: {', '.join(missing)}."))
    return jobs


def _single(store: Store, asked: Request, bucket: str) -> Job:
    key = asked.prefix + asked.key
    remote = find(store, bucket, [key])
    if remote is None:
        raise S3Error(
            f"There is no object s3://{bucket}/{key}, and none in a bucket {SHARED_BUCKET}.",
            kind="no-key",
            hint="`slmx s3 browse` shows what there is.",
        )
    last = key.rpartition("/")[2]
    if asked.local is None or asked.local.is_dir():
        path = Folder(asked.local or asked.data_dir).place(last)
    else:
        path = asked.local
    return Job(key, path, remote, exists=path.exists())
