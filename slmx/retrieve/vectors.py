"""Vectors by content: each text's vector is kept under the encoder's fingerprint, so a corpus that grows is not encoded
anew.

A store is a folder of shards. A shard is two arrays, the digests of some texts and their vectors; it is written once,
the digests last, and never changed, so that a reader sees whole shards only and writers do not wait for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.events import Listener, nobody
from slmx.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmx.models.encoders import Encoder

DIGEST_BYTES = 16  # of SHA-256: two of 10^9 texts meet with a chance of 10^-21
SHARD = 16_384  # vectors that are encoded at most before they are saved


def digest(text: str) -> bytes:
    """The key of a text."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]


class VectorStore:
    """The vectors of one encoder, found by the digest of the text; shards are memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._shards: list[NDArray[np.float32]] = []
        for file in sorted(folder.glob("*.digests.npy")):
            self._open(file)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def _open(self, file: Path) -> None:
        import numpy as np

        vectors_file = file.with_name(file.name.replace(".digests.", ".vectors."))
        try:
            digests = np.load(file, allow_pickle=False)
            vectors = np.load(vectors_file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut short or removed: those texts are encoded again
            return
        if len(digests) == len(vectors):
            self._add([row.tobytes() for row in digests], vectors)

    def _add(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        self._shards.append(vectors)
        self._rows.update((key, (len(self._shards) - 1, row)) for row, key in enumerate(keys))

    def encode(self, texts: Iterable[str], encoder: Encoder, *, total: int, listen: Listener = nobody) -> None:
        """Encode the texts, passages each, that the store lacks, and save them a shard at a time."""
        import numpy as np

        waiting: deque[bytes] = deque()
        seen: set[bytes] = set()

        def missing() -> Iterator[str]:
            for text in texts:
                key = digest(text)
                if key not in self._rows and key not in seen:
                    seen.add(key)
                    waiting.append(key)
                    yield text

        blocks: list[NDArray[np.float32]] = []
        for block in encoder.encode(missing(), "passage", total=total, listen=listen):
            blocks.append(block)
            if sum(map(len, blocks)) >= SHARD:
                self._save(np.concatenate(blocks), waiting)
                blocks = []
        if blocks:
            self._save(np.concatenate(blocks), waiting)

    def _save(self, vectors: NDArray[np.float32], waiting: deque[bytes]) -> None:
        import numpy as np

        keys = [waiting.popleft() for _ in range(len(vectors))]
        name = sha256(b"".join(keys)).hexdigest()[:32]
        digests = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        for kind, array in (("vectors", vectors), ("digests", digests)):
            with atomic_write(self.folder / f"{name}.{kind}.npy") as out:
                np.save(out, array, allow_pickle=False)
        self._add(keys, np.load(self.folder / f"{name}.vectors.npy", mmap_mode="r", allow_pickle=False))

    def gather(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """The vectors of these texts, shape (keys, dimension); KeyError for one that the store lacks."""
        import numpy as np

        places = np.array([self._rows[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        out = np.empty((len(keys), self._shards[0].shape[1]), dtype=np.float32)
        for shard in np.unique(places[:, 0]):
            chosen = places[:, 0] == shard
            out[chosen] = self._shards[shard][places[chosen, 1]]
        return out

    def write(self, path: Path, keys: Sequence[bytes], *, block: int = SHARD) -> tuple[int, int]:
        """Write the vectors of these texts as one .npy file, a block at a time; returns its shape."""
        import numpy as np

        shape = (len(keys), int(self._shards[0].shape[1]))
        out: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, len(keys), block):
            out[start : start + block] = self.gather(keys[start : start + block])
        out.flush()
        return shape
