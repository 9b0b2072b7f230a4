"""Examples packed into rows of one length, each apart from the others, in an order that depends on (seed, step) alone.

Best fit, decreasing: the longest example first, each into the row whose room it fills best. Which example is where does
not matter to it, since the mask keeps the others out of sight; it matters to the time, which goes into full rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from slmx.data.sft_files import Examples
from slmx.errors import SlmxError, UsageError
from slmx.train.cross_entropy import IGNORED
from slmx.train.loop import Batch


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of item numbers whose lengths add up to at most `room`, by best fit decreasing; no item may be longer.

    Takes O(n · room / 64) time: the rooms that are left anywhere are the bits of one number.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows that have just so much room
    rooms = 0  # bit r: a row has room r
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[item]
        fitting = rooms >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = by_room[left].pop()
            if not by_room[left]:
                rooms &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(item)
        by_room[left - size].append(row)
        rooms |= 1 << (left - size)
    return rows


class Packed:
    """The rows of a split.

    Args:
        length: inputs a row; an example of n tokens takes n - 1 of them. Longer examples are left out (`too_long`).
        batch: rows a step, of all processes together.
        pad: the id that fills rows up; it is never learnt nor seen.

    Raises:
        SlmxError: every example is too long.
    """

    def __init__(self, examples: Examples, *, length: int, batch: int, seed: int, pad: int) -> None:
        self.examples, self.length, self.seed, self.pad = examples, length, seed, pad
        sizes = examples.lengths - 1
        kept = np.flatnonzero((sizes <= length) & (sizes > 0))
        self.too_long = len(examples) - len(kept)
        if not len(kept):
            raise SlmxError(
                f"{examples.path}: all {len(examples)} examples are longer than the context of {length} tokens.",
                hint="Give a larger --context, as far as the model goes, or shorter examples.",
            )
        self.rows = [[int(kept[i]) for i in row] for row in best_fit(sizes[kept].tolist(), length)]
        self.batch_size = min(batch, len(self.rows))
        self.filled = float(sizes[kept].sum()) / (len(self.rows) * length)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of a step (from 0 on) for one process.

        Raises:
            UsageError: the batch cannot be shared equally.
            SlmxError: a token id lies past the vocabulary.
        """
        if self.batch_size % world:
            fitting = self.batch_size // world * world
            raise UsageError(
                f"{self.batch_size} rows a step cannot be shared by {world} processes.",
                hint=f"Give --batch-size {fitting}, or fewer processes." if fitting else "Start fewer processes.",
            )
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        return self.make([self._row(place) for place in range(first, first + share)])

    def make(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Ids, targets and segments (B, T) of some rows: segments count from 1, what fills a row up is 0."""
        shape = (len(rows), self.length)
        tokens = np.full(shape, self.pad, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int64)
        for place, row in enumerate(rows):
            at = 0
            for number, one in enumerate(row, 1):
                ids, learnt = self.examples.example(one)
                end = at + len(ids) - 1
                tokens[place, at:end] = ids[:-1]
                targets[place, at:end] = np.where(learnt[1:], ids[1:], IGNORED)
                segments[place, at:end] = number
                at = end
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(segments))

    def _row(self, place: int) -> list[int]:
        passed, item = divmod(place, len(self.rows))
        if self._order is None or self._order[0] != passed:
            random = np.random.Generator(np.random.Philox(key=[self.seed, passed]))
            self._order = passed, random.permutation(len(self.rows))
        return self.rows[int(self._order[1][item])]


def positions_of(segments: torch.Tensor) -> torch.Tensor:
    """The place of each token (B, T) within its own example, from 0 on."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - torch.where(begins, places, 0).cummax(1).values
