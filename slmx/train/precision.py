"""Which number type training multiplies in; weights, optimizer, pooling and similarity are fp32 whatever it is."""

from __future__ import annotations

import torch

from slmx.errors import UsageError
from slmx.models.device import has_bf16


def pick_precision(device: torch.device, *, bf16: bool | None, fp16: bool) -> torch.dtype:
    """bf16 or fp16 where asked for; else bf16 where the device multiplies it, and fp32 elsewhere.

    Raises:
        UsageError: both at once, or fp16 without a GPU.
    """
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 are two number types.", hint="Give one of them.")
    if fp16 and device.type != "cuda":
        raise UsageError(f"--fp16 needs a CUDA device; this run is on {device.type}.", hint="Use --bf16, or neither.")
    if fp16:
        return torch.float16
    chosen = has_bf16(device) if bf16 is None else bf16
    return torch.bfloat16 if chosen else torch.float32
