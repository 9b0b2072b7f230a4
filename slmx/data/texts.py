"""The texts of a corpus by id, memory-mapped: any of them is at hand, and memory holds a few numbers a text.

They are written once into the cache, in a folder that is named by the corpus's content.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from slmx.data.beir import passage_text
from slmx.errors import RefusedError, SlmxError
from slmx.events import Listener, Progress, nobody
from slmx.files import BLOCK, hash_value, key_of, whole_folder
from slmx.records import Passage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
EVERY = 10_000  # passages between two progress events
LAST = "ids.npy"  # written last: a folder that has it is whole


class Source(Protocol):
    """Passages, and a hash of their content."""

    @property
    def corpus_hash(self) -> str:
        """By content."""
        ...

    def passages(self) -> Iterator[Passage]:
        """All of them."""
        ...


class Texts:
    """The texts of one corpus; a place is a passage's number in it, from 0."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        def load(name: str) -> NDArray[np.int64]:
            found: NDArray[np.int64] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            return found

        self._bounds, self._keys = load("bounds.npy"), load("keys.npy")
        self._ids, self._places = load(LAST), load("places.npy")
        empty = not int(self._bounds[-1])  # nothing can be mapped of an empty file
        path = folder / "texts.bin"
        self._bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._keys)

    def place(self, passage_id: str) -> int | None:
        """The place of an id; None where the corpus lacks it."""
        import numpy as np

        key = key_of(passage_id)
        found = int(np.searchsorted(self._ids, key))
        return int(self._places[found]) if found < len(self._ids) and self._ids[found] == key else None

    def text(self, place: int) -> str:
        """Title and text, as they are indexed."""
        start, end = int(self._bounds[place]), int(self._bounds[place + 1])
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass")

    def key(self, place: int) -> int:
        """The text's key (`slmx.files.key_of`)."""
        return int(self._keys[place])


def open_texts(corpus: Source, cache_dir: Path, listen: Listener = nobody) -> Texts:
    """The texts of a corpus, from the cache or written there now.

    Raises:
        SlmxError: two passages have one id.
    """
    path = cache_dir / "texts" / hash_value([VERSION, corpus.corpus_hash])
    if not (path / LAST).is_file():
        try:
            with whole_folder(path, marker=LAST) as made:
                _write(made, corpus, listen)
        except (RefusedError, OSError):  # another process was faster, and its folder has the same content
            if not (path / LAST).is_file():
                raise
    return Texts(path)


def _write(folder: Path, corpus: Source, listen: Listener) -> None:
    import numpy as np

    bounds, keys, ids = array("q", [0]), array("q"), array("q")
    with (folder / "texts.bin").open("wb", buffering=BLOCK) as out:
        for number, passage in enumerate(corpus.passages(), 1):
            text = passage_text(passage)
            bounds.append(bounds[-1] + out.write(text.encode("utf-8", "surrogatepass")))
            keys.append(key_of(text))
            ids.append(key_of(passage.passage_id))
            if number % EVERY == 0:
                listen(Progress("read texts", number, None, "passages"))
    places = np.argsort(np.array(ids, np.int64), kind="stable")
    sorted_ids = np.array(ids, np.int64)[places]
    if len(sorted_ids) > 1 and (sorted_ids[1:] == sorted_ids[:-1]).any():
        raise SlmxError("Two passages of the corpus have one id.", hint="Give every passage an id of its own.")
    arrays = {"bounds.npy": bounds, "keys.npy": keys, "places.npy": places, LAST: sorted_ids}
    for name, values in arrays.items():
        np.save(folder / name, np.array(values, np.int64), allow_pickle=False)
