"""The training loop of `slmx train lm` and `slmx train sft`: batches in, weights, checkpoints and numbers out.

    report = run(task, options, ranks=ranks, stop=stop, listen=listen, trackers=trackers)

What is trained is a Task: its model, the batches of a step, the loss of a batch, and how it is validated and saved. A
step depends on (seed, step) and the weights alone, so 40 steps give the same weights as 20, a stop, and 20 more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from slmx.errors import SlmxError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import write_json
from slmx.records import Record
from slmx.signals import Stop
from slmx.track.trackers import NO_TRACKERS, TrackedRun, Trackers
from slmx.train import checkpoints, folder, history, optim, parallel
from slmx.train.cross_entropy import IGNORED
from slmx.train.loop_options import LoopOptions
from slmx.train.ranks import Ranks

COLUMNS = ("step", "loss", "lr", "tokens_per_sec", "eta_hours", "elapsed_hours")
MORE_COLUMNS = ("grad_norm", "tokens", "mfu", "val_loss", "bits_per_byte", "skipped")


@dataclass(frozen=True)
class Batch:
    """Some windows: token ids (B, T), targets (B, T; -100 is left out), numbers of documents (B, T) or None."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        segments = None if self.segments is None else self.segments.to(device, non_blocking=True)
        return Batch(self.tokens.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), segments)


