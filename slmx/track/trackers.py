"""Where the numbers of a run go beside its own files: the Tracker protocol, and the fan that sends to several.

A run's truth is in its folder (results.json, metrics.csv, the journal); trackers show it elsewhere. A tracker in
another package is an entry point of the group `slmx.trackers`, called with (TrackOptions, listener), and
`[track] also = ["name"]` in slmx.toml switches it on. The smallest complete one:

    class Printing:
        def __init__(self, options, listen): self.listen = listen
        def start(self, run): self.listen(Notice(run.name))
        def scalars(self, step, values): self.listen(Notice(f"{step}: {dict(values)}"))
        def singles(self, values): self.listen(Notice(str(dict(values))))
        def table(self, name, columns, rows): pass
        def figure(self, name, figure): pass
        def samples(self, name, rows): pass
        def text(self, line): pass
        def artifact(self, name, path): pass
        def close(self, status): pass
        def finish(self): pass
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from slmx.events import Listener, Notice, nobody
from slmx.registry import Registry

if TYPE_CHECKING:
    from slmx.settings import Settings

Status = Literal["done", "stopped", "failed"]
TRACKERS = Registry(
    "tracker", {"tensorboard": "slmx.track.tensorboard:TensorBoard", "clearml": "slmx.track.clearml:ClearML"}
)


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    `folder` is the run's own; what a tracker writes goes to `folder / "logs"`. `step` is 0, or the step after which a
    resumed run goes on: what was reported for later steps belongs to work that is done again.
    """

    name: str
    folder: Path
    kind: Literal["evaluation", "training"]
    configuration: Mapping[str, Any]
    step: int = 0


@dataclass(frozen=True)
class TrackOptions:
    """Which trackers, and what they need to know.

    `environment` is what a tracker's own library reads from the environment, and `secrets` are texts that never leave
    this machine: they are masked in everything that is sent.
    """

    names: Sequence[str] = ()
    project: str = "slmx"
    offline: bool = False
    wait_seconds: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)


class Tracker(Protocol):
    """Takes the numbers of runs, one run after the other: start, anything in between, close; finish at the very end.

    No call waits for a server, and none fails because of one. OSError may be raised (a full disk): the tracker is then
    left out for the rest of the command, with one warning.
    """

    def start(self, run: TrackedRun) -> None:
        """A run begins."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name; `loss/train` is the series `train` in the plot `loss`."""

    def singles(self, values: Mapping[str, float]) -> None:
        """Numbers of the run as a whole."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table."""

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """A plot in plotly's JSON form: `data` and `layout`."""

    def samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Examples to look at, such as the first predictions."""

    def text(self, line: str) -> None:
        """A line of the run's log."""

    def artifact(self, name: str, path: Path) -> None:
        """A file of the run, as it is when the run is closed."""

    def close(self, status: Status) -> None:
        """The run has ended; nothing is waited for."""

    def finish(self) -> None:
        """The command ends: send what is still here, within a bounded time, and say what could not be sent."""


class Trackers:
    """Several trackers as one; without any, every call is free."""

    def __init__(self, trackers: Mapping[str, Tracker], listen: Listener = nobody) -> None:
        self._trackers = dict(trackers)
        self._listen = listen

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def start(self, run: TrackedRun) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.start(run))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As in Tracker; any kind of number will do."""
        plain = {name: float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.scalars(step, plain))

    def singles(self, values: Mapping[str, float]) -> None:
        """As in Tracker; any kind of number will do."""
        plain = {name: float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.singles(plain))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.figure(name, figure))

    def samples(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.samples(name, rows))

    def text(self, line: str) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.text(line))

    def artifact(self, name: str, path: Path) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.artifact(name, path))

    def close(self, status: Status) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.close(status))

    def finish(self) -> None:
        """As in Tracker."""
        self._each(lambda tracker: tracker.finish())

    @contextmanager
    def run(self, run: TrackedRun) -> Iterator[Trackers]:
        """Start a run, and close it as the block ends: done, stopped (Ctrl-C, SIGTERM) or failed."""
        from slmx.errors import INTERRUPTED, TERMINATED, SlmxError

        self.start(run)
        status: Status = "failed"
        try:
            yield self
            status = "done"
        except KeyboardInterrupt:
            status = "stopped"
            raise
        except SlmxError as error:
            status = "stopped" if error.code in (INTERRUPTED, TERMINATED) else "failed"
            raise
        finally:
            self.close(status)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except OSError as error:
                del self._trackers[name]
                self._listen(Notice(f"{name} is left out from here on: {error}", "warning"))


NO_TRACKERS = Trackers({})


@contextmanager
def open_trackers(options: TrackOptions, listen: Listener = nobody) -> Iterator[Trackers]:
    """The trackers of a command, finished at the end of the block, however it ends.

    Raises:
        UsageError: no tracker has such a name.
    """
    trackers = Trackers({name: TRACKERS.load(name)(options, listen) for name in options.names}, listen)
    try:
        yield trackers
    finally:
        trackers.finish()


def chosen_trackers(
    known: Settings, *, clearml: bool | None, tensorboard: bool | None, default_tensorboard: bool = False
) -> TrackOptions:
    """What the settings and a command's options ask for; `None` means that the command line says nothing.

    Args:
        known: the settings.
        clearml: --clearml/--no-clearml; unsaid in the settings too: if a server is configured.
        tensorboard: --tensorboard/--no-tensorboard.
        default_tensorboard: what holds where nobody said anything.

    Raises:
        UsageError: ClearML is asked for and no server is configured: the library's default server is never used.
    """
    from slmx.errors import UsageError
    from slmx.settings import named_environment

    track = known.track
    has_server = known.clearml.configured()
    wanted = track.clearml if clearml is None else clearml
    if wanted and not (has_server or track.offline):
        raise UsageError(
            "No ClearML server is configured.",
            hint="Set CLEARML_API_HOST or CLEARML_CONFIG_FILE, or keep sessions here: CLEARML_OFFLINE_MODE=1.",
        )
    boards = next((said for said in (tensorboard, track.tensorboard) if said is not None), default_tensorboard)
    names = [*(["tensorboard"] if boards else []), *(["clearml"] if (has_server if wanted is None else wanted) else [])]
    return TrackOptions(
        names=tuple(dict.fromkeys((*names, *track.also))),
        project=track.project,
        offline=track.offline,
        wait_seconds=track.wait_seconds,
        environment=named_environment(known.clearml) | named_environment(known.s3),
        secrets=known.secrets(),
    )
