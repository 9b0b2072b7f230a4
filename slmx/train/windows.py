"""Which tokens a step sees: windows of a token file, in an order that depends on (seed, step) alone.

A file is cut into windows that lie side by side, shuffled anew each pass, and each pass begins at another place, so
that no window comes twice. Nothing has to be remembered to go on: the batch of step s is computed from s, and it is the
same for any number of processes, each of which takes its share of it.

    >>> windows = Windows(data.train, length=512, batch=16, seed=0)
    >>> windows.batch(step=7, rank=0, world=2).shape      # 8 windows of 512 inputs and one target more
    (8, 513)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from slmx.data.token_files import TokenFile
from slmx.errors import SlmxError, UsageError

Ids = NDArray[np.int64]


class Windows:
    """Batches of windows of `length` inputs; `batch` windows a step, of all processes together.

    Raises:
        SlmxError: the file is too short for one batch.
    """

    def __init__(self, file: TokenFile, *, length: int, batch: int, seed: int) -> None:
        self.file, self.length, self.batch_size, self.seed = file, length, batch, seed
        whole = (len(file) - 1) // length
        self.count = max(1, whole - 1)  # one less than fit: the rest is room to begin elsewhere
        self._room = len(file) - 1 - self.count * length
        self._order: tuple[int, int, NDArray[np.int64]] | None = None
        if whole < batch or whole < 1:
            raise SlmxError(
                f"{file.path} has {len(file):,} tokens: too few for one batch of {batch} windows of {length} tokens.",
                hint=f"It takes {batch * length + 1:,}. Give a smaller --batch-tokens or --context, or more text.",
            )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Ids:
        """The windows of a step (from 0 on) for one process: (batch / world, length + 1).

        Raises:
            UsageError: the batch cannot be shared equally.
            SlmxError: a token id lies past the vocabulary.
        """
        if self.batch_size % world:
            raise UsageError(
                f"{self.batch_size} windows a step cannot be shared by {world} processes.",
                hint=f"Give --batch-tokens as a multiple of {world * self.length:,}.",
            )
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        return np.stack([self._window(place) for place in range(first, first + share)])

    def epochs(self, steps: int) -> float:
        """How often some steps see the whole file."""
        return steps * self.batch_size / self.count

    def _window(self, place: int) -> Ids:
        passed, item = divmod(place, self.count)
        if self._order is None or self._order[0] != passed:
            random = np.random.Generator(np.random.Philox(key=[self.seed, passed]))
            self._order = passed, int(random.integers(self._room + 1)), random.permutation(self.count)
        _, begin, order = self._order
        return self.file.read(begin + int(order[item]) * self.length, self.length + 1)


def spread(file: TokenFile, *, length: int, tokens: int) -> Iterator[Ids]:
    """Windows (length + 1,) at even distances over a file, the same each time; about `tokens` inputs, at least one.

    Raises:
        SlmxError: the file is shorter than one window.
    """
    whole = (len(file) - 1) // length
    if not whole:
        raise SlmxError(
            f"{file.path} has {len(file):,} tokens: too few to validate on with windows of {length}.",
            hint="Give a smaller --context, or prepare the data with a larger --val share.",
        )
    wanted = max(1, min(whole, tokens // length))
    for number in range(wanted):
        yield file.read(number * whole // wanted * length, length + 1)