class Task(Protocol):
    """What the loop trains. `model` is on its device; weights that do not learn have requires_grad False."""

    @property
    def model(self) -> nn.Module:
        """What learns."""

    def batches(self, step: int) -> Sequence[Batch]:
        """The batches of a step (from 0 on) for this process, to be added up; the same whenever it is asked."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch in nats; `model` is the task's own, or what spreads it over processes."""

    def validate(self) -> Mapping[str, float]:
        """`val_loss` (nats a token) and whatever else; empty where there is nothing to validate on."""

    def sample(self, step: int) -> str:
        """A few lines of what the model writes; empty where it cannot."""

    def save_model(self, to: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the model as a folder that loads; `weights` are all that learn, whole, by name."""


class LoopState(Record, frozen=True):
    """Where a run stands: steps done, tokens seen, seconds spent, steps skipped for bad numbers, and what it is."""

    step: int
    identity: dict[str, Any]
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0


class LoopReport(Record, frozen=True, omit_defaults=False):
    """A finished run: `first_loss` and `last_loss` stand in the metrics' first and last row, `scores` are the last."""

    folder: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    first_loss: float
    last_loss: float
    scores: dict[str, float]
    skipped: int


def run(
    task: Task,
    options: LoopOptions,
    *,
    ranks: Ranks,
    stop: Stop,
    listen: Listener = nobody,
    trackers: Trackers = NO_TRACKERS,
) -> LoopReport:
    """Train a task to its last step, or go on with it.

    Args:
        ranks: this process among several (slmx.train.ranks.joined). Only rank 0 listens, validates, tracks and writes.

    Raises:
        RefusedError: the save folder holds something and neither `resume` nor `overwrite` was asked for.
        SlmxError: loss or gradient were no numbers for `patience` steps, or a checkpoint could not be written (the last
            one stays); with exit code 130 or 143 after a clean stop.
    """
    loop = _Loop(task, options, ranks, listen if ranks.main else nobody)
    configuration = msgspec.to_builtins(dict(options.configuration))
    tracked = TrackedRun(options.save_dir.name, options.save_dir, "training", configuration, step=loop.step)
    with (trackers if ranks.main else NO_TRACKERS).run(tracked) as loop.trackers:
        while loop.step < options.steps:
            if signal := ranks.highest(stop.signal):
                stop.signal = signal
                raise ranks.shared(loop.stopped(stop))
            loop.one_step()
            loop.look()
        return loop.finish()


class _Loop:
    """A run in this process: the model as it is spread, its optimizers, and where it stands."""

    def __init__(self, task: Task, options: LoopOptions, ranks: Ranks, listen: Listener) -> None:
        self.task, self.options, self.ranks, self.listen = task, options, ranks, listen
        self.trackers = NO_TRACKERS
        resumed = ranks.once(lambda: folder.prepare(options, options.sources))
        self.model = parallel.spread(task.model, options.strategy, ranks)
        self.named = [(name, one) for name, one in parallel.bare(self.model).named_parameters() if one.requires_grad]
        self.optimizers = optim.optimizers_for(
            self.named,
            kind=options.optimizer,
            lr=options.lr,
            matrix_lr=options.matrix_lr,
            weight_decay=options.weight_decay,
            compute=options.compute,
        )
        self.step = self.tokens = self.skipped = self.bad = 0
        self.seconds = 0.0
        self.saved = 0  # the step of the last checkpoint
        self.scores: dict[str, float] = {}
        self.rows = history.Rows(options.save_dir / options.metrics, [*COLUMNS, *MORE_COLUMNS])
        self.log_path = options.save_dir / options.log
        self._fresh()
        self._begin(resumed)

    def _fresh(self) -> None:
        self.losses: list[float] = []
        self.since_tokens, self.since_steps, self.since_seconds = 0, 0, 0.0

    def _begin(self, resumed: Path | None) -> None:
        options = self.options
        if resumed is None:
            self._on_main(lambda: write_json(options.save_dir / folder.RUN_FILE, dict(options.configuration)))
            self._log(str(options.configuration.get("command", "")))
        else:
            state = checkpoints.read_state(resumed, LoopState)
            folder.check_same(state.identity, options.identity, resumed)
            self._restore(resumed)
            self.step = self.saved = state.step
            self.tokens, self.seconds, self.skipped = state.tokens, state.seconds, state.skipped
            self.say(f"Going on after step {self.step} of {options.steps}.")
        self._on_main(lambda: self.rows.begin(self.step))

    @torch.no_grad()
    def _restore(self, path: Path) -> None:
        from safetensors.torch import load_file

        weights = load_file(path / checkpoints.WEIGHTS)
        for name, weight in self.named:
            weight.copy_(optim.like(weights[name].to(weight.device), weight))
        optim.restore_state(self.named, self.optimizers, load_file(path / checkpoints.OPTIMIZER))

    def one_step(self) -> None:
        """Add up the gradients of a step's batches and move the weights; a step of bad numbers moves nothing."""
        began, options = time.perf_counter(), self.options
        batches = [batch.to(self.ranks.device) for batch in self.task.batches(self.step)]
        counted = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        everywhere = self.ranks.add(torch.tensor(float(counted), device=self.ranks.device)).item()
        loss = self._add_gradients(batches, max(1.0, everywhere))
        norm = nn.utils.clip_grad_norm_([weight for _, weight in self.named], options.clip or math.inf)
        norm_value = float(optim.whole(norm))
        share = optim.schedule(
            self.step,
            options.steps,
            kind=options.schedule,
            warmup=options.warmup,
            decay=options.decay,
            floor=options.floor,
        )
        lr = optim.set_rates(self.optimizers, share)
        if math.isfinite(loss) and math.isfinite(norm_value):
            for optimizer in self.optimizers:
                optimizer.step()
            self.bad = 0
        else:
            self._bad_numbers(loss, norm_value)
        for _, weight in self.named:
            weight.grad = None
        self.step += 1
        tokens = sum(batch.tokens.numel() for batch in batches) * self.ranks.world
        took = time.perf_counter() - began
        self._note(loss, norm_value, lr, tokens, took)

    def _add_gradients(self, batches: Sequence[Batch], counted: float) -> float:
        """The mean loss a target over all processes; gradients are left in the weights."""
        total = torch.zeros((), device=self.ranks.device)
        for number, batch in enumerate(batches):
            with parallel.exchange(self.model, now=number == len(batches) - 1):
                loss = self.task.loss(self.model, batch)
                # Processes average their gradients: times their number is the sum.
                (loss * (self.ranks.world / counted)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / counted
        return float(self.ranks.add(total))

    def _bad_numbers(self, loss: float, norm: float) -> None:
        self.bad += 1
        self.skipped += 1
        what = "loss" if not math.isfinite(loss) else "gradient"
        if self.bad < self.options.patience:
            said = f"The {what} of step {self.step + 1} is no number; the step is skipped ({self.skipped} so far)."
            self.say(said, "warning")
            return
        last = checkpoints.latest(self.options.save_dir)
        kept = f"{last} is the last good checkpoint." if last else "No checkpoint was written yet."
        raise self.ranks.shared(
            SlmxError(
                f"The {what} was no number for {self.bad} steps in a row, the last at step {self.step + 1}. {kept}",
                hint=f"Give a lower --lr and begin anew in another --save-dir{self.options.from_checkpoint}, or "
                "look at the data of these steps.",
            )
        )

    def _note(self, loss: float, norm: float, lr: float, tokens: int, took: float) -> None:
        """Count a step, show it, and write a row where one is due."""
        options = self.options
        self.tokens += tokens
        self.seconds += took
        if math.isfinite(loss):
            self.losses.append(loss)
        self.since_tokens += tokens
        self.since_steps += 1
        self.since_seconds += took
        speed = self.since_tokens / self.since_seconds
        self.listen(Progress("train", self.step, options.steps, "steps", f"loss {loss:.3f}, {speed:,.0f} tokens/s"))
        if self.step % options.log_every and self.step != options.steps:
            return
        mean = sum(self.losses) / len(self.losses) if self.losses else math.nan
        left = (options.steps - self.step) * self.since_seconds / self.since_steps
        mfu = options.flops_per_token * speed / options.rate / self.ranks.world if options.rate else 0.0
        row = {
            "step": self.step,
            "loss": round(mean, 6),
            "lr": f"{lr:.6g}",
            "tokens_per_sec": round(speed, 1),
            "eta_hours": round(left / 3600, 4),
            "elapsed_hours": round(self.seconds / 3600, 5),
            "grad_norm": round(norm, 4),
            "tokens": self.tokens,
            "mfu": round(mfu, 4),
            "skipped": self.skipped,
        }
        self._on_main(lambda: self.rows.append(row))
        self.trackers.scalars(
            self.step,
            {"loss/train": mean, "lr": lr, "speed/tokens_per_sec": speed, "speed/mfu": mfu, "grad_norm": norm},
        )
        eta = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.1f} min"
        self._log(
            f"step {self.step}/{options.steps}  loss {mean:.4f}  lr {lr:.3g}  |g| {norm:.2f}  {speed:,.0f} tokens/s"
            + (f"  MFU {100 * mfu:.0f} %" if mfu else "")
            + f"  {eta} left"
        )
        self._fresh()

    def look(self) -> None:
        """Save, validate and sample where it is time for it; first of all save, so that no failure costs work."""
        options, last = self.options, self.step == self.options.steps
        if (_due(self.step, options.save_every) and not self.bad) or last:
            self.checkpoint()
        if _due(self.step, options.validate_every) or last:
            self.validate()
        if _due(self.step, options.sample_every) or (last and options.sample_every):
            text = self._apart(lambda: self.task.sample(self.step))
            if text:
                self._log(f"sample after step {self.step}:\n{text}")
                self.trackers.text(text)

    def validate(self) -> None:
        """Score the model, and write the scores where there are any."""
        self.scores = dict(self._apart(self.task.validate))
        if not self.scores:
            return
        told = {name: round(value, 5) for name, value in self.scores.items() if name in MORE_COLUMNS}
        self._on_main(lambda: self._add_row({"step": self.step, **told}))
        self.trackers.scalars(self.step, {f"validation/{name}": value for name, value in self.scores.items()})
        self.say(f"step {self.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in self.scores.items()))

    def _add_row(self, scores: Mapping[str, Any]) -> None:
        """Write scores, unless a run that ended with them is only finished."""
        if not any(row["step"] == str(self.step) and row["val_loss"] for row in self.rows.rows()):
            self.rows.append(scores)

    def _apart(self, work: Callable[[], Any]) -> Any:
        """Work on the model by rank 0, or by all of them where each holds a part of it."""
        if self.options.strategy == "fsdp" and self.ranks.world > 1:
            return work()
        return self.ranks.once(work)

    def checkpoint(self) -> Path:
        """Save everything at this step, unless that was done, and remove what is not to be kept."""
        from safetensors.torch import save_file

        options = self.options
        path = checkpoints.folder_of(options.save_dir, self.step)
        if self.saved == self.step:
            return path
        weights = {name: optim.whole(weight).detach().cpu().contiguous() for name, weight in self.named}
        moments = optim.state_tensors(self.named, self.optimizers)
        state = LoopState(
            step=self.step,
            identity=dict(options.identity),
            tokens=self.tokens,
            seconds=self.seconds,
            skipped=self.skipped,
        )

        def fill(made: Path) -> None:
            save_file(weights, made / checkpoints.WEIGHTS)
            save_file(moments, made / checkpoints.OPTIMIZER)
            write_json(made / checkpoints.STATE, state)

        def write() -> None:
            checkpoints.write(path, fill)
            checkpoints.prune(options.save_dir, options.keep, [])

        self.ranks.once(write)
        self.saved = self.step
        return path

    def stopped(self, stop: Stop) -> SlmxError:
        """Save, and the error that ends the command."""
        if self.step:
            path = self.checkpoint()
            done = f"Stopped after {self.step} of {self.options.steps} steps; {path} is saved."
            return stop.error(done, hint="The same command with --resume goes on from there.")
        return stop.error("Stopped before the first step; nothing is saved.", hint="The same command begins anew.")

    def finish(self) -> LoopReport:
        """Write the model into the save folder."""
        save_dir = self.options.save_dir
        if not self.scores:  # this process took no step: the run was stopped behind its last one
            self.validate()
        weights = {name: optim.whole(weight).detach().cpu() for name, weight in self.named}
        self.ranks.once(lambda: checkpoints.write_model(save_dir, lambda made: self.task.save_model(made, weights)))
        self.ranks.highest(0)  # no process takes the group down while another still hears from it
        losses = [float(row["loss"]) for row in self.rows.rows() if row["loss"]] if self.ranks.main else [math.nan]
        self.trackers.singles({**self.scores, "tokens": float(self.tokens), "seconds": self.seconds})
        return LoopReport(
            folder=str(save_dir),
            steps=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens / max(self.seconds, 1e-9),
            first_loss=losses[0],
            last_loss=losses[-1],
            scores=self.scores,
            skipped=self.skipped,
        )

    def say(self, text: str, level: Any = "note") -> None:
        """A line for whoever waits, and for the log."""
        self.listen(Notice(text, level))
        self._log(text)

    def _log(self, text: str) -> None:
        def append() -> None:
            with self.log_path.open("a", encoding="utf-8") as out:
                out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

        self._on_main(append)

    def _on_main(self, work: Callable[[], None]) -> None:
        if self.ranks.main:
            work()


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
