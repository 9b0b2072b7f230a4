"""Cross-entropy whose logits are never held: a few hundred rows at a time, with the gradient made on the way.

The loss of a row needs that row's logits alone, and so does its gradient, softmax - onehot. So the rows that are held
give their loss, their gradient with respect to the hidden state, and their part of the head's gradient at once, and the
next ones take the place of their logits. For 4,096 rows and 50,257 tokens that is 0.1 GB instead of 0.8 and more.
Logits become a loss and a gradient in place, a piece of some rows at a time, which stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a target that counts for nothing
LOGITS_HELD = {"cpu": 1 << 26, "cuda": 1 << 27}  # so many at a time: each time the whole head's gradient is added to
LOGITS_A_PIECE = {"cpu": 1 << 21, "cuda": 1 << 27}  # what a cache holds while they become a loss and a gradient
HEAD_ROWS = {"cpu": 1 << 12, "cuda": 1 << 20}  # of the head's gradient, to which a product is added at a time
ALIGNED = 64  # products want rows of logits that begin on a cache line: GPT-2's 50,257 tokens become 50,304

Piece = Callable[[Tensor, Tensor], Tensor]


def piece_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (rows,) of logits (rows, V), which become softmax - onehot; both 0 where the target is IGNORED."""
    counted = targets != IGNORED
    place = targets.clamp(min=0)[:, None]
    top = logits.amax(-1, keepdim=True).float()
    right = logits.gather(-1, place) - top
    off = (logits - top).exp_()
    total = off.sum(-1, keepdim=True)
    losses = torch.where(counted, (total.log() - right)[:, 0], 0.0)
    scale = torch.where(counted, 1.0, 0.0)[:, None]
    logits.copy_(off.mul_(scale / total))
    logits.scatter_(1, place, (right.exp() * scale / total - scale).to(logits.dtype))
    return losses


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece = piece_of) -> Tensor:
    """Sum of -log softmax(hidden · weightᵀ)[target] in nats, as an fp32 scalar.

    Args:
        hidden: (N, C), in the number type of the products.
        weight: (V, C), cast to that type here.
        targets: (N,), token ids; IGNORED ones count for nothing.
        piece: `piece_of`, or what was compiled from it.
    """
    if not torch.is_grad_enabled():
        return _forward(hidden, _head(weight, hidden.dtype), weight.shape[0], targets, piece, None)[0]
    loss: Tensor = _SummedLoss.apply(hidden, weight, targets, piece)  # type: ignore[no-untyped-call]
    return loss


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece) -> Tensor:
        head = _head(weight.detach(), hidden.dtype)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        loss, grad_hidden = _forward(hidden, head, weight.shape[0], targets, piece, grad_head)
        ctx.save_for_backward(grad_hidden, grad_head[: weight.shape[0]])
        ctx.weight_type = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place, as nobody else has them; autograd refuses a second backward of the same graph.
        return grad_hidden.mul_(grads[0]), grad_weight.mul_(grads[0]).to(ctx.weight_type), None, None


def _head(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in the type of the products, with rows of zeros up to a multiple of ALIGNED."""
    missing = -weight.shape[0] % ALIGNED
    return F.pad(weight.to(dtype), (0, 0, 0, missing)) if missing else weight.to(dtype)


def _forward(
    hidden: Tensor, head: Tensor, vocabulary: int, targets: Tensor, piece: Piece, grad_head: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    rows, width = hidden.shape[0], head.shape[0]
    pieces = max(1, -(-rows * width // _of_device(LOGITS_HELD, hidden)))
    held = -(-rows // pieces)
    # A power of two, so that the rows that are held mostly make pieces of one size, which is compiled once.
    size = 1 << max(0, (_of_device(LOGITS_A_PIECE, hidden) // width).bit_length() - 1)
    grad_hidden = torch.empty_like(hidden) if grad_head is not None else None
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    # One place for all of them: freed memory goes back to the kernel, and each page of new memory is a fault.
    place = hidden.new_empty(min(held, rows), width)
    for start in range(0, rows, held):
        part, of_part = hidden[start : start + held], targets[start : start + held]
        logits = torch.mm(part, head.T, out=place[: len(part)])
        logits[:, vocabulary:] = -torch.inf  # what is no token has no share
        for first in range(0, len(part), size):
            loss += piece(logits[first : first + size], of_part[first : first + size]).sum()
        if grad_head is not None and grad_hidden is not None:
            torch.mm(logits, head, out=grad_hidden[start : start + held])
            at_a_time = _of_device(HEAD_ROWS, hidden)
            for first in range(0, width, at_a_time):
                grad_head[first : first + at_a_time] += logits[:, first : first + at_a_time].T @ part
    return loss, grad_hidden


def _of_device(sizes: Mapping[str, int], tensor: Tensor) -> int:
    return sizes.get(tensor.device.type, sizes["cpu"])
