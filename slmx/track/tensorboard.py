"""Event files under `logs/runs/` of a run's folder, for `tensorboard --logdir`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from slmx.events import Listener
from slmx.track.trackers import Status, TrackedRun, TrackOptions

FOLDER = Path("logs") / "runs"
SHOWN = 20  # examples in the text tab; the folder holds all of them


class TensorBoard:
    """A Tracker. Tables, examples and log lines become texts; figures and artifacts stay in the run's folder."""

    def __init__(self, options: TrackOptions, _listen: Listener) -> None:
        in_json = [msgspec.json.encode(secret)[1:-1].decode() for secret in options.secrets]
        self._secrets = sorted({*in_json, *options.secrets}, key=len, reverse=True)
        self._writer: Any = None
        self._lines: list[str] = []
        self._step = 0

    def start(self, run: TrackedRun) -> None:
        """Open an event file; on a resumed run the steps behind its last one are purged."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder / FOLDER), flush_secs=10)
        self._lines, self._step = [], run.step
        if run.step:
            status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=run.step + 1, session_log=status))
        configuration = msgspec.json.format(msgspec.json.encode(run.configuration, enc_hook=str), indent=2).decode()
        self._text("configuration", "\n".join(f"    {line}" for line in configuration.splitlines()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point in each curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._step = step
        self._add(Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]), step)

    def singles(self, values: Mapping[str, float]) -> None:
        """Curves of one point, under `summary/`."""
        self.scalars(self._step, {f"summary/{name}": value for name, value in values.items()})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A Markdown table."""
        lines = [columns, ["---"] * len(columns), *rows]
        masked = [[self._masked(str(value)) for value in line] for line in lines]  # before anything is escaped
        self._text(name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in masked))

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """TensorBoard draws its own curves; nothing is written."""

    def samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """The first ones as a table."""
        columns = list(dict.fromkeys(key for row in rows[:SHOWN] for key in row))
        self.table(name, columns, [[row.get(column, "") for column in columns] for row in rows[:SHOWN]])

    def text(self, line: str) -> None:
        """Kept until the run closes: a text a line would be a page a line."""
        self._lines.append(line)

    def artifact(self, name: str, path: Path) -> None:
        """Files stay where they are; nothing is copied."""

    def close(self, status: Status) -> None:
        """Write the log and close the file."""
        if self._writer is None:
            return
        self._text("log", "\n".join(f"    {line}" for line in [*self._lines, status]))
        self._writer.close()
        self._writer = None

    def finish(self) -> None:
        """A run that nobody closed is closed."""
        self.close("stopped")

    def _text(self, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(name, self._masked(text)), self._step)

    def _masked(self, text: str) -> str:
        """Without secrets, as they are or as JSON writes them."""
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return text

    def _add(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


def _cell(value: str) -> str:
    """A value inside a Markdown table: one line, no bar, no HTML."""
    text = " ".join(value.split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
