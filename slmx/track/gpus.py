"""What the GPUs that this process uses are doing, through torch (memory) and NVML (power, energy, utilisation)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Card:
    """One card now. MiB, watts, joules since its driver was loaded, percent; None where it does not tell."""

    allocated: float
    peak: float
    reserved: float
    watts: float | None
    joules: float | None
    utilization: float | None


def cuda_in_use() -> Any:
    """torch.cuda where this process uses a GPU, else None; torch is not loaded for this, and may be half loaded."""
    cuda = sys.modules.get("torch.cuda")
    initialized = getattr(cuda, "is_initialized", None)
    return cuda if initialized is not None and initialized() else None


def cards_in_use() -> dict[str, Card]:
    """The cards on which torch has held memory in this process, whichever `--device` named; by torch's number."""
    cuda = cuda_in_use()
    if cuda is None:
        return {}
    found = {}
    for number in range(cuda.device_count()):
        if not cuda.max_memory_reserved(number):
            continue
        handle = _handle(cuda, number)
        found[str(number)] = Card(
            allocated=cuda.memory_allocated(number) / MIB,
            peak=cuda.max_memory_allocated(number) / MIB,
            reserved=cuda.memory_reserved(number) / MIB,
            watts=_ask(handle, lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) / 1000),
            joules=_ask(handle, lambda nvml, card: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000),
            utilization=_ask(handle, lambda nvml, card: float(nvml.nvmlDeviceGetUtilizationRates(card).gpu)),
        )
    return found


def reset_peaks() -> None:
    """Begin the peaks of torch's memory anew on the cards in use."""
    cuda = cuda_in_use()
    if cuda is not None:
        for number in range(cuda.device_count()):
            if cuda.max_memory_reserved(number):
                cuda.reset_peak_memory_stats(number)


def _handle(cuda: Any, number: int) -> Any:
    """NVML's handle of a card, found by its UUID: torch's numbers depend on CUDA_VISIBLE_DEVICES, NVML's do not."""
    return _handle_of(str(cuda.get_device_properties(number).uuid))


@lru_cache(maxsize=64)
def _handle_of(uuid: str) -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except pynvml.NVMLError:  # a machine without NVML, or a card that it does not know (AMD's)
        return None


def _ask(handle: Any, question: Callable[[Any, Any], float]) -> float | None:
    """One figure of a card; None where it does not tell."""
    if handle is None:
        return None
    import pynvml

    try:
        return question(pynvml, handle)
    except pynvml.NVMLError:
        return None
