"""Causal attention that keeps documents apart, by three back ends: blocks of products, SDPA, FlexAttention.

    mask = masks(segments, "blocked", heads=4)           # once a batch, for all layers
    out = attend(q, k, v, mask)

A token sees those before it that carry its own number in `segments`. Which back end: `best_backend`.

The blocked one is for processors: on them the backward of SDPA takes three times its forward, and most of a step of a
small model. Here each block of queries is multiplied with the keys up to its end by plain batched products, and the
probabilities are kept for the backward (their number grows with the square of the window: SDPA serves long ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slmx.errors import UsageError
from slmx.registry import unknown_name

BACKENDS = ("blocked", "sdpa", "flex")
BLOCK = 128  # queries a block
LONGEST = 1024  # a window of the blocked back end, at most
_HIDDEN = -1e30


def best_backend(device: torch.device, length: int, *, compiled: bool) -> str:
    """The back end for a device and windows of a length; FlexAttention is one kernel only where it is compiled."""
    if device.type == "cpu":
        return "blocked" if length <= LONGEST else "sdpa"
    return "flex" if device.type == "cuda" and compiled else "sdpa"


def check_backward(backend: str, device: torch.device) -> None:
    """Can a back end train on a device? UsageError where it cannot."""
    if backend == "flex" and device.type != "cuda":
        raise UsageError(
            f"FlexAttention has no backward on {device.type}.", hint="Leave --attention out, or use --attention sdpa."
        )


def segments_of(tokens: Tensor, end_of_text: int | None) -> Tensor | None:
    """The number of its document for each token of (B, T); None where documents are not marked.

    An end-of-text begins the document behind it: it is that one's first input, and the last target of the one before.
    """
    return None if end_of_text is None else (tokens == end_of_text).cumsum(1)


def masks(segments: Tensor | None, backend: str, *, length: int, device: torch.device, dtype: torch.dtype) -> Any:
    """What `attend` needs to keep documents apart; made once a batch.

    Args:
        segments: (B, T) numbers of documents; None: each window is one document.
        backend: one of BACKENDS.
        length: T.
        dtype: of queries and keys.

    Raises:
        UsageError: an unknown back end.
    """
    if backend == "blocked":
        return [
            _additive(segments, start, min(start + BLOCK, length), device, dtype) for start in range(0, length, BLOCK)
        ]
    if backend == "sdpa":
        return None if segments is None else _allowed(segments, 0, length, device)[:, None]
    if backend == "flex":
        return _block_mask(segments, length, device)
    raise unknown_name("attention back end", backend, BACKENDS)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """softmax(q kᵀ / √D + mask) v.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, K, D); H is a multiple of K.
        mask: from `masks`; None: causal.

    Returns:
        (B, T, H, D).
    """
    if isinstance(mask, list):
        out: Tensor = blocked(q, k, v, mask)[0]
        return out
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if mask is None or isinstance(mask, Tensor):
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    else:
        from torch.nn.attention.flex_attention import flex_attention

        made = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    return made.transpose(1, 2)


def _allowed(segments: Tensor | None, start: int, end: int, device: torch.device) -> Tensor:
    """(B or 1, end - start, end): may query `start + i` see key j?"""
    places = torch.arange(end, device=device)
    causal = (places[start:, None] >= places[None])[None]
    return causal if segments is None else causal & (segments[:, start:end, None] == segments[:, None, :end])


def _additive(segments: Tensor | None, start: int, end: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B or 1, 1, 1, end - start, end): 0 where a query may look, else a very small number."""
    allowed = _allowed(segments, start, end, device)
    hidden = torch.full((), _HIDDEN, dtype=dtype, device=device)
    return torch.where(allowed, torch.zeros_like(hidden), hidden)[:, None, None]


