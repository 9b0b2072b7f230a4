"""Rows appended in batches, so that work that was killed goes on where it stopped, to the same bytes.

What a batch holds is decided beforehand. A batch that was cut off by a crash is taken out and made again whole, since
in bf16 a row can depend on its batch.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from slmx.errors import RefusedError


def open_locked(path: Path, *, hint: str = "Wait for it to end.") -> BinaryIO:
    """Open a file for appending, one process at a time; RefusedError where another one has it."""
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise RefusedError(f"Another process is writing {path}.", hint=hint) from None
    return stream


class Rows:
    """A file of JSON lines that grows by whole batches. Use `open_rows`.

    Every batch ends with a line that is a number: how many batches stand up to there. `lines` leaves these out.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream
        self._encoder = msgspec.json.Encoder()
        self.batches = 0
        self._recover()

    def _recover(self) -> None:
        """Keep the whole batches at the front."""
        keep = position = 0
        with self.path.open("rb") as stream:
            for line in stream:
                position += len(line)
                if line[:1].isdigit():
                    if line != b"%d\n" % (self.batches + 1):
                        break
                    self.batches, keep = self.batches + 1, position
        if keep != self.path.stat().st_size:
            self._stream.truncate(keep)
            self._stream.seek(0, os.SEEK_END)

    def append(self, rows: Iterable[Any]) -> None:
        """Add a batch (of any number of objects); it is on the disk when this returns."""
        for row in rows:
            self._stream.write(self._encoder.encode(row) + b"\n")
        self.batches += 1
        self._stream.write(b"%d\n" % self.batches)
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def lines(self) -> Iterator[bytes]:
        """The rows of all batches, encoded, without line ends."""
        with self.path.open("rb") as stream:
            for line in stream:
                if not line[:1].isdigit():
                    yield line[:-1]


@contextmanager
def open_rows(path: Path) -> Iterator[Rows]:
    """The rows of a file for the length of a block, whole batches only; RefusedError where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open_locked(path)
    try:
        yield Rows(path, stream)
    finally:
        stream.close()
