"""From a batch's texts to the gradient of its loss, on any number of processes, in pieces.

The texts are sorted by length and cut into pieces of about the same number of tokens, so that little is computed on
padding. Each process embeds its share of the pieces; the vectors are put together, so that the loss (and its mask of
false negatives) sees the whole batch everywhere; each process carries the gradient back through its pieces, and the
gradients are added. The sum is that of one process on the whole batch.

Before each piece the random numbers are set from (seed, step, piece): dropout depends on nothing else, which makes a
run that was interrupted equal to one that was not, any number of processes equal to one, and the two passes of the
cached loss equal to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch

from slmx.files import hash_value
from slmx.models.encoders import plan_batches
from slmx.train.ranks import Ranks
from slmx.train.towers import Tower

PADDING = 8  # a piece has at most this part of its tokens as padding
ADDED_AT_A_TIME = 1 << 23  # numbers of gradients that are sent together


class Piece(NamedTuple):
    """Some texts of one role, padded, and their places among the batch's texts (queries first, then passages)."""

    features: dict[str, torch.Tensor]
    places: torch.Tensor
    number: int

    @property
    def size(self) -> int:
        """Tokens, padding counted."""
        return self.features["input_ids"].numel()


def cut(tower: Tower, queries: Sequence[Sequence[int]], passages: Sequence[Sequence[int]], tokens: int) -> list[Piece]:
    """Tokenized texts in pieces of at most `tokens` tokens (or one text), queries apart from passages.

    A piece ends where its padding would cost more than another piece does.
    """
    pieces: list[Piece] = []
    for first, rows in ((0, queries), (len(queries), passages)):
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        for chosen in plan_batches(lengths, tokens, padding=tokens // PADDING):
            padded = tower.pad([rows[row] for row in chosen])
            pieces.append(Piece(padded, torch.from_numpy(chosen) + first, len(pieces)))
    return pieces


def share(pieces: Sequence[Piece], ranks: Ranks) -> list[Piece]:
    """The pieces of one process: largest first, each goes to who has the least so far."""
    loads, own = [0] * ranks.world, []
    for piece in sorted(pieces, key=lambda piece: (-piece.size, piece.number)):
        receiver = loads.index(min(loads))
        loads[receiver] += piece.size
        if receiver == ranks.rank:
            own.append(piece)
    return own


def add_gradients(
    tower: Tower,
    pieces: Sequence[Piece],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    queries: int,
    seed: int,
    step: int,
    cached: bool = False,
    scale: float = 1.0,
    ranks: Ranks,
) -> float:
    """Add `scale` times the gradient of a loss to the weights; returns the loss, the same on every process.

    Nothing is added where the loss is not finite.

    Args:
        pieces: of the whole batch.
        loss_of: a scalar from the vectors of all queries and of all passages, fp32.
        queries: how many of the batch's texts are queries.
        cached: compute the vectors twice and hold the activations of one piece at a time (GradCache, Gao et al. 2021):
            memory does not grow with the batch, and the gradients are those of the plain way.
    """
    own = share(pieces, ranks)
    count = sum(len(piece.places) for piece in pieces)
    vectors = torch.zeros(count, tower.dimension, device=tower.device)
    kept: list[torch.Tensor] = []
    with tower.precision(), torch.no_grad() if cached else nullcontext():
        for piece in own:
            made = tower.embed(piece.features, _seed(seed, step, piece))
            vectors[piece.places] = made.detach()
            kept += [] if cached else [made]
    ranks.add(vectors).requires_grad_()
    loss = loss_of(vectors[:queries], vectors[queries:])
    if not torch.isfinite(loss):
        return float(loss.detach())
    loss.backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    wanted = vectors.grad * scale
    with tower.precision():
        for piece in own:
            made = tower.embed(piece.features, _seed(seed, step, piece)) if cached else kept.pop(0)
            made.backward(wanted[piece.places])  # type: ignore[no-untyped-call]
    weights = [weight for _, weight in tower.named_weights()]
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()
    _add_up(weights, ranks)
    return float(loss.detach())


def _seed(seed: int, step: int, piece: Piece) -> int:
    return int(hash_value([seed, step, piece.number])[:15], 16)


def _add_up(weights: Sequence[torch.nn.Parameter], ranks: Ranks) -> None:
    """Put the sum over all processes into every gradient; a weight that none of them used keeps none."""
    if ranks.world == 1:
        return
    used = ranks.add(torch.tensor([float(weight.grad is not None) for weight in weights])).tolist()
    waiting: list[torch.Tensor] = []
    for weight, by in zip(weights, used, strict=True):
        if by:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            waiting.append(weight.grad)
        if sum(grad.numel() for grad in waiting) >= ADDED_AT_A_TIME:
            _send(waiting, ranks)
            waiting = []
    if waiting:
        _send(waiting, ranks)


def _send(gradients: Sequence[torch.Tensor], ranks: Ranks) -> None:
    flat = ranks.add(torch.cat([grad.flatten() for grad in gradients]))
    for grad, part in zip(gradients, torch.split(flat, [grad.numel() for grad in gradients]), strict=True):
        grad.copy_(part.view_as(grad))
