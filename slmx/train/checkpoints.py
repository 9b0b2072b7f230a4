"""Checkpoints that are whole or absent, and a run that goes on from one as if it had never stopped.

`checkpoints/step_20/` holds `model/` (a sentence-transformers folder), `optimizer.safetensors`, `state.json` and
`manifest.json` with the SHA-256 of every file. It is written beside its place, flushed, and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from slmx.errors import SlmxError
from slmx.files import hash_file, read_json, whole_folder, write_json
from slmx.records import Record
from slmx.train.sampling import State

if TYPE_CHECKING:
    from slmx.train.towers import Tower
    from slmx.train.update import Update

MANIFEST = "manifest.json"
STATE = "state.json"
VALIDATING = ".validate-"  # how the folder begins of a model that is being validated
OPTIMIZER = "optimizer.safetensors"
MODEL = "model"
WEIGHTS = "weights.safetensors"  # in place of a model: those of slmx.train.loop
S = TypeVar("S")


class RunState(Record, frozen=True):
    """Where a run stands after `step` steps, what it is, and its best checkpoint so far (`best_step` 0: none).

    `numbers` are those of the update (`slmx.train.update.Update.numbers`).
    """

    step: int
    identity: dict[str, Any]
    sampler: State
    best_step: int = 0
    best_score: float = 0.0
    numbers: dict[str, Any] = {}


def folder_of(save_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return save_dir / "checkpoints" / f"step_{step}"


def save(save_dir: Path, state: RunState, tower: Tower, update: Update) -> Path:
    """Write the checkpoint of `state.step`; RefusedError when it is there already."""
    from safetensors.torch import save_file

    def fill(made: Path) -> None:
        with update.shown():
            tower.save(made / MODEL)
        save_file(update.tensors(), made / OPTIMIZER)
        write_json(made / STATE, state)

    return write(folder_of(save_dir, state.step), fill)


def write(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make the checkpoint `path` of the files that `fill` puts into a folder, and a manifest with their hashes.

    Raises:
        RefusedError: it is there already.
        SlmxError: it could not be written (a full disk); those before it stay.
    """
    from safetensors import SafetensorError

    try:
        with whole_folder(path, marker=MANIFEST) as made:
            fill(made)
            files = sorted(file for file in made.rglob("*") if file.is_file())
            write_json(made / MANIFEST, {file.relative_to(made).as_posix(): hash_file(file) for file in files})
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        last = latest(path.parent.parent)
        kept = f"{last} is whole." if last else "There is none before it."
        raise SlmxError(
            f"The checkpoint {path} could not be written: {error}. {kept}",
            hint="Make room, then the same command with --resume goes on." if last else "Make room, then begin anew.",
        ) from error
    return path


def write_model(save_dir: Path, fill: Callable[[Path], None]) -> None:
    """Put the files that `fill` writes into a new folder into that of a run, weights last: it holds a model, or none.

    Raises:
        SlmxError: they could not be written (a full disk); the last checkpoint stays.
    """
    from safetensors import SafetensorError

    made = save_dir / ".model.part"
    try:
        shutil.rmtree(made, ignore_errors=True)  # of a run that was killed here
        made.mkdir()
        fill(made)
        files = [file for file in made.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda one: (one.parent == made and one.suffix == ".safetensors", one)):
            _flush(file)
            place = save_dir / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        _flush(save_dir)
    except (OSError, SafetensorError) as error:
        last = latest(save_dir)
        raise SlmxError(
            f"The model could not be written into {save_dir}: {error}." + (f" {last} is whole." if last else ""),
            hint="Make room, then the same command with --resume finishes.",
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or a folder's names are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> RunState:
    """The state of a checkpoint; SlmxError as `check`."""
    return read_state(path, RunState)


def read_state(path: Path, kind: type[S]) -> S:
    """The state of a checkpoint, of whatever kind of training; SlmxError as `check`."""
    check(path)
    try:
        return msgspec.convert(read_json(path / STATE), kind)
    except msgspec.ValidationError as error:
        raise SlmxError(
            f"{path / STATE} is of another version of slmx, or of another kind of training: {error}.",
            hint="Begin anew in another --save-dir.",
        ) from None


def check(path: Path) -> None:
    """Are the files of a checkpoint as they were written? SlmxError names one that is not."""
    manifest = read_json(path / MANIFEST)
    for name, wanted in manifest.items():
        file = path / name
        if not file.is_file() or hash_file(file) != wanted:
            raise SlmxError(f"The checkpoint {path} is damaged: {name}.", hint="Remove it; --resume takes one before.")


def restore(path: Path, state: RunState, tower: Tower, update: Update) -> None:
    """Put weights and the optimizer's state of a checkpoint into a model and its update."""
    from safetensors.torch import load_file

    from slmx.train.towers import warm_start

    warm_start(tower.model, path / MODEL)
    update.restore(load_file(path / OPTIMIZER), state.numbers)


def latest(save_dir: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none."""
    found = all_of(save_dir)
    return found[-1] if found else None


def all_of(save_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what was not written to its end is not among them."""
    folder = save_dir / "checkpoints"
    whole = (path for path in folder.glob("step_*") if (path / MANIFEST).is_file())
    return sorted((path for path in whole if _step(path).isdecimal()), key=lambda path: int(_step(path)))


def _step(path: Path) -> str:
    return path.name.removeprefix("step_")


def clear(save_dir: Path) -> None:
    """Remove what a killed run left half made: checkpoints, and models that were being validated."""
    for left in (*save_dir.glob("checkpoints/.step_*"), *save_dir.glob(f"{VALIDATING}*")):
        shutil.rmtree(left)


def prune(save_dir: Path, keep: int, but: Sequence[int]) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps in `but`."""
    kept = {folder_of(save_dir, step) for step in but}
    for path in all_of(save_dir)[:-keep]:
        if path not in kept:
            shutil.rmtree(path)
