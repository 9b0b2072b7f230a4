"""Optimizers and learning rates of `slmx train lm` and `sft`: Muon for the layers' matrices, AdamW for the rest.

Weights decay only where that means something: matrices do; embeddings, heads, norms and biases do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slmx.errors import UsageError
from slmx.registry import unknown_name

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("wsd", "cosine", "constant")
Named = Iterable[tuple[str, nn.Parameter]]


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    A step is momentum → Nesterov → the nearest matrix with equal singular values × lr · sqrt(max(1, rows/columns)).
    Matrices of one shape are orthogonalised together, in bf16 where the weights' device multiplies it fast.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        compute: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.compute = compute

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"])
                by_shape.setdefault(weight.shape, []).append((weight, whole(ahead)))
            for shape, rows in by_shape.items():
                steps = orthogonal(torch.stack([ahead for _, ahead in rows]).to(self.compute))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (weight, _), step in zip(rows, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(like(step.to(weight.dtype).mul_(scale), weight))


# Five steps of x ← a x + b (x xᵀ) x + c (x xᵀ)² x, each the best for what the one before leaves (Amsel et al. 2025,
# "The Polar Express", https://arxiv.org/abs/2505.16932).
POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
SAFETY = 1.01  # rounding may bring a singular value above 1, where the polynomials grow


def orthogonal(matrices: Tensor) -> Tensor:
    """For each matrix U S Vᵀ of (n, rows, columns) about U Vᵀ, by products alone."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * SAFETY + 1e-7)
    for a, b, c in POLAR:
        square = x @ x.mT
        poly = torch.baddbmm(square, square, square, beta=b / SAFETY**3, alpha=c / SAFETY**5)
        x = torch.baddbmm(x, poly, x, beta=a / SAFETY)
    return x.mT if tall else x


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP spreads over processes; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def like(tensor: Tensor, target: Any) -> Tensor:
    """A whole tensor spread as `target` is."""
    if not hasattr(target, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, target.device_mesh, target.placements)


def optimizers_for(
    named: Named, *, kind: str, lr: float, matrix_lr: float, weight_decay: float, compute: torch.dtype
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model's weights; each group remembers its highest learning rate as `peak`.

    Args:
        named: the weights that learn.
        kind: muon or adamw.
        lr: of AdamW.
        matrix_lr: of Muon.
        weight_decay: of matrices within the layers.
    """
    if kind not in OPTIMIZERS:
        raise unknown_name("optimizer", kind, OPTIMIZERS)
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in named:
        if weight.requires_grad:
            (matrices if is_matrix(name, weight) else others).append(weight)
    made: list[torch.optim.Optimizer] = []
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    if kind == "muon" and matrices:
        made.append(Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, compute=compute))
    elif matrices:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    groups = [group for group in groups if group["params"]]
    if groups:
        made.append(torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-10, fused=True))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def is_matrix(name: str, weight: Tensor) -> bool:
    """Is a weight a matrix within a layer? Embeddings and heads are tables of rows, norms and biases have no rows."""
    parts = name.split(".")
    return weight.ndim == 2 and not any("emb" in part or part in ("head", "lm_head", "wte", "wpe") for part in parts)


def schedule(step: int, steps: int, *, kind: str, warmup: float, decay: float, floor: float) -> float:
    """The share of the highest learning rate at a step (from 0 on).

    Args:
        kind: wsd (up, level, down in a line), cosine (up, then half a cosine), constant (up, then level).
        warmup: a share of the steps below 1, else steps.
        decay: as `warmup`: how long wsd goes down.
        floor: the share at the end.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in SCHEDULES:
        raise unknown_name("schedule", kind, SCHEDULES)
    up = math.ceil(warmup * steps if warmup < 1 else warmup)
    if step < up:
        return (step + 1) / (up + 1)
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        done = (step - up) / (steps - up) if step < steps else 1.0
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    down = max(1.0, decay * steps if decay < 1 else decay)
    return floor + (1 - floor) * min(1.0, (steps - step) / down)


def set_rates(optimizers: Iterable[torch.optim.Optimizer], share: float) -> float:
    """Give every group its share of its highest learning rate; returns the rate of the last group (AdamW's)."""
    rate = 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["lr"] = group["peak"] * share
    return rate


def state_tensors(named: Named, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by the names of the weights, whole and on the processor, so that nothing is pickled."""
    optimizers = list(optimizers)
    return {
        f"{key}.{name}": whole(value).detach().cpu().contiguous()
        for name, weight in named
        for optimizer in optimizers
        for key, value in optimizer.state.get(weight, {}).items()
    }


def restore_state(named: Named, optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` gave.

    Raises:
        UsageError: it belongs to other weights or another optimizer.
    """
    by_weight: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        key, _, weight_name = name.partition(".")
        by_weight.setdefault(weight_name, {})[key] = value
    owners = {
        id(weight): optimizer for optimizer in optimizers for g in optimizer.param_groups for weight in g["params"]
    }
    for name, weight in named:
        own, owner = by_weight.pop(name, {}), owners.get(id(weight))
        if owner is not None:
            # AdamW's fused form keeps its step counter beside the weight, whatever the device.
            owner.state[weight] = {
                key: value.to(weight.device) if key == "step" else like(value.to(weight.device), weight)
                for key, value in own.items()
            }
    if by_weight:
        raise UsageError(f"The optimizer's state belongs to other weights: {next(iter(by_weight))}.")
