"""`slmx s3 browse`: a browser in a terminal, a listing in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slmx.errors import UsageError
from slmx.events import Listener
from slmx.s3.client import connect
from slmx.s3.listing import Entry, pages
from slmx.s3.preview import first_bytes, one_line, readable
from slmx.settings import S3Settings

PATIENCE = 15.0  # seconds that a person waits before a screen


def place(name: str) -> tuple[str, str]:
    """Bucket and prefix of "s3://bucket/prefix"; ("", prefix) of a bare prefix."""
    if not name.startswith("s3://"):
        return "", name.removeprefix("/")
    bucket, _, prefix = name.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{name} names no bucket.", hint="The form is s3://bucket/prefix.")
    return bucket, prefix


def listing(s3: S3Settings, bucket: str, prefix: str, *, recursive: bool = False) -> Iterator[Entry]:
    """Every entry under a prefix, as the server's pages come; S3Error when it cannot be listed."""
    for page in pages(connect(s3), bucket, prefix, recursive=recursive):
        yield from page


def line(entry: Entry) -> str:
    """An entry as one line of a listing."""
    size = "folder" if entry.folder else f"{entry.size}"
    return f"{size:>14}  {entry.modified:20}  {one_line(entry.key)}"


def walk(s3: S3Settings, bucket: str, prefix: str, data_dir: Path) -> None:
    """Run the browser until it is left."""
    from slmx.s3.browser import Browser

    Browser(Shelf(s3, bucket, data_dir), prefix).run()


class Shelf:
    """A bucket as the browser sees it."""

    def __init__(self, s3: S3Settings, bucket: str, data_dir: Path) -> None:
        waits = {"read_timeout": min(s3.read_timeout, PATIENCE), "retries": min(s3.retries, 2)}
        self._s3, self._data_dir = s3, data_dir
        self._client = connect(s3.model_copy(update=waits))
        self.place, self.bucket = s3.endpoint or "AWS", bucket

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        """Entries under a prefix, page by page."""
        return pages(self._client, self.bucket, prefix)

    def preview(self, entry: Entry) -> str:
        """The first kilobytes of an object, by one range request."""
        content = first_bytes(self._client, self.bucket, entry.key, entry.size)
        return readable(entry.key, content, entry.size)

    def download(self, entry: Entry, listen: Listener) -> Path:
        """Fetch an object, verified, into the data folder."""
        raise NotImplementedError
