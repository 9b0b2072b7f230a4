"""`slmx s3 browse`: a browser in a terminal, a listing in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slmx.events import Listener
from slmx.s3 import known
from slmx.s3.client import connect
from slmx.s3.download import Request, download
from slmx.s3.listing import Entry, pages
from slmx.s3.plan import side
from slmx.s3.preview import first_bytes, one_line, readable
from slmx.s3.report import problem
from slmx.s3.store import Store
from slmx.s3.transfer import Options
from slmx.settings import S3Settings
from slmx.signals import Stop

PATIENCE = 15.0  # seconds that a person waits before a screen


def place(name: str) -> tuple[str, str]:
    """Bucket and prefix of "s3://bucket/prefix"; ("", prefix) of a bare prefix."""
    if not name.startswith("s3:"):
        return "", name.removeprefix("/")
    named = side(name)
    return named.bucket, named.prefix


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
        self.place, self.bucket, self.stop = s3.endpoint or "AWS", bucket, Stop()

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        """Entries under a prefix, page by page."""
        return pages(self._client, self.bucket, prefix)

    def preview(self, entry: Entry) -> str:
        """The first kilobytes of an object, by one range request."""
        content = first_bytes(self._client, self.bucket, entry.key, entry.size)
        return readable(entry.key, content, entry.size)

    def download(self, entry: Entry, listen: Listener) -> Path:
        """Fetch an object, verified: a known file to where experiments look for it, others into the data folder."""
        homes = {key: file.local(self._data_dir) for file in known.FILES for key in file.keys("")}
        asked = Request("custom", self._data_dir, self.bucket, key=entry.key, local=homes.get(entry.key))
        row = next(iter(download(Store(self._s3), asked, Options(stop=self.stop, listen=listen))))
        failure = problem([row])
        if failure is not None:
            raise failure
        return Path(row.local)
