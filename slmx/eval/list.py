"""`slmx eval list`: the runs there are, how they differ, what they scored, and which are not finished."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.errors import SlmxError, UsageError
from slmx.eval.cell import RUN_FILE, read_run_file
from slmx.eval.journal import NAME as JOURNAL
from slmx.eval.plan import Cell
from slmx.eval.runs import Run, open_run
from slmx.files import read_json
from slmx.records import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS = {"token_recall": "token\nrecall", "em": "EM", "f1": "F1", "match": "match"}
# Not settings of a run: what the cell says better, and where files lie.
_NO_SETTINGS = frozenset(
    {"models", "modes", "retrievers", "ks", "dataset", "dataset_path", "name", "overwrite"}
    | {"data_dir", "cache_dir", "output_dir", "vocabulary"}
)
_HASH = re.compile(r"[0-9a-f]{16,}")
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class Listed(Record, frozen=True, omit_defaults=False):
    """One run. `settings` are those in which the runs of the listing differ.

    `state` is finished, running (another process is at it) or unfinished; `answered` counts the answers that are there.
    """

    path: str
    state: str
    answered: int
    questions: int
    created: str
    age_seconds: int
    metrics: dict[str, float]
    settings: dict[str, Any]


class Listing(Record, frozen=True, omit_defaults=False):
    """All runs at or under some folders, oldest first. `common` is what all of them share; `unreadable` are broken."""

    folders: list[str]
    common: dict[str, Any]
    runs: list[Listed]
    unreadable: list[str]


def list_runs(folders: Iterable[Path], *, now: datetime | None = None) -> Listing:
    """Every run at or under the folders; broken ones are named, not hidden.

    Raises:
        UsageError: a folder is not there.
    """
    roots = list(folders)
    if missing := [str(path) for path in roots if not path.is_dir()]:
        hint = "Runs elsewhere: slmx eval list FOLDER. A first one: slmx demo"
        raise UsageError(f"There is no folder {', '.join(missing)}.", hint=hint)
    runs, unreadable = [], []
    for folder in dict.fromkeys(path.parent for root in roots for path in sorted(root.rglob(RUN_FILE))):
        try:
            if read_run_file(folder) is not None:
                runs.append(open_run(folder))
            elif _is_ours(folder / RUN_FILE):
                unreadable.append(f"{folder / RUN_FILE} is not as this version of slmx writes it.")
        except SlmxError as error:
            unreadable.append(error.what)
    runs.sort(key=lambda run: run.run_file.created if run.run_file else "")
    settings = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
    inner = _inner_differences(runs)
    moment = now or datetime.now(UTC)
    return Listing(
        folders=list(map(str, roots)),
        common={name: settings[0][name] for name in names if name not in differing},
        runs=[
            _listed(run, {name: one.get(name) for name in differing} | more, moment)
            for run, one, more in zip(runs, settings, inner, strict=True)
        ],
        unreadable=unreadable,
    )


def _is_ours(path: Path) -> bool:
    """Was a run.json that is not understood written by an evaluation? Other programs have files of this name, too."""
    content = read_json(path)
    return isinstance(content, dict) and {"identity", "configuration"} <= content.keys()


def _settings(run: Run) -> dict[str, Any]:
    """What was run and how, as the command was asked for it."""
    cell = run.cell
    settings: dict[str, Any] = {"model": cell.model, "dataset": cell.dataset, "context": cell.shows}
    if run.run_file is not None:
        options = dict(run.run_file.options)
        for name, value in [*options.items(), *dict(options.get("generator") or {}).items()]:
            if name not in _NO_SETTINGS and not isinstance(value, dict | list):
                settings.setdefault(name, value)
    return settings


def _inner_differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, where its configuration differs from that of other runs of the same cell: weights, template, …

    Runs of different models or retrievers differ in all of it, which says nothing.
    """
    flat = [dict(_flat(run.configuration)) for run in runs]
    of_cell: dict[Cell, list[dict[str, Any]]] = {}
    for run, one in zip(runs, flat, strict=True):
        of_cell.setdefault(run.cell, []).append(one)
    names: dict[str, None] = {}
    for same in of_cell.values():
        names |= dict.fromkeys(name for one in same for name in one if any(o.get(name) != one[name] for o in same))
    known = {"batch_size", "dataset.questions", "questions_hash", "oracle"}  # told in another column
    return [{name: one.get(name) for name in names if name not in known} for one in flat]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _listed(run: Run, settings: dict[str, Any], now: datetime) -> Listed:
    created = run.run_file.created if run.run_file else ""
    questions = int(run.configuration["dataset"]["questions"])
    state, answered = ("finished", questions) if run.finished else _progress(run.path)
    metrics = {name: run.results[name] for name in METRICS if isinstance(run.results.get(name), int | float)}
    return Listed(
        path=str(run.path),
        state=state,
        answered=answered,
        questions=questions,
        created=created,
        age_seconds=max(0, int((now - datetime.fromisoformat(created)).total_seconds())),
        metrics=metrics if run.finished else {},
        settings=settings,
    )


