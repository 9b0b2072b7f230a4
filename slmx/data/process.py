"""`slmx data process`: raw file → converted and split → checked → back to the bucket.

`process.json` beside the results holds the SHA-256 of everything that was read and written. A step is skipped when
those still fit, so a second run does nothing, and a file that was damaged or edited is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from slmx import files
from slmx.data.check import check
from slmx.data.convert import convert
from slmx.data.passages import code_version
from slmx.errors import INTERRUPTED, TERMINATED, PartlyDone, RefusedError, SlmxError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.records import Record
from slmx.s3 import known
from slmx.s3.client import data_bucket
from slmx.s3.download import find
from slmx.s3.plan import upload_job
from slmx.s3.report import problem
from slmx.s3.store import Store
from slmx.s3.transfer import Job, Moved, Options, download_all, upload_all
from slmx.signals import Stop

TRAIN_SHARE = 0.8


class Step(Record, frozen=True, omit_defaults=False):
    """What one step did: "done", or "kept" when its result was there and whole."""

    mode: str
    step: Literal["raw", "convert", "check", "upload"]
    state: Literal["done", "kept"]
    said: str


class Processed(Record, frozen=True, omit_defaults=False):
    """A mode that is ready: its steps, its files, and how many rows they hold."""

    mode: str
    steps: list[Step]
    files: list[str]
    rows: int
    left_out: int


class Kept(Record, frozen=True):
    """What `process.json` says: hashes of what was read and written, never names or times.

    Attributes:
        raw: SHA-256 of the raw file.
        fetched: where the raw file was fetched from; "" when it was there already.
        key: a hash of all that decides the converted files.
        files: the converted files' SHA-256, by name.
        rows: rows in the whole converted file.
        left_out: bad rows.
        checked: the key and files that passed the check, as a hash.
    """

    raw: str = ""
    fetched: str = ""
    key: str = ""
    files: dict[str, str] = {}
    rows: int = 0
    left_out: int = 0
    checked: str = ""


@dataclass
class Task:
    """What was asked for.

    Attributes:
        connect: gives a Store when the first step needs the bucket; without a need no key is asked for.
        upload: put the converted files into the bucket.
    """

    connect: Callable[[], Store]
    data_dir: Path
    cache_dir: Path
    bucket: str = ""
    prefix: str = ""
    upload: bool = True
    max_items: int | None = None
    seed: int = 0
    overwrite: bool = False
    stop: Stop = field(default_factory=Stop)
    listen: Listener = nobody

    @cached_property
    def store(self) -> Store:
        """The bucket's server."""
        return self.connect()

    @cached_property
    def where(self) -> str:
        """The bucket."""
        return data_bucket(self.store.s3, self.bucket)

    @property
    def options(self) -> Options:
        """For transfers."""
        return Options(overwrite=self.overwrite, stop=self.stop, listen=self.listen)

    def tell(self, event: Progress | Notice) -> None:
        """Listens for steps that know nothing of signals, and ends them when somebody asked to stop."""
        if self.stop.asked:
            raise self.stop.error("Stopped; finished steps are kept.", hint="The same command goes on.")
        self.listen(event)


def process(modes: Sequence[known.Mode], task: Task) -> list[Processed]:
    """Run all steps of each mode. With several, one that fails does not stop the others.

    Raises:
        SlmxError: the only mode, or all of them, failed.
        PartlyDone: some modes are ready and others failed, or rows were left out.
    """
    ready: list[Processed] = []
    failed: dict[str, SlmxError] = {}
    for mode in modes:
        try:
            ready.append(_Process(mode, task).run())
        except SlmxError as error:
            if error.code in (INTERRUPTED, TERMINATED):
                raise
            failed[mode] = error
    if failed and not ready:
        raise next(iter(failed.values()))
    for name, why in failed.items():
        task.listen(Notice(f"{name}: {why.what} {why.hint}", "warning"))
    return ready


def verdict(modes: Sequence[known.Mode], ready: Sequence[Processed], data_dir: Path) -> PartlyDone | None:
    """The error that ends a run which did not do everything: modes that failed, or rows left out."""
    missing = [mode for mode in modes if mode not in {done.mode for done in ready}]
    if missing:
        return PartlyDone(f"{', '.join(missing)} failed; the other mode is ready.", hint="The reason is told above.")
    left_out = sum(done.left_out for done in ready)
    if left_out:
        names = [str(_errors_file(known.files_of(mode)[1].local(data_dir))) for mode in modes]
        return PartlyDone(f"{left_out} rows were left out.", hint=f"See {', '.join(names)}.")
    return None


