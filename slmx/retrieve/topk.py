"""The k best of many scores. Of equal scores the one that stands first in the corpus wins, so results repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def top_k(scores: NDArray[np.float32], k: int, *, above: float = -float("inf")) -> NDArray[np.int64]:
    """Places of the k best of `scores`, shape (n,), best first; only scores greater than `above`."""
    import numpy as np

    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero((scores >= kth) & (scores > above))
    else:
        places = np.flatnonzero(scores > above)
    return places[np.argsort(-scores[places], kind="stable")][:k]


def top_k_rows(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and places of the k best in every row of `scores`, shape (rows, n); shapes (rows, min(k, n)).

    Rows come sorted by value, equal values by place. `torch.topk` alone would pick any of the equal ones.
    """
    import torch

    k = min(k, scores.shape[1])
    values, places = scores.topk(k, dim=1)
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    for row in tied.nonzero().flatten().tolist():
        candidates = (scores[row] >= values[row, -1]).nonzero().flatten()
        best = scores[row, candidates].argsort(descending=True, stable=True)[:k]
        values[row], places[row] = scores[row, candidates[best]], candidates[best]
    places, order = places.sort(dim=1)
    values = values.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return torch.as_tensor(values), places.gather(1, order)


def merge(
    best: tuple[torch.Tensor, torch.Tensor] | None, found: tuple[torch.Tensor, torch.Tensor], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of two sorted results over different parts of a corpus; `best` is over the earlier part."""
    import torch

    if best is None:
        return found
    values, places = (torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
    # The earlier part stands first, and within a part equal values are in order: a stable sort keeps all that.
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], places.gather(1, order)[:, :k]
