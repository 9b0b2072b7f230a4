"""Training data behind one face: a TrainSet gives its n-th pair, whatever form it came in.

The Examples of a folder are written once into an Arrow file in the cache, named by the folder's content, and read
memory-mapped: memory holds 16 bytes a pair, not the texts. Two spans of a document (independent cropping) are cut when
the pair is drawn, from (seed, document, pass), so that each pass over the documents gives others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slmx.data.crop import Cropping
from slmx.data.forms import content as content_of, detect, get
from slmx.data.forms.example import CROPPED, Example, Reading
from slmx.errors import SlmxError
from slmx.events import Listener, Notice, nobody
from slmx.files import atomic_write, hash_value, key_of
from slmx.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 3  # of the cached form; raised when the same folder would give other rows
ROWS = 4096  # examples a block of the Arrow file
SHOWN = 3  # examples of a problem that a warning names


class Pair(Record, frozen=True):
    """What a batch holds of one drawn pair. Keys are 64-bit hashes: equal texts, or documents, have equal keys.

    `source_key` is that of the positive's text as the folder has it: where spans are cut, that of the whole document,
    by which another dataset's passages know it.
    """

    dataset: str
    example: Example
    query_key: int
    positive_key: int
    source_key: int
    document_key: int


@dataclass(frozen=True)
class TrainSet:
    """One dataset of pairs, memory-mapped.

    Attributes:
        name: the folder's name, with a number where two folders share it.
        form: which of `slmx.data.forms` it has.
        content: a hash of the folder's content.
        query_keys, positive_keys: int64, shape (pairs,); for crops both are the document's key.
        rows: the place of each pair in the file, shape (pairs,).
        negatives: how many pairs have hard negatives; `scored`, how many have a teacher's scores.
        left_out: pairs without a text and pairs that were there twice.
        cropping: how documents are cut, in the form of crops.
    """

    name: str
    form: str
    content: str
    query_keys: NDArray[np.int64]
    positive_keys: NDArray[np.int64]
    rows: NDArray[np.int64]
    negatives: int
    scored: int
    left_out: dict[str, int]
    cropping: Cropping
    _file: Any

    def __len__(self) -> int:
        return len(self.query_keys)

    def example(self, row: int) -> Example:
        """The pair as it stands in the folder."""
        place = int(self.rows[row])
        block = self._file.get_batch(place // ROWS)
        return msgspec.json.decode(block.column(0)[place % ROWS].as_buffer(), type=Example)

    @property
    def stored(self) -> int:
        """Pairs in the file; those that `without` took out are still there."""
        return int(sum(self._file.get_batch(number).num_rows for number in range(self._file.num_record_batches)))

    def blocks(self) -> Iterator[list[Example]]:
        """All stored pairs in their order, a block of the file at a time."""
        for number in range(self._file.num_record_batches):
            column = self._file.get_batch(number).column(0)
            yield [msgspec.json.decode(cell.as_buffer(), type=Example) for cell in column]

    def without(self, query_keys: Collection[int]) -> TrainSet:
        """The same set without the pairs of some queries."""
        import numpy as np

        kept = ~np.isin(self.query_keys, np.array(sorted(query_keys), dtype=np.int64))
        flags = [self._flags(place)[self.rows[kept]].sum() for place in (3, 4)]
        return replace(
            self,
            query_keys=self.query_keys[kept],
            positive_keys=self.positive_keys[kept],
            rows=self.rows[kept],
            negatives=int(flags[0]),
            scored=int(flags[1]),
        )

    def _flags(self, column: int) -> NDArray[np.bool_]:
        return _column(self._file, column).astype(bool)

    def pair(self, row: int, passed: int, seed: int) -> Pair:
        """The pair of a row; crops of a document are others in each pass (`passed` counts from 0)."""
        example = self.example(row)
        document = key_of(self.name, example.positive_id) if example.positive_id else int(self.positive_keys[row])
        if self.form == CROPPED:
            first, second = self.cropping.cut(example.positive, example.title, seed, document, passed)
            example = msgspec.structs.replace(example, query=first, positive=second)
        return Pair(
            dataset=self.name,
            example=example,
            query_key=key_of(example.query),
            positive_key=key_of(example.positive),
            source_key=int(self.positive_keys[row]),
            document_key=document,
        )

    def examples(self) -> Iterator[Example]:
        """Every row, in order."""
        for row in range(len(self)):
            yield self.example(row)


def open_sets(
    folders: Sequence[Path],
    *,
    cache_dir: Path,
    forms: Sequence[str] = (),
    names: Sequence[str] = (),
    cropping: Cropping = Cropping(),  # noqa: B008 - frozen
    listen: Listener = nobody,
) -> list[TrainSet]:
    """Open training folders in their order.

    Args:
        folders: a folder (or a file of pairs) a dataset.
        cache_dir: rows go to `cache_dir/pairs/`, by content.
        forms: names of forms that override what the files say; empty, or one a folder ("auto" leaves it to the files).
        names: what the datasets are called; empty: as their folders.
        cropping: how documents without questions are cut.

    Raises:
        UsageError: a folder that is absent, empty or of no known form, or forms that do not match the folders.
        SlmxError: a damaged file, or a folder without a single usable pair.
    """
    from slmx.errors import UsageError

    if forms and len(forms) != len(folders):
        raise UsageError(f"{len(forms)} forms for {len(folders)} data folders.", hint="Give one --forms a folder.")
    asked = forms or ["auto"] * len(folders)
    found = [detect(folder) if form == "auto" else form for folder, form in zip(folders, asked, strict=True)]
    for form in found:
        get(form)
    cropping.check()
    sets: list[TrainSet] = []
    for folder, form, plain in zip(folders, found, names or [f.resolve().name for f in folders], strict=True):
        name = _new_name(plain, [known.name for known in sets])
        sets.append(_open(folder, form, name, cache_dir, cropping, listen))
    return sets


def _new_name(plain: str, known: Sequence[str]) -> str:
    """The name, or with a number where one like it is known: the next after their count that is free."""
    same = sum(name == plain or name.startswith(f"{plain}-") for name in known)
    names = chain([plain] if not same else [], (f"{plain}-{number}" for number in count(same + 1)))
    return next(name for name in names if name not in known)


def _open(folder: Path, form: str, name: str, cache_dir: Path, cropping: Cropping, listen: Listener) -> TrainSet:
    import numpy as np
    import pyarrow as pa

    content = content_of(folder)
    path = cache_dir / "pairs" / f"{hash_value([VERSION, form, content])}.arrow"
    if not path.is_file():
        listen(Notice(f"Reading {folder} ({get(form).about})."))
        _write(path, folder, form, Reading(cache_dir))
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    facts = msgspec.json.decode(file.schema.metadata[b"slmx"]) if file.schema.metadata else {}
    keys = [_column(file, place) for place in (1, 2)]
    negatives, scored = (int(_column(file, place).sum()) for place in (3, 4))
    rows = np.arange(len(keys[0]))
    left_out = {what: number for what, number in facts.items() if number}
    opened = TrainSet(name, form, content, keys[0], keys[1], rows, negatives, scored, left_out, cropping, file)
    for what, number in left_out.items():
        listen(Notice(f"{name}: {number} pairs left out ({what}).", "warning"))
    return opened


def _column(file: Any, place: int) -> NDArray[Any]:
    import numpy as np

    blocks = (file.get_batch(number).column(place) for number in range(file.num_record_batches))
    return np.concatenate([block.to_numpy(zero_copy_only=False) for block in blocks])


def _write(path: Path, folder: Path, form: str, how: Reading) -> None:
    """Two walks over the folder: the first checks and counts, the second writes what is kept."""
    import pyarrow as pa

    left_out = {"without a text": 0, "there twice": 0}
    kept = sum(1 for _ in _usable(get(form).read(folder, how), form, left_out))
    if not kept:
        hint = "Are its columns and its relevance marks those of this form? --forms overrides what was told apart."
        raise SlmxError(f"{folder} ({form}) has no pair to train on.", hint=hint)
    fields = [("example", pa.binary()), ("query", pa.int64()), ("positive", pa.int64())]
    schema = pa.schema([*fields, ("negatives", pa.bool_()), ("scored", pa.bool_())])
    schema = schema.with_metadata({"slmx": msgspec.json.encode(left_out)})
    encoder = msgspec.json.Encoder()
    with atomic_write(path) as out, pa.ipc.new_file(out, schema) as writer:
        for block in _blocks(_usable(get(form).read(folder, how), form, {}), ROWS):
            columns = [
                [encoder.encode(example) for example, _, _ in block],
                [query for _, query, _ in block],
                [positive for _, _, positive in block],
                [bool(example.negatives) for example, _, _ in block],
                [bool(example.scores) for example, _, _ in block],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _usable(examples: Iterable[Example], form: str, left_out: dict[str, int]) -> Iterator[tuple[Example, int, int]]:
    """Examples with the keys of query and positive, without those that lack a text and those that came before."""
    seen: set[tuple[int, int]] = set()
    for example in examples:
        cropped = form == CROPPED
        if not example.positive.strip() or (not cropped and not example.query.strip()):
            left_out["without a text"] = left_out.get("without a text", 0) + 1
            continue
        positive = key_of(example.positive)
        keys = (positive, positive) if cropped else (key_of(example.query), positive)
        if keys in seen:
            left_out["there twice"] = left_out.get("there twice", 0) + 1
            continue
        seen.add(keys)
        yield example, *keys


def _blocks(items: Iterable[tuple[Example, int, int]], size: int) -> Iterator[list[tuple[Example, int, int]]]:
    from itertools import islice

    walk = iter(items)
    while block := list(islice(walk, size)):
        yield block


def known_positives(sets: Sequence[TrainSet]) -> Mapping[int, frozenset[int]]:
    """For each query with several positives over all sets: the text keys of all of them."""
    import numpy as np

    pairs = [np.stack([one.query_keys, one.positive_keys]) for one in sets if one.form != CROPPED]
    if not pairs:
        return {}
    queries, positives = np.unique(np.concatenate(pairs, axis=1), axis=1)
    names, starts, counts = np.unique(queries, return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    return {int(names[n]): frozenset(positives[starts[n] : starts[n] + counts[n]].tolist()) for n in several}


class Leak(Record, frozen=True):
    """A training text that equals a query that judges the model."""

    dataset: str
    query_id: str
    text: str


def find_leaks(sets: Sequence[TrainSet], queries: Mapping[str, str]) -> list[Leak]:
    """Training queries and positives that equal one of `queries` (text by id), each dataset and query once."""
    import numpy as np

    wanted = {key_of(text): query_id for query_id, text in queries.items()}
    keys = np.array(list(wanted), dtype=np.int64)
    leaks = []
    for one in sets:
        met = np.intersect1d(np.concatenate([one.query_keys, one.positive_keys]), keys)
        leaks += [Leak(dataset=one.name, query_id=wanted[key], text=queries[wanted[key]]) for key in met.tolist()]
    return leaks
