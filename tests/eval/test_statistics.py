"""The bootstrap interval of a mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import bootstrap

from slmx.errors import SlmxError
from slmx.eval import statistics
from slmx.eval.statistics import bootstrap_interval, percentile_interval, resample_counts

RNG = np.random.default_rng(7)
DATA = {
    "0 or 1": RNG.integers(0, 2, size=400).astype(float),
    "few values": RNG.choice([0.0, 0.25, 0.5, 1.0], size=400, p=[0.5, 0.1, 0.1, 0.3]),
    "continuous": RNG.gamma(2.0, size=400),
}


@pytest.mark.parametrize("kind", DATA)
def test_the_interval_is_that_of_scipy(kind: str) -> None:
    values = DATA[kind]
    ours = bootstrap_interval(values.tolist())
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    # Both are random: the quantiles of 10,000 draws scatter by a few hundredths of the standard error.
    tolerance = 0.12 * values.std() / math.sqrt(len(values))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=tolerance)


def test_both_ways_of_drawing_have_the_same_distribution() -> None:
    distinct, counts = np.unique(DATA["few values"], return_counts=True)
    by_counts = statistics._means_by_counts(distinct, counts, 0, 20_000)
    by_values = statistics._means_by_values(DATA["few values"], 0, 20_000)
    assert by_counts.mean() == pytest.approx(by_values.mean(), abs=1e-3)
    assert by_counts.std() == pytest.approx(by_values.std(), rel=0.03)
    assert percentile_interval(by_counts) == pytest.approx(percentile_interval(by_values), abs=3e-3)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        low, high = bootstrap_interval((rng.random(200) < 0.3).astype(float).tolist(), seed=trial, resamples=1_000)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize("kind", DATA)
def test_the_interval_depends_on_the_seed_alone_not_on_the_order(kind: str) -> None:
    values = DATA[kind].tolist()
    interval = bootstrap_interval(values, seed=5, resamples=500)
    assert interval == bootstrap_interval(values, seed=5, resamples=500)
    assert interval == bootstrap_interval(values[::-1], seed=5, resamples=500)
    assert DATA[kind].mean() == pytest.approx(sum(interval) / 2, abs=0.1)
    assert interval[0] < DATA[kind].mean() < interval[1]


@pytest.mark.parametrize("kind", DATA)
def test_blocks_bound_the_memory_and_leave_no_resample_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = DATA[kind].tolist()
    whole = bootstrap_interval(values, resamples=999)
    monkeypatch.setattr(statistics, "_BLOCK", 1_000)
    assert bootstrap_interval(values, resamples=999) == pytest.approx(whole, rel=0.05)


def test_a_hundred_thousand_values() -> None:
    values = np.random.default_rng(0).random(100_000)
    low, high = bootstrap_interval(values.tolist(), resamples=50)
    assert low < values.mean() < high and high - low < 0.01


def test_no_value_one_value_and_equal_values() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval([]))
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    assert bootstrap_interval([0.1] * 1_000) == (0.1, 0.1)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    low, high = bootstrap_interval(values, resamples=100)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_an_undefined_value_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(SlmxError, match="finite"):
            bootstrap_interval([0.5, bad])


def test_resampled_counts_keep_n_and_the_shares() -> None:
    drawn = resample_counts([30, 0, 70], seed=1, resamples=2_000)
    assert drawn.shape == (2_000, 3) and (drawn.sum(axis=1) == 100).all()
    assert drawn.mean(axis=0) == pytest.approx([30, 0, 70], abs=0.5)
