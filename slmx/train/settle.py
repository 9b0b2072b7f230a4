"""What a run settles by measuring, once: number type, attention, windows at a time, and whether to compile.

A run that goes on takes what its beginning settled (run.json), since other choices give other last bits.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from slmx.errors import UsageError
from slmx.events import Listener, Notice
from slmx.files import read_json
from slmx.models.device import dtype_name, pick_dtype
from slmx.records import Record
from slmx.train import attention, optim, rates
from slmx.train.folder import RUN_FILE
from slmx.train.ranks import Ranks
from slmx.train.transformer import Shape, flops_per_token

if TYPE_CHECKING:
    from slmx.train.lm import LmTask
    from slmx.train.lm_plan import LmOptions
    from slmx.train.loop_options import LoopOptions

MICRO_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65_536}  # at a time, at most: a processor's caches are small
PAYS_FROM = 60.0  # seconds of uncompiled work that are left, for the wait to pay
PLAIN_SHARE = 0.35  # of the measured rate of products, without compiling
WORTH_TIMING = 3.0  # seconds: a longer piece is compiled without a comparison


class Settled(Record, frozen=True, omit_defaults=False):
    """How the work is done: `micro` windows at a time, `rate` operations a second measured, `datasheet` as stated.

    `micro_tokens` is what was asked for, None: nothing.
    """

    dtype: str
    attention: str
    micro: int
    compiled: bool
    rate: float
    datasheet: float | None = None
    micro_tokens: int | None = None


def remembered(save_dir: Path) -> Settled | None:
    """What the beginning of a run settled; None where that is not known."""
    path = save_dir / RUN_FILE
    said = read_json(path) if path.is_file() else {}
    found = said.get("settled") if isinstance(said, dict) else None
    return msgspec.convert(found, Settled) if found else None


def check_same(settled: Settled, options: LmOptions, shape: Shape, share: int, device: torch.device) -> None:
    """Is what was asked for now, when a run goes on, what it was begun with? UsageError names what is not."""
    other: dict[str, object] = {}
    if options.dtype != "auto" and dtype_name(pick_dtype(options.dtype, device)) != settled.dtype:
        other[f"--dtype {options.dtype}"] = settled.dtype
    if options.attention not in ("auto", settled.attention):
        other[f"--attention {options.attention}"] = settled.attention
    tokens = options.micro_tokens
    if tokens and tokens != settled.micro_tokens and _divisor(share, tokens // shape.context) != settled.micro:
        other[f"--micro-tokens {tokens}"] = settled.micro * shape.context
    if options.compile not in (None, settled.compiled):
        other["--compile" if options.compile else "--no-compile"] = "compiled" if settled.compiled else "not compiled"
    if other:
        said = ", ".join(f"{asked} (it has {had})" for asked, had in other.items())
        raise UsageError(
            f"The run that --resume goes on with was begun otherwise: {said}.",
            hint="Leave that out, or begin anew in another --save-dir: other choices give other last bits.",
        )


def _divisor(share: int, most: int) -> int:
    """The largest divisor of `share` that is at most `most`, at least 1."""
    return max(size for size in range(1, max(1, min(most, share)) + 1) if share % size == 0)


def choose(options: LmOptions, shape: Shape, share: int, device: torch.device) -> Settled:
    """Number type by the measured rate of products, attention and windows at a time by the device.

    Args:
        share: windows a step of this process; `micro` divides it, so that all pieces have one size.
    """
    dtype = rates.fastest_dtype(device) if options.dtype == "auto" else pick_dtype(options.dtype, device)
    if dtype == torch.float16:
        raise UsageError(
            "float16 gradients need a scale that `slmx train lm` does not keep.", hint="Use --dtype float32."
        )
    wanted = (options.micro_tokens or _micro_tokens(shape, device)) // shape.context
    backend = options.attention
    if backend == "auto":
        backend = attention.best_backend(device, shape.context, compiled=options.compile is not False)
    attention.check_backward(backend, device)
    return Settled(
        dtype=dtype_name(dtype),
        attention=backend,
        micro=_divisor(share, wanted),
        compiled=False,
        rate=rates.matrix_rate(device, dtype),
        datasheet=rates.datasheet(device),
        micro_tokens=options.micro_tokens,
    )


def _micro_tokens(shape: Shape, device: torch.device) -> int:
    """Tokens at a time; on a card as many as half of its free memory holds activations of."""
    most = MICRO_TOKENS[device.type]
    if device.type != "cuda":
        return most
    a_token = 2 * shape.layers * (30 * shape.dim + 6 * shape.hidden)
    return max(shape.context, min(most, torch.cuda.mem_get_info(device)[0] // 2 // a_token))


def learning_rate(shape: Shape, optimizer: str) -> float:
    """AdamW's highest rate where none is given: narrower models take larger ones, and so do embeddings alone."""
    return (6e-3 if optimizer == "muon" else 2e-3) * math.sqrt(256 / shape.dim)


