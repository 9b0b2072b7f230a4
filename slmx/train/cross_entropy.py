"""Cross-entropy whose logits are never held: a few hundred rows at a time, with the gradient made on the way.

The loss of a row needs that row's logits alone, and so does its gradient, softmax - onehot. So each piece of rows gives
its loss, its gradient with respect to the hidden state, and its part of the head's gradient at once, and its logits are
gone before the next piece. For 4,096 rows and 50,257 tokens that is 0.1 GB instead of 0.8 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a target that counts for nothing
LOGITS_HELD = {"cpu": 1 << 26, "cuda": 1 << 27}  # so many at a time: each piece adds to the whole head's gradient

Piece = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def piece_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and softmax - onehot (rows, V) of some logits; both 0 where the target is IGNORED."""
    counted = targets != IGNORED
    place = targets.clamp(min=0)[:, None]
    wide = logits.float()
    top = wide.amax(-1, keepdim=True)
    total = (wide - top).exp().sum(-1, keepdim=True)
    right = wide.gather(-1, place)
    losses = torch.where(counted, (total.log() + top - right)[:, 0], 0.0)
    scale = torch.where(counted, 1.0, 0.0)[:, None]
    hot = torch.arange(logits.shape[1], device=logits.device)[None] == place
    return losses, (((wide - top).exp() / total - hot.float()) * scale).to(logits.dtype)


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece = piece_of) -> Tensor:
    """Sum of -log softmax(hidden · weightᵀ)[target] in nats, as an fp32 scalar.

    Args:
        hidden: (N, C), in the number type of the products.
        weight: (V, C), cast to that type here.
        targets: (N,), token ids; IGNORED ones count for nothing.
        piece: `piece_of`, or what was compiled from it.
    """
    if not torch.is_grad_enabled():
        return _forward(hidden, weight.to(hidden.dtype), targets, piece, None)[0]
    loss: Tensor = _SummedLoss.apply(hidden, weight, targets, piece)  # type: ignore[no-untyped-call]
    return loss


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece) -> Tensor:
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        loss, grad_hidden = _forward(hidden, weight.detach().to(hidden.dtype), targets, piece, grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_type = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        of_hidden = (grad_hidden * grads[0]).to(grad_hidden.dtype)
        return of_hidden, (grad_weight * grads[0]).to(ctx.weight_type), None, None


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece, grad_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    rows = hidden.shape[0]
    held = LOGITS_HELD.get(hidden.device.type, LOGITS_HELD["cpu"])
    pieces = max(1, -(-rows * weight.shape[0] // held))
    size = -(-rows // pieces)  # pieces of one size, so that they are compiled once
    grad_hidden = torch.empty_like(hidden) if grad_weight is not None else None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, rows, size):
        part = hidden[start : start + size]
        losses, off = piece(part @ weight.T, targets[start : start + size])
        loss += losses.sum()
        if grad_weight is not None and grad_hidden is not None:
            torch.mm(off, weight, out=grad_hidden[start : start + size])
            grad_weight += off.T @ part
    return loss, grad_hidden
