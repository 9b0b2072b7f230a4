"""Energy in joules from counters: NVML's of the GPUs in use, RAPL's of the processor packages.

What is counted is the whole card and the whole package, idle draw and other processes included; memory, disks, fans and
the losses of the power supply are not. A card without a counter (before Volta) is integrated from its power at every
reading, by trapezoids. What cannot be read is left out, and `sources` tells what was counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from slmx.track.gpus import Card

POWERCAP = Path("/sys/class/powercap")


class Package:
    """One processor package of RAPL; its counter starts again from 0 at `wrap` microjoules."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._path = folder / "energy_uj"
        self._wrap = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._path.read_text())
        self._joules = 0.0

    def joules(self) -> float:
        """Joules since this object was made; to be read more often than the counter starts again (minutes)."""
        try:
            now = int(self._path.read_text())
        except (OSError, ValueError):
            return self._joules
        passed = now - self._last
        self._joules += (passed if passed >= 0 else passed + self._wrap) / 1e6
        self._last = now
        return self._joules


def packages(powercap: Path) -> list[Package]:
    """The packages whose counters may be read: often root alone may, and virtual machines have none."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's processors have them under this name, too
        if folder.name.count(":") == 1:  # a second colon is a part of a package
            try:
                found.append(Package(folder))
            except (OSError, ValueError):
                continue
    return found


class EnergyMeter:
    """Joules since it was made. Cards may come later: they count from the first reading that names them."""

    def __init__(self, powercap: Path | None = None) -> None:
        self._packages = packages(powercap or POWERCAP)
        self._cards: dict[str, _CardEnergy] = {}

    def read(self, cards: Mapping[str, Card]) -> float:
        """Read all counters; `cards` are those in use now, by their NVML name."""
        for name, card in cards.items():
            self._cards.setdefault(name, _CardEnergy()).add(card)
        return sum(one.joules for one in self._cards.values()) + sum(one.joules() for one in self._packages)

    def sources(self) -> str:
        """What is counted: `gpu`, `cpu`, `gpu+cpu`, or `none`."""
        known = [
            *(["gpu"] if any(one.known for one in self._cards.values()) else []),
            *(["cpu"] if self._packages else []),
        ]
        return "+".join(known) or "none"


class _CardEnergy:
    """The energy of one card over its readings."""

    def __init__(self) -> None:
        self.joules = 0.0
        self.known = False
        self._last: tuple[float, float | None, float | None] | None = None

    def add(self, card: Card) -> None:
        """Take one reading."""
        now = time.monotonic()
        if self._last is not None:
            then, joules, watts = self._last
            if card.joules is not None and joules is not None:
                self.joules += max(card.joules - joules, 0.0)
            elif card.watts is not None and watts is not None:
                self.joules += (now - then) * (card.watts + watts) / 2
        self.known = self.known or card.joules is not None or card.watts is not None
        self._last = (now, card.joules, card.watts)
