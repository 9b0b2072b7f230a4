"""Texts tokenized once: an Arrow file a dataset beside its pairs, by content, memory-mapped.

It holds the token ids of every query, positive and negative as the model reads them (prompt, special tokens, cut to
length). Crops are cut anew in each pass, so they have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmx.data.forms.example import CROPPED, Example
from slmx.events import Listener, Progress, nobody
from slmx.files import atomic_write, hash_value
from slmx.train.pairs import ROWS, VERSION as PAIRS_VERSION, TrainSet

if TYPE_CHECKING:
    from slmx.train.towers import Tower

VERSION = 1  # of the file: raised when the same texts would give other tokens


class Tokens(NamedTuple):
    """The tokens of one pair."""

    query: Sequence[int]
    positive: Sequence[int]
    negatives: Sequence[Sequence[int]]


class TokenFile:
    """The tokens of a TrainSet's pairs, by row."""

    def __init__(self, one: TrainSet, path: Path) -> None:
        import pyarrow as pa

        self._rows = one.rows
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))

    def tokens(self, row: int) -> Tokens:
        """The tokens of a row of the set."""
        place = int(self._rows[row])
        block = self._file.get_batch(place // ROWS)
        return Tokens(*(block.column(number)[place % ROWS].as_py() for number in range(3)))


def open_tokens(
    one: TrainSet, tower: Tower, tokenizer: str, *, negatives: int, cache_dir: Path, listen: Listener = nobody
) -> TokenFile | None:
    """Open a set's tokens, made at need in `cache_dir/tokens/`; None for crops.

    Args:
        tokenizer: a hash of the tokenizer's files.
        negatives: hard negatives a pair, at most.
    """
    if one.form == CROPPED:
        return None
    path = path_of(one, tower, tokenizer, negatives, cache_dir)
    if not path.is_file():
        _write(path, one, tower, negatives, listen)
    return TokenFile(one, path)


def path_of(one: TrainSet, tower: Tower, tokenizer: str, negatives: int, cache_dir: Path) -> Path:
    """Where the tokens of a set are, or would be."""
    key = [VERSION, PAIRS_VERSION, one.form, one.content, tokenizer, tower.prompts, tower.lengths, negatives]
    return cache_dir / "tokens" / f"{hash_value(key)}.arrow"


def _write(path: Path, one: TrainSet, tower: Tower, negatives: int, listen: Listener) -> None:
    """All rows of the file behind the set, in its order: a set without held-out pairs finds its own by place."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    schema = pa.schema([("query", ids), ("positive", ids), ("negatives", pa.list_(ids))])
    total, done = one.stored, 0
    with atomic_write(path) as out, pa.ipc.new_file(out, schema) as writer:
        for block in one.blocks():
            made = tokens_of(block, tower, negatives)
            columns: list[Any] = [[getattr(tokens, field.name) for tokens in made] for field in schema]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            done += len(block)
            listen(Progress(f"tokenize {one.name}", done, total, "pairs"))


def tokens_of(examples: Sequence[Example], tower: Tower, negatives: int) -> list[Tokens]:
    """The tokens of some pairs, each with at most `negatives` of its negatives."""
    others = [example.negatives[:negatives] for example in examples]
    asked = tower.tokenize([example.query for example in examples], "query")
    told = tower.tokenize(
        [example.positive for example in examples] + [text for own in others for text in own], "passage"
    )
    rest = iter(told[len(examples) :])
    return [
        Tokens(query, positive, [next(rest) for _ in own])
        for query, positive, own in zip(asked, told, others, strict=False)
    ]
