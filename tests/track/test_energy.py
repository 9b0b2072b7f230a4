"""RAPL's counters: packages alone, starting again from 0, and those that may not be read."""

from __future__ import annotations

from pathlib import Path

from slmx.track.energy import EnergyMeter, packages


def domain(powercap: Path, name: str, microjoules: int) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first, second = (domain(tmp_path, f"intel-rapl:{n}", 5_000_000) for n in (0, 1))
    part = domain(tmp_path, "intel-rapl:0:0", 0)
    meter = EnergyMeter(tmp_path)
    for path, value in ((first, 7_000_000), (second, 5_500_000), (part, 900_000_000)):
        path.write_text(str(value))
    assert meter.read({}) == 2.5
    assert meter.read({}) == 2.5
    assert meter.sources() == "cpu"


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", 999_000_000)
    (package,) = packages(tmp_path)
    counter.write_text("1000000")
    assert package.joules() == 2.0


def test_what_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", 1)
    broken = domain(tmp_path, "intel-rapl:1", 1)
    broken.unlink()  # the kernel lets root alone read it, and tests may run as root
    assert [package.name for package in packages(tmp_path)] == ["intel-rapl:0"]
    meter = EnergyMeter(tmp_path / "absent")
    assert (meter.read({}), meter.sources()) == (0.0, "none")
