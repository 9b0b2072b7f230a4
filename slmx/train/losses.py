"""Losses over the vectors of a batch, with a mask for passages that are no true negatives. Similarity is in fp32.

Vectors come from an encoder; `slmx.train.towers` makes them, whole (plain) or in pieces (cached). A loss sees a batch's
queries, its positives in the same order, and its hard negatives after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from slmx.train.pairs import Pair, key_of

Similarity = Literal["cosine", "dot"]
Vectors = tuple[torch.Tensor, torch.Tensor]  # of queries and of passages
TRIPLET_MARGIN = {"cosine": 0.3, "dot": 5.0}


@dataclass(frozen=True)
class Batch:
    """The texts of one step and what is known of them.

    Attributes:
        queries: B texts.
        passages: the B positives in the order of the queries, then all hard negatives.
        owner: for each passage the place of its query, shape (passages,).
        false_negative: True where a passage must not count against a query, shape (B, passages); never at the
            query's own positive.
        scores: a teacher's score of each passage for its own query, shape (passages,), or None where some are missing.
    """

    queries: list[str]
    passages: list[str]
    owner: torch.Tensor
    false_negative: torch.Tensor
    scores: torch.Tensor | None


def make_batch(pairs: Sequence[Pair], known: Mapping[int, frozenset[int]], negatives: int) -> Batch:
    """The batch of some pairs, each with at most `negatives` of its hard negatives; pairs may have different numbers.

    Args:
        known: text keys of all positives of a query, for queries with several (`slmx.train.pairs.known_positives`).
    """
    size = len(pairs)
    passages, owner = [pair.example.positive for pair in pairs], list(range(size))
    texts, documents = [pair.positive_key for pair in pairs], [pair.document_key for pair in pairs]
    scores: list[float | None] = [pair.example.scores[0] if pair.example.scores else None for pair in pairs]
    for place, pair in enumerate(pairs):
        example = pair.example
        for number, text in enumerate(example.negatives[:negatives]):
            own_id = example.negative_ids[number] if number < len(example.negative_ids) else ""
            passages.append(text)
            owner.append(place)
            texts.append(key_of(text))
            documents.append(key_of(pair.dataset, own_id) if own_id else texts[-1])
            scores.append(example.scores[number + 1] if number + 1 < len(example.scores) else None)
    text_keys, document_keys = torch.tensor(texts), torch.tensor(documents)
    mask = (text_keys[:size, None] == text_keys) | (document_keys[:size, None] == document_keys)
    for place, pair in enumerate(pairs):
        if pair.query_key in known:
            mask[place] |= torch.isin(text_keys, torch.tensor(sorted(known[pair.query_key])))
    mask[torch.arange(size), torch.arange(size)] = False
    told = [score for score in scores if score is not None]
    return Batch(
        queries=[pair.example.query for pair in pairs],
        passages=passages,
        owner=torch.tensor(owner),
        false_negative=mask,
        scores=torch.tensor(told) if len(told) == len(scores) else None,
    )


def similarities(queries: torch.Tensor, passages: torch.Tensor, similarity: Similarity) -> torch.Tensor:
    """Cosine similarity or dot product in fp32, shape (queries, passages)."""
    left, right = queries.float(), passages.float()
    if similarity == "cosine":
        left, right = functional.normalize(left, dim=-1), functional.normalize(right, dim=-1)
    return left @ right.T


def mnrl(scores: torch.Tensor, batch: Batch, scale: float, *, symmetric: bool = False) -> torch.Tensor:
    """Multiple negatives ranking: cross-entropy of each query's positive among all passages that may count.

    `symmetric` takes the mean with the other direction, each positive's query among all queries.
    """
    size = len(batch.queries)
    target = torch.arange(size, device=scores.device)
    mask = batch.false_negative.to(scores.device)
    logits = (scale * scores).masked_fill(mask, float("-inf"))
    loss = functional.cross_entropy(logits, target)
    if not symmetric:
        return loss
    back = (scale * scores[:, :size].T).masked_fill(mask[:, :size].T, float("-inf"))
    return (loss + functional.cross_entropy(back, target)) / 2


def triplet(scores: torch.Tensor, batch: Batch, margin: float) -> torch.Tensor:
    """Mean of max(0, margin - s(query, positive) + s(query, negative)) over the hard negatives that are true ones."""
    positive, negative, true = _own(scores, batch)
    losses = functional.relu(margin - positive + negative)
    return losses[true].sum() / true.sum().clamp(min=1)


def margin_mse(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Squared error of s(query, positive) - s(query, negative) against the teacher's difference (Hofstätter 2020)."""
    assert batch.scores is not None  # checked before training starts
    positive, negative, _ = _own(scores, batch)
    size, teacher = len(batch.queries), batch.scores.to(scores.device)
    wanted = teacher[batch.owner.to(scores.device)[size:]] - teacher[size:]
    return functional.mse_loss(positive - negative, wanted)


