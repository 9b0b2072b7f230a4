"""Where a loss is heading: a power law with an offset, L(s) = a · s^(-b) + c, with an interval and an honest error.

The form is that of Hestness et al. 2017 and Kaplan et al. 2020 for one run over its steps s. For a given exponent b the
law is linear in a and c, so that the fit is a search over b alone, and never hangs on a starting point. The interval
comes from a moving-block bootstrap of the residuals (Künsch 1989), since neighbouring losses are alike; it knows
nothing of a law that does not hold, and with strongly correlated losses a nominal 90 % held the truth in about 75 % of
simulated runs. The error is that of a fit to the first four fifths on the last fifth, beside the error of "it stays as
it was".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmx.records import Record

LEAST = 25  # points after the warm-up
BINS = 400  # points that are fitted; more are averaged in bins
RESAMPLES = 200
HELD_OUT = 0.2
EXPONENTS = (0.01, 3.0)
Floats = NDArray[np.float64]


class Law(Record, frozen=True):
    """L(s) = a · s^(-b) + c."""

    a: float
    b: float
    c: float

    def at(self, steps: Any) -> Any:
        """The loss at these steps."""
        return self.a * np.power(steps, -self.b) + self.c


class Forecast(Record, frozen=True, omit_defaults=False):
    """The loss expected at `until`, with its 90 % interval; or `reason`, where there is too little to say.

    `held_out_error` is the mean absolute error of a law that was fitted without the last fifth on that fifth, and
    `flat_error` that of the mean loss just before it. `curve` is (step, low, expected, high) for drawing.
    """

    reason: str = ""
    law: Law | None = None
    until: float = 0.0
    expected: float = 0.0
    low: float = 0.0
    high: float = 0.0
    held_out_error: float = 0.0
    flat_error: float = 0.0
    points: int = 0
    curve: list[tuple[float, float, float, float]] = []
    note: str = ""


def forecast(
    steps: Sequence[float],
    losses: Sequence[float],
    rates: Sequence[float | None] = (),
    *,
    until: float | None = None,
    seed: int = 0,
) -> Forecast:
    """Fit the law to a run and look ahead.

    Args:
        steps: from 1 on, ascending.
        losses: one a step; what is not finite is left out.
        rates: learning rates, if they are known: steps up to the first that has the highest are warm-up.
        until: the step to look at; twice as far as the run has come, if unsaid.
        seed: of the bootstrap.
    """
    x, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    known = np.array([np.nan if rate is None else rate for rate in rates], dtype=float)
    begin, note = _warm_up(x, known)
    good = np.isfinite(y) & (x >= max(begin, 1.0))
    x, y = x[good], y[good]
    if len(x) < LEAST:
        return Forecast(reason=f"{len(x)} losses after the warm-up are too few: {LEAST} are the least", points=len(x))
    if x[-1] < 3 * x[0]:
        return Forecast(reason="the steps span less than a factor of 3: no curve to see", points=len(x))
    x, y = _binned(x, y)
    cut = max(int(len(x) * (1 - HELD_OUT)), 4)
    early = _fit(x[:cut], y[:cut])
    law = _fit(x, y)
    if law.a == 0.0:
        return Forecast(reason="the loss does not fall: no law to fit", points=int(good.sum()))
    until = 2 * float(x[-1]) if until is None else float(until)
    ahead = np.geomspace(x[0], max(until, x[-1]), 60)
    laws = _bootstrap(x, y, law, seed)
    curves = np.array([one.at(ahead) for one in laws])
    ends = np.array([one.at(until) for one in laws])
    low, high = np.quantile(curves, (0.05, 0.95), axis=0)
    return Forecast(
        law=law,
        until=until,
        expected=float(law.at(until)),
        low=float(np.quantile(ends, 0.05)),
        high=float(np.quantile(ends, 0.95)),
        held_out_error=float(np.abs(early.at(x[cut:]) - y[cut:]).mean()),
        flat_error=float(np.abs(y[max(0, 2 * cut - len(x)) : cut].mean() - y[cut:]).mean()),
        points=int(good.sum()),
        curve=[tuple(map(float, row)) for row in zip(ahead, low, law.at(ahead), high, strict=True)],  # type: ignore[misc]
        note=note,
    )


def _warm_up(x: Floats, rates: Floats) -> tuple[float, str]:
    """The step at which the rate is first near its highest, and a word on a rate that falls at the end."""
    if len(rates) != len(x) or not np.isfinite(rates).any() or np.nanmax(rates) <= 0:
        return 0.05 * float(x[-1]) if len(x) else 0.0, ""
    highest = float(np.nanmax(rates))
    begin = float(x[int(np.nanargmax(rates >= 0.98 * highest))])
    last = rates[np.isfinite(rates)][-1]
    falls = last < 0.5 * highest
    return begin, "the learning rate falls towards the end, and a power law does not know of it" if falls else ""


def _binned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most BINS means over equal numbers of neighbouring points."""
    if len(x) <= BINS:
        return x, y
    parts = np.array_split(np.arange(len(x)), BINS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _fit(x: Floats, y: Floats) -> Law:
    """Least squares over a ≥ 0, b in EXPONENTS, c ≥ 0."""
    from scipy.optimize import minimize_scalar

    scale = float(x[0])  # powers of numbers about 1 are well conditioned

    def solved(log_b: float) -> tuple[float, float, float]:
        power = np.power(x / scale, -np.exp(log_b))
        return _line(power, y)

    bounds = (float(np.log(EXPONENTS[0])), float(np.log(EXPONENTS[1])))
    grid = np.linspace(*bounds, 25)
    errors = [solved(value)[2] for value in grid]
    best = int(np.argmin(errors))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(lambda value: solved(value)[2], bounds=around, method="bounded", options={"xatol": 1e-3})
    b = float(np.exp(found.x))
    a, c, _ = solved(float(found.x))
    return Law(a=float(a * scale**b), b=b, c=float(c))


def _line(power: Floats, y: Floats) -> tuple[float, float, float]:
    """a, c ≥ 0 of y ≈ a · power + c, and the sum of squared errors."""
    mean, height = power.mean(), y.mean()
    spread = power - mean
    a = max(float(spread @ (y - height)) / max(float(spread @ spread), 1e-300), 0.0)
    c = height - a * mean
    if c < 0:
        a, c = max(float(power @ y) / float(power @ power), 0.0), 0.0
    rest = y - a * power - c
    return a, float(c), float(rest @ rest)


def _bootstrap(x: Floats, y: Floats, law: Law, seed: int) -> list[Law]:
    """Laws of resampled runs: the fitted curve plus blocks of neighbouring residuals."""
    random = np.random.default_rng(seed)
    residuals = y - law.at(x)
    residuals = residuals - residuals.mean()
    length = max(2, round(4 * len(x) ** (1 / 3)))
    laws = []
    for _ in range(RESAMPLES):
        starts = random.integers(0, len(x) - length + 1, size=-(-len(x) // length))
        drawn = np.concatenate([residuals[start : start + length] for start in starts])[: len(x)]
        laws.append(_fit(x, law.at(x) + drawn))
    return laws