def _block_mask(segments: Tensor | None, length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(window: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if segments is None:
            return query >= key
        return (query >= key) & (segments[window, query] == segments[window, key])

    windows = None if segments is None else segments.shape[0]
    return create_block_mask(visible, windows, None, length, length, device=device)


# --------------------------------------------------------------------------------------------- the blocked back end


@torch.library.custom_op("slmx::blocked_attention", mutates_args=())
def blocked(q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention block by block; returns (B, T, H, D) and the probabilities of all blocks, one behind the other."""
    windows, _, heads, size = q.shape
    keys, values = _by_head(k), _by_head(v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    kept = q.new_empty(_pairs(mask) * windows * heads)
    used = 0
    for one in mask:
        end = one.shape[-1]
        start = end - one.shape[-2]
        queries = _by_group(q[:, start:end], k.shape[2])
        scores = torch.bmm(queries, keys[:, :end].transpose(1, 2)).mul_(size**-0.5)
        scores = scores.view(windows, k.shape[2], -1, end - start, end).add_(one)
        probabilities = kept[used : used + scores.numel()].view(scores.shape)
        torch.softmax(scores, -1, out=probabilities)
        used += scores.numel()
        found = torch.bmm(probabilities.view(len(keys), -1, end), values[:, :end])
        out[:, start:end] = _ungroup(found, windows, end - start)
    return out, kept


@torch.library.custom_op("slmx::blocked_attention_backward", mutates_args=())
def blocked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, mask: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes; those of k and v are added up in fp32."""
    windows, _, heads, size = q.shape
    groups = k.shape[2]
    keys, values = _by_head(k), _by_head(v)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.zeros(keys.shape, dtype=torch.float32, device=q.device)
    grad_v = torch.zeros_like(grad_k)
    used = 0
    for one in mask:
        end = one.shape[-1]
        start = end - one.shape[-2]
        count = windows * heads * (end - start) * end
        probabilities = kept[used : used + count].view(len(keys), -1, end)
        used += count
        back = _by_group(grad[:, start:end], groups)
        grad_v[:, :end] += torch.bmm(probabilities.transpose(1, 2), back)
        of_probabilities = torch.bmm(back, values[:, :end].transpose(1, 2))
        scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, q.dtype).mul_(size**-0.5)
        grad_q[:, start:end] = _ungroup(torch.bmm(scores, keys[:, :end]), windows, end - start)
        grad_k[:, :end] += torch.bmm(scores.transpose(1, 2), _by_group(q[:, start:end], groups))
    return grad_q, _from_head(grad_k, k), _from_head(grad_v, v)


def _pairs(mask: Sequence[Tensor]) -> int:
    """Pairs of a query and a key in all blocks of one window and head."""
    return sum(one.shape[-2] * one.shape[-1] for one in mask)


def _by_head(x: Tensor) -> Tensor:
    """(B, T, K, D) → (B·K, T, D)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _from_head(x: Tensor, like: Tensor) -> Tensor:
    """(B·K, T, D) → (B, T, K, D) in the type of `like`."""
    return x.view(like.shape[0], like.shape[2], -1, like.shape[3]).transpose(1, 2).to(like.dtype).contiguous()


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(B, t, H, D) → (B·K, H/K·t, D): the queries that share a key head, one head behind the other."""
    windows, rows, _, size = x.shape
    return x.reshape(windows, rows, groups, -1, size).permute(0, 2, 3, 1, 4).reshape(windows * groups, -1, size)


def _ungroup(x: Tensor, windows: int, rows: int) -> Tensor:
    """(B·K, H/K·t, D) → (B, t, H, D)."""
    return x.view(windows, -1, rows, x.shape[2]).transpose(1, 2)


@blocked.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        _pairs(mask) * q.shape[0] * q.shape[2]
    )


@blocked_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, mask: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    made = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in (q, k, v)]
    return made[0], made[1], made[2]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask = inputs
    ctx.save_for_backward(q, k, v, output[1], *mask)


def _derive(ctx: Any, grad: Tensor, _kept: Tensor) -> tuple[Tensor, Tensor, Tensor, list[None]]:
    q, k, v, kept, *mask = ctx.saved_tensors
    return (*blocked_backward(grad, q, k, v, kept, mask), [None] * len(mask))


blocked.register_autograd(_derive, setup_context=_remember)
