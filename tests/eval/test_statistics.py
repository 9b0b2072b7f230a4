"""The bootstrap interval of a mean, and the paired tests, against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest, bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from slmx.errors import SlmxError
from slmx.eval import statistics
from slmx.eval.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    percentile_interval,
    resample_counts,
    smallest_paired_difference,
    smallest_unpaired_difference,
)

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


# -------------------------------------------------------------------------------------------------------- paired tests

PAIRS = {
    "0/1": (RNG.random(250) < 0.45).astype(float) - (RNG.random(250) < 0.35).astype(float),
    "continuous": RNG.normal(0.08, 0.5, size=250),
    "nothing there": RNG.normal(0.0, 0.5, size=250),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_paired_bootstrap_agrees_with_scipy(kind: str) -> None:
    differences = PAIRS[kind]
    effect = paired_bootstrap(differences.tolist(), seed=2)
    assert effect.difference == pytest.approx(differences.mean())
    theirs = bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    tolerance = 0.12 * differences.std() / math.sqrt(len(differences))
    assert effect[1:3] == pytest.approx((theirs.low, theirs.high), abs=tolerance)
    # The sign-flip permutation test asks the same question in another way: near, not equal.
    flipped = permutation_test(
        (differences, np.zeros(250)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=1,
    )
    assert effect.p == pytest.approx(flipped.pvalue, abs=0.02)


def test_a_paired_bootstrap_without_any_difference_finds_none() -> None:
    assert paired_bootstrap([0.0] * 30) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(SlmxError, match="at least one pair"):
        paired_bootstrap([])


def test_the_paired_bootstrap_is_wrong_about_5_times_in_100_where_there_is_nothing() -> None:
    rng = np.random.default_rng(4)
    found = sum(paired_bootstrap(rng.normal(size=80).tolist(), seed=i, resamples=500).p < 0.05 for i in range(400))
    assert 0.02 <= found / 400 <= 0.09


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_two_sided_binomial_test(helped: int, hurt: int) -> None:
    p = mcnemar_exact(helped, hurt)
    assert p == mcnemar_exact(hurt, helped) and 0 < p <= 1
    if helped + hurt:
        assert p == pytest.approx(binomtest(helped, helped + hurt).pvalue, rel=1e-9)
        assert p == pytest.approx(mcnemar([[0, helped], [hurt, 0]], exact=True).pvalue, rel=1e-9)
    else:
        assert p == 1.0


def test_mcnemar_of_many_questions_does_not_overflow() -> None:
    assert mcnemar_exact(1_000, 0) == 2.0**-999
    assert mcnemar_exact(5_000, 0) == 0.0  # smaller than a float can be
    assert mcnemar_exact(20_000, 20_000) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_is_that_of_statsmodels_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= after <= 1 for p, after in zip(p_values, adjusted, strict=True))
    in_order = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert in_order == sorted(in_order)
    if p_values:
        assert adjusted == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_the_smallest_difference_of_3610_questions() -> None:
    changed = [1.0] * 361 + [-1.0] * 361 + [0.0] * 2_888
    third = [1.0] * 1_203 + [0.0] * 2_407
    paired, unpaired = smallest_paired_difference(changed), smallest_unpaired_difference(third, third)
    assert paired is not None and round(100 * paired, 1) == 2.1
    assert unpaired is not None and round(100 * unpaired, 1) == 3.1
    # statsmodels solves for the effect of a paired t test, in standard deviations; the same at this n
    theirs = TTestPower().solve_power(nobs=3_610, alpha=0.05, power=0.8) * np.std(changed)
    assert paired == pytest.approx(theirs, rel=1e-3)
    two = TTestIndPower().solve_power(nobs1=3_610, alpha=0.05, power=0.8) * np.std(third)
    assert unpaired == pytest.approx(two, rel=1e-3)


def test_no_smallest_difference_where_nothing_scatters() -> None:
    assert smallest_paired_difference([]) is None and smallest_paired_difference([0.0] * 9) is None
    assert (
        smallest_unpaired_difference([1.0, 1.0], [0.0, 0.0]) is None and smallest_unpaired_difference([], [1.0]) is None
    )
