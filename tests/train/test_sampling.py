"""Batches: a function of seed and step, fair to the weights, without a text twice."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from slmx.errors import UsageError
from slmx.train.sampling import Sampler


def keys(*sizes: int) -> list[Any]:
    """Datasets of pairs whose texts all differ."""
    starts = np.cumsum([0, *sizes])
    return [np.arange(2 * a, 2 * b).reshape(-1, 2) for a, b in pairwise(starts)]


def take(sampler: Sampler, steps: int) -> list[list[tuple[int, int, int]]]:
    return [[tuple(item) for item in sampler.next()] for _ in range(steps)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=4),
    repeated=st.integers(1, 5),
    sampling=st.sampled_from(["mixed", "alternate", "weighted-alternate"]),
    seed=st.integers(0, 9),
    stop=st.integers(0, 12),
)
def test_a_restored_sampler_goes_on_as_if_it_had_not_stopped(
    sizes: list[int], repeated: int, sampling: str, seed: int, stop: int
) -> None:
    data = keys(*sizes)
    for one in data:
        one[: repeated - 1, 1] = one[0, 1]  # some passages answer several queries
    settings: dict[str, Any] = {"batch_size": 4 if min(sizes) > 8 else 1, "sampling": sampling, "seed": seed}
    whole = take(Sampler(data, **settings), 16)
    first, second = Sampler(data, **settings), Sampler(data, **settings)
    begun = take(first, stop)
    second.restore(first.state)
    assert begun + take(second, 16 - stop) == whole
    for batch in whole:
        texts = [text for dataset, row, _ in batch for text in set(data[dataset][row].tolist())]
        assert len(texts) == len(set(texts))
        if sampling != "mixed":
            assert len({dataset for dataset, _, _ in batch}) == 1


def test_every_pair_comes_once_a_pass_and_each_pass_has_another_order() -> None:
    rows = [row for batch in take(Sampler(keys(12), batch_size=4), 6) for _, row, _ in batch]
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]


def test_mixed_draws_by_weight_for_every_item_and_equally_without() -> None:
    drawn = Counter(d for batch in take(Sampler(keys(90, 90), batch_size=8, weights=[3, 1]), 500) for d, _, _ in batch)
    assert drawn[0] / 4000 == pytest.approx(0.75, abs=0.03)
    equal = Counter(d for batch in take(Sampler(keys(50, 400), batch_size=8), 500) for d, _, _ in batch)
    assert equal[0] / 4000 == pytest.approx(0.5, abs=0.03)


def test_alternate_takes_whole_batches_in_turn() -> None:
    batches = take(Sampler(keys(9, 9, 9), batch_size=3, sampling="alternate"), 6)
    assert [{d for d, _, _ in batch} for batch in batches] == [{0}, {1}, {2}, {0}, {1}, {2}]


def test_a_set_that_runs_out_begins_again() -> None:
    passes = [
        p for batch in take(Sampler(keys(4, 40), batch_size=4, sampling="alternate"), 8) for d, _, p in batch if not d
    ]
    assert passes == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_a_query_with_many_passages_never_fills_the_memory() -> None:
    data = keys(200)
    data[0][:150, 0] = data[0][0, 0]
    sampler = Sampler(data, batch_size=10)
    take(sampler, 200)
    assert len(sampler.state.cursors[0].waiting) <= 200


def test_seeds_differ() -> None:
    assert take(Sampler(keys(50), batch_size=8, seed=1), 2) != take(Sampler(keys(50), batch_size=8, seed=2), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1]}, "1 weights for 2 data folders"),
        ({"weights": [1, 0]}, "above 0"),
        ({"weights": [1, float("nan")]}, "above 0"),
        ({"weights": [1, float("inf")]}, "above 0"),
        ({"weights": [1, 1], "sampling": "alternate"}, "weighted-alternate"),
        ({"sampling": "mixt"}, "mixed"),
        ({"batch_size": 30}, "about 18"),
        ({"batch_size": 10, "sampling": "alternate"}, "about 9"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sampler(keys(9, 9), **{"batch_size": 2, **settings})
    assert message in str(caught.value)
