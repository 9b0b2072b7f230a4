"""Bootstrap intervals: how far a mean over these questions could lie from the mean over all such questions.

The percentile bootstrap (Efron & Tibshirani 1993, chapter 13): draw n values with replacement, many times, and take the
quantiles of the resampled means. Seeded, and independent of the order of the values, so that a run that was resumed
reports the same interval as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmx.errors import SlmxError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
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
    import numpy as np

    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if not np.isfinite(distinct).all():
        raise SlmxError("A bootstrap interval needs finite values; NaN or infinity is among them.")
    if len(distinct) <= 1:
        only = float(distinct[0]) if len(distinct) else math.nan
        return only, only
    if len(distinct) * _CHEAPER_BY_COUNTS < len(values):
        means = _means_by_counts(distinct, counts, seed, resamples)
    else:
        means = _means_by_values(np.repeat(distinct, counts), seed, resamples)
    return percentile_interval(means, level)


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
