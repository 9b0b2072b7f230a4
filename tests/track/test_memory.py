"""GPU memory and power are those of the cards in use, whichever they are."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pynvml import NVMLError

from slmx.track.memory import MIB, MemoryLog

GPU = ("gpu_ram_used_mb", "gpu_ram_peak_mb", "reserved_gpu_ram_mb", "gpu_power_draw_w")


class Cards:
    """A stand-in for torch.cuda: each card as (allocated, peak, reserved) in MiB and its draw in watts."""

    def __init__(self, *cards: tuple[int, int, int], watts: tuple[float, ...] = ()) -> None:
        self.cards = cards
        self.watts = watts
        self.reset: list[int] = []

    def is_initialized(self) -> bool:
        return True

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

    def power_draw(self, card: int) -> float:
        if not self.watts:
            raise NVMLError(3)
        return 1000 * self.watts[card]


def marked(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> list[float]:
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    log = MemoryLog()
    log.mark("model", "after_load")
    (line,) = log.record()["detailed_log"]
    assert line["cpu_ram_used_mb"] > 0
    assert {key: log.peak_usage[key] for key in GPU} == {key: line[key] for key in GPU}
    return [line[key] for key in GPU]


def test_the_card_in_use_is_measured_and_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert marked(monkeypatch, Cards((0, 0, 0), (5, 7, 8), watts=(30.0, 250.0))) == [5, 7, 8, 250]


def test_several_cards_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards((1, 2, 3), (0, 0, 0), (10, 20, 30), watts=(100.0, 7.0, 50.5))
    assert marked(monkeypatch, cards) == [11, 22, 33, 150.5]


def test_a_card_that_does_not_tell_its_power_draws_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert marked(monkeypatch, Cards((1, 2, 3))) == [1, 2, 3, 0]


@pytest.mark.parametrize("cuda", [None, SimpleNamespace(), SimpleNamespace(is_initialized=lambda: False)])
def test_without_a_card_in_use_all_is_0(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    assert marked(monkeypatch, cuda) == [0, 0, 0, 0]


def test_a_fresh_log_keeps_the_lines_and_begins_its_peaks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards((0, 0, 0), (5, 7, 8), watts=(30.0, 250.0))
    monkeypatch.setitem(sys.modules, "torch.cuda", cards)
    log = MemoryLog()
    log.mark("retriever", "after_search")
    fresh = log.fresh()
    assert fresh.detailed_log == log.detailed_log and fresh.detailed_log is not log.detailed_log
    assert set(fresh.peak_usage.values()) == {0.0}
    assert cards.reset == [1]


def test_sampling_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmx.track.memory.EVERY_SECONDS", 0.001)
    with MemoryLog().sampling() as log:
        while not log.peak_usage["cpu_ram_used_mb"]:
            pass
    assert "memory" not in {thread.name for thread in threading.enumerate()}
