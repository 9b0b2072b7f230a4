"""`slmx s3 cleanup`: what a killed transfer leaves behind: open multipart uploads, and unfinished files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slmx.errors import UsageError
from slmx.records import Record
from slmx.s3.client import target
from slmx.s3.plan import TEMPORARY
from slmx.s3.preview import one_line
from slmx.s3.problems import told_apart
from slmx.s3.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Leftover(Record, frozen=True):
    """An open multipart upload (`where` is its s3:// address) or an unfinished file; `since` in UTC."""

    kind: Literal["upload", "file"]
    where: str
    since: str
    removed: bool


def seconds(text: str) -> float:
    """90s, 30m, 24h, 7d as seconds; UsageError else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found:
        raise UsageError(f"{text!r} is no length of time.", hint="Write 30m, 24h or 7d.")
    return float(found[1]) * UNITS[found[2]]


def cleanup(
    store: Store, bucket: str, prefix: str, folder: Path, *, older_than: float, dry_run: bool
) -> Iterator[Leftover]:
    """Abort multipart uploads under the prefix and delete unfinished files below the folder, if old enough (seconds).

    An upload or a file that somebody is busy with is young: that is what the age is for.
    """
    yield from _uploads(store, bucket, prefix, older_than, dry_run)
    yield from _files(folder, older_than, dry_run)


def render(rows: Sequence[Leftover]) -> RenderableType:
    """What was found, as a table."""
    from rich.text import Text

    from slmx.console import table

    if not rows:
        return Text("Nothing is left behind.")
    did = {True: "removed", False: "would be removed"}
    cells = [[row.kind, one_line(row.where), row.since, did[row.removed]] for row in rows]
    return table("", ["what", "where", "since", ""], cells, left=4)


def _uploads(store: Store, bucket: str, prefix: str, older_than: float, dry_run: bool) -> Iterator[Leftover]:
    now = datetime.now(UTC)
    with told_apart(target(store.s3, bucket)):
        pages = store.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        try:
            found = [upload for page in pages for upload in page.get("Uploads", ())]
        except store.client.exceptions.NoSuchUpload:  # `rclone serve s3` says so when there is none
            return
        for upload in found:
            # Swift rounds the time up to the next second, so an upload can seem to begin in the future: its age is 0.
            if max(0.0, (now - upload["Initiated"]).total_seconds()) < older_than:
                continue
            if not dry_run:
                store.client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            since = upload["Initiated"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            yield Leftover(kind="upload", where=f"s3://{bucket}/{upload['Key']}", since=since, removed=not dry_run)


def _files(folder: Path, older_than: float, dry_run: bool) -> Iterator[Leftover]:
    for path in sorted(folder.rglob(".*.part")) if folder.is_dir() else ():
        if not TEMPORARY.fullmatch(path.name) or not path.is_file() or path.is_symlink():
            continue
        written = path.stat().st_mtime
        if time.time() - written < older_than:
            continue
        if not dry_run:
            path.unlink(missing_ok=True)
        since = datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        yield Leftover(kind="file", where=str(path), since=since, removed=not dry_run)