class _Process:
    """One mode, step by step."""

    def __init__(self, mode: known.Mode, task: Task) -> None:
        self.mode, self.task = mode, task
        self.raw, *self.made = known.files_of(mode)
        self.folder = self.raw.local(task.data_dir).parent
        self.record = self.folder / "process.json"
        self.kept = self._read()
        self.steps: list[Step] = []

    def run(self) -> Processed:
        """All steps in turn."""
        self._fetch()
        self._convert()
        self._check()
        if self.task.upload:
            self._upload()
        paths = [str(file.local(self.task.data_dir)) for file in self.made]
        return Processed(
            mode=self.mode, steps=self.steps, files=paths, rows=self.kept.rows, left_out=self.kept.left_out
        )

    def _read(self) -> Kept:
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=Kept)
        except (FileNotFoundError, msgspec.DecodeError):
            return Kept()  # a record that says nothing: every step looks for itself

    def _keep(self, **changes: object) -> None:
        self.kept = msgspec.structs.replace(self.kept, **changes)
        files.write_json(self.record, self.kept)

    def _say(self, step: Literal["raw", "convert", "check", "upload"], done: bool, said: str) -> None:
        self.steps.append(Step(mode=self.mode, step=step, state="done" if done else "kept", said=said))
        self.task.tell(Notice(f"{self.mode}, {step}: {said}"))

    # --- raw ---

    def _fetch(self) -> None:
        task, path = self.task, self.raw.local(self.task.data_dir)
        if path.is_file():
            digest = files.hash_file(path)
            if not self.kept.fetched or digest == self.kept.raw:
                if digest != self.kept.raw:
                    self._keep(raw=digest)
                self._say("raw", False, str(path))
                return
            if not task.overwrite:
                raise RefusedError(
                    f"{path} is not what was fetched from {self.kept.fetched}: it was edited or damaged.",
                    hint=f"--overwrite fetches it again; to use it as it is, remove {self.record}.",
                )
        remote = find(task.store, task.where, self.raw.keys(task.prefix))
        if remote is None:
            raise SlmxError(
                f"The raw file {self.raw.name} is neither in {task.where} nor at {path}.",
                hint=f"Put it at {path}, or check --bucket and --prefix.",
            )
        row = self._moved(download_all(task.store, [Job(self.raw.name, path, remote, path.exists())], task.options))
        self._keep(raw=row[0].sha256 or files.hash_file(path), fetched=remote.url)
        self._say("raw", True, f"{remote.url} ({row[0].verified})")

    def _moved(self, rows: Iterator[Moved]) -> list[Moved]:
        moved = list(rows)
        failure = problem(moved)
        if failure is not None:
            raise failure
        return moved

    # --- convert and split ---

    def _convert(self) -> None:
        task = self.task
        key = files.hash_value([self.kept.raw, task.max_items, TRAIN_SHARE, task.seed, code_version()])
        paths = {file.name: file.local(task.data_dir) for file in self.made}
        here = {name: files.hash_file(path) for name, path in paths.items() if path.is_file()}
        if key == self.kept.key and here == self.kept.files:
            self._say("convert", False, f"{self.kept.rows} rows")
            return
        staging = self.folder / ".process"
        made = convert(
            self.raw.local(task.data_dir),
            staging / "rows.json",
            max_items=task.max_items,
            split=TRAIN_SHARE,
            seed=task.seed,
            overwrite=True,
            listen=task.tell,
        )
        staged = dict(zip(paths, map(Path, made.files), strict=True))  # whole, train, eval: the order of both
        hashes = {name: files.hash_file(path) for name, path in staged.items()}
        differ = [str(paths[name]) for name, digest in here.items() if digest != hashes[name]]
        if differ and not task.overwrite:
            _clear(staging)
            raise RefusedError(
                f"There already, with other content: {', '.join(differ)}.", hint="Give --overwrite to replace them."
            )
        for name, path in staged.items():
            path.replace(paths[name])
        self._keep(key=key, files=hashes, rows=made.written, left_out=made.left_out)
        if made.errors:
            Path(made.errors).replace(_errors_file(paths[self.made[0].name]))
        _clear(staging)
        self._say("convert", True, f"{made.written} rows: {made.train} train, {made.eval} eval")

    # --- check ---

    def _check(self) -> None:
        whole = self.made[0].local(self.task.data_dir)
        passed = files.hash_value([self.kept.key, self.kept.files])
        if passed == self.kept.checked:
            self._say("check", False, "passed before")
            return
        found = check([str(whole)], data_dir=self.task.data_dir, cache_dir=self.task.cache_dir, listen=self.task.tell)
        found.check()
        warned = [f"{line.what}: {line.found}" for line in found.lines if line.state == "warn"]
        self._keep(checked=passed)
        self._say("check", True, "; ".join(warned) or "passed")

    # --- upload ---

    def _upload(self) -> None:
        task = self.task
        if task.max_items is not None:
            said = f"Only the first {task.max_items} rows of {self.mode} go to the bucket (--max-items)."
            task.listen(Notice(said, "warning"))
        jobs = []
        for file in self.made:
            key = task.prefix + file.name
            there = task.store.look(task.where, key)
            jobs.append(upload_job(file.name, file.local(task.data_dir), task.where, key, there))
        rows = self._moved(upload_all(task.store, jobs, task.options))
        sent = [row.name for row in rows if row.action != "same"]
        self._say("upload", bool(sent), f"s3://{task.where}/{task.prefix}: {', '.join(sent) or 'the same is there'}")


def _errors_file(whole: Path) -> Path:
    return whole.with_name(f"{whole.name}.errors.jsonl")


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        path.unlink()
    staging.rmdir()
