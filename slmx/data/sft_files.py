"""Examples to fine-tune on: ids, what of them is learnt, and where each example begins.

    train.bin  train.mask.bin  train.offsets.npy  train.json      and the same for val, beside tokenizer/

`*.mask.bin` holds a byte an id (1: in the loss), `*.offsets.npy` int64 places, one more than examples. Packing
happens in training. The older system's `train_sft_packed.bin` (int32, 512 ids and 512 labels a sample) is read as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from slmx import files
from slmx.data.token_files import SPLITS, TOKENIZER, Ids, Sidecar, Source, open_tokens, sidecar_of
from slmx.errors import SlmxError
from slmx.models.tokenizers import Tokenizer

MAKE = "`slmx data prepare-sft FILE --tokenizer T --to DIR` makes one."
PACKED_LENGTH = 512  # of the older files: so many ids, then so many labels
NOT_LEARNT = -100
_SEEN = 400  # tokens of an example that are shown


class EmptyMask(SlmxError):
    """An example of which nothing would be learnt. `view` holds its tokens, each with whether it is in the loss."""

    def __init__(self, what: str, view: list[tuple[str, bool]], *, hint: str) -> None:
        super().__init__(what, hint=hint)
        self.view = view


def view_of(tokenizer: Tokenizer | None, ids: list[int], mask: list[int]) -> list[tuple[str, bool]]:
    """The tokens of an example as texts (or numbers, without a tokenizer), each with whether it is in the loss."""
    shown = list(zip(ids, mask, strict=True))[:_SEEN]
    if tokenizer is None:
        return [(f"{i} ", bool(learnt)) for i, learnt in shown]
    return [(tokenizer.backend.decode([i], skip_special_tokens=False), bool(learnt)) for i, learnt in shown]


class SftWriter:
    """Writes the examples of one split, one after another; `close` gives their sidecar."""

    def __init__(self, folder: Path, split: str, about: Sidecar) -> None:
        self._path = folder / f"{split}.bin"
        self._about = about
        self._offsets = array("q", [0])
        self._ids: BinaryIO = self._path.open("wb")
        self._mask: BinaryIO = _mask_of(self._path).open("wb")
        self.text_bytes = self.learnt = 0

    def add(self, ids: list[int], mask: list[int], text_bytes: int) -> None:
        """Append an example."""
        self._ids.write(np.array(ids, dtype="<u2" if self._about.dtype == "uint16" else "<u4").tobytes())
        self._mask.write(bytes(mask))
        self._offsets.append(self._offsets[-1] + len(ids))
        self.text_bytes += text_bytes
        self.learnt += sum(mask)

    @property
    def examples(self) -> int:
        """How many there are so far."""
        return len(self._offsets) - 1

    def close(self, sources: list[Source]) -> Sidecar | None:
        """Write offsets and sidecar; without an example nothing stays, and None comes back."""
        self._ids.close()
        self._mask.close()
        if not self.examples:
            self._path.unlink()
            _mask_of(self._path).unlink()
            return None
        np.save(_offsets_of(self._path), np.frombuffer(self._offsets, dtype=np.int64))
        written = msgspec.structs.replace(
            self._about,
            tokens=int(self._offsets[-1]),
            documents=self.examples,
            text_bytes=self.text_bytes,
            sources=sources,
        )
        files.write_json(sidecar_of(self._path), written)
        return written


def _mask_of(path: Path) -> Path:
    return path.with_suffix(".mask.bin")


def _offsets_of(path: Path) -> Path:
    return path.with_suffix(".offsets.npy")


@dataclass(frozen=True)
class Examples:
    """The examples of a split, mapped into memory.

    Attributes:
        path: the file of ids.
        ids: all ids; `example` gives those of one.
        mask: a byte an id, 1 where it is in the loss.
        offsets: where each example begins, and the end.
        sidecar: None for the older packed file.
        vocab_size: token types; an id from here on is damage.
    """

    path: Path
    ids: Ids
    mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sidecar: Sidecar | None
    vocab_size: int | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def example(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids of an example, and which of them are in the loss.

        Raises:
            SlmxError: an id lies past the vocabulary.
        """
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        ids = self.ids[start:end].astype(np.int64)
        if self.vocab_size is not None and len(ids) and int(ids.max()) >= self.vocab_size:
            raise SlmxError(
                f"{self.path} holds the token id {int(ids.max())} in example {number}, past its vocabulary of "
                f"{self.vocab_size:,}.",
                hint="The file belongs to another tokenizer or is damaged: make it again.",
            )
        return ids, self.mask[start:end].astype(bool)

    def check(self, tokenizer: Tokenizer | None = None) -> None:
        """Is something learnt of every example?

        Raises:
            EmptyMask: of one nothing is; the first is shown.
        """
        learnt = np.add.reduceat(self.mask, self.offsets[:-1], dtype=np.int64)
        empty = np.flatnonzero(learnt == 0)
        if len(empty):
            ids, mask = self.example(int(empty[0]))
            raise EmptyMask(
                f"{self.path}: nothing would be learnt of {len(empty)} of {len(self)} examples: their masks are all "
                f"zero (the first is number {int(empty[0])}).",
                view_of(tokenizer, ids.tolist(), mask.tolist()),
                hint="Make the file again with a --template that writes the answers.",
            )


