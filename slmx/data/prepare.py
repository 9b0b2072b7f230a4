"""`slmx data prepare`: texts become token files, streamed, in several processes, and resumed where they were stopped.

    texts -> documents -> sides of the split -> shards -> ids, and in the end one folder (`slmx.data.token_files`)

Which side of the split a text falls on is decided by a hash of it and the seed, so it stays there whatever is added.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slmx import files
from slmx.data.convert import in_train
from slmx.data.encode import last_cut
from slmx.data.shards import Counts, Part, Pool, Shard, Worker, finished, path_of, pool, shards
from slmx.data.sources import BadRow, BadRows
from slmx.data.texts import Piece, Splitting, TextFile, find_texts, read_texts
from slmx.data.token_files import (
    FORMAT,
    SPLITS,
    TOKENIZER,
    Sidecar,
    Source,
    dtype_for,
    read_sidecar,
    write_tokens,
)
from slmx.errors import PartlyDone, RefusedError, SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.models.tokenizers import Tokenizer
from slmx.records import Record
from slmx.signals import Stop

VERSION = 1  # raised when the same texts and options come to give other bytes
FEW = 100  # below so many documents the split is by block
BLOCK = 4096  # bytes of such a block
MARKER = "train.json"
ERRORS = "errors.jsonl"
JOB = "job.json"
_NAMED_ROWS = 1000  # bad rows that are named in the errors file
_SMALL = 8 << 20  # bytes of sources that one process does before others have started


class Prepared(Record, frozen=True):
    """What was made: counts by split, and how. `resumed` counts shards that were there from a run before."""

    folder: str
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    dtype: str
    sources: int
    documents: int
    split: str
    train_tokens: int
    train_documents: int
    val_tokens: int
    val_documents: int
    text_bytes: int
    bytes_per_token: float
    seconds: float
    tokens_per_second: float
    left_out: int = 0
    resumed: int = 0

    def check(self) -> None:
        """PartlyDone (exit code 3) when rows were left out."""
        if self.left_out:
            where = Path(self.folder) / ERRORS
            raise PartlyDone(f"{self.left_out} rows hold no text that can be used.", hint=f"They are named in {where}.")


@dataclass(frozen=True)
class Job:
    """What is to be made of which files.

    Attributes:
        texts: files and folders.
        tokenizer: its end-of-text id stands behind each document.
        to: the folder to make. Unfinished parts lie beside it in `.NAME.parts`.
        how: how texts are cut out of files.
        val_share: about this share of the documents goes to val.bin.
        processes: how many tokenise; None: one a core.
    """

    texts: Sequence[Path]
    tokenizer: Tokenizer
    to: Path
    how: Splitting = field(default_factory=Splitting)
    val_share: float = 0.05
    seed: int = 0
    processes: int | None = None
    allow_errors: bool = False
    overwrite: bool = False

    @property
    def parts(self) -> Path:
        """Where unfinished work lies."""
        place = self.to.resolve()
        return place.with_name(f".{place.name}.parts")


def prepare(job: Job, *, stop: Stop | None = None, listen: Listener = nobody) -> Prepared:
    """Make the token files of a job, or finish what an earlier run began.

    Raises:
        UsageError: options or a tokenizer that cannot serve.
        RefusedError: the folder, or work begun for it, was made with another tokenizer or other options.
        SlmxError: no text at all, or a file that is damaged or has another encoding.
    """
    start = time.perf_counter()
    if job.tokenizer.end_of_text is None:
        raise UsageError(
            f"The tokenizer {job.tokenizer.name} has no end-of-text token.",
            hint="State one as eos_token in its tokenizer_config.json.",
        )
    if not 0 <= job.val_share < 1:
        raise UsageError(f"--val-share {job.val_share} is no share.", hint="Give a number from 0 to below 1.")
    job.how.pattern()
    found, others = find_texts(job.texts)
    if others:
        named = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
        listen(Notice(f"{len(others)} files of other kinds are left out: {named}"))
    sources = [_source(file, listen) for file in found]
    by_block = _fewer_than(FEW, found, job.how)
    options = _options(job, by_block)
    done = _made_before(job, sources, options)
    if done is not None:
        listen(Notice(f"{job.to} is finished already: same texts, same options."))
        return done
    _claim(job, options)
    made = _Making(job, found, by_block, stop or Stop(), listen)
    counts = made.run()
    prepared = _finish(job, made, counts, sources, options, time.perf_counter() - start, listen)
    shutil.rmtree(job.parts)
    return prepared


def _source(file: TextFile, listen: Listener) -> Source:
    """Name a file by its content."""
    try:
        size = file.path.stat().st_size
        listen(Progress("Looking at texts", size, None, "bytes", file.path.name))
        return Source(path=str(file.path), hash=files.hash_file(file.path), bytes=size)
    except FileNotFoundError:
        raise SlmxError(f"There is no file {file.path}.", hint="Check the path; relative paths start here.") from None


def _fewer_than(limit: int, found: list[TextFile], how: Splitting) -> bool:
    """Are there fewer documents than `limit`? Reads no further than it must."""
    ends = (1 for file in found for piece in read_texts(file, how) if isinstance(piece, Piece) and piece.last)
    return sum(islice(ends, limit)) < limit


def _options(job: Job, by_block: bool) -> dict[str, Any]:
    """What decides the bytes, apart from the texts and the tokenizer."""
    how = job.how
    return {
        "version": VERSION,
        "split_on": how.on,
        "encoding": how.encoding,
        "text_key": how.key,
        "val_share": job.val_share,
        "split": f"{BLOCK} bytes" if by_block else "document",
        "seed": job.seed,
    }


def _made_before(job: Job, sources: list[Source], options: dict[str, Any]) -> Prepared | None:
    """The folder's own account when it holds just what is asked for; None when it is to be made.

    Raises:
        RefusedError: the folder holds something else, and is not to be overwritten.
    """
    if job.overwrite or not job.to.exists():
        files.check_place(job.to, marker=MARKER, overwrite=True)
        return None
    files.check_place(job.to, marker=MARKER, overwrite=True)
    if not any(job.to.iterdir()):
        return None
    sides = [read_sidecar(job.to / f"{split}.bin") for split in SPLITS]
    train = sides[0]
    if train is None:
        raise RefusedError(f"{job.to} holds token files of another kind.", hint="Give --to another name.")
    hint = "Give --overwrite to make it anew, or --to another name."
    if train.tokenizer_hash != job.tokenizer.hash:
        raise RefusedError(f"{job.to} was made with another tokenizer ({train.tokenizer}).", hint=hint)
    if sorted(s.hash for s in train.sources) != sorted(s.hash for s in sources):
        raise RefusedError(f"{job.to} was made from other texts.", hint=hint)
    if train.options != options:
        raise RefusedError(f"{job.to} was made otherwise: {_differences(train.options, options)}.", hint=hint)
    left_out = _left_out(job.to / ERRORS)
    return _account(job, [s for s in sides if s is not None], seconds=0.0, left_out=left_out, resumed=0)


def _left_out(errors: Path) -> int:
    """How many rows an errors file tells of: a row each, and in the last one those that it does not name."""
    if not errors.is_file():
        return 0
    return sum(msgspec.json.decode(line).get("more", 1) for _, line in files.read_lines(errors))


def _differences(had: dict[str, Any], asked: dict[str, Any]) -> str:
    return ", ".join(f"{key} {had.get(key)} there, {asked[key]} here" for key in asked if had.get(key) != asked[key])


def _claim(job: Job, options: dict[str, Any]) -> None:
    """Begin the folder of parts, or take up that of a run before.

    Raises:
        RefusedError: it was begun with another tokenizer or other options.
    """
    path = job.parts / JOB
    mine = {"tokenizer_hash": job.tokenizer.hash, **options}
    if job.overwrite and job.parts.exists() and not path.is_file():
        shutil.rmtree(job.parts)
    if path.is_file():
        begun = files.read_json(path)
        if begun == mine:
            return
        if not job.overwrite:
            said = _differences(begun, mine)
            what = (
                "another tokenizer" if begun.get("tokenizer_hash") != job.tokenizer.hash else f"other options ({said})"
            )
            raise RefusedError(
                f"{job.to} was begun with {what}.",
                hint="Repeat that command to finish it; --overwrite begins anew with these options.",
            )
        shutil.rmtree(job.parts)
    files.write_json(path, mine)


class _Making:
    """One run: reads, splits, hands out shards, and counts."""

    def __init__(self, job: Job, found: list[TextFile], by_block: bool, stop: Stop, listen: Listener) -> None:
        self.job, self._found, self._by_block = job, found, by_block
        self._stop, self._listen = stop, listen
        self.bad = BadRows(allow=job.allow_errors)
        self.named: list[dict[str, Any]] = []
        self.documents = [0] * len(found)
        self.resumed = 0
        self._began = time.perf_counter()
        self._tokens = 0

    def run(self) -> list[Counts]:
        """Do every shard that is not done; counts by number."""
        counts: dict[int, Counts] = {}
        size = sum(file.path.stat().st_size for file in self._found)
        processes = self.job.processes or len(os.sched_getaffinity(0))
        if processes == 1 or (self.job.processes is None and size < _SMALL):
            worker = Worker(self.job.tokenizer, self.job.parts)
            for shard in self._waiting(counts):
                self._count(counts, [(shard.number, worker.do(shard))])
        else:
            with pool(processes, self.job.tokenizer, self.job.parts) as workers:
                self._hand_out(workers, counts)
        first = self.named[0]["file"] if self.named else ""
        self.bad.judge(Path(first), "--text-key names the field that holds the text.")
        return [counts[number] for number in sorted(counts)]

    def _hand_out(self, workers: Pool, counts: dict[int, Counts]) -> None:
        try:
            for shard in self._waiting(counts):
                while not workers.free():
                    self._count(counts, workers.take())
                workers.give(shard)
        finally:  # what is under way is worth keeping, also when we stop
            while done := workers.take():
                self._count(counts, done)

    def _waiting(self, counts: dict[int, Counts]) -> Iterator[Shard]:
        """The shards that are to be done; those done before are counted."""
        for shard in shards(self._parts()):
            if self._stop.asked:
                raise self._stop.error(
                    f"Stopped; {len(counts)} shards are kept in {self.job.parts}.",
                    hint="The same command goes on from there.",
                )
            before = finished(self.job.parts, shard, dtype_for(self.job.tokenizer.vocab_size))
            if before is None:
                yield shard
            else:
                counts[shard.number] = before
                self.resumed += 1

    def _count(self, counts: dict[int, Counts], done: list[tuple[int, Counts]]) -> None:
        for number, found in done:
            counts[number] = found
            self._tokens += sum(found.tokens)
        rate = self._tokens / (time.perf_counter() - self._began)
        self._listen(Progress("Tokenising", self._tokens, None, "tokens", f"{rate / 1e6:.2f} M tokens/s"))

    def _parts(self) -> Iterator[Part]:
        for number, file in enumerate(self._found):
            yield from self._by_side(self._pieces(number, file))

    def _pieces(self, number: int, file: TextFile) -> Iterator[Piece]:
        for piece in read_texts(file, self.job.how):
            if isinstance(piece, BadRow):
                self.bad.add(piece)
                if len(self.named) < _NAMED_ROWS:
                    row = {"file": str(file.path), "line": piece.line, "field": piece.field, "reason": piece.reason}
                    self.named.append(row)
                continue
            if piece.last:
                self.documents[number] += 1
                self.bad.seen += 1
            yield piece

    def _by_side(self, pieces: Iterator[Piece]) -> Iterator[Part]:
        """Decide the side of each document, or of each block; in blocks, a run on one side counts as a document."""
        if not self._by_block:
            side = 0
            for piece in pieces:
                if piece.first:
                    side = self._side(piece.text)
                yield Part(piece.text, side, piece.last)
            return
        waiting: Part | None = None
        for piece in pieces:
            for block in _blocks(piece.text):
                side = self._side(block)
                if waiting is not None:
                    yield waiting._replace(ends=waiting.side != side)
                waiting = Part(block, side, False)
            if piece.last and waiting is not None:
                yield waiting._replace(ends=True)
                waiting = None

    def _side(self, text: str) -> int:
        share = self.job.val_share
        return 0 if not share or in_train(files.hash_bytes(text), 1 - share, self.job.seed) else 1


def _blocks(text: str) -> Iterator[str]:
    """Stretches of about `BLOCK` bytes, cut before a space where there is one."""
    size = max(1, BLOCK * len(text) // max(1, len(text.encode())))
    at = 0
    while len(text) - at > size:
        cut = last_cut(text[at : at + size]) or size
        yield text[at : at + cut]
        at += cut
    if at < len(text):
        yield text[at:]


def _finish(
    job: Job,
    made: _Making,
    counts: list[Counts],
    sources: list[Source],
    options: dict[str, Any],
    seconds: float,
    listen: Listener,
) -> Prepared:
    """Join the shards to the folder."""
    if not sum(sum(c.documents) for c in counts):
        raise SlmxError(
            f"There is no text in {', '.join(str(p) for p in job.texts[:4])}: all documents are empty.",
            hint="Look at the files; for JSON rows and parquet, --text-key names the field that holds the text.",
        )
    if not sum(c.tokens[0] for c in counts):
        raise SlmxError(
            "No document falls on the training side: there are too few.",
            hint="Give more text, --split-on line, or a smaller --val-share.",
        )
    dtype = dtype_for(job.tokenizer.vocab_size)
    with files.whole_folder(job.to, marker=MARKER, overwrite=True) as folder:
        written = []
        for side, split in enumerate(SPLITS):
            if not any(c.tokens[side] for c in counts):
                continue
            about = Sidecar(
                format=FORMAT,
                tokenizer=job.tokenizer.name,
                tokenizer_hash=job.tokenizer.hash,
                vocab_size=job.tokenizer.vocab_size,
                dtype=dtype,
                tokens=0,
                documents=sum(c.documents[side] for c in counts),
                text_bytes=sum(c.text_bytes[side] for c in counts),
                end_of_text=job.tokenizer.end_of_text,
                sources=[
                    Source(path=s.path, hash=s.hash, bytes=s.bytes, documents=n)
                    for s, n in zip(sources, made.documents, strict=True)
                ],
                options=options,
            )
            pieces = (
                np.fromfile(path_of(job.parts, number, side), dtype=dtype)
                for number, c in enumerate(counts)
                if c.tokens[side]
            )
            written.append(write_tokens(folder / f"{split}.bin", pieces, about))
        job.tokenizer.copy_to(folder / TOKENIZER)
        if made.named:
            unnamed = made.bad.left_out - len(made.named)
            files.write_jsonl(folder / ERRORS, [*made.named, *([{"more": unnamed}] if unnamed else [])])
    if job.val_share and len(written) == 1:
        listen(Notice("No text fell on the validation side: give a larger --val-share.", "warning"))
    return _account(job, written, seconds=seconds, left_out=made.bad.left_out, resumed=made.resumed)


def _account(job: Job, written: list[Sidecar], *, seconds: float, left_out: int, resumed: int) -> Prepared:
    train, val = written[0], written[1] if len(written) > 1 else None
    tokens = sum(s.tokens for s in written)
    text_bytes = sum(s.text_bytes for s in written)
    return Prepared(
        folder=str(job.to),
        tokenizer=train.tokenizer,
        tokenizer_hash=train.tokenizer_hash,
        vocab_size=train.vocab_size,
        dtype=train.dtype,
        sources=len(train.sources),
        documents=sum(s.documents for s in train.sources),
        split=f"by {train.options['split']}",
        train_tokens=train.tokens,
        train_documents=train.documents,
        val_tokens=val.tokens if val else 0,
        val_documents=val.documents if val else 0,
        text_bytes=text_bytes,
        bytes_per_token=round(text_bytes / tokens, 3),
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / seconds) if seconds else 0,
        left_out=left_out,
        resumed=resumed,
    )
