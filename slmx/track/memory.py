"""What a run takes: memory, utilisation and energy of this process and its GPUs, in a thread and at marked phases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import psutil

from slmx.track.energy import EnergyMeter
from slmx.track.gpus import MIB, cards_in_use, reset_peaks

Component = Literal["system", "retriever", "model"]
KEYS = ("cpu_ram_used_mb", "gpu_ram_used_mb", "gpu_ram_peak_mb", "reserved_gpu_ram_mb", "gpu_power_draw_w")
RATES = ("cpu_utilization_percent", "gpu_utilization_percent")
CURVES = (*KEYS, *RATES, "energy_joules")
EVERY_SECONDS = 0.5
KEPT = 2000  # samples of the curves; a longer run keeps every second one, then every fourth, …


class MemoryLog:
    """Samples while `sampling()` is open; `mark` adds a line to the log. MiB, watts, percent; 0 without a GPU.

    GPU figures are sums over all cards on which this process holds memory (utilisation: their mean). Processor
    utilisation is that of this process, 100 for each core in full use. Energy is that of slmx.track.energy.
    """

    def __init__(self) -> None:
        self.detailed_log: list[dict[str, Any]] = []
        self.peak_usage: dict[str, float] = dict.fromkeys(KEYS, 0.0)
        self.samples: list[dict[str, float]] = []
        self._process = psutil.Process()
        self._meter = EnergyMeter()
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._cpu = (self._begin, self._cpu_seconds())
        self._rates = {name: [0.0, 0.0] for name in RATES}  # percent × seconds, seconds
        self._every, self._due = 1, 0

    @contextmanager
    def sampling(self) -> Iterator[MemoryLog]:
        """Sample in the background for the length of a block."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(EVERY_SECONDS):
                self._keep(self._sample())

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def mark(self, component: Component, operation: str) -> float:
        """Log the memory at the beginning or end of a phase (`before_generate`, `experiment_end`, …).

        Returns the joules since this log began, so that two marks tell a phase's energy.
        """
        sample = self._sample()
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {key: sample[key] for key in (*KEYS, "energy_joules")}
        self.detailed_log.append({"component": component, "operation": operation, "timestamp": stamp, **known})
        return sample["energy_joules"]

    def fresh(self) -> MemoryLog:
        """A log that begins with this one's lines and has peaks of its own: for one of several runs in a process."""
        log = MemoryLog()
        log.detailed_log = list(self.detailed_log)
        reset_peaks()
        return log

    def energy_source(self) -> str:
        """What energy is counted from: `gpu`, `cpu`, `gpu+cpu`, or `none`, and then all energy is 0."""
        return self._meter.sources()

    def utilization(self) -> dict[str, float]:
        """Means since this log began."""
        return {name: round(sum_ / seconds if seconds else 0.0, 1) for name, (sum_, seconds) in self._rates.items()}

    def latest(self) -> dict[str, float]:
        """The last sample of the thread as curves of a tracker; empty before the first."""
        last = self.samples[-1] if self.samples else {}
        return {f"memory/{key}": last[key] for key in KEYS if key in last} | {
            f"machine/{key}": last[key] for key in (*RATES, "energy_joules") if key in last
        }

    def record(self) -> dict[str, Any]:
        """The content of memory_usage.json; `samples` holds curves over `seconds` since the log began."""
        samples = list(self.samples)  # the thread may go on
        curves = {key: [sample[key] for sample in samples] for key in ("seconds", *CURVES)}
        return {
            "detailed_log": self.detailed_log,
            "peak_usage": self.peak_usage,
            "mean_usage": self.utilization(),
            "energy_source": self.energy_source(),
            "samples": curves,
        }

    def _keep(self, sample: dict[str, float]) -> None:
        self._due += 1
        if self._due % self._every == 0:
            self.samples.append(sample)
            if len(self.samples) >= KEPT:
                self.samples = self.samples[1::2]
                self._every *= 2

    def _sample(self) -> dict[str, float]:
        with self._lock:
            cards = cards_in_use()
            now = time.monotonic()
            told = [card.utilization for card in cards.values() if card.utilization is not None]
            rates = self._utilization(now, sum(told) / len(told) if told else None)
            usage = {
                "cpu_ram_used_mb": self._process.memory_info().rss / MIB,
                "gpu_ram_used_mb": sum(card.allocated for card in cards.values()),
                "gpu_ram_peak_mb": sum(card.peak for card in cards.values()),
                "reserved_gpu_ram_mb": sum(card.reserved for card in cards.values()),
                "gpu_power_draw_w": sum(card.watts or 0.0 for card in cards.values()),
            }
            rounded = {key: round(value, 1) for key, value in (usage | rates).items()}
            for key in KEYS:
                self.peak_usage[key] = max(self.peak_usage[key], rounded[key])
            joules = self._meter.read(cards)
        return {"seconds": round(now - self._begin, 2), **rounded, "energy_joules": round(joules, 2)}

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _utilization(self, now: float, gpu: float | None) -> dict[str, float]:
        """Percent since the last sample, which is added to the means."""
        then, used = self._cpu
        seconds, passed = self._cpu_seconds(), now - then
        self._cpu = (now, seconds)
        rates = {"cpu_utilization_percent": 100 * (seconds - used) / passed if passed > 0 else 0.0}
        if gpu is not None:
            rates["gpu_utilization_percent"] = gpu
        for name, rate in rates.items():
            self._rates[name][0] += rate * passed
            self._rates[name][1] += passed
        return dict.fromkeys(RATES, 0.0) | rates