def _progress(folder: Path) -> tuple[str, int]:
    """Is somebody at an unfinished run, and how many answers does its journal hold?

    The journal is only read, and the lock that is tried is the shared one: a look must not need the right to write,
    nor be in the way of another look.
    """
    try:
        stream = (folder / JOURNAL).open("rb")
    except (FileNotFoundError, PermissionError):
        return "unfinished", 0
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(stream, fcntl.LOCK_UN)  # before the lines are counted: a run may want to go on
            state = "unfinished"
        except OSError:  # as `open_locked` takes it
            state = "running"
        return state, sum(1 for _ in stream)


def age(seconds: int) -> str:
    """A time span in its largest unit: "3 d", "5 h", "12 min"."""
    size, unit = next(((size, unit) for size, unit in _AGES if seconds >= size), _AGES[-1])
    return f"{seconds // size} {unit}"


def render(listing: Listing) -> RenderableType:
    """A table with a line a run, and below it what all runs share and what could not be read."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    if not listing.runs:
        told = f"No runs under {', '.join(listing.folders)}. A first one: slmx demo"
        return Text("\n".join([told, *listing.unreadable]))
    names = list(dict.fromkeys(name for run in listing.runs for name in run.settings))
    metrics = [name for name in METRICS if any(name in run.metrics for run in listing.runs)]
    rows = []
    for run in listing.runs:
        state = run.state if run.state == "finished" else f"{run.state}, {run.answered} of {run.questions}"
        numbers = [f"{100 * run.metrics[name]:.1f}" if name in run.metrics else "–" for name in metrics]
        shown = [_shown(run.settings.get(name)) for name in names]
        rows.append(
            [_short(run.path, listing.folders), *shown, state, str(run.questions), *numbers, age(run.age_seconds)]
        )
    heads = ["run", *(name.replace("_", " ") for name in names), "state", "n", *(METRICS[m] for m in metrics), "age"]
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    common = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in listing.common.items() if value)
    notes = [f"The same in all: {common}."] if common and len(rows) > 1 else []
    notes += [f"Unreadable: {what}" for what in listing.unreadable]
    title = f"{count} under {', '.join(listing.folders)}"
    return Group(table(title, heads, rows, left=len(names) + 2), Text("\n".join(notes)))


def _short(path: str, folders: Sequence[str]) -> str:
    parent = next((folder for folder in folders if Path(path).is_relative_to(folder) and path != folder), None)
    return path if parent is None else str(Path(path).relative_to(parent))


def _shown(value: Any) -> str:
    if value is None or value in ("", False):
        return "–"
    text = str(value)
    return text[:8] if _HASH.fullmatch(text) else text if len(text) <= 40 else f"{text[:39]}…"
