"""How gradients become weights: averages, and precision that does not fit is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slmx.errors import UsageError
from slmx.train.precision import pick_precision
from slmx.train.towers import Tower
from slmx.train.update import Update


def step(tower: Tower, update: Update, number: int) -> None:
    update.forget_gradients()
    for _, weight in tower.named_weights():
        weight.grad = torch.ones_like(weight)
    assert update.apply(0.1, number)


def flat(tower: Tower) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for _, weight in tower.named_weights()])


@pytest.mark.parametrize(("settings", "share"), [({"start_share": 0.25}, 0.75), ({"average": 0.5}, 0.9), ({}, 1.0)])
def test_what_is_shown_lies_between_the_start_and_the_trained_weights(
    encoder_folder: Path, settings: dict[str, Any], share: float
) -> None:
    tower = Tower(encoder_folder, device=torch.device("cpu"))
    update, start = Update(tower, lr=0.1, weight_decay=0.0, **settings), flat(tower)
    step(tower, update, 0)
    trained = flat(tower)
    with update.shown():
        assert torch.allclose(flat(tower), start + share * (trained - start), atol=1e-6)
    assert torch.equal(flat(tower), trained)


def test_averages_go_on_exactly(encoder_folder: Path) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "average": 0.9, "start_share": 0.1}
    whole, first = (Tower(encoder_folder, device=torch.device("cpu")) for _ in range(2))
    both = [Update(tower, **settings) for tower in (whole, first)]
    for tower, update in zip((whole, first), both, strict=True):
        step(tower, update, 0)
    second = Tower(encoder_folder, device=torch.device("cpu"))
    other = Update(second, **settings)
    other.restore({name: value.clone() for name, value in both[1].tensors().items()}, both[1].numbers())
    step(whole, both[0], 1)
    step(second, other, 1)
    with both[0].shown(), other.shown():
        assert torch.equal(flat(whole), flat(second))


def test_gradients_that_are_no_numbers_move_nothing(encoder_folder: Path) -> None:
    tower = Tower(encoder_folder, device=torch.device("cpu"))
    update, before = Update(tower, lr=0.1, weight_decay=0.01), flat(tower)
    for _, weight in tower.named_weights():
        weight.grad = torch.full_like(weight, float("nan"))
    assert not update.apply(0.1, 0)
    assert torch.equal(flat(tower), before)


def test_number_types_that_do_not_fit() -> None:
    cpu = torch.device("cpu")
    assert pick_precision(cpu, bf16=True, fp16=False) == torch.bfloat16
    assert pick_precision(cpu, bf16=False, fp16=False) == torch.float32
    with pytest.raises(UsageError, match="needs a CUDA device"):
        pick_precision(cpu, bf16=None, fp16=True)
    with pytest.raises(UsageError, match="two number types"):
        pick_precision(cpu, bf16=True, fp16=True)
