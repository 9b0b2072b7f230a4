"""Runs in ClearML, without waiting for it.

What is reported is appended to a file in the run's folder (`logs/clearml.jsonl`); a process of its own
(slmx.track.clearml_sender) reads it behind us and talks to the server through ClearML's library. So a server that
refuses, stalls or goes away costs the run nothing, the library's threads and hooks are not in this process, and what
could not be sent becomes an offline session in the run's folder, with the command that sends it later.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from slmx.events import Listener, Notice
from slmx.track.trackers import Status, TrackedRun, TrackOptions

SPOOL = Path("logs") / "clearml.jsonl"
LOG = Path("logs") / "clearml.log"  # what the library says
STATE = Path("logs") / "clearml.json"  # the task's id, so that a resumed run goes on in the same task
PATIENCE_SECONDS = 3.0  # a wait that is not worth a word
STALLED_SECONDS = 15.0  # without a sign of life, the sender is taken to hang
OFFLINE_SECONDS = 120.0  # for writing sessions to the disk
MAX_SPOOL = 256 << 20
MASK = "********"
PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]+@")  # in an address
ROOT = str(Path(__file__).parents[2])  # so that the sender is of the same slmx
START = f"import sys; sys.path.insert(0, {ROOT!r}); from slmx.track.clearml_sender import main; main()"
IMPORT = "clearml-task --import-offline-session"


@dataclass
class Run:
    """A run and its file of reports; `sent` when it needs no more care."""

    folder: Path
    bytes: int = 0
    sent: bool = False


class ClearML:
    """A Tracker."""

    def __init__(self, options: TrackOptions, listen: Listener) -> None:
        self._options, self._listen = options, listen
        self._masked = [msgspec.json.encode(secret)[1:-1] for secret in options.secrets]
        self._runs: list[Run] = []
        self._out: IO[bytes] | None = None
        self._sender: Sender | None = None
        self._offline = options.offline
        self._lost = False
        self._full = False

    def start(self, run: TrackedRun) -> None:
        """Open the run's file and hand it to the sender, which is started with the first run."""
        self._close_file("stopped")
        path = run.folder / SPOOL
        path.parent.mkdir(parents=True, exist_ok=True)
        self._out = path.open("wb", buffering=0)
        self._runs.append(Run(run.folder))
        self._write(
            "start",
            name=run.name,
            project=self._options.project,
            kind=run.kind,
            configuration=run.configuration,
            step=run.step,
        )
        if self._sender is None:
            self._begin()
        else:
            self._sender.take(run.folder)
        self._hear()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves."""
        self._write("scalars", step=step, values=values)
        self._hear()

    def singles(self, values: Mapping[str, float]) -> None:
        """Single values."""
        self._write("singles", values=values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table among the plots."""
        self._write("table", name=name, columns=columns, rows=rows)

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """A plot."""
        self._write("figure", name=name, figure=figure)

    def samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Debug samples, a page each."""
        self._write("samples", name=name, rows=rows)

    def text(self, line: str) -> None:
        """The console."""
        self._write("text", line=line)

    def artifact(self, name: str, path: Path) -> None:
        """Uploaded when the run closes, to the file server or the bucket of the settings."""
        self._write("artifact", name=name, path=str(path.absolute()))

    def close(self, status: Status) -> None:
        """The run's file is complete."""
        self._close_file(status)
        self._hear()

    def finish(self) -> None:
        """Wait for the sender while it lives, at most `wait_seconds`; what it could not send is kept here."""
        self._close_file("stopped")
        if self._sender is None:
            return
        offline = self._offline
        try:
            seconds = OFFLINE_SECONDS if offline else self._options.wait_seconds
            if not self._sender.wait(min(PATIENCE_SECONDS, seconds)):
                self._notify(f"Waiting for ClearML, at most {seconds:.0f} s; Ctrl-C leaves.")
                self._sender.wait(seconds)
            self._hear()
            if not offline and self._unsent():
                if not self._offline:
                    self._go_offline("it did not take everything in time")
                self._sender.wait(OFFLINE_SECONDS)
                self._hear()
        finally:
            self._sender.end()
        if (lost := self._unsent()) and not self._lost:
            kept = ", ".join(str(run.folder / SPOOL) for run in lost)
            self._notify(f"ClearML got nothing of these reports, which are kept: {kept}", "warning")

    def _begin(self) -> None:
        first = self._runs[0].folder
        self._sender = Sender(first / LOG, self._options.environment, offline=self._offline)
        for run in self._unsent():
            self._sender.take(run.folder)

    def _go_offline(self, why: str) -> None:
        """From here on everything goes to offline sessions."""
        assert self._sender is not None
        self._sender.end()
        self._offline = True
        server = self._options.environment.get("CLEARML_API_HOST", "the server of clearml.conf")
        self._notify(f"ClearML ({server}): {why}. The run goes on; its session is kept in the run's folder.", "warning")
        self._begin()  # with its stdin open: the next run may come

    def _give_up(self, why: str) -> None:
        """Offline sessions cannot be written either, and another sender would fare no better."""
        assert self._sender is not None
        self._sender.end()
        self._lost = True
        self._notify(
            f"ClearML: no session could be written ({why}). The run goes on; its reports are kept as they are, in "
            f"{SPOOL} of its folder.",
            "warning",
        )

    def _unsent(self) -> list[Run]:
        return [run for run in self._runs if not run.sent]

    def _hear(self) -> None:
        """What the sender said since the last time; here, so that listeners are called by the run's own thread."""
        if self._sender is None or self._lost:
            return
        for said in self._sender.said():
            match said:
                case {"away": why}:
                    (self._give_up if self._offline else self._go_offline)(str(why))
                    return
                case {"page": page}:
                    self._notify(f"ClearML: {page}")
                case {"done": folder, **rest}:
                    for run in self._runs:
                        if str(run.folder.absolute()) == folder:
                            run.sent = True
                            (run.folder / SPOOL).unlink(missing_ok=True)
                    if session := rest.get("session"):
                        self._notify(f"ClearML session kept; send it later: {IMPORT} {session}")
                case {"trouble": what}:
                    self._notify(f"ClearML: {what}", "warning")

    def _notify(self, text: str, level: Literal["note", "warning"] = "note") -> None:
        """Without secrets: the library's errors and a server's address may hold one."""
        for secret in self._options.secrets:
            text = text.replace(secret, MASK)
        self._listen(Notice(PASSWORD.sub(rf"\1:{MASK}@", text), level))

    def _close_file(self, status: Status) -> None:
        if self._out is not None:
            self._write("close", status=status)
            self._out.close()
            self._out = None

    def _write(self, report: str, **content: Any) -> None:
        if self._out is None:
            return
        line = msgspec.json.encode({"report": report, "time": time.time(), **content}, enc_hook=str)
        for secret in self._masked:
            line = line.replace(secret, MASK.encode())
        run = self._runs[-1]
        if run.bytes + len(line) > MAX_SPOOL and report != "close":
            if not self._full:
                self._full = True
                self._notify(f"ClearML: reports of more than {MAX_SPOOL >> 20} MiB a run are left out", "warning")
            return
        run.bytes += len(line) + 1
        self._out.write(line + b"\n")


