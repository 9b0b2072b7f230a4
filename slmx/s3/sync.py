"""`slmx s3 sync SRC DST`: what the source has and the target lacks, in either direction. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Iterator

from slmx.errors import UsageError
from slmx.s3.download import nothing_found
from slmx.s3.plan import Filter, Folder, Side, download_jobs, local_files, remote_files, upload_jobs
from slmx.s3.store import Store
from slmx.s3.transfer import Moved, Options, download_all, upload_all


def sync(store: Store, source: Side, target: Side, wanted: Filter, options: Options) -> Iterator[Moved]:
    """Move every file of the source that the target lacks; those that differ with `overwrite`.

    Raises:
        UsageError: not exactly one side is a bucket.
        SlmxError: the source is absent or empty.
        and what the transfers raise.
    """
    if source.path is not None and target.path is None:
        found = list(local_files(source.path, wanted))
        yield from upload_all(store, upload_jobs(found, store, target.bucket, target.prefix), options)
    elif source.path is None and target.path is not None:
        there = list(remote_files(store, source.bucket, source.prefix, wanted))
        if not there:
            raise nothing_found(store, source.bucket, source.prefix, wanted)
        jobs, refused = download_jobs(there, Folder(target.path))
        yield from refused
        yield from download_all(store, jobs, options)
    else:
        raise UsageError(
            f"{source} and {target}: one has to be a folder, the other a bucket.",
            hint="`slmx s3 sync data/nq s3://bucket/nq`, or the other way round.",
        )
