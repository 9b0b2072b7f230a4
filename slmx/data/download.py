"""`slmx data download`: ready converted files from the bucket, to where experiments look for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from slmx.errors import PartlyDone, SlmxError
from slmx.events import Notice
from slmx.s3 import known
from slmx.s3.client import data_bucket
from slmx.s3.download import SHARED_BUCKET, find
from slmx.s3.store import Store
from slmx.s3.transfer import Job, Moved, Options, download_all


def download(
    modes: Sequence[known.Mode], store: Store, *, data_dir: Path, options: Options, bucket: str = "", prefix: str = ""
) -> Iterator[Moved]:
    """Fetch the converted files of each mode, verified; a half that is missing is told.

    Raises:
        SlmxError: no file of any mode is there.
        PartlyDone: nothing of one mode is there; the others' files were fetched.
    """
    place = data_bucket(store.s3, bucket)
    jobs, without = [], []
    for mode in modes:
        found, missing = _jobs(mode, store, place, prefix, data_dir)
        jobs += found
        if not found:
            without.append(mode)
        elif missing:
            options.listen(Notice(f"Not in {place}: {', '.join(missing)}."))
    hint = f"`slmx data process --mode {without[0] if without else ''}` makes them from the raw file."
    if not jobs:
        what = f"No converted file of {', '.join(modes)} is in {place} or in a bucket {SHARED_BUCKET}."
        raise SlmxError(what, hint=hint)
    yield from download_all(store, jobs, options)
    if without:
        raise PartlyDone(f"No converted file of {', '.join(without)} is in {place}; the others are here.", hint=hint)


def _jobs(mode: known.Mode, store: Store, bucket: str, prefix: str, data_dir: Path) -> tuple[list[Job], list[str]]:
    jobs, missing = [], []
    for file in known.files_of(mode)[1:]:
        remote = find(store, bucket, file.keys(prefix))
        if remote is None:
            missing.append(file.name)
        else:
            path = file.local(data_dir)
            jobs.append(Job(file.name, path, remote, exists=path.exists()))
    return jobs, missing
