"""Bootstrap intervals and paired tests: how far a mean, or the difference of two runs, could be a matter of chance.

The percentile bootstrap (Efron & Tibshirani 1993, chapter 13): draw n values with replacement, many times, and take the
quantiles of the resampled means. Seeded, and independent of the order of the values, so that a run that was resumed
reports the same interval as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from slmx.errors import SlmxError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
_BLOCK = 2_000_000  # numbers drawn at a time: bounds the memory to some 50 MB whatever n is
_CHEAPER_BY_COUNTS = 25  # drawing one count takes as long as drawing and reading so many single values


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of the mean of `values`.

    Args:
        values: finite numbers, one a question, any unit; undefined ones are left out by the caller.
        seed: same values, seed and resamples give the same interval on every run.
        resamples: how many means are drawn.
        level: the share of the drawn means inside the interval, 0.95 for a 95 % interval.

    Returns:
        (nan, nan) without values; the value twice where there is only one or all are equal.

    Raises:
        SlmxError: a value is NaN or infinite.
    """
    if not len(values):
        return math.nan, math.nan
    return percentile_interval(bootstrap_means(values, seed=seed, resamples=resamples), level)


def bootstrap_means(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """The means of `values` drawn anew with replacement, shape (resamples,). One value at least.

    Raises:
        SlmxError: a value is NaN or infinite.
    """
    import numpy as np

    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if not np.isfinite(distinct).all():
        raise SlmxError("A bootstrap interval needs finite values; NaN or infinity is among them.")
    if len(distinct) == 1:
        return np.full(resamples, distinct[0])
    if len(distinct) * _CHEAPER_BY_COUNTS < len(values):
        return _means_by_counts(distinct, counts, seed, resamples)
    return _means_by_values(np.repeat(distinct, counts), seed, resamples)


def percentile_interval(drawn: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the drawn statistics, shape (resamples,), as (low, high)."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample_counts(counts: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """How often each of a few kinds of answers is drawn when all of them are drawn anew, shape (resamples, kinds).

    `counts` says how often each kind occurred, sum n > 0. For statistics that are no means, such as a ratio of counts.
    """
    import numpy as np

    observed = np.asarray(counts, dtype=np.float64)
    return np.random.default_rng(seed).multinomial(int(observed.sum()), observed / observed.sum(), size=resamples)


def _means_by_counts(
    distinct: NDArray[np.float64], counts: NDArray[np.int64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Resampled means of few-valued data: how often each value is drawn is multinomial, so only that is drawn."""
    import numpy as np

    generator = np.random.default_rng(seed)
    n = int(counts.sum())
    rows = max(1, _BLOCK // len(distinct))
    blocks = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    return np.concatenate([generator.multinomial(n, counts / n, size=size) @ distinct / n for size in blocks])


def _means_by_values(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Resampled means of any data: n places drawn with replacement, in the smallest integers that hold them."""
    import numpy as np

    generator = np.random.default_rng(seed)
    n = len(values)
    places = np.uint16 if n <= np.iinfo(np.uint16).max else np.uint32
    rows = max(1, _BLOCK // n)
    blocks = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    drawn = [values[generator.integers(0, n, size=(size, n), dtype=places)].mean(axis=1) for size in blocks]
    return np.concatenate(drawn)


# -------------------------------------------------------------------------------------------------------- paired tests


class Effect(NamedTuple):
    """A mean paired difference, its percentile bootstrap interval, and the two-sided p of the paired bootstrap test."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Effect:
    """Is the mean of paired differences (second run minus first, a question each) more than chance?

    p is the share of means, drawn anew from the differences moved so that their mean is 0, that lie as far from 0 as
    the observed one does, with one added above and below (Efron & Tibshirani 1993, section 16.4; Davison & Hinkley
    1997, section 4.4): never 0, and 1 where all differences are 0. The two runs in the other order give the same p
    and the mirrored interval, to the last bit: drawing depends on neither the order nor the direction.

    Raises:
        SlmxError: there is no difference, or one is NaN or infinite.
    """
    import numpy as np

    if not len(differences):
        raise SlmxError("A paired test needs at least one pair of values.")
    turned = [-difference for difference in differences]
    if sorted(turned) > sorted(differences):
        back = paired_bootstrap(turned, seed=seed, resamples=resamples)
        return Effect(0.0 - back.difference, -back.high, -back.low, back.p)
    observed = math.fsum(differences) / len(differences)
    drawn = bootstrap_means(differences, seed=seed, resamples=resamples)
    low, high = percentile_interval(drawn)
    # A hair less than the observed distance: equal values must not differ by rounding.
    far = int(np.count_nonzero(np.abs(drawn - observed) >= abs(observed) * (1 - 1e-9)))
    return Effect(observed, low, high, (far + 1) / (resamples + 1))


def mcnemar_exact(helped: int, hurt: int) -> float:
    """The two-sided p of McNemar's exact test: would a fair coin divide the questions whose outcome changed like this?

    Binomial with one half (McNemar 1947; exact form e.g. Agresti 2002, section 10.1); questions with the same outcome
    in both runs say nothing. 1 where nothing changed.
    """
    changed, fewer = helped + hurt, min(helped, hurt)
    if changed == 0:
        return 1.0
    term, tail = 1, 1  # "changed over i", summed in whole numbers: exact however many there are
    for i in range(1, fewer + 1):
        term = term * (changed - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / (1 << changed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family of tests, in the order given (Holm 1979).

    Tested against 5 %, the chance of one false find or more in the whole family is 5 % at most. Never smaller than the
    p it stands for.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def smallest_paired_difference(
    differences: Sequence[float], *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The smallest true difference that a paired test over so many questions finds in `power` of all cases.

    (z of level + z of power) × the standard error of the mean difference. For 0/1 outcomes the variance of a difference
    is the share of questions whose outcome changed less the squared mean (Connor 1987): 3,610 questions of which 20 %
    changed show 2.1 points. None where all differences are equal: then nothing is known of how they scatter.
    """
    import numpy as np

    error = math.sqrt(float(np.var(differences)) / len(differences)) if len(differences) else 0.0
    return _z(level, power) * error if error else None


def smallest_unpaired_difference(
    left: Sequence[float], right: Sequence[float], *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The same for two runs on different questions, from the variances of both: what pairing saves."""
    import numpy as np

    if not len(left) or not len(right):
        return None
    error = math.sqrt(float(np.var(left)) / len(left) + float(np.var(right)) / len(right))
    return _z(level, power) * error if error else None


def _z(level: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
