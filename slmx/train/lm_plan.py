"""The plan of `slmx train lm`: everything that can be wrong is found here, before a weight moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from torch import Tensor

from slmx import presets
from slmx.data.token_files import TokenFile, TokenFolder, open_folder
from slmx.errors import UsageError
from slmx.events import Listener, Notice, nobody
from slmx.files import hash_value
from slmx.models.tokenizers import FILE as TOKENIZER_FILE, Tokenizer, load_tokenizer
from slmx.records import Record
from slmx.registry import unknown_name
from slmx.train import attention, export, parallel
from slmx.train.loop_options import CausalOptions, check
from slmx.train.transformer import Shape, count_matrices, count_parameters, flops_per_token
from slmx.train.windows import Windows

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD = 1 << 20  # ids at the beginning and the end of a file without a sidecar that tell it from others


@dataclass(frozen=True, kw_only=True)
class LmOptions(CausalOptions):
    """What the command line asks for; the defaults are those of the command.

    `tokens` is a third way to say how long; none of them: one epoch. None elsewhere: `batch_tokens` and `context` of
    the preset, `micro_tokens` what suits the device, `lr` what suits the width.
    """

    data: Path
    preset: str = ""
    init_from: Path | None = None
    tokens: int | None = None
    batch_tokens: int | None = None
    micro_tokens: int | None = None
    context: int | None = None
    optimizer: str = "muon"
    matrix_lr: float = 0.02
    weight_decay: float = 0.1
    schedule: str = "wsd"
    warmup: float = 0.02
    decay: float = 0.4
    floor: float = 0.0
    document_mask: bool = True
    compile: bool | None = None
    strategy: str = "ddp"
    val_tokens: int = 65_536


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
    """A plan with everything opened; `start` are the weights of --init-from.

    `tokenizer` is saved with the model: that of the data, else that of --init-from, None where neither has one.
    """

    options: LmOptions
    plan: LmPlan
    data: TokenFolder
    windows: Windows
    start: Mapping[str, Tensor] | None
    tokenizer: Tokenizer | None

    @property
    def sources(self) -> tuple[Path, ...]:
        """The data and the model that the run is made from."""
        options = self.options
        return (options.data,) if options.init_from is None else (options.data, options.init_from)


def plan_lm(options: LmOptions, listen: Listener = nobody) -> Planned:
    """Open the data, choose the shape, and check that they fit.

    Raises:
        UsageError: options that contradict each other or the data.
        SlmxError: data that cannot be used, or too little of it for one batch.
    """
    _check(options)
    start, batch_tokens, tokenizer = None, None, None
    if options.init_from is not None:
        shape, start = export.load_model(options.init_from)
        name = options.init_from.name
        if (options.init_from / TOKENIZER_FILE).is_file():
            tokenizer = load_tokenizer(options.init_from)
        known = tokenizer.hash if tokenizer else ""
        data = open_folder(options.data, vocab_size=shape.vocab_size, tokenizer_hash=known)
        _within_vocabulary(data, shape, options.init_from)
    else:
        name, preset = presets.get(presets.TransformerPreset, options.preset)
        data = open_folder(options.data, vocab_size=preset.vocab_size)
        shape, batch_tokens = _shape(preset, data.train.vocab_size or preset.vocab_size), preset.batch_tokens
    for file in (data.train, data.val):
        if file is not None and file.sidecar is None:  # nobody has looked at its ids yet
            file.check()
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
        val_tokens=_val_tokens(options, data.val, context, listen),
        bytes_per_token=data.train.bytes_per_token,
        batch_tokens=batch * context,
        steps=steps,
        tokens=steps * batch * context,
        epochs=windows.epochs(steps),
        memory_bytes=_memory_bytes(shape, options.optimizer),
        flops_per_token=flops_per_token(shape, context),
    )
    tokenizer = load_tokenizer(data.tokenizer) if data.tokenizer else tokenizer
    return Planned(options, plan, data, windows, start, tokenizer)


def _check(options: LmOptions) -> None:
    if bool(options.preset) == (options.init_from is not None):
        raise UsageError(
            "--preset makes a new model, --init-from goes on with one: give one of them.",
            hint=f"Presets: {', '.join(presets.load('transformers'))}.",
        )
    if sum(one is not None for one in (options.steps, options.tokens, options.epochs)) > 1:
        raise UsageError("--steps, --tokens and --epochs all say how long.", hint="Give one of them.")
    check(options, attention.BACKENDS)
    if options.strategy not in parallel.STRATEGIES:
        raise unknown_name("strategy", options.strategy, parallel.STRATEGIES)


def _shape(preset: presets.TransformerPreset, vocab_size: int) -> Shape:
    said = preset.model_dump(exclude={"about", "aliases", "batch_tokens"})
    return Shape(**{**said, "vocab_size": vocab_size, "kv_heads": preset.kv_heads or preset.heads})


def _with_context(shape: Shape, context: int) -> Shape:
    return msgspec.structs.replace(shape, context=context)


def _within_vocabulary(data: TokenFolder, shape: Shape, start: Path) -> None:
    """A model may have more rows than its tokenizer types (they are often padded), but not fewer."""
    for file in (data.train, data.val):
        if file and file.sidecar and file.sidecar.vocab_size > shape.vocab_size:
            raise UsageError(
                f"{file.path} has {file.sidecar.vocab_size:,} token types and {start} {shape.vocab_size:,}.",
                hint="Prepare the data with the tokenizer of that model.",
            )


def _val_tokens(options: LmOptions, val: TokenFile | None, context: int, listen: Listener) -> int:
    if val is None or not options.val_tokens:
        return 0
    if len(val) <= context:
        said = (
            f"{val.path} has {len(val):,} tokens, less than a window of {context} and its target: nothing is validated."
        )
        listen(Notice(said, "warning"))
        return 0
    return min(options.val_tokens, len(val))


def _memory_bytes(shape: Shape, optimizer: str) -> int:
    """In fp32: weight, gradient and AdamW's two moments; Muon keeps one, of matrices alone: the rest is AdamW's."""
    return 16 * count_parameters(shape) - (4 * count_matrices(shape) if optimizer == "muon" else 0)


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


def content_of(file: TokenFile) -> str:
    """A hash of what a token file holds: its sidecar, or its length, beginning and end."""
    if file.sidecar:
        return hash_value(file.sidecar)
    ends = [file.ids[:HEAD].tobytes(), file.ids[-HEAD:].tobytes()]
    return hash_value([len(file), *(hash_value(end) for end in ends)])


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
