"""Losses: false negatives do not count, cached gradients are the plain ones, pieces do not change vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slmx.train.forms import Example
from slmx.train.gradients import add_gradients, cut
from slmx.train.losses import Batch, loss_of, make_batch, margin_mse, mnrl, similarities, triplet
from slmx.train.pairs import Pair, key_of
from slmx.train.ranks import Ranks
from slmx.train.towers import Tower


def pair(query: str, positive: str, *negatives: str, document: str = "", **more: Any) -> Pair:
    return Pair(
        dataset="set",
        example=Example(query=query, positive=positive, negatives=list(negatives), positive_id=document, **more),
        query_key=key_of(query),
        positive_key=key_of(positive),
        document_key=key_of("set", document) if document else key_of(positive),
    )


def test_the_mask_knows_same_texts_same_documents_and_other_positives() -> None:
    pairs = [pair("a", "x", "z"), pair("b", "y", "x"), pair("c", "part 1", document="d"), pair("e", "2", document="d")]
    batch = make_batch(pairs, {key_of("a"): frozenset({key_of("x"), key_of("y")})}, negatives=1)
    assert batch.passages == ["x", "y", "part 1", "2", "z", "x"]
    assert batch.owner.tolist() == [0, 1, 2, 3, 0, 1]
    masked = {(q, p) for q, p in batch.false_negative.nonzero().tolist()}
    assert masked == {(0, 1), (0, 5), (2, 3), (3, 2)}  # y answers a too; x again; two parts of the document d


def test_a_document_id_of_a_negative_is_looked_at() -> None:
    one = pair("a", "x", "other words", document="d", negative_ids=["d"])
    assert make_batch([one], {}, negatives=1).false_negative.tolist() == [[False, True]]


def test_mnrl_is_cross_entropy_over_what_may_count() -> None:
    batch = make_batch([pair("a", "x"), pair("b", "y", "x")], {}, negatives=1)
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.3, 0.7, 0.2]])
    first = -torch.log_softmax(torch.tensor([9.0, 1.0]), 0)[0]  # the third passage is x again: left out
    second = -torch.log_softmax(torch.tensor([3.0, 7.0, 2.0]), 0)[1]
    assert mnrl(scores, batch, 10.0).item() == pytest.approx(((first + second) / 2).item(), rel=1e-6)
    back = [-torch.log_softmax(torch.tensor([9.0, 3.0]), 0)[0], -torch.log_softmax(torch.tensor([1.0, 7.0]), 0)[1]]
    both = (first + second) / 4 + sum(back) / 4
    assert mnrl(scores, batch, 10.0, symmetric=True).item() == pytest.approx(float(both), rel=1e-6)


def test_triplet_and_margin_mse_by_hand() -> None:
    batch = make_batch([pair("a", "x", "n", scores=[5.0, 1.0]), pair("b", "y", "m", scores=[4.0, 3.0])], {}, 1)
    scores = torch.tensor([[0.9, 0.0, 0.8, 0.0], [0.0, 0.5, 0.0, 0.1]])
    assert triplet(scores, batch, 0.3).item() == pytest.approx((0.3 - 0.9 + 0.8) / 2)
    assert margin_mse(scores, batch).item() == pytest.approx(((0.1 - 4) ** 2 + (0.4 - 1) ** 2) / 2)


def test_similarity_is_fp32_whatever_the_vectors_are() -> None:
    vectors = torch.randn(3, 8).bfloat16()
    assert similarities(vectors, vectors, "cosine").dtype == torch.float32
    assert similarities(vectors, vectors, "cosine").diagonal().tolist() == pytest.approx([1.0] * 3, abs=1e-6)


TEXTS = [
    "the keeper of the tower",
    "stone",
    "water and oil",
    "a ship on the river of the harbour",
    "lamp",
    "engine oil",
]


def gradients(folder: Path, batch: Batch, *, cached: bool, tokens: int) -> tuple[float, torch.Tensor]:
    tower = Tower(folder, device=torch.device("cpu"))

    def loss(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
        return loss_of("mnrl", queries, passages, batch, scale=20.0, similarity="cosine")

    pieces = cut(tower, tower.tokenize(batch.queries, "query"), tower.tokenize(batch.passages, "passage"), tokens)
    settings: dict[str, Any] = {"queries": len(batch.queries), "seed": 1, "step": 2, "ranks": Ranks(tower.device)}
    value = add_gradients(tower, pieces, loss, cached=cached, **settings)
    return value, torch.cat([w.grad.flatten() for _, w in tower.named_weights() if w.grad is not None])


def test_cached_gradients_are_the_plain_ones_with_dropout_on(encoder_folder: Path) -> None:
    batch = make_batch([pair(f"who {t}", t, TEXTS[n - 1] + " and") for n, t in enumerate(TEXTS)], {}, 1)
    plain_loss, plain = gradients(encoder_folder, batch, cached=False, tokens=24)
    cached_loss, cached = gradients(encoder_folder, batch, cached=True, tokens=24)
    assert cached_loss == pytest.approx(plain_loss, abs=1e-6)
    assert torch.cosine_similarity(plain, cached, dim=0) > 0.9999
    assert torch.allclose(plain, cached, atol=1e-5)


def test_pieces_do_not_change_vectors(encoder_folder: Path) -> None:
    from slmx.models.encoders import Encoder

    tower = Tower(encoder_folder, device=torch.device("cpu"), query_length=6)
    tower.model.eval()
    pieces = cut(tower, tower.tokenize(TEXTS, "query"), tower.tokenize(TEXTS, "passage"), 16)
    passages = [piece for piece in pieces if piece.places.min() >= len(TEXTS)]
    assert len(passages) > 2
    vectors = torch.zeros(2 * len(TEXTS), tower.dimension)
    with torch.no_grad():
        for piece in passages:
            vectors[piece.places] = tower.embed(piece.features, 0)
    wanted = torch.from_numpy(Encoder(encoder_folder, device="cpu", dtype="float32").encode_all(TEXTS, "passage"))
    assert torch.allclose(torch.nn.functional.normalize(vectors[len(TEXTS) :]), wanted, atol=1e-5)
    assert max(map(len, tower.tokenize(TEXTS, "query"))) == 6


def test_prompts_stand_before_the_texts_and_are_kept(make_encoder: Callable[..., Path], tmp_path: Path) -> None:
    from slmx.models.encoders import Encoder

    tower = Tower(make_encoder(), device=torch.device("cpu"), query_prompt="the lamp ", pooling="cls")
    assert len(tower.tokenize(["stone"], "query")[0]) == 5
    tower.save(tmp_path / "saved")
    assert Encoder(tmp_path / "saved", device="cpu").prompts == {"query": "the lamp ", "passage": ""}
