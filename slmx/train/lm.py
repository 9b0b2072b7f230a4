"""`slmx train lm`: a token file in, a small transformer out, as a folder that transformers loads.

    planned = plan_lm(LmOptions(data=Path("tokens"), save_dir=Path("runs/lm"), preset="nano-6m", steps=1000))
    with joined(["cpu"]) as ranks, stopping() as stop:
        report = train_lm(planned, ranks=ranks, stop=stop)

What is wrong with options or data is found by the plan (slmx.train.lm_plan).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slmx.events import Listener, nobody
from slmx.files import hash_value
from slmx.records import Record
from slmx.signals import Stop
from slmx.track.trackers import NO_TRACKERS, Trackers
from slmx.train import attention, export, folder, settle, writing
from slmx.train.lm_plan import LmPlan, Planned, content_of, render_plan
from slmx.train.loop import Batch, LoopReport, run
from slmx.train.loop_options import LoopOptions, loop_options
from slmx.train.ranks import Ranks
from slmx.train.transformer import Transformer
from slmx.train.windows import spread

if TYPE_CHECKING:
    from rich.console import RenderableType


class LmTask:
    """Next-token prediction over windows of a token file: what `slmx.train.loop` trains."""

    model: Transformer

    def __init__(self, planned: Planned, settled: settle.Settled, ranks: Ranks) -> None:
        options, shape = planned.options, planned.plan.shape
        self.planned, self.settled, self.ranks = planned, settled, ranks
        self.end_of_text = planned.data.train.end_of_text if options.document_mask else None
        self.model = Transformer(shape, compute=getattr(torch, settled.dtype))
        self.model.initialise(options.seed)
        if planned.start is not None:
            export.put(self.model, planned.start)
        self.model.to(ranks.device)

    def batches(self, step: int) -> list[Batch]:
        """This process's windows of a step, in pieces of `micro` windows."""
        ids = torch.from_numpy(self.planned.windows.batch(step, self.ranks.rank, self.ranks.world))
        return [self._batch(piece) for piece in torch.split(ids, self.settled.micro)]

    def _batch(self, ids: Tensor) -> Batch:
        tokens = ids[:, :-1].contiguous()
        return Batch(tokens, ids[:, 1:].contiguous(), attention.segments_of(tokens, self.end_of_text))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch."""
        mask = attention.masks(
            batch.segments,
            self.settled.attention,
            length=batch.tokens.shape[1],
            device=batch.tokens.device,
            dtype=self.model.compute,
        )
        loss: Tensor = model(batch.tokens, targets=batch.targets, mask=mask)
        return loss

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss in nats a token, and bits a byte where the bytes are known, on windows of the validation file."""
        file, length = self.planned.data.val, self.planned.windows.length
        if file is None or not self.planned.plan.val_tokens:
            return {}
        total, counted = 0.0, 0
        with settle.eagerly():
            for ids in spread(file, length=length, tokens=self.planned.plan.val_tokens):
                batch = self._batch(torch.from_numpy(ids)[None]).to(self.ranks.device)
                total += float(self.loss(self.model, batch))
                counted += length
        found = {"val_loss": total / counted}
        if file.bytes_per_token:
            found["bits_per_byte"] = found["val_loss"] / math.log(2) / file.bytes_per_token
        return found

    def sample(self, step: int) -> str:
        """What the model writes from the beginning of a text, or after the file's first tokens."""
        tokenizer = self.planned.tokenizer
        if tokenizer is None:
            return ""
        end = self.planned.data.train.end_of_text
        begin = [end] if end is not None else self.planned.data.train.read(0, 8).tolist()
        with settle.eagerly():
            return writing.write(self.model, begin, tokenizer.folder, stop=end, seed=self.planned.options.seed + step)

    def save_model(self, to: Path, weights: Mapping[str, Tensor]) -> None:
        """The folder that transformers loads."""
        planned = self.planned
        end, tokenizer = planned.data.train.end_of_text, planned.tokenizer
        if end is None and planned.data.tokenizer is None and tokenizer is not None:  # raw ids and --init-from
            end = tokenizer.end_of_text
        export.save_model(to, planned.plan.shape, weights, end_of_text=end, tokenizer=tokenizer)


def prepare_lm(planned: Planned, ranks: Ranks, listen: Listener = nobody) -> tuple[LmTask, LoopOptions]:
    """What the loop needs: the model on its device, what was measured and settled for it, and how long.

    Raises:
        UsageError: the batch cannot be shared by so many processes, or an option contradicts what was settled when the
            run was begun.
    """
    options, plan = planned.options, planned.plan
    listen = listen if ranks.main else nobody
    share = ranks.together(lambda: planned.windows.batch(0, ranks.rank, ranks.world))
    before = settle.remembered(options.save_dir) if options.resume else None
    if before is not None:
        ranks.together(lambda: settle.check_same(before, options, plan.shape, len(share), ranks.device))
    settled = before or ranks.once(lambda: settle.choose(options, plan.shape, len(share), ranks.device))
    task = LmTask(planned, settled, ranks)
    if before is None:
        settled = settle.compile_if_it_pays(task, settled, len(share), ranks, listen)
    elif settled.compiled:
        task.model.compile_layers()
    task.settled = settled
    made = loop_options(
        options,
        steps=plan.steps,
        lr=options.lr if options.lr is not None else settle.learning_rate(plan.shape, options.optimizer),
        identity=_identity(planned, settled),
        matrix_lr=options.matrix_lr,
        decay=options.decay,
        floor=options.floor,
        compute=task.model.compute,
        strategy=options.strategy,
        flops_per_token=plan.flops_per_token,
        rate=settled.rate,
        from_checkpoint=" (--init-from takes the weights of a checkpoint)",
        configuration={"command": options.command, "plan": plan, "settled": settled},
        sources=planned.sources,
    )
    return task, made


