"""How fast the chip multiplies matrices: measured here, and as its maker states it, so that MFU has a denominator."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

# bf16 products without sparsity, in operations a second, from the makers' datasheets; the first name that fits counts.
DATASHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,  # fp16
    "T4": 65e12,  # fp16
}
SECONDS = 0.1  # how long a rate is measured


def datasheet(device: torch.device) -> float | None:
    """Operations a second that the maker states for 16-bit products; None for a chip that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in DATASHEET.items() if part in name), None)


@lru_cache(maxsize=16)
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few products in a number type, measured for a moment."""
    size = 4096 if device.type == "cuda" else 512
    shapes = [(4 * size, size, size), (4 * size, size, 4 * size)]
    return max(_rate(device, dtype, *shape) for shape in shapes)


def _rate(device: torch.device, dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(columns, inner, dtype=dtype, device=device)
    a @ b.T  # the first one prepares the kernel
    wait(device)
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        at = time.perf_counter()
        a @ b.T
        wait(device)
        best = max(best, 2 * rows * inner * columns / (time.perf_counter() - at))
    return best


def wait(device: torch.device) -> None:
    """Until a card has done what it was given; a processor has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 where its products are measured clearly faster than fp32's here, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "mps":
        return torch.float32
    faster = matrix_rate(device, torch.bfloat16) > 1.25 * matrix_rate(device, torch.float32)
    return torch.bfloat16 if faster else torch.float32