def compile_if_it_pays(task: LmTask, settled: Settled, share: int, ranks: Ranks, listen: Listener) -> Settled:
    """Compile the layers where that is asked for, or where it saves more than it costs; says what it waits for.

    Without a word from the user it is compiled where a compiler is at hand and much work is left, and it stays so where
    that is measured faster. Processes decide as one. What is not compiled has the attention that is best without.
    """
    options, steps = task.planned.options, task.planned.plan.steps
    shape, pieces, wanted = task.planned.plan.shape, share / settled.micro, options.compile
    uncompiled = settled
    if options.attention == "auto":
        best = attention.best_backend(ranks.device, shape.context, compiled=False)
        uncompiled = msgspec.structs.replace(settled, attention=best)
    work = flops_per_token(shape, shape.context) * settled.micro * shape.context
    guess = work / (PLAIN_SHARE * settled.rate)
    pays = ranks.highest(int(1000 * guess * pieces * steps)) > 1000 * PAYS_FROM
    if wanted is False or (wanted is None and not (pays and _can_compile(ranks.device, listen))):
        return uncompiled
    task.settled = uncompiled
    plain = _piece_seconds(task) if ranks.highest(int(1000 * guess)) < 1000 * WORTH_TIMING else None
    task.settled = settled
    listen(Notice("Compiling the layers: up to a minute the first time, seconds when the same was compiled before."))
    began = time.perf_counter()
    task.model.compile_layers()
    try:
        fast = _piece_seconds(task, once=plain is None)
    except Exception as error:  # whatever a compiler throws: the run goes on without it
        task.model.compile_layers(False)
        if wanted:
            raise
        said = str(error).partition("\n")[0][:150] or type(error).__name__
        listen(Notice(f"Compiling failed, and is left out ({said}).", "warning"))
        return uncompiled
    took = time.perf_counter() - began
    if plain is None:
        listen(Notice(f"Compiled in {took:.0f} s."))
        return msgspec.structs.replace(settled, compiled=True)
    if wanted is None and ranks.highest(int(1e6 * fast)) > ranks.highest(int(1e6 * plain)):
        task.model.compile_layers(False)
        listen(Notice(f"Compiled in {took:.0f} s; it is not faster here, and left out."))
        return uncompiled
    listen(Notice(f"Compiled in {took:.0f} s: a step takes {fast * pieces:.2f} s instead of {plain * pieces:.2f} s."))
    return msgspec.structs.replace(settled, compiled=True)


def _can_compile(device: torch.device, listen: Listener) -> bool:
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("c++")):
        listen(Notice("No C++ compiler is here, so nothing is compiled; with one, steps take about half the time."))
        return False
    return device.type != "mps"


def _piece_seconds(task: LmTask, *, once: bool = False) -> float:
    """Forward and backward of one piece, the better of two after one that warms up; gradients are forgotten.

    `once`: that first one alone, which compiles, and no time.
    """
    batch = task.batches(0)[0].to(task.ranks.device)
    best = float("inf")
    for number in range(1 if once else 3):
        at = time.perf_counter()
        (task.loss(task.model, batch) / batch.targets.numel()).backward()  # type: ignore[no-untyped-call]
        rates.wait(task.ranks.device)
        best = min(best, time.perf_counter() - at) if number else best
    task.model.zero_grad(set_to_none=True)
    return best


def time_steps(task: LmTask, options: LoopOptions, ranks: Ranks, steps: int) -> tuple[float, int]:
    """Seconds a step (the median of some, after one that warms up) and the peak memory in bytes."""
    import psutil

    named = list(task.model.named_parameters())
    optimizers = optim.optimizers_for(
        named,
        kind=options.optimizer,
        lr=options.lr,
        matrix_lr=options.matrix_lr,
        weight_decay=options.weight_decay,
        compute=options.compute,
    )
    taken, peak = [], 0
    for step in range(steps + 1):
        at = time.perf_counter()
        for batch in task.batches(step):
            moved = batch.to(ranks.device)
            (task.loss(task.model, moved) / options.steps).backward()  # type: ignore[no-untyped-call]
            peak = max(peak, psutil.Process().memory_info().rss)
        torch.nn.utils.clip_grad_norm_([weight for _, weight in named], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        task.model.zero_grad(set_to_none=True)
        rates.wait(ranks.device)
        taken.append(time.perf_counter() - at)
    if ranks.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(ranks.device)
    return sorted(taken[1:])[len(taken[1:]) // 2], peak


@contextmanager
def eagerly() -> Iterator[None]:
    """Nothing is compiled for the shapes of this block: validation and samples are short."""
    with torch.compiler.set_stance("force_eager"):
        yield
