"""The power law against scipy's own least squares, the interval against known truths, and honest refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from slmx.train.forecast import EXPONENTS, Law, _fit, forecast

STEPS = np.arange(10.0, 3000, 10)


def losses(seed: int, *, noise: float = 0.03, a: float = 12.0, b: float = 0.35, c: float = 1.6) -> NDArray[np.float64]:
    made: NDArray[np.float64] = a * STEPS**-b + c + np.random.default_rng(seed).normal(0, noise, len(STEPS))
    return made


def test_the_fit_is_that_of_scipy() -> None:
    y = losses(1)
    law = _fit(STEPS, y)
    bounds = ([0, EXPONENTS[0], 0], [np.inf, EXPONENTS[1], np.inf])
    (a, b, c), _ = curve_fit(lambda s, a, b, c: a * s**-b + c, STEPS, y, p0=(10, 0.4, 1), bounds=bounds, maxfev=20_000)
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=1e-2)
    ours, theirs = (np.square(y - one.at(STEPS)).sum() for one in (law, Law(a, b, c)))
    assert ours <= theirs * (1 + 1e-6)


def test_a_law_without_noise_is_found_and_foretold() -> None:
    told = forecast(STEPS, losses(0, noise=0.0), until=10_000)
    assert told.law is not None
    assert (told.law.a, told.law.b, told.law.c) == pytest.approx((12, 0.35, 1.6), rel=1e-2)
    assert told.expected == pytest.approx(12 * 10_000**-0.35 + 1.6, abs=1e-3)
    assert told.held_out_error < 1e-3 < told.flat_error


def test_the_interval_holds_the_truth_most_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmx.train.forecast.RESAMPLES", 60)
    truth = 12 * 6000**-0.35 + 1.6
    told = [forecast(STEPS, losses(seed), until=6000, seed=seed) for seed in range(20)]
    assert sum(one.low <= truth <= one.high for one in told) >= 13  # 90 % in name, about 80 % in fact; 20 draws
    assert all(one.low <= one.expected <= one.high for one in told)
    assert max(one.high - one.low for one in told) < 0.2


def test_the_same_seed_tells_the_same() -> None:
    y = losses(3)
    assert forecast(STEPS, y, seed=5) == forecast(STEPS, y, seed=5)
    assert forecast(STEPS, y, seed=5).low != forecast(STEPS, y, seed=6).low


def test_the_warm_up_is_left_out() -> None:
    y = losses(0, noise=0.0)
    y[:20] += 5
    rates: list[float | None] = [min(1.0, step / 300) for step in STEPS]
    told = forecast(STEPS, y, rates, until=6000)
    assert told.law is not None and told.law.b == pytest.approx(0.35, rel=0.02)
    assert told.note == ""


def test_a_rate_that_falls_at_the_end_is_said() -> None:
    rates: list[float | None] = [1.0 if step < 2000 else 0.1 for step in STEPS]
    assert "learning rate falls" in forecast(STEPS, losses(0), rates).note


@pytest.mark.parametrize(
    ("steps", "values", "reason"),
    [
        ([], [], "too few"),
        (range(1, 11), [1.0] * 10, "too few"),
        (range(1000, 1100), np.linspace(3, 2, 100), "factor of 3"),
        (range(1, 200), np.linspace(1, 2, 199), "does not fall"),
        (range(1, 200), [float("nan")] * 199, "too few"),
    ],
)
def test_too_little_is_said_and_not_guessed(steps: range, values: list[float], reason: str) -> None:
    told = forecast(list(steps), values)
    assert reason in told.reason and told.law is None and told.curve == []
