"""Files of token ids: a raw little-endian array of numbers, and beside it a sidecar that says what they are.

A folder made by slmx holds

    train.bin  val.bin     ids without a header: uint16 below 65,536 token types, else uint32 (nanoGPT's layout)
    train.json val.json    their sidecars: tokenizer and its hash, dtype, counts, bytes of text, sources
    tokenizer/             a copy of the tokenizer, which transformers loads

Documents are separated by the end-of-text id, one behind each. Raw uint16 files without a sidecar (nanoGPT's, and the
older system's, which have no separator) are read as well:

    >>> data = open_folder(Path("tokens"))
    >>> data.train.read(0, 8)             # int64 ids, checked against the vocabulary
    >>> data.train.bytes_per_token        # nats a token / ln 2 / this = bits a byte
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from slmx import files
from slmx.errors import SlmxError, UsageError
from slmx.records import Record

FORMAT = "slmx tokens 1"
TOKENIZER = "tokenizer"  # the folder of the tokenizer's copy
SPLITS = ("train", "val")
NARROW = 1 << 16  # so many token types fit into uint16
MAKE = "`slmx data prepare TEXT --tokenizer T --to DIR` makes one."
_SCAN = 1 << 22  # ids looked at in one go
Dtype = Literal["uint16", "uint32"]
Ids = NDArray[Any]


class Source(Record, frozen=True):
    """A file that the ids were made from."""

    path: str
    hash: str
    bytes: int
    documents: int = 0


class Sidecar(Record, frozen=True, omit_defaults=False):
    """What a token file is.

    `tokens` counts all ids, `documents` the texts, `text_bytes` their UTF-8 bytes (without end-of-text marks).
    `end_of_text` is the id behind each document; None where documents are not separated. `options` are those of the
    command that made the file.
    """

    format: str
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    dtype: Dtype
    tokens: int
    documents: int
    text_bytes: int
    end_of_text: int | None
    sources: list[Source] = []
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class TokenFile:
    """A token file on the disk, mapped into memory.

    Attributes:
        path: the file.
        ids: all ids as they are stored (uint16 or uint32), read-only; `read` gives them checked.
        sidecar: None for a raw file without one.
        vocab_size: token types; an id from here on is damage. None where nobody said.
    """

    path: Path
    ids: Ids
    sidecar: Sidecar | None
    vocab_size: int | None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def end_of_text(self) -> int | None:
        """The id behind each document; None where documents are not separated, or nobody says how."""
        return self.sidecar.end_of_text if self.sidecar else None

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of text a token (end-of-text marks counted as tokens); None without a sidecar."""
        return self.sidecar.text_bytes / max(1, self.sidecar.tokens) if self.sidecar else None

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """`count` ids from `start` on, fewer at the end of the file; a copy.

        Raises:
            SlmxError: an id lies past the vocabulary; the message names file, place and id.
        """
        part = self.ids[start : start + count].astype(np.int64)
        self._check(part, start)
        return part

    def check(self) -> None:
        """Look at every id once. Raises as `read`."""
        for start in range(0, len(self), _SCAN):
            self._check(self.ids[start : start + _SCAN], start)

    def _check(self, part: Ids, start: int) -> None:
        if self.vocab_size is None or not len(part) or int(part.max()) < self.vocab_size:
            return
        place = int(np.argmax(part >= self.vocab_size))
        raise SlmxError(
            f"{self.path} holds the token id {int(part[place])} at place {start + place:,}, past its vocabulary of "
            f"{self.vocab_size:,}.",
            hint="The file belongs to another tokenizer or is damaged: make it again with `slmx data prepare`.",
        )


@dataclass(frozen=True)
class TokenFolder:
    """The token files of a folder. `tokenizer` is the folder of its tokenizer, None where it holds none."""

    path: Path
    train: TokenFile
    val: TokenFile | None
    tokenizer: Path | None


