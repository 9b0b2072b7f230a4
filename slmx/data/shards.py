"""The work of `slmx data prepare` in pieces that can be redone: shards of text go in, files of ids come out.

A shard is about 4 MiB of text, cut by content alone. What it gave lies in the folder of parts as `N.train.bin`,
`N.val.bin` and, written last, the marker `N.json` with a hash of the texts: a shard whose marker fits is not done again
and a run that was killed goes on where it was, to the same bytes, whatever the number of processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from slmx import files
from slmx.data.encode import Encoder
from slmx.data.token_files import SPLITS, Dtype
from slmx.errors import SlmxError
from slmx.models.tokenizers import Tokenizer, load_tokenizer
from slmx.records import Record

SHARD = 4 << 20  # characters


class Part(NamedTuple):
    """A stretch of text: on which side of the split it is (an index of SPLITS), and whether its document ends here."""

    text: str
    side: int
    ends: bool


class Counts(Record, frozen=True):
    """What a shard gave, by side of the split."""

    hash: str
    tokens: tuple[int, int]
    documents: tuple[int, int]
    text_bytes: tuple[int, int]


class Shard(NamedTuple):
    """A number, and texts."""

    number: int
    parts: list[Part]
    hash: str


def shards(parts: Iterable[Part]) -> Iterator[Shard]:
    """Gather parts to shards of about `SHARD` characters."""
    gathered: list[Part] = []
    size = number = 0
    for part in parts:
        gathered.append(part)
        size += len(part.text)
        if size >= SHARD:
            yield Shard(number, gathered, _hash(gathered))
            gathered, size, number = [], 0, number + 1
    if gathered:
        yield Shard(number, gathered, _hash(gathered))


def _hash(parts: list[Part]) -> str:
    digest = sha256()
    for text, side, ends in parts:
        raw = text.encode()
        digest.update(b"%d %d %d " % (len(raw), side, ends))
        digest.update(raw)
    return digest.hexdigest()


def path_of(folder: Path, number: int, side: int) -> Path:
    """Where the ids of a shard lie."""
    return folder / f"{number:06d}.{SPLITS[side]}.bin"


def _marker(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def finished(folder: Path, shard: Shard, dtype: Dtype) -> Counts | None:
    """What a shard gave when it was done before; None when it is to be done."""
    marker = _marker(folder, shard.number)
    if not marker.is_file():
        return None
    try:
        counts = msgspec.json.decode(marker.read_bytes(), type=Counts)
    except msgspec.DecodeError:
        return None
    width = np.dtype(dtype).itemsize
    whole = all(
        path_of(folder, shard.number, side).stat().st_size == tokens * width
        for side, tokens in enumerate(counts.tokens)
        if tokens
    )
    return counts if counts.hash == shard.hash and whole else None


class Worker:
    """Does shards, one after another, in this process."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self._encoder = Encoder(tokenizer)
        self._folder = folder
        assert tokenizer.end_of_text is not None  # whoever begins a job has checked it
        self._end = np.array([tokenizer.end_of_text], dtype=self._encoder.dtype).tobytes()

    def do(self, shard: Shard) -> Counts:
        """Tokenise a shard, write its files and its marker."""
        encoded = self._encoder.encode([part.text for part in shard.parts])
        ids: tuple[list[bytes], list[bytes]] = ([], [])
        documents, text_bytes = [0, 0], [0, 0]
        for part, found in zip(shard.parts, encoded, strict=True):
            ids[part.side].append(found)
            text_bytes[part.side] += len(part.text.encode())
            if part.ends:
                ids[part.side].append(self._end)
                documents[part.side] += 1
        tokens = []
        for side, pieces in enumerate(ids):
            content = b"".join(pieces)
            tokens.append(len(content) // len(self._end))
            if content:
                files.write_bytes(path_of(self._folder, shard.number, side), content)
        counts = Counts(
            hash=shard.hash,
            tokens=(tokens[0], tokens[1]),
            documents=(documents[0], documents[1]),
            text_bytes=(text_bytes[0], text_bytes[1]),
        )
        files.write_bytes(_marker(self._folder, shard.number), msgspec.json.encode(counts))
        return counts


class Pool:
    """Workers in processes of their own. Each has a pipe; when this process dies, theirs end, and so do they."""

    def __init__(self, connections: list[Any]) -> None:
        self._idle = connections
        self._busy: dict[Any, int] = {}

    def free(self) -> bool:
        """Is a worker without work?"""
        return bool(self._idle)

    def give(self, shard: Shard) -> None:
        """Hand a shard to a worker that is free."""
        worker = self._idle.pop()
        try:
            worker.send(shard)
        except OSError:
            raise _died(shard.number) from None
        self._busy[worker] = shard.number

    def take(self) -> list[tuple[int, Counts]]:
        """Wait until at least one shard is done; nothing when none is under way.

        Raises:
            SlmxError: a worker failed or ended.
        """
        if not self._busy:
            return []
        done = []
        ready: list[Any] = connection.wait(list(self._busy))
        for worker in ready:
            number = self._busy.pop(worker)
            try:
                counts = worker.recv()
            except (EOFError, OSError):
                raise _died(number) from None
            if isinstance(counts, str):
                raise SlmxError(f"Tokenising shard {number} failed: {counts}")
            done.append((number, counts))
            self._idle.append(worker)
        return done


def _died(number: int) -> SlmxError:
    return SlmxError(
        f"The process that tokenised shard {number} has ended (out of memory?).",
        hint="The same command goes on from here; --processes 1 takes less memory.",
    )


@contextmanager
def pool(processes: int, tokenizer: Tokenizer, folder: Path) -> Iterator[Pool]:
    """A pool for the length of a block."""
    context = get_context("spawn")
    with ExitStack() as stack:
        connections = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, str(tokenizer.folder), tokenizer.hash, str(folder)))
            worker.start()
            theirs.close()
            stack.callback(worker.join)
            stack.callback(ours.close)
            connections.append(ours)
        yield Pool(connections)


def _serve(pipe: Any, tokenizer_folder: str, tokenizer_hash: str, folder: str) -> None:
    """The life of a worker's process: shards come, counts go, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop, and closes the pipe
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this process alone: each has a core of its own
    worker: Worker | None = None
    try:
        while True:
            shard = pipe.recv()
            try:
                if worker is None:
                    tokenizer = load_tokenizer(tokenizer_folder)
                    if tokenizer.hash != tokenizer_hash:
                        raise SlmxError(f"{tokenizer_folder} has changed meanwhile.")
                    worker = Worker(tokenizer, Path(folder))
                answer: Counts | str = worker.do(shard)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            pipe.send(answer)
    except (EOFError, OSError):
        return
