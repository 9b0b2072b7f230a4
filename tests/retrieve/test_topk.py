"""The k best against brute force, with many equal scores."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, strategies as st

from slmx.retrieve.topk import merge, top_k, top_k_rows

few_values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


def brute_force(scores: list[float], k: int, above: float = -float("inf")) -> list[int]:
    return sorted((p for p, s in enumerate(scores) if s > above), key=lambda p: (-scores[p], p))[:k]


@given(few_values, st.integers(1, 45), st.sampled_from([-float("inf"), 0.0, 2.0]))
def test_top_k_is_the_sorted_prefix(scores: list[float], k: int, above: float) -> None:
    found = top_k(np.array(scores, dtype=np.float32), k, above=above)
    assert found.tolist() == brute_force(scores, k, above)


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(st.integers(-2, 2).map(float), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.integers(1, 35),
)
def test_top_k_of_rows_is_the_sorted_prefix_of_each(rows: list[list[float]], k: int) -> None:
    values, places = top_k_rows(torch.tensor(rows), k)
    for row, found, place in zip(rows, values.tolist(), places.tolist(), strict=True):
        assert place == brute_force(row, k)
        assert found == [row[p] for p in place]


@given(few_values, st.integers(1, 45), st.integers(1, 12))
def test_blocks_merge_to_the_same_as_the_whole(scores: list[float], k: int, block: int) -> None:
    best = None
    for start in range(0, len(scores), block):
        values, places = top_k_rows(torch.tensor([scores[start : start + block]]), k)
        best = merge(best, (values, places + start), k)
    assert best is not None
    assert best[1][0].tolist() == brute_force(scores, k)
