"""GPU memory, power and energy are those of the cards in use, whichever they are."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from slmx.track import memory
from slmx.track.memory import KEYS, MemoryLog

MIB = 1 << 20
GPU = ("gpu_ram_used_mb", "gpu_ram_peak_mb", "reserved_gpu_ram_mb", "gpu_power_draw_w")


class Cards:
    """A stand-in for torch.cuda and NVML: each card as (allocated, peak, reserved) in MiB, its watts and joules.

    There is no GPU where the tests run; what stands in is the driver alone.
    """

    def __init__(
        self, *cards: tuple[int, int, int], watts: tuple[float, ...] = (), joules: list[float] | None = None
    ) -> None:
        self.cards, self.watts, self.joules = cards, watts, joules
        self.reset: list[int] = []

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Cards:
        monkeypatch.setitem(sys.modules, "torch.cuda", self)
        monkeypatch.setattr("slmx.track.gpus._handle_of", int)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda card: self._told(self.watts, card))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda card: self._told(self.joules, card))
        rates = lambda card: SimpleNamespace(gpu=50 + card)  # noqa: E731
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", rates)
        return self

    def _told(self, values: Any, card: int) -> int:
        if not values:
            raise pynvml.NVMLError(3)
        return int(1000 * values[card])

    def is_initialized(self) -> bool:
        return True

    def get_device_properties(self, card: int) -> SimpleNamespace:
        return SimpleNamespace(uuid=card)

    def device_count(self) -> int:
        return len(self.cards)

    def memory_allocated(self, card: int) -> int:
        return self.cards[card][0] * MIB

    def max_memory_allocated(self, card: int) -> int:
        return self.cards[card][1] * MIB

    def memory_reserved(self, card: int) -> int:
        return self.cards[card][2] * MIB

    max_memory_reserved = memory_reserved

    def reset_peak_memory_stats(self, card: int) -> None:
        self.reset.append(card)


@pytest.fixture(autouse=True)
def _no_rapl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmx.track.energy.packages", lambda _folder: [])


def marked(log: MemoryLog) -> list[float]:
    log.mark("model", "after_load")
    (line,) = log.record()["detailed_log"]
    assert line["cpu_ram_used_mb"] > 0
    assert {key: log.peak_usage[key] for key in GPU} == {key: line[key] for key in GPU}
    return [line[key] for key in GPU]


def test_the_card_in_use_is_measured_and_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards((0, 0, 0), (5, 7, 8), watts=(30.0, 250.0)).use(monkeypatch)
    assert marked(MemoryLog()) == [5, 7, 8, 250]


def test_several_cards_are_added_and_their_utilization_is_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards((1, 2, 3), (0, 0, 0), (10, 20, 30), watts=(100.0, 7.0, 50.5)).use(monkeypatch)
    log = MemoryLog()
    assert marked(log) == [11, 22, 33, 150.5]
    assert log.utilization()["gpu_utilization_percent"] == 51  # of 50 and 52


def test_a_card_that_does_not_tell_its_power_draws_0(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards((1, 2, 3)).use(monkeypatch)
    log = MemoryLog()
    assert marked(log) == [1, 2, 3, 0]
    assert log.energy_source() == "none"


def test_a_card_with_a_counter_tells_a_phase_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards((1, 2, 3), watts=(100.0,), joules=[5000.0]).use(monkeypatch)
    log = MemoryLog()
    begin = log.mark("model", "before_generate")
    assert cards.joules is not None
    cards.joules[0] += 321.5
    assert log.mark("model", "after_generate") - begin == 321.5
    assert log.energy_source() == "gpu"


def test_a_card_without_a_counter_is_integrated_from_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards((1, 2, 3), watts=(100.0,)).use(monkeypatch)
    clock = iter([0.0, 2.0, 3.0])
    log = MemoryLog()
    monkeypatch.setattr("slmx.track.energy.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert log.mark("model", "before_generate") == 0
    cards.watts = (200.0,)
    assert log.mark("model", "after_generate") == 300  # two seconds at 150 W
    assert log.mark("model", "later") == 500  # and one at 200


@pytest.mark.parametrize("cuda", [None, SimpleNamespace(), SimpleNamespace(is_initialized=lambda: False)])
def test_without_a_card_in_use_all_is_0(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    log = MemoryLog()
    assert marked(log) == [0, 0, 0, 0]
    assert log.energy_source() == "none"


def test_a_fresh_log_keeps_the_lines_and_begins_its_peaks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards((0, 0, 0), (5, 7, 8), watts=(30.0, 250.0)).use(monkeypatch)
    log = MemoryLog()
    log.mark("retriever", "after_search")
    fresh = log.fresh()
    assert fresh.detailed_log == log.detailed_log and fresh.detailed_log is not log.detailed_log
    assert set(fresh.peak_usage.values()) == {0.0}
    assert cards.reset == [1]


def test_sampling_keeps_bounded_curves_and_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EVERY_SECONDS", 0.0005)
    monkeypatch.setattr(memory, "KEPT", 8)
    with MemoryLog().sampling() as log:
        while not log.samples or log.samples[-1]["seconds"] < 0.1:
            sum(range(1000))
    assert "memory" not in {thread.name for thread in threading.enumerate()}
    curves = log.record()["samples"]
    assert 0 < len(curves["seconds"]) < 8 and curves["seconds"] == sorted(curves["seconds"])
    assert set(KEYS) < set(curves)
    assert log.utilization()["cpu_utilization_percent"] > 0
