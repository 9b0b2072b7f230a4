"""What a run takes: resident memory of this process, GPU memory and power, sampled in a thread and at marked phases."""

from __future__ import annotations

import contextlib
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
    """Samples while `sampling()` is open; `mark` adds a line to the log. Units: MiB and watts; 0 without a GPU."""

    def __init__(self) -> None:
        self.detailed_log: list[dict[str, Any]] = []
        self.peak_usage: dict[str, float] = dict.fromkeys(KEYS, 0.0)
        self._process = psutil.Process()
        self._power = _power_meter()

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
            cuda.reset_peak_memory_stats()
        return log

    def record(self) -> dict[str, Any]:
        """The content of memory_usage.json."""
        return {"detailed_log": self.detailed_log, "peak_usage": self.peak_usage}

    def _sample(self) -> dict[str, float]:
        now = dict.fromkeys(KEYS, 0.0)
        now["cpu_ram_used_mb"] = self._process.memory_info().rss / MIB
        if (cuda := _cuda_in_use()) is not None:
            now["gpu_ram_used_mb"] = cuda.memory_allocated() / MIB
            now["gpu_ram_peak_mb"] = cuda.max_memory_allocated() / MIB
            now["reserved_gpu_ram_mb"] = cuda.memory_reserved() / MIB
            now["gpu_power_draw_w"] = self._power()
        rounded = {key: round(value, 1) for key, value in now.items()}
        for key, value in rounded.items():
            self.peak_usage[key] = max(self.peak_usage[key], value)
        return rounded


def _cuda_in_use() -> Any:
    """torch.cuda where this process uses a GPU, else None; torch is not loaded for this, and may be half loaded."""
    cuda = sys.modules.get("torch.cuda")
    initialized = getattr(cuda, "is_initialized", None)
    return cuda if initialized is not None and initialized() else None


def _power_meter() -> Any:
    """A function that tells the draw of the first GPU in watts; 0 where NVML or a GPU is missing."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)

        def draw() -> float:
            try:
                return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
            except pynvml.NVMLError:  # some cards do not tell
                return 0.0

        return draw
    return lambda: 0.0