@dataclass(frozen=True)
class SftFolder:
    """The examples of a folder. `tokenizer` is the folder of its tokenizer, None where it holds none."""

    path: Path
    train: Examples
    val: Examples | None
    tokenizer: Path | None


def open_sft(path: Path, *, vocab_size: int | None = None, tokenizer_hash: str = "") -> SftFolder:
    """The examples of a folder, or of an older packed file that is named itself.

    Raises:
        SlmxError: a file is absent, cut, or was made with another tokenizer than `tokenizer_hash`.
        EmptyMask: nothing would be learnt of an example.
    """
    from slmx.models.tokenizers import load_tokenizer

    if path.is_file():
        return SftFolder(path.parent, _packed(path, vocab_size), None, None)
    if not path.is_dir():
        raise SlmxError(f"There is no folder {path}.", hint=MAKE)
    if not _mask_of(path / "train.bin").is_file():
        older = path / "train_sft_packed.bin"
        if older.is_file():
            return SftFolder(path, _packed(older, vocab_size), None, None)
        raise SlmxError(f"{path} holds no examples (train.bin with train.mask.bin).", hint=MAKE)
    own = path / TOKENIZER
    tokenizer = load_tokenizer(own) if own.is_dir() else None
    found = [_open(path / f"{split}.bin", tokenizer_hash) for split in SPLITS if (path / f"{split}.bin").is_file()]
    for examples in found:
        examples.check(tokenizer)
    return SftFolder(path, found[0], found[1] if len(found) > 1 else None, own if tokenizer else None)


def _open(path: Path, tokenizer_hash: str) -> Examples:
    tokens = open_tokens(path, tokenizer_hash=tokenizer_hash)
    if not _mask_of(path).is_file() or not _offsets_of(path).is_file():
        raise SlmxError(f"{path} lacks its mask or its offsets.", hint="Copy the folder again.")
    try:
        offsets = np.load(_offsets_of(path), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SlmxError(f"{_offsets_of(path)} is damaged: {error}.", hint="Copy it again.") from None
    size = _mask_of(path).stat().st_size
    if size != len(tokens):
        raise SlmxError(
            f"{_mask_of(path)} has {size:,} bytes for {len(tokens):,} tokens: it was cut, or belongs to another file.",
            hint="Copy the folder again.",
        )
    sound = offsets.ndim == 1 and offsets.dtype == np.int64 and len(offsets) > 1 and offsets[0] == 0
    if not sound or offsets[-1] != len(tokens) or (np.diff(offsets) < 1).any():
        raise SlmxError(f"{_offsets_of(path)} does not fit {path.name}.", hint="Copy the folder again.")
    mask = np.memmap(_mask_of(path), dtype=np.uint8, mode="r")
    return Examples(path, tokens.ids, mask, offsets, tokens.sidecar, tokens.vocab_size)


def _packed(path: Path, vocab_size: int | None) -> Examples:
    """The older form; what stands behind the last label that is learnt is padding."""
    width = 2 * PACKED_LENGTH
    size = path.stat().st_size
    if not size or size % (4 * width):
        raise SlmxError(
            f"{path} has {size:,} bytes, no whole number of samples of {width} int32: it was cut or is none.",
            hint="Copy it again; other forms: `slmx data prepare-sft`.",
        )
    samples = np.memmap(path, dtype="<i4", mode="r").reshape(-1, 2, PACKED_LENGTH)
    ids, masks, ends = [], [], [0]
    for number, (one, labels) in enumerate(_samples(samples)):
        learnt = labels != NOT_LEARNT
        if not learnt.any() or (labels[learnt] != one[learnt]).any():
            why = "nothing of it is learnt" if not learnt.any() else "a label differs from its id"
            text = f"{path}, sample {number}: {why}."
            raise EmptyMask(text, view_of(None, one.tolist(), learnt.tolist()), hint="Was it made for another model?")
        end = int(np.flatnonzero(learnt)[-1]) + 1
        ids.append(one[:end].astype(np.uint32))
        masks.append(learnt[:end].astype(np.uint8))
        ends.append(ends[-1] + end)
    return Examples(path, np.concatenate(ids), np.concatenate(masks), np.array(ends, dtype=np.int64), None, vocab_size)


def _samples(samples: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    for sample in samples:
        yield np.asarray(sample[0]), np.asarray(sample[1])
