"""How gradients become weights: AdamW, its learning rate, the scale of fp16, and averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from slmx.train.towers import Tower

MAX_NORM = 1.0  # of the gradient


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Up in a line over the warm-up (a share of the steps below 1, else steps), then down in a line to 0 at the end."""
    up = warmup * steps if warmup < 1 else warmup
    if step < up:
        return peak * (step + 1) / (math.ceil(up) + 1)
    return peak * (steps - step) / max(1.0, steps - up)


class Update:
    """The optimizer of a run and what goes with it.

    Biases and norms (one dimension) do not decay. Gradients that are scaled for fp16 are brought back before they are
    cut to a norm of 1; a step whose scaled gradients overflow is left out, and the scale is halved.

    Args:
        average: 0, or how much of the moving average stays at each step (0.99): the average is what is validated and
            saved. It follows faster at the beginning, where it would remember the start alone.
        start_share: 0, or the share of the weights before training in what is validated and saved, which keeps more of
            what the model could do on other data (WiSE-FT, Wortsman et al. 2022).
    """

    def __init__(
        self, tower: Tower, *, lr: float, weight_decay: float, average: float = 0.0, start_share: float = 0.0
    ) -> None:
        self._weights = dict(tower.named_weights())
        weights = list(self._weights.values())
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
        self._scaler = torch.amp.GradScaler(tower.device.type, enabled=tower.dtype == torch.float16)
        self._scaler.scale(torch.zeros((), device=tower.device))  # the scale is made at its first use
        self._average, self._start_share = average, start_share
        self._averaged = self._copy() if average else {}
        self._start = self._copy() if start_share else {}

    @property
    def scale(self) -> float:
        """What gradients are to be multiplied by."""
        return float(self._scaler.get_scale())

    def forget_gradients(self) -> None:
        """Before a step."""
        self._optimizer.zero_grad(set_to_none=True)

    def apply(self, lr: float, step: int) -> bool:
        """Move the weights by their gradients; False, and nothing moves, where the gradients are no numbers."""
        self._scaler.unscale_(self._optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights.values(), MAX_NORM))
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            return False
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._averaged:
            self._follow(min(self._average, (1 + step) / (10 + step)))
        return True

    @torch.no_grad()
    def _follow(self, stays: float) -> None:
        torch._foreach_lerp_(list(self._averaged.values()), list(self._weights.values()), 1 - stays)

    @torch.no_grad()
    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The weights as they are validated and saved, for the length of a block."""
        if not self._averaged and not self._start:
            yield
            return
        trained = self._copy()
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._averaged.get(name, weight))
                if self._start:
                    weight.lerp_(self._start[name], self._start_share)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(trained[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """AdamW's state by the names of the weights, and where they are not what is saved the weights themselves."""
        found = {
            f"{key}.{name}": value.contiguous()
            for name, weight in self._weights.items()
            for key, value in self._optimizer.state.get(weight, {}).items()
        }
        if self._averaged or self._start:
            found |= {f"trained.{name}": weight.detach() for name, weight in self._weights.items()}
        return found | {f"averaged.{name}": value for name, value in self._averaged.items()}

    def numbers(self) -> dict[str, Any]:
        """What else goes on: the scale of fp16."""
        return dict(self._scaler.state_dict())

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `numbers` gave."""
        states: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            weight = self._weights[name]
            if kind == "trained":
                weight.copy_(value)
            elif kind == "averaged":
                self._averaged[name].copy_(value)
            else:
                states.setdefault(name, {})[kind] = value.to(weight.device)
        for name, state in states.items():
            self._optimizer.state[self._weights[name]] = state
        if numbers:
            self._scaler.load_state_dict(dict(numbers))
