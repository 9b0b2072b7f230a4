"""`slmx s3 upload`: the known files of a mode, one file, or a folder's files that fit patterns, into the bucket."""

from __future__ import annotations

from collections.abc import Iterator

from slmx.errors import SlmxError, UsageError
from slmx.events import Notice
from slmx.s3.client import data_bucket
from slmx.s3.download import Request, known_files, nothing_to_choose
from slmx.s3.plan import local_files, upload_job, upload_jobs
from slmx.s3.store import Store
from slmx.s3.transfer import Job, Moved, Options, upload_all


def upload(store: Store, asked: Request, options: Options) -> Iterator[Moved]:
    """Find what was asked for, then move it.

    Raises:
        UsageError: it was not said what to upload, or by options that do not go together.
        SlmxError: there is no such file.
        and what upload_all raises.
    """
    bucket = data_bucket(store.s3, asked.bucket)
    jobs = _custom(store, asked, bucket) if asked.mode == "custom" else _known(store, asked, bucket, options)
    yield from upload_all(store, jobs, options)


def _known(store: Store, asked: Request, bucket: str, options: Options) -> list[Job]:
    jobs, missing = [], []
    for file in known_files(asked):
        path, key = file.local(asked.data_dir), asked.prefix + file.name
        if path.is_file():
            jobs.append(upload_job(file.name, path, bucket, key, store.look(bucket, key)))
        else:
            missing.append(str(path))
    if not jobs:
        raise SlmxError(
            f"None of the files of mode {asked.mode} is there: {', '.join(missing)}.",
            hint="`slmx data process` makes them; --data-dir names another folder.",
        )
    if missing:
        options.listen(Notice(f"Not there, left out: {', '.join(missing)}."))
    return jobs


def _custom(store: Store, asked: Request, bucket: str) -> list[Job]:
    if asked.local is None:
        raise UsageError("What shall be uploaded?", hint="Give --mode, or --local-file with --s3-key.")
    if asked.local.is_dir():
        prefix = asked.prefix + asked.key
        if asked.key and not asked.key.endswith("/"):
            raise UsageError(
                f"{asked.local} is a folder.", hint=f"Name a folder in the bucket too: --s3-key {asked.key}/"
            )
        found = list(local_files(asked.local, asked.wanted))
        if not found:
            raise SlmxError(f"No file in {asked.local} fits.", hint="Check --include and --exclude.")
        return upload_jobs(found, store, bucket, prefix)
    if not asked.local.is_file():
        raise SlmxError(f"There is no file {asked.local}.", hint="Check the path; relative paths start here.")
    nothing_to_choose(asked, str(asked.local))
    key = asked.prefix + (asked.key or asked.local.name)
    if key.endswith("/"):
        key += asked.local.name
    return [upload_job(asked.local.name, asked.local, bucket, key, store.look(bucket, key))]
