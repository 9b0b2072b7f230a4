"""The chunked loss, Muon, schedules, and which windows a step sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch.nn import functional as F

from slmx.data.token_files import open_folder
from slmx.errors import UsageError
from slmx.train import cross_entropy, optim
from slmx.train.transformer import Transformer
from slmx.train.windows import Windows, spread
from tests.train.lm_files import thin, write_folder


@pytest.mark.parametrize("vocabulary", [40, cross_entropy.ALIGNED])
@pytest.mark.parametrize("rows", [1, 100, 257])
def test_the_chunked_loss_is_cross_entropy_with_its_gradients(
    rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.LOGITS_HELD, "cpu", 50 * cross_entropy.ALIGNED)
    monkeypatch.setitem(cross_entropy.LOGITS_A_PIECE, "cpu", 16 * cross_entropy.ALIGNED)
    monkeypatch.setitem(cross_entropy.HEAD_ROWS, "cpu", 24)
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    targets[::3] = cross_entropy.IGNORED
    found = cross_entropy.summed_loss(hidden, weight, targets) * 0.5
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") * 0.5
    assert torch.allclose(found, plain, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(one, (hidden, weight)) for one in (found, plain))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.allclose(cross_entropy.summed_loss(hidden, weight, targets) * 0.5, plain, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (1, 16, 80)])
def test_muons_step_has_equal_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    made = optim.orthogonal(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert F.cosine_similarity(made.flatten(1), (u @ v).flatten(1)).min() > 0.98


def test_what_decays_and_who_moves_what() -> None:
    model = Transformer(thin(qk_norm=True, tied=False))
    named = list(model.named_parameters())
    muon, adamw = optim.optimizers_for(
        named, kind="muon", lr=1.0, matrix_lr=2.0, weight_decay=0.3, compute=torch.float32
    )
    names = {id(weight): name for name, weight in named}
    by_muon = {names[id(weight)] for weight in muon.param_groups[0]["params"]}
    assert by_muon == {name for name, weight in named if weight.ndim == 2 and name.startswith("blocks")}
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.0]
    (alone,) = optim.optimizers_for(named, kind="adamw", lr=1.0, matrix_lr=2.0, weight_decay=0.3, compute=torch.float32)
    assert {g["weight_decay"]: len(g["params"]) for g in alone.param_groups} == {0.0: len(named) - 14, 0.3: 14}
    assert optim.set_rates([muon, adamw], 0.5) == 0.5 and muon.param_groups[0]["lr"] == 1.0


@given(st.integers(1, 5000), st.sampled_from(optim.SCHEDULES), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.5))
@example(1, "cosine", 0.5, 0.0, 0.0)  # a warm-up that leaves no step
@settings(max_examples=60, deadline=None)
def test_schedules_rise_stay_and_end_at_their_floor(
    steps: int, kind: str, warmup: float, decay: float, floor: float
) -> None:
    shares = [
        optim.schedule(step, steps, kind=kind, warmup=warmup, decay=decay, floor=floor)
        for step in {0, steps // 3, steps // 2, steps - 1, steps}
    ]
    assert all(0 <= share <= 1 for share in shares)
    at_end = optim.schedule(steps, steps, kind=kind, warmup=warmup, decay=decay, floor=floor)
    assert at_end == pytest.approx(1.0 if kind == "constant" else floor)


def test_wsd_by_hand() -> None:
    shares = [optim.schedule(s, 10, kind="wsd", warmup=2, decay=0.4, floor=0.0) for s in range(10)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_sees_the_same_windows_with_any_number_of_processes(tmp_path: Path, world: int) -> None:
    data = open_folder(write_folder(tmp_path))
    windows = Windows(data.train, length=16, batch=8, seed=3)
    fresh = Windows(data.train, length=16, batch=8, seed=3)
    for step in (0, 7, 40):
        whole = windows.batch(step)
        shared = np.concatenate([fresh.batch(step, rank, world) for rank in range(world)])
        assert np.array_equal(whole, shared) and whole.shape == (8, 17)
    assert not np.array_equal(windows.batch(0), Windows(data.train, length=16, batch=8, seed=4).batch(0))


def test_a_pass_sees_each_window_once_and_the_next_begins_elsewhere(tmp_path: Path) -> None:
    np.arange(2000, dtype="<u2").tofile(tmp_path / "train.bin")
    windows = Windows(open_folder(tmp_path).train, length=16, batch=1, seed=0)
    begins = [[int(windows.batch(p * windows.count + s)[0, 0]) for s in range(windows.count)] for p in range(2)]
    for begin in begins:
        assert np.array_equal(np.diff(sorted(begin)), np.full(windows.count - 1, 16))
    assert min(begins[0]) != min(begins[1]) and windows.count == 123


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    windows = Windows(open_folder(write_folder(tmp_path)).train, length=16, batch=8, seed=0)
    with pytest.raises(UsageError, match="8 windows a step cannot be shared by 3"):
        windows.batch(0, 0, 3)


def test_validation_windows_are_spread_over_the_file(tmp_path: Path) -> None:
    val = open_folder(write_folder(tmp_path)).val
    assert val is not None
    some = list(spread(val, length=16, tokens=64))
    assert len(some) == 4 and np.array_equal(some[0], val.read(0, 17))
    assert len(list(spread(val, length=16, tokens=10**9))) == (len(val) - 1) // 16