def train_lm(
    planned: Planned, *, ranks: Ranks, stop: Stop, listen: Listener = nobody, trackers: Trackers = NO_TRACKERS
) -> LoopReport:
    """Train what was planned, or go on with it; raises as slmx.train.loop.run."""
    ranks.once(lambda: folder.look(planned.options, planned.sources))  # before anything is measured and compiled
    task, options = prepare_lm(planned, ranks, listen)
    return run(task, options, ranks=ranks, stop=stop, listen=listen, trackers=trackers)


def _identity(planned: Planned, settled: settle.Settled) -> dict[str, Any]:
    """All that the weights depend on, by content."""
    options, plan = planned.options, planned.plan
    asked = ("optimizer", "lr", "matrix_lr", "weight_decay", "schedule", "warmup", "decay", "floor", "clip")
    return {
        **{name: getattr(options, name) for name in (*asked, "document_mask", "seed")},
        "shape": {name: getattr(plan.shape, name) for name in plan.shape.__struct_fields__},
        "steps": plan.steps,
        "batch_tokens": plan.batch_tokens,
        "data": content_of(planned.data.train),
        "start": None if planned.start is None else _hash(planned.start),
        "dtype": settled.dtype,
        "attention": settled.attention,
        "micro": settled.micro,
        "compiled": settled.compiled,
    }


def _hash(weights: Mapping[str, Tensor]) -> str:
    return hash_value(
        {name: [float(one.double().sum()), float(one.double().square().sum())] for name, one in weights.items()}
    )


class LmEstimate(Record, frozen=True, omit_defaults=False):
    """What --dry-run shows: the plan, what was settled, and what a few real steps took."""

    plan: LmPlan
    settled: settle.Settled
    seconds_per_step: float
    tokens_per_second: float
    mfu: float
    hours: float
    peak_memory_bytes: int


def estimate_lm(planned: Planned, *, ranks: Ranks, listen: Listener = nobody, steps: int = 3) -> LmEstimate:
    """Take a few real steps in memory, and tell what the whole run will cost; nothing is written."""
    task, options = prepare_lm(planned, ranks, listen)
    seconds, peak = settle.time_steps(task, options, ranks, steps)
    plan = planned.plan
    speed = plan.batch_tokens / seconds
    return LmEstimate(
        plan=plan,
        settled=task.settled,
        seconds_per_step=seconds,
        tokens_per_second=speed,
        mfu=plan.flops_per_token * speed / task.settled.rate / ranks.world if task.settled.rate else 0.0,
        hours=plan.steps * seconds / 3600,
        peak_memory_bytes=peak,
    )


def render_estimate(found: LmEstimate) -> RenderableType:
    """The plan, and what it will cost."""
    settled = found.settled
    stated = (
        f", {100 * found.mfu * settled.rate / settled.datasheet:.0f} % of the datasheet" if settled.datasheet else ""
    )
    time = f"{found.hours:.1f} hours" if found.hours > 1.5 else f"{60 * found.hours:.1f} minutes"
    return (
        f"{render_plan(found.plan)}\n"
        f"settled: {settled.dtype}, attention {settled.attention}, {settled.micro} windows at a time, "
        f"{'compiled' if settled.compiled else 'not compiled'}\n"
        f"speed: {found.seconds_per_step:.2f} s a step, {found.tokens_per_second:,.0f} tokens/s, "
        f"MFU {100 * found.mfu:.0f} % of the {settled.rate / 1e9:,.0f} GFLOP/s measured here{stated}\n"
        f"time: {time} for {found.plan.steps:,} steps; peak memory {found.peak_memory_bytes / (1 << 20):,.0f} MiB\n"
        "Nothing was written. The same command without --dry-run trains."
    )


def render_report(report: LoopReport) -> RenderableType:
    """What came out, and what to type next."""
    scores = "".join(f"  {name.replace('_', ' ')}: {value:.4f}\n" for name, value in report.scores.items())
    skipped = f"  {report.skipped} steps were skipped: loss or gradient was no number\n" if report.skipped else ""
    return (
        f"{report.folder} holds the model after {report.steps:,} steps, {report.tokens:,} tokens, "
        f"{report.seconds:.0f} s ({report.tokens_per_second:,.0f} tokens/s).\n"
        f"  loss {report.first_loss:.4f} → {report.last_loss:.4f} (training_metrics.csv)\n{scores}{skipped}"
        f"Evaluate it: slmx eval run --model {report.folder} --dataset sample"
    )
