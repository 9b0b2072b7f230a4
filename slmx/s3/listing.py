"""What lies in a bucket, page by page: nothing waits for the last key, and memory holds what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Any

from slmx.records import Record
from slmx.s3.problems import Target, told_apart


class Entry(Record, frozen=True):
    """An object, or a folder (what several keys have in common up to the next slash).

    Attributes:
        key: the whole key; a folder's ends with a slash.
        size: bytes; 0 for a folder.
        modified: when it was written, ISO 8601 in UTC; "" for a folder.
        etag: as the server gives it, without quotes; "" for a folder.
    """

    key: str
    folder: bool = False
    size: int = 0
    modified: str = ""
    etag: str = ""


def pages(
    client: Any, bucket: str, prefix: str = "", *, recursive: bool = False, after: str = ""
) -> Iterator[list[Entry]]:
    """Pages of up to 1,000 entries, each fetched when it is asked for; folders first in each, then objects.

    Args:
        client: what `slmx.s3.client.connect` gave.
        bucket: where to look.
        prefix: only keys that begin with it.
        recursive: every key, instead of folders at the next slash.
        after: the token of the page to begin with, of a listing that somebody else began.

    Raises:
        S3Error: denied, missing, unreachable; told apart.
    """
    asked = {"Bucket": bucket, "Prefix": prefix, **({} if recursive else {"Delimiter": "/"})}
    if after:
        asked["ContinuationToken"] = after
    with told_apart(Target(client.meta.endpoint_url, bucket)):
        for page in client.get_paginator("list_objects_v2").paginate(**asked):
            folders = [Entry(key=entry["Prefix"], folder=True) for entry in page.get("CommonPrefixes", [])]
            # Some tools write an empty object with the folder's own name: it is the folder, not something in it.
            marker = prefix if prefix.endswith("/") and not recursive else None
            yield folders + [_entry(row) for row in page.get("Contents", []) if row["Key"] != marker]


def _entry(row: dict[str, Any]) -> Entry:
    written = row.get("LastModified")
    modified = written.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if written else ""
    return Entry(
        key=row["Key"], size=int(row.get("Size", 0)), modified=modified, etag=str(row.get("ETag", "")).strip('"')
    )


def human_size(size: int) -> str:
    """1,234,567 bytes as "1.2 MiB"; whole bytes below 1 KiB."""
    value, units = float(size), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
