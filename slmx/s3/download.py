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
        prefix: before every key: "" or a folder's, with / at its end.
        local: of custom: the file, or the folder with `key` ending in a slash or absent.
        key: of custom: the object's key (behind the prefix).
        wanted: patterns over names, wherever there are several files to choose among.
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
        UsageError: it was not said what to download, or by options that do not go together.
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


def known_files(asked: Request) -> list[known.Known]:
    """The files of a mode that fit the patterns.

    Raises:
        UsageError: no such mode, nothing of it fits, or an option of custom was given with it.
    """
    files = [file for mode in known.modes(asked.mode) for file in known.files_of(mode)]
    if asked.local is not None or asked.key:
        given = "--local-file" if asked.local is not None else "--s3-key"
        hint = f"Leave out {given} (--data-dir and --prefix name other places), or --mode."
        raise UsageError(f"{given} does not go with --mode {asked.mode}, whose files have their names.", hint=hint)
    fit = [file for file in files if asked.wanted.takes(file.name)]
    if not fit:
        hint = f"There are: {', '.join(file.name for file in files)}."
        raise UsageError(f"No file of mode {asked.mode} fits {asked.wanted}.", hint=hint)
    return fit


def nothing_to_choose(asked: Request, what: str) -> None:
    """UsageError where patterns were given with a single file."""
    if asked.wanted.include or asked.wanted.exclude:
        hint = "Leave them out, or name a folder."
        raise UsageError(f"--include and --exclude choose among several files, and {what} is one.", hint=hint)


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
    return SlmxError(f"Nothing under s3://{bucket}/{prefix} fits {wanted}.", hint="Quote patterns: --include '*.json'.")


def _known(store: Store, asked: Request, bucket: str, options: Options) -> list[Job]:
    jobs, missing = [], []
    for file in known_files(asked):
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
    nothing_to_choose(asked, f"the key {asked.key}")
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
