"""What `slmx train lm` and `slmx train sft` ask alike, and what their loop is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slmx.registry import unknown_name
from slmx.train import optim


@dataclass(frozen=True, kw_only=True)
class CausalOptions:
    """What the command line asks of both; each command has defaults of its own for what comes first.

    `steps` and `epochs` are two ways to say how long. Intervals are steps, 0 is at the end alone (samples: never);
    None: a tenth of the steps, 10 at least.
    """

    optimizer: str
    weight_decay: float
    schedule: str
    warmup: float
    save_dir: Path
    steps: int | None = None
    epochs: float | None = None
    lr: float | None = None
    clip: float = 1.0
    attention: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    val_interval: int | None = None
    save_interval: int | None = None
    sample_interval: int | None = None
    log_interval: int = 10
    keep: int = 2
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    command: str = ""


@dataclass(frozen=True)
class LoopOptions:
    """How long and how. Intervals are steps, 0 is never; `identity` is all that the weights depend on, by content.

    `optimizer` to `floor`: see slmx.train.optim. `clip` cuts the gradient's norm. `patience`: so many steps in a row
    whose loss or gradient is no number are skipped, then the run stops. `flops_per_token` and `rate` (operations a
    second of the chip) give MFU. `from_checkpoint` says how a new run begins with a checkpoint, where the command can.
    `sources`: the models and data that the run is made from.
    """

    save_dir: Path
    steps: int
    identity: Mapping[str, Any]
    optimizer: str = "adamw"
    lr: float = 1e-3
    matrix_lr: float = 0.02
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: float = 0.02
    decay: float = 0.3
    floor: float = 0.0
    clip: float = 1.0
    compute: torch.dtype = torch.float32
    log_every: int = 10
    validate_every: int = 0
    save_every: int = 0
    sample_every: int = 0
    keep: int = 2
    patience: int = 5
    resume: bool = False
    overwrite: bool = False
    strategy: str = "ddp"
    flops_per_token: int = 0
    rate: float = 0.0
    metrics: str = "training_metrics.csv"
    log: str = "training.log"
    from_checkpoint: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()


def check(asked: CausalOptions, backends: Sequence[str]) -> None:
    """Are schedule, optimizer and attention names that exist? UsageError, before a run that is there is replaced."""
    for kind, name, known in (
        ("schedule", asked.schedule, optim.SCHEDULES),
        ("optimizer", asked.optimizer, optim.OPTIMIZERS),
        ("attention back end", asked.attention, ("auto", *backends)),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)


def loop_options(asked: CausalOptions, *, steps: int, lr: float, **more: Any) -> LoopOptions:
    """The loop's options from what was asked; `more` are the fields that the two commands fill each in its own way."""
    every = max(10, steps // 10)
    return LoopOptions(
        save_dir=asked.save_dir,
        steps=steps,
        optimizer=asked.optimizer,
        lr=lr,
        weight_decay=asked.weight_decay,
        schedule=asked.schedule,
        warmup=asked.warmup,
        clip=asked.clip,
        log_every=asked.log_interval,
        validate_every=every if asked.val_interval is None else asked.val_interval,
        save_every=every if asked.save_interval is None else asked.save_interval,
        sample_every=every if asked.sample_interval is None else asked.sample_interval,
        keep=asked.keep,
        resume=asked.resume,
        overwrite=asked.overwrite,
        **more,
    )
