"""Checkpoints that are whole or absent, and a run that goes on from one as if it had never stopped.

`checkpoints/step_20/` holds `model/` (a sentence-transformers folder), `optimizer.safetensors`, `state.json` and
`manifest.json` with the SHA-256 of every file. It is written beside its place, flushed, and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slmx.errors import SlmxError
from slmx.files import hash_file, read_json, whole_folder, write_json
from slmx.records import Record
from slmx.train.sampling import State

if TYPE_CHECKING:
    import torch

    from slmx.train.towers import Tower

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
MODEL = "model"


class RunState(Record, frozen=True):
    """Where a run stands after `step` steps, what it is, and its best checkpoint so far (`best_step` 0: none)."""

    step: int
    identity: dict[str, Any]
    sampler: State
    best_step: int = 0
    best_score: float = 0.0


def folder_of(save_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return save_dir / "checkpoints" / f"step_{step}"


def save(save_dir: Path, state: RunState, tower: Tower, optimizer: torch.optim.Optimizer) -> Path:
    """Write the checkpoint of `state.step`; RefusedError when it is there already."""
    from safetensors.torch import save_file

    path = folder_of(save_dir, state.step)
    with whole_folder(path, marker=MANIFEST) as made:
        tower.save(made / MODEL)
        save_file(_moments(tower, optimizer), made / OPTIMIZER)
        write_json(made / STATE, state)
        files = sorted(file for file in made.rglob("*") if file.is_file())
        write_json(made / MANIFEST, {file.relative_to(made).as_posix(): hash_file(file) for file in files})
    _flush(path.parent)
    return path


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _moments(tower: Tower, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state by the names of the weights, so that nothing is pickled."""
    return {
        f"{key}.{name}": value.contiguous()
        for name, weight in tower.named_weights()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def read(path: Path) -> RunState:
    """The state of a checkpoint whose files are as they were written; SlmxError names one that is not."""
    manifest = read_json(path / MANIFEST)
    for name, wanted in manifest.items():
        file = path / name
        if not file.is_file() or hash_file(file) != wanted:
            raise SlmxError(f"The checkpoint {path} is damaged: {name}.", hint="Remove it; --resume takes one before.")
    return msgspec.convert(read_json(path / STATE), RunState)


def restore(path: Path, tower: Tower, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and AdamW's state of a checkpoint into a model and its optimizer."""
    from safetensors.torch import load_file

    from slmx.train.towers import warm_start

    warm_start(tower.model, path / MODEL)
    moments = load_file(path / OPTIMIZER)
    by_weight: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        key, _, weight_name = name.partition(".")
        by_weight.setdefault(weight_name, {})[key] = value
    for name, weight in tower.named_weights():
        # AdamW keeps its step counter on the CPU, whatever the device of the weight.
        own = by_weight.get(name, {})
        optimizer.state[weight] = {k: v if k == "step" else v.to(weight.device) for k, v in own.items()}


def latest(save_dir: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none."""
    found = all_of(save_dir)
    return found[-1] if found else None


def all_of(save_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; what was not written to its end is not among them."""
    folder = save_dir / "checkpoints"
    whole = (path for path in folder.glob("step_*") if (path / MANIFEST).is_file())
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step_")))


def prune(save_dir: Path, keep: int, but: Sequence[int]) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps in `but`."""
    kept = {folder_of(save_dir, step) for step in but}
    for path in all_of(save_dir)[:-keep]:
        if path not in kept:
            shutil.rmtree(path)