class Sender:
    """The process that sends, its two pipes, and the thread that listens to it."""

    def __init__(self, log: Path, environment: Mapping[str, str], *, offline: bool) -> None:
        self._said: deque[dict[str, Any]] = deque(maxlen=1000)
        self._alive = time.monotonic()
        self._cache = tempfile.mkdtemp(prefix="slmx-clearml-")
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START],  # -P: what lies in the current folder is not imported
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us; the sender ends when its work is done
            )
        self._listener = threading.Thread(target=self._listen, name="clearml", daemon=True)
        self._listener.start()
        self._tell({"environment": dict(environment), "offline": offline, "cache": self._cache})

    def take(self, folder: Path) -> None:
        """Send this run."""
        self._tell({"folder": str(folder.absolute())})

    def no_more(self) -> None:
        """No further run will come."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            return

    def said(self) -> list[dict[str, Any]]:
        """What it said since the last time. That it died is said, too."""
        said = []
        ended = self._process.poll() is not None and not self._listener.is_alive()
        while self._said:
            said.append(self._said.popleft())
        if ended and self._process.returncode and not any("away" in one for one in said):
            said.append({"away": "the sender ended early (see logs/clearml.log)"})
        return said

    def wait(self, seconds: float) -> bool:
        """Until it ends; not longer than `seconds`, and not when it shows no sign of life. Did it end?"""
        self.no_more()
        begin = time.monotonic()
        while self._listener.is_alive() or self._process.poll() is None:
            now = time.monotonic()
            if now - begin > seconds or now - self._alive > STALLED_SECONDS:
                return False
            time.sleep(0.05)
        return True

    def end(self) -> None:
        """Make sure that it is gone, with what it started and its files; wait for that, but not for ever."""
        if self._process.poll() is None or self._listener.is_alive():  # else its number may be another's by now
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.no_more()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
        self._listener.join(PATIENCE_SECONDS)
        shutil.rmtree(self._cache, ignore_errors=True)

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: of a closed pipe, after end()
            return  # it died; said() tells

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._alive = time.monotonic()
                message = msgspec.json.decode(line)
                if message != {"alive": True}:
                    self._said.append(message)


def read_state(folder: Path) -> dict[str, Any]:
    """The task of a run's earlier session; empty where there is none."""
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def tail(path: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """The reports of a file as they are written, up to `close`; one that its writer left open ends with `over`."""
    with path.open("rb") as stream:
        rest = b""
        while True:
            ended = over.is_set()
            block = stream.read(1 << 20)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                report = msgspec.json.decode(line)
                yield report
                if report["report"] == "close":
                    return
            if not block:
                if ended:
                    yield {"report": "close", "status": "failed"}
                    return
                over.wait(0.2)
