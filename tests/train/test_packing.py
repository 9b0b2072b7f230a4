from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from slmx.data.sft_files import Examples
from slmx.train.cross_entropy import IGNORED
from slmx.train.packing import Packed, best_fit, positions_of


def examples(*lengths: int) -> Examples:
    """Examples whose ids tell them apart, the second half of each learnt."""
    ids = np.concatenate([np.full(n, 10 + i, dtype=np.uint16) for i, n in enumerate(lengths)])
    mask = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8)
    return Examples(Path("x"), ids, mask, np.cumsum([0, *lengths]).astype(np.int64), None, None)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
@settings(max_examples=200, deadline=None)
def test_best_fit_keeps_every_item_once_and_no_row_too_long(lengths: list[int], room: int) -> None:
    rows = best_fit(lengths, room)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[item] for item in row) for row in rows)
    assert not sums or sums[-1] <= room
    # Best fit leaves no two rows that would fit into one.
    assert len(sums) < 2 or sums[0] + sums[1] > room


def test_best_fit_takes_the_row_that_it_fills_best() -> None:
    assert best_fit([6, 5, 3, 4, 2], 10) == [[0, 3], [1, 2, 4]]


def test_a_row_holds_examples_apart_and_learns_answers_alone() -> None:
    packed = Packed(examples(5, 3, 9, 40), length=10, batch=1, seed=0, pad=7)
    assert packed.too_long == 1
    assert sorted(map(sorted, packed.rows)) == [[0], [1, 2]]
    batch = packed.make([[0, 1]])
    assert batch.tokens.tolist() == [[10, 10, 10, 10, 11, 11, 7, 7, 7, 7]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[IGNORED, 10, 10, 10, 11, 11, *[IGNORED] * 4]]
    assert positions_of(batch.segments).tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 3]]


def test_a_step_is_the_same_for_any_number_of_processes_and_each_pass_has_another_order() -> None:
    packed = Packed(examples(*[11] * 24), length=10, batch=8, seed=3, pad=0)
    for step in range(6):
        whole = packed.batch(step)
        parts = [packed.batch(step, rank, 4) for rank in range(4)]
        assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    passes = [torch.cat([packed.batch(step).tokens[:, 0] for step in range(3 * p, 3 * p + 3)]) for p in range(2)]
    assert not torch.equal(*passes)
    assert torch.equal(passes[0].sort().values, passes[1].sort().values)
