"""What a run takes: resident memory of this process, GPU memory and power, sampled in a thread and at marked phases."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import psutil

Component = Literal["system", "retriever", "model"]
KEYS = ("cpu_ram_used_mb", "gpu_ram_used_mb", "gpu_ram_peak_mb", "reserved_gpu_ram_mb", "gpu_power_draw_w")
MIB = 1 << 20
EVERY_SECONDS = 0.5


class MemoryLog:
    """Samples while `sampling()` is open; `mark` adds a line to the log. Units: MiB and watts; 0 without a GPU.

    GPU figures are sums over all cards on which this process holds memory, whichever `--device` named.
    """

    def __init__(self) -> None:
        self.detailed_log: list[dict[str, Any]] = []
        self.peak_usage: dict[str, float] = dict.fromkeys(KEYS, 0.0)
        self._process = psutil.Process()

    @contextmanager
    def sampling(self) -> Iterator[MemoryLog]:
        """Sample in the background for the length of a block."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(EVERY_SECONDS):
                self._sample()

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def mark(self, component: Component, operation: str) -> None:
        """Log the memory at the beginning or end of a phase (`before_generate`, `experiment_end`, …)."""
        sample = self._sample()
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.detailed_log.append({"component": component, "operation": operation, "timestamp": stamp, **sample})

    def fresh(self) -> MemoryLog:
        """A log that begins with this one's lines and has peaks of its own: for one of several runs in a process."""
        log = MemoryLog()
        log.detailed_log = list(self.detailed_log)
        if (cuda := _cuda_in_use()) is not None:
            for card in _cards(cuda):
                cuda.reset_peak_memory_stats(card)
        return log

    def record(self) -> dict[str, Any]:
        """The content of memory_usage.json."""
        return {"detailed_log": self.detailed_log, "peak_usage": self.peak_usage}

    def _sample(self) -> dict[str, float]:
        now = dict.fromkeys(KEYS, 0.0)
        now["cpu_ram_used_mb"] = self._process.memory_info().rss / MIB
        if (cuda := _cuda_in_use()) is not None:
            for card in _cards(cuda):
                now["gpu_ram_used_mb"] += cuda.memory_allocated(card) / MIB
                now["gpu_ram_peak_mb"] += cuda.max_memory_allocated(card) / MIB
                now["reserved_gpu_ram_mb"] += cuda.memory_reserved(card) / MIB
                now["gpu_power_draw_w"] += _power(cuda, card)
        rounded = {key: round(value, 1) for key, value in now.items()}
        for key, value in rounded.items():
            self.peak_usage[key] = max(self.peak_usage[key], value)
        return rounded


def _cuda_in_use() -> Any:
    """torch.cuda where this process uses a GPU, else None; torch is not loaded for this, and may be half loaded."""
    cuda = sys.modules.get("torch.cuda")
    initialized = getattr(cuda, "is_initialized", None)
    return cuda if initialized is not None and initialized() else None


def _cards(cuda: Any) -> list[int]:
    """The cards that this process uses: those on which torch has held memory."""
    return [card for card in range(cuda.device_count()) if cuda.max_memory_reserved(card)]


def _power(cuda: Any, card: int) -> float:
    """The draw of a card in watts; 0 where it cannot be had. torch knows which card NVML means by another number."""
    from pynvml import NVMLError

    try:
        return float(cuda.power_draw(card)) / 1000
    except (NVMLError, RuntimeError, ImportError):  # some cards do not tell, some machines have no NVML
        return 0.0
