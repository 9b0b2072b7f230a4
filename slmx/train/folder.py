"""The folder of a run: made, gone on with, or refused; and what the run's weights depend on, by content."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from slmx.data.forms.example import CROPPED
from slmx.errors import RefusedError, UsageError
from slmx.files import read_json
from slmx.models.encoders import content
from slmx.train import checkpoints
from slmx.train.plan import Planned
from slmx.train.retriever_options import TrainOptions

RUN_FILE = "run.json"
# What may differ between a run and its resumption: none of it changes a weight, or its content stands beside it.
NOT_IDENTITY = (
    *("save_dir", "data_dir", "cache_dir", "data_dirs", "model", "guide", "keep", "resume", "overwrite", "command"),
    *("num_workers", "device", "bf16", "fp16", "push_to_hub", "dataset", "words", "overlap"),
)


def identity(planned: Planned, *, device: str, dtype: str, piece_tokens: int) -> dict[str, Any]:
    """All that the weights depend on, by content."""
    options = planned.options
    asked = {name: getattr(options, name) for name in TrainOptions.__dataclass_fields__ if name not in NOT_IDENTITY}
    start = options.checkpoint_path
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    return {
        **plain,
        "steps": planned.plan.steps,
        "epochs": None,
        "prompts": list(planned.prompts),
        "checkpoint_path": None if start is None else str(start),
        "device": device,
        "dtype": dtype,
        "mini_batch_tokens": piece_tokens,
        "model_content": content(planned.folder),
        "guide_content": content(planned.guide) if planned.guide else None,
        "data_content": [[one.form, one.content] for one in planned.sets],
        # Where a document is cut depends on them.
        "names_of_cropped_folders": [one.name for one in planned.sets if one.form == CROPPED],
        # They choose the checkpoint, and what is held out.
        "val_content": [one.content for one in planned.val_sets],
    }


def check_same(known: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Does a checkpoint belong to this run? UsageError names what differs."""
    differing = [name for name in dict.fromkeys([*known, *wanted]) if known.get(name) != wanted.get(name)]
    if differing:
        raise UsageError(
            f"{path} belongs to another run: {', '.join(differing)} differ.",
            hint="Resume with the options it was started with, or begin anew in another --save-dir.",
        )


class Asked(Protocol):
    """What `prepare` wants to know of a training, of whatever kind."""

    @property
    def save_dir(self) -> Path: ...  # noqa: D102
    @property
    def resume(self) -> bool: ...  # noqa: D102
    @property
    def overwrite(self) -> bool: ...  # noqa: D102


def prepare(options: Asked, sources: Iterable[Path]) -> Path | None:
    """Make the save folder; the checkpoint to go on from, or None for a new run. Arguments and errors as `look`."""
    found = look(options, sources)
    if found is not None:
        checkpoints.clear(options.save_dir)
        return found
    if options.save_dir.is_dir() and any(options.save_dir.iterdir()):
        shutil.rmtree(options.save_dir)
    options.save_dir.mkdir(parents=True, exist_ok=True)
    return None


def look(options: Asked, sources: Iterable[Path]) -> Path | None:
    """May the run have its save folder? The checkpoint to go on from, or None for a new run; nothing is changed.

    Args:
        sources: what the run is made from: models and data. They are never removed to make room for it.

    Raises:
        UsageError: there is nothing to go on from, or the options contradict each other.
        RefusedError: the folder holds something that was not to be replaced.
    """
    folder = options.save_dir
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite begins anew.", hint="Give one of them.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a training needs a folder.", hint="Give another --save-dir.")
    filled = folder.is_dir() and any(folder.iterdir())
    if options.resume:
        found = checkpoints.latest(folder)
        if found is None:
            raise UsageError(f"There is no checkpoint in {folder}.", hint="Leave out --resume to begin.")
        return found
    if filled and not options.overwrite:
        raise RefusedError(f"{folder} is not empty.", hint="--resume goes on with it, --overwrite begins anew.")
    if filled:
        if not _is_training(folder):
            raise RefusedError(f"{folder} holds no training run; it is not replaced.", hint="Give another --save-dir.")
        _keep(sources, folder)
    return None


def _is_training(folder: Path) -> bool:
    """Does a folder hold a training? An evaluation has a file of the same name, and no plan in it."""
    said = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else None
    return isinstance(said, dict) and "plan" in said


def _keep(sources: Iterable[Path], folder: Path) -> None:
    """RefusedError where a source is the folder that is to be removed, or lies in it."""
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise RefusedError(
                f"--overwrite would remove {source}, which this run is made from.", hint="Give another --save-dir."
            )