def _own(scores: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each hard negative: its query's score with the positive, with itself, and whether it is a true negative."""
    size = len(batch.queries)
    owner = batch.owner.to(scores.device)[size:]
    places = torch.arange(size, scores.shape[1], device=scores.device)
    true = ~batch.false_negative.to(scores.device)[owner, places]
    return scores[owner, owner], scores[owner, places], true


def gist(
    queries: torch.Tensor, passages: torch.Tensor, guide: Vectors, batch: Batch, scale: float, similarity: Similarity
) -> torch.Tensor:
    """Guided selection of negatives (GISTEmbed, Solatorio 2024): what the guide holds nearer than the positive is out.

    Beside the passages, a query's own candidates are the other queries and, from its positive, the other positives.

    Args:
        guide: the guide model's vectors of the same queries and passages.
    """
    size = len(batch.queries)
    own = torch.arange(size, device=queries.device)

    def candidates(asked: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        tables = ((asked, found), (asked, asked), (found[:size], found[:size]))
        return torch.cat([similarities(left, right, similarity) for left, right in tables], dim=1)

    scores = candidates(queries, passages)
    with torch.no_grad():
        guided = candidates(*guide)
    left_out = guided > guided[own, own].unsqueeze(1)
    known = batch.false_negative.to(queries.device)
    itself = torch.eye(size, dtype=torch.bool, device=queries.device)
    left_out |= torch.cat([known, itself, known[:, :size] | itself], dim=1)
    left_out[own, own] = False
    return functional.cross_entropy((scale * scores).masked_fill(left_out, float("-inf")), own)


LOSSES = ("mnrl", "cached-mnrl", "symmetric-mnrl", "gist", "triplet", "margin-mse")
NEED_NEGATIVES = ("triplet", "margin-mse")


def loss_of(
    name: str,
    queries: torch.Tensor,
    passages: torch.Tensor,
    batch: Batch,
    *,
    scale: float,
    similarity: Similarity,
    guide: Vectors | None = None,
    dims: Sequence[int] = (),
) -> torch.Tensor:
    """The loss that goes by `name`, from the vectors of a batch: a scalar in fp32.

    Args:
        scale: multiplies similarities in the ranking losses, and in margin-mse, where it brings them to the teacher's
            range.
        guide: a guide model's vectors, for gist.
        dims: the loss is the sum of those of the vectors' first numbers, so many each time (Matryoshka, Kusupati et
            al. 2022); none: of the whole vectors.
    """
    if dims:
        cut = [(queries[:, :dim], passages[:, :dim]) for dim in dims]
        losses = [loss_of(name, *own, batch, scale=scale, similarity=similarity, guide=guide) for own in cut]
        return torch.stack(losses).sum()
    if name == "gist":
        assert guide is not None  # checked before training starts
        return gist(queries, passages, guide, batch, scale, similarity)
    scores = similarities(queries, passages, similarity)
    if name == "triplet":
        return triplet(scores, batch, TRIPLET_MARGIN[similarity])
    if name == "margin-mse":
        return margin_mse(scale * scores, batch)
    return mnrl(scores, batch, scale, symmetric=name == "symmetric-mnrl")