def dtype_for(vocab_size: int) -> Dtype:
    """The number type that `vocab_size` token types need."""
    return "uint16" if vocab_size <= NARROW else "uint32"


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of a token file lies."""
    return path.with_suffix(".json")


def open_folder(path: Path, *, vocab_size: int | None = None, tokenizer_hash: str = "") -> TokenFolder:
    """The token files of a folder, or of a single file that is named itself. See `open_tokens`."""
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise SlmxError(f"There is no folder {path}.", hint=MAKE)
    names = [folder / f"{split}.bin" for split in SPLITS]
    if path.is_file():
        names = [path, *(n for n in names if n.name == "val.bin" and path.name == "train.bin")]
    if not names[0].is_file():
        raise SlmxError(f"{folder} holds no {names[0].name}.", hint=MAKE)
    opened = [open_tokens(n, vocab_size=vocab_size, tokenizer_hash=tokenizer_hash) for n in names if n.is_file()]
    tokenizer = folder / TOKENIZER
    return TokenFolder(
        folder, opened[0], opened[1] if len(opened) > 1 else None, tokenizer if tokenizer.is_dir() else None
    )


def open_tokens(path: Path, *, vocab_size: int | None = None, tokenizer_hash: str = "") -> TokenFile:
    """Map a token file into memory.

    Args:
        path: the file. Without a sidecar it is taken for raw uint16.
        vocab_size: token types of the model that will read it, where the sidecar does not say; ids past it are refused
            when they are read.
        tokenizer_hash: the tokenizer that the reader has; another one in the sidecar is refused.

    Raises:
        SlmxError: there is no such file, it is empty, cut in the middle, or made with another tokenizer.
    """
    if not path.is_file():
        raise SlmxError(f"There is no file {path}.", hint=MAKE)
    sidecar = read_sidecar(path)
    size = path.stat().st_size
    width = np.dtype(sidecar.dtype if sidecar else "uint16").itemsize
    if sidecar and size != sidecar.tokens * width:
        raise SlmxError(
            f"{path} has {size:,} bytes where its sidecar says {sidecar.tokens * width:,} ({sidecar.tokens:,} tokens): "
            + ("it was cut." if size < sidecar.tokens * width else "it is another file."),
            hint="Copy it again, or make it again with `slmx data prepare`.",
        )
    if size % width:
        raise SlmxError(
            f"{path} has {size:,} bytes, no whole number of {width}-byte ids: it was cut in the middle.",
            hint="Copy it again.",
        )
    if not size:
        raise SlmxError(f"{path} is empty.", hint=MAKE)
    if sidecar and tokenizer_hash and sidecar.tokenizer_hash != tokenizer_hash:
        raise SlmxError(
            f"{path} was made with another tokenizer ({sidecar.tokenizer}, {sidecar.tokenizer_hash[:12]}; "
            f"here: {tokenizer_hash[:12]}).",
            hint="Make the file again with the tokenizer here, or take a model of the file's own.",
        )
    ids = np.memmap(path, dtype="<u2" if width == 2 else "<u4", mode="r")
    return TokenFile(path, ids, sidecar, sidecar.vocab_size if sidecar else vocab_size)


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar of a token file; None where there is none of ours."""
    beside = sidecar_of(path)
    if not beside.is_file():
        return None
    content = files.read_json(beside)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    try:
        return msgspec.convert(content, Sidecar)
    except msgspec.ValidationError as error:
        raise SlmxError(f"{beside} is damaged: {error}.", hint="Make the token file again.") from None


def write_tokens(path: Path, pieces: Iterable[Ids], about: Sidecar) -> Sidecar:
    """Write a token file piece by piece, with its sidecar; returns that, its tokens counted.

    The sidecar is written last: until then the folder has none, and whoever makes a folder gives it its name when all
    is there (`files.whole_folder`).

    Raises:
        UsageError: an id lies past `about.vocab_size`, or the dtype does not hold so many.
    """
    if about.vocab_size > NARROW and about.dtype == "uint16":
        raise UsageError(f"{about.vocab_size:,} token types do not fit into uint16.", hint="Store them as uint32.")
    tokens = 0
    with files.atomic_write(path) as out:
        for piece in _checked(pieces, about.vocab_size):
            out.write(np.ascontiguousarray(piece, dtype="<u2" if about.dtype == "uint16" else "<u4").data)
            tokens += len(piece)
    written = msgspec.structs.replace(about, tokens=tokens)
    files.write_json(sidecar_of(path), written)
    return written


def _checked(pieces: Iterable[Ids], vocab_size: int) -> Iterator[Ids]:
    for piece in pieces:
        if len(piece) and (int(piece.max()) >= vocab_size or int(piece.min()) < 0):
            raise UsageError(f"The token id {int(piece.max())} lies past the vocabulary of {vocab_size:,}.")
        yield piece
