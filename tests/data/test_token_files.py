from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from slmx.data.token_files import (
    FORMAT,
    Sidecar,
    dtype_for,
    open_folder,
    open_tokens,
    sidecar_of,
    write_tokens,
)
from slmx.errors import SlmxError, UsageError


def about(vocab_size: int = 1000) -> Sidecar:
    return Sidecar(
        format=FORMAT,
        tokenizer="mine",
        tokenizer_hash="ab" * 32,
        vocab_size=vocab_size,
        dtype=dtype_for(vocab_size),
        tokens=0,
        documents=2,
        text_bytes=40,
        end_of_text=0,
    )


@given(
    st.lists(st.lists(st.integers(0, 99_999), max_size=20), min_size=1, max_size=5), st.sampled_from([65536, 100_000])
)
@settings(max_examples=30, deadline=None)
def test_ids_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], vocab: int
) -> None:
    path = tmp_path_factory.mktemp("ids") / "train.bin"
    ids = [np.array(piece, dtype=np.int64) % vocab for piece in pieces]
    whole = np.concatenate(ids)
    written = write_tokens(path, ids, about(vocab))
    assert written.tokens == len(whole)
    assert path.stat().st_size == len(whole) * (2 if vocab == 65536 else 4)
    if len(whole):
        opened = open_tokens(path)
        assert opened.sidecar == written
        assert opened.read(0, len(whole)).tolist() == whole.tolist()
        assert opened.read(1, 3).tolist() == whole[1:4].tolist()


def test_a_folder_has_two_splits_and_bytes_per_token(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tokens(tmp_path / f"{split}.bin", [np.arange(10)], about())
    folder = open_folder(tmp_path)
    assert folder.val is not None
    assert len(folder.val) == 10
    assert folder.train.bytes_per_token == 4.0
    assert folder.train.end_of_text == 0
    assert folder.tokenizer is None


def test_a_raw_file_without_a_sidecar_is_uint16(tmp_path: Path) -> None:
    np.array([1, 50256, 3], dtype="<u2").tofile(tmp_path / "train.bin")
    opened = open_folder(tmp_path, vocab_size=50257).train
    assert opened.read(0, 9).tolist() == [1, 50256, 3]
    assert opened.end_of_text is None
    assert opened.bytes_per_token is None


def test_a_file_of_another_program_beside_it_is_no_sidecar(tmp_path: Path) -> None:
    np.arange(5, dtype="<u2").tofile(tmp_path / "train.bin")
    (tmp_path / "train.json").write_text('{"rows": 3}')
    assert open_tokens(tmp_path / "train.bin").sidecar is None


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    write_tokens(path, [np.arange(100)], about())
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(SlmxError, match=r"train\.bin has 150 bytes where its sidecar says 200 .* it was cut"):
        open_tokens(path)
    sidecar_of(path).unlink()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SlmxError, match="149 bytes, no whole number of 2-byte ids: it was cut in the middle"):
        open_tokens(path)
    path.write_bytes(b"")
    with pytest.raises(SlmxError, match=r"train\.bin is empty"):
        open_tokens(path)


def test_an_id_past_the_vocabulary_is_named_with_its_place(tmp_path: Path) -> None:
    ids = np.arange(100, dtype="<u2")
    ids[70] = 5000
    ids.tofile(tmp_path / "train.bin")
    opened = open_tokens(tmp_path / "train.bin", vocab_size=1000)
    assert opened.read(0, 70)[-1] == 69
    with pytest.raises(SlmxError, match="token id 5000 at place 70, past its vocabulary of 1,000"):
        opened.read(64, 10)
    with pytest.raises(SlmxError, match="at place 70"):
        opened.check()
    with pytest.raises(UsageError, match="token id 1000 lies past the vocabulary"):
        write_tokens(tmp_path / "val.bin", [np.array([1000])], about())
    assert not (tmp_path / "val.bin").exists()


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.bin", [np.arange(4)], about())
    assert open_tokens(tmp_path / "train.bin", tokenizer_hash="ab" * 32).vocab_size == 1000
    with pytest.raises(SlmxError, match="made with another tokenizer"):
        open_tokens(tmp_path / "train.bin", tokenizer_hash="cd" * 32)


def test_a_damaged_sidecar_and_an_absent_file_are_named(tmp_path: Path) -> None:
    write_tokens(tmp_path / "train.bin", [np.arange(4)], about())
    content = msgspec.json.decode(sidecar_of(tmp_path / "train.bin").read_bytes())
    sidecar_of(tmp_path / "train.bin").write_bytes(msgspec.json.encode({**content, "tokens": "four"}))
    with pytest.raises(SlmxError, match=r"train\.json is damaged"):
        open_tokens(tmp_path / "train.bin")
    with pytest.raises(SlmxError, match=r"holds no train\.bin"):
        open_folder(tmp_path.parent)
    with pytest.raises(SlmxError, match="There is no folder"):
        open_folder(tmp_path / "absent")
