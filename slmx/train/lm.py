"""`slmx train lm`: a token file in, a small transformer out, as a folder that transformers loads.

planned = plan_lm(LmOptions(data=Path("tokens"), save_dir=Path("runs/lm"), preset="nano-6m", steps=1000))
with joined(["cpu"]) as ranks, stopping() as stop:
    report = train_lm(planned, ranks=ranks, stop=stop)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slmx import presets
from slmx.data.token_files import TokenFile, TokenFolder, open_folder
from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.files import hash_value
from slmx.records import Record
from slmx.signals import Stop
from slmx.track.trackers import NO_TRACKERS, Trackers
from slmx.train import attention, export, optim, parallel, settle, writing
from slmx.train.loop import Batch, LoopOptions, LoopReport, run
from slmx.train.ranks import Ranks
from slmx.train.transformer import Shape, Transformer, count_parameters, flops_per_token
from slmx.train.windows import Windows, spread

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD = 1 << 20  # ids at the beginning and the end of a file without a sidecar that tell it from others


@dataclass(frozen=True)
class LmOptions:
    """What the command line asks for; the defaults are those of the command.

    `steps`, `tokens` and `epochs` are three ways to say how long; none: one epoch. None elsewhere: `batch_tokens` and
    `context` of the preset, `micro_tokens` what suits the device, intervals a tenth of the steps,
    10 at least.
    """

    data: Path
    save_dir: Path
    preset: str = ""
    init_from: Path | None = None
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    batch_tokens: int | None = None
    micro_tokens: int | None = None
    context: int | None = None
    optimizer: str = "muon"
    lr: float | None = None
    matrix_lr: float = 0.02
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: float = 0.02
    decay: float = 0.4
    floor: float = 0.0
    clip: float = 1.0
    document_mask: bool = True
    attention: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    compile: bool | None = None
    strategy: str = "ddp"
    val_tokens: int = 65_536
    val_interval: int | None = None
    save_interval: int | None = None
    sample_interval: int | None = None
    log_interval: int = 10
    keep: int = 2
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    command: str = ""


class LmPlan(Record, frozen=True, omit_defaults=False):
    """What will be trained. `memory_bytes`: weights, gradients and the optimizer's state, without activations.

    `flops_per_token` are those of a training step, `val_tokens` 0 where there is nothing to validate on.
    """

    model: str
    shape: Shape
    parameters: int
    train_tokens: int
    val_tokens: int
    bytes_per_token: float | None
    batch_tokens: int
    steps: int
    tokens: int
    epochs: float
    memory_bytes: int
    flops_per_token: int


@dataclass(frozen=True)
class Planned:
    """A plan with everything opened; `start` are the weights of --init-from."""

    options: LmOptions
    plan: LmPlan
    data: TokenFolder
    windows: Windows
    start: Mapping[str, Tensor] | None


def plan_lm(options: LmOptions) -> Planned:
    """Open the data, choose the shape, and check that they fit.

    Raises:
        UsageError: options that contradict each other or the data.
        SlmxError: data that cannot be used, or too little of it for one batch.
    """
    _check(options)
    start, batch_tokens = None, None
    if options.init_from is not None:
        shape, start = export.load_model(options.init_from)
        name = options.init_from.name
        data = open_folder(options.data, vocab_size=shape.vocab_size)
        _same_vocabulary(data.train, shape, options.init_from)
    else:
        name, preset = presets.get(presets.TransformerPreset, options.preset)
        data = open_folder(options.data, vocab_size=preset.vocab_size)
        shape, batch_tokens = _shape(preset, data.train.vocab_size or preset.vocab_size), preset.batch_tokens
    context = options.context or shape.context
    shape = _with_context(shape, context)
    batch = _windows_a_step(options.batch_tokens or batch_tokens or 16 * context, context)
    windows = Windows(data.train, length=context, batch=batch, seed=options.seed)
    steps = _steps(options, windows)
    plan = LmPlan(
        model=name,
        shape=shape,
        parameters=count_parameters(shape),
        train_tokens=len(data.train),
        val_tokens=min(options.val_tokens, len(data.val)) if data.val and options.val_tokens else 0,
        bytes_per_token=data.train.bytes_per_token,
        batch_tokens=batch * context,
        steps=steps,
        tokens=steps * batch * context,
        epochs=windows.epochs(steps),
        memory_bytes=count_parameters(shape) * (12 if options.optimizer == "muon" else 16),
        flops_per_token=flops_per_token(shape, context),
    )
    return Planned(options, plan, data, windows, start)


def _check(options: LmOptions) -> None:
    from slmx.registry import unknown_name

    if bool(options.preset) == (options.init_from is not None):
        raise UsageError(
            "--preset makes a new model, --init-from goes on with one: give one of them.",
            hint=f"Presets: {', '.join(presets.load('transformers'))}.",
        )
    if sum(one is not None for one in (options.steps, options.tokens, options.epochs)) > 1:
        raise UsageError("--steps, --tokens and --epochs all say how long.", hint="Give one of them.")
    for kind, name, known in (
        ("schedule", options.schedule, optim.SCHEDULES),
        ("optimizer", options.optimizer, optim.OPTIMIZERS),
        ("attention back end", options.attention, ("auto", *attention.BACKENDS)),
        ("strategy", options.strategy, parallel.STRATEGIES),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)


def _shape(preset: presets.TransformerPreset, vocab_size: int) -> Shape:
    said = preset.model_dump(exclude={"about", "aliases", "batch_tokens"})
    return Shape(**{**said, "vocab_size": vocab_size, "kv_heads": preset.kv_heads or preset.heads})


def _with_context(shape: Shape, context: int) -> Shape:
    import msgspec

    return msgspec.structs.replace(shape, context=context)


def _same_vocabulary(file: TokenFile, shape: Shape, start: Path) -> None:
    if file.sidecar and file.sidecar.vocab_size != shape.vocab_size:
        raise UsageError(
            f"{file.path} has {file.sidecar.vocab_size:,} token types and {start} {shape.vocab_size:,}.",
            hint="Prepare the data with the tokenizer of that model.",
        )


def _windows_a_step(batch_tokens: int, context: int) -> int:
    if batch_tokens % context:
        raise UsageError(
            f"--batch-tokens {batch_tokens:,} is no multiple of the context of {context:,} tokens.",
            hint=f"--batch-tokens {max(1, round(batch_tokens / context)) * context}",
        )
    return batch_tokens // context


def _steps(options: LmOptions, windows: Windows) -> int:
    if options.steps is not None:
        return options.steps
    if options.tokens is not None:
        return max(1, round(options.tokens / (windows.batch_size * windows.length)))
    return max(1, round((options.epochs or 1.0) * windows.count / windows.batch_size))


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
        tokenizer = self.planned.data.tokenizer
        if tokenizer is None:
            return ""
        end = self.planned.data.train.end_of_text
        begin = [end] if end is not None else self.planned.data.train.read(0, 8).tolist()
        with settle.eagerly():
            return writing.write(self.model, begin, tokenizer, stop=end, seed=self.planned.options.seed + step)

    def save_model(self, to: Path, weights: Mapping[str, Tensor]) -> None:
        """The folder that transformers loads."""
        data = self.planned.data
        export.save_model(
            to, self.planned.plan.shape, weights, end_of_text=data.train.end_of_text, tokenizer=data.tokenizer
        )


def prepare_lm(planned: Planned, ranks: Ranks, listen: Listener = nobody) -> tuple[LmTask, LoopOptions]:
    """What the loop needs: the model on its device, what was measured and settled for it, and how long.

    Raises:
        UsageError: the batch cannot be shared by so many processes.
    """
    options, plan = planned.options, planned.plan
    listen = listen if ranks.main else nobody
    share = planned.windows.batch(0, ranks.rank, ranks.world)
    before = settle.remembered(options.save_dir) if options.resume else None
    settled = before or ranks.once(lambda: settle.choose(options, plan.shape, len(share), ranks.device))
    task = LmTask(planned, settled, ranks)
    if before is None:
        settled = settle.compile_if_it_pays(task, settled, options.compile, plan.steps, len(share), ranks, listen)
    elif settled.compiled:
        task.model.compile_layers()
    task.settled = settled
    every = max(10, plan.steps // 10)
    made = LoopOptions(
        save_dir=options.save_dir,
        steps=plan.steps,
        identity=_identity(planned, settled),
        optimizer=options.optimizer,
        lr=options.lr if options.lr is not None else settle.learning_rate(plan.shape, options.optimizer),
        matrix_lr=options.matrix_lr,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        warmup=options.warmup,
        decay=options.decay,
        floor=options.floor,
        clip=options.clip,
        compute=task.model.compute,
        log_every=options.log_interval,
        validate_every=every if options.val_interval is None else options.val_interval,
        save_every=every if options.save_interval is None else options.save_interval,
        sample_every=every if options.sample_interval is None else options.sample_interval,
        keep=options.keep,
        resume=options.resume,
        overwrite=options.overwrite,
        strategy=options.strategy,
        flops_per_token=plan.flops_per_token,
        rate=settled.rate,
        configuration={"command": options.command, "plan": plan, "settled": settled},
    )
    return task, made


def train_lm(
    planned: Planned, *, ranks: Ranks, stop: Stop, listen: Listener = nobody, trackers: Trackers = NO_TRACKERS
) -> LoopReport:
    """Train what was planned, or go on with it; raises as slmx.train.loop.run."""
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


def content_of(file: TokenFile) -> str:
    """A hash of what a token file holds: its sidecar, or its length, beginning and end."""
    if file.sidecar:
        return hash_value(file.sidecar)
    ends = [file.ids[:HEAD].tobytes(), file.ids[-HEAD:].tobytes()]
    return hash_value([len(file), *(hash_value(end) for end in ends)])


def _hash(weights: Mapping[str, Tensor]) -> str:
    return hash_value(
        {name: [float(one.double().sum()), float(one.double().square().sum())] for name, one in weights.items()}
    )


def render_plan(plan: LmPlan) -> RenderableType:
    """What will be trained, in four lines."""
    shape = plan.shape
    heads = f"{shape.heads} heads" + (f" over {shape.kv_heads} keys" if shape.kv_heads != shape.heads else "")
    extra = ", QK norm" if shape.qk_norm else ""
    val = f"{plan.val_tokens:,} tokens of val.bin" if plan.val_tokens else "nothing to validate on"
    return (
        f"{plan.model}: {plan.parameters:,} parameters, {shape.layers} layers × {shape.dim}, {heads}, "
        f"{shape.activation} {shape.hidden}{extra}, context {shape.context}, vocabulary {shape.vocab_size:,}\n"
        f"data: {plan.train_tokens:,} tokens to train on; {val}\n"
        f"length: {plan.steps:,} steps of {plan.batch_tokens:,} tokens = {plan.tokens:,} tokens, "
        f"{plan.epochs:.2f} epochs\n"
        f"memory: {plan.memory_bytes / (1 << 20):,.0f} MiB without activations; "
        f"{plan.flops_per_token / 1e6:,.1f} million operations a token"
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
        mfu=plan.flops_per_token * speed / task.settled.rate if task.settled.rate else 0.0,
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
