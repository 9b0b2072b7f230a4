"""The journal of a cell: answers are appended as they come, so that a killed run goes on where it stopped.

Batches are planned once a cell. The journal holds whole batches in the order of the plan; a batch that was cut off by a
crash is taken out and answered again, since in bf16 a text can depend on its batch.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from slmx.errors import RefusedError, SlmxError
from slmx.records import Prediction, Record

NAME = "predictions.jsonl"


class Entry(Record, frozen=True):
    """One line: the batch of the plan that the prediction belongs to, and the prediction."""

    batch: int
    prediction: Prediction


class Journal:
    """The file `predictions.jsonl` of a cell, open for appending by one process at a time."""

    def __init__(self, path: Path, batches: Sequence[Sequence[str]]) -> None:
        """`batches` are the question ids of each batch of the plan. Use `open_journal`."""
        self.path = path
        self._batches = [list(batch) for batch in batches]
        self._stream = open_locked(path)
        self.done = self._recover()

    def _recover(self) -> int:
        """How many batches stand whole at the front; whatever follows them is cut off."""
        done, keep = 0, 0
        expected: list[str] = []
        with self.path.open("rb") as stream:
            position = 0
            for line in stream:
                position += len(line)
                entry = _decode(line)
                if entry is None or done >= len(self._batches) or entry.batch != done:
                    break
                expected.append(entry.prediction.question_id)
                if expected == self._batches[done]:
                    done, keep, expected = done + 1, position, []
        if keep != self.path.stat().st_size:
            self._stream.truncate(keep)
            self._stream.seek(0, os.SEEK_END)
        return done

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Write the next batch of the plan; it is on the disk when this returns."""
        ids = [prediction.question_id for prediction in predictions]
        if ids != self._batches[self.done]:
            raise SlmxError(f"Batch {self.done} of {self.path} does not hold the questions that were planned for it.")
        for prediction in predictions:
            self._stream.write(msgspec.json.encode(Entry(batch=self.done, prediction=prediction)) + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done += 1

    @property
    def finished(self) -> bool:
        """True when every batch of the plan is there."""
        return self.done == len(self._batches)

    def close(self) -> None:
        """Give up the lock."""
        self._stream.close()


@contextmanager
def open_journal(folder: Path, batches: Sequence[Sequence[str]]) -> Iterator[Journal]:
    """The journal of a cell's folder for the length of a block.

    Raises:
        RefusedError: another process has it open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / NAME, batches)
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the journal of a cell's folder, if it has one, for the length of a block, so that nobody writes there.

    Raises:
        RefusedError: another process has it open.
    """
    if not (folder / NAME).exists():
        yield
        return
    with open_locked(folder / NAME):
        yield


def open_locked(path: Path) -> BinaryIO:
    """A file open for appending, by one process at a time; RefusedError where another one has it."""
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise RefusedError(
            f"Another process is writing {path}.", hint="Wait for it to end, or give this run another --name."
        ) from None
    return stream


def read_predictions(folder: Path) -> dict[str, Prediction]:
    """The predictions of a cell's journal by question id; a torn last line is left out."""
    with (folder / NAME).open("rb") as stream:
        entries = [_decode(line) for line in stream]
    return {entry.prediction.question_id: entry.prediction for entry in entries if entry is not None}


def _decode(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
