"""Which pairs make a batch: batch = f(seed, step), for any number of processes.

A Sampler draws rows by their keys alone; texts are read when a batch is used. Its state is a few numbers a dataset, so
a run that goes on puts them back and skips nothing one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from slmx.errors import UsageError
from slmx.records import Record
from slmx.registry import unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Sampling = Literal["mixed", "alternate", "weighted-alternate"]


class Drawn(NamedTuple):
    """One item of a batch: the dataset's number, the row in it, and how often the dataset had run out before."""

    dataset: int
    row: int
    passed: int


class Cursor(Record, frozen=True):
    """Where a dataset stands: its pass, the place in that pass's order, and the rows (with their pass) put off."""

    passed: int = 0
    place: int = 0
    waiting: list[tuple[int, int]] = []


class State(Record, frozen=True):
    """All that a sampler must know to go on: the next step, and a cursor a dataset."""

    step: int
    cursors: list[Cursor]


class Sampler:
    """Batches over weighted datasets.

    `mixed` draws a dataset by weight for every item of a batch; `alternate` takes whole batches from one dataset after
    the other; `weighted-alternate` takes whole batches, each from a dataset drawn by weight. A dataset that runs out
    begins again in another order. No text (query or positive) comes twice in one batch: an item that would is put off
    to the next batch of its dataset.

    Args:
        keys: for each dataset the text keys of its pairs, shape (pairs, 2): query and positive.
        weights: one a dataset, in any unit; empty: equal shares.

    Raises:
        UsageError: weights that do not match the datasets or the sampling, or a batch that cannot be filled.
    """

    def __init__(
        self,
        keys: Sequence[NDArray[np.int64]],
        *,
        batch_size: int,
        sampling: str = "mixed",
        weights: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        self.shares = shares(len(keys), sampling, weights)
        self._keys = keys
        self._batch_size = batch_size
        self._sampling = sampling
        self._seed = seed
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self._step = 0
        self._places = [(0, 0)] * len(keys)
        self._waiting: list[dict[int, int]] = [{} for _ in keys]
        self._check_texts()

    def _check_texts(self) -> None:
        import numpy as np

        distinct = [min(len(np.unique(column)) for column in one.T) for one in self._keys]
        room = sum(distinct) if self._sampling == "mixed" else min(distinct)
        if self._batch_size > room:
            raise self._too_few(room)

    @property
    def state(self) -> State:
        """What `restore` takes to go on from here."""
        cursors = [
            Cursor(passed=passed, place=place, waiting=list(waiting.items()))
            for (passed, place), waiting in zip(self._places, self._waiting, strict=True)
        ]
        return State(step=self._step, cursors=cursors)

    def restore(self, state: State) -> None:
        """Go on from a state of a sampler with the same arguments."""
        self._step = state.step
        self._places = [(cursor.passed, cursor.place) for cursor in state.cursors]
        self._waiting = [dict(cursor.waiting) for cursor in state.cursors]

    def next(self) -> list[Drawn]:
        """The batch of the next step: `batch_size` items, the same on every process.

        Raises:
            UsageError: the datasets have too few different texts for a batch.
        """
        wanted = self._datasets()
        self._step += 1
        batch: list[Drawn] = []
        texts: set[int] = set()
        for dataset in wanted:
            item = self._take(dataset, texts)
            if item is None and self._sampling == "mixed":  # all its texts are in the batch: others fill the place
                others = (other for other in range(len(self._keys)) if other != dataset)
                item = next((found for other in others if (found := self._take(other, texts)) is not None), None)
            if item is None:
                raise self._too_few(len(batch))
            batch.append(item)
            texts.update(self._texts(dataset=item.dataset, row=item.row))
        return batch

    def _datasets(self) -> list[int]:
        """The dataset of each item of this step's batch."""
        import numpy as np

        draw = np.random.default_rng([self._seed, self._step, 1])
        if self._sampling == "mixed":
            drawn: list[int] = draw.choice(len(self._keys), self._batch_size, p=self.shares).tolist()
            return drawn
        if self._sampling == "alternate":
            return [self._step % len(self._keys)] * self._batch_size
        return [int(draw.choice(len(self._keys), p=self.shares))] * self._batch_size

    def _take(self, dataset: int, texts: set[int]) -> Drawn | None:
        """The next item of a dataset whose texts are not in the batch; None when it has none, and it stays as it was.

        Those that were put off come first. Each row waits at most once, so that what waits never outgrows the dataset.
        """
        waiting = self._waiting[dataset]
        for row, passed in waiting.items():
            if texts.isdisjoint(self._texts(dataset, row)):
                del waiting[row]
                return Drawn(dataset, row, passed)
        passed, place = self._places[dataset]
        put_off: dict[int, int] = {}
        for _ in range(len(self._keys[dataset])):
            order = self._order(dataset, passed)
            row, own_pass = int(order[place]), passed
            passed, place = (passed, place + 1) if place + 1 < len(order) else (passed + 1, 0)
            if row in waiting or row in put_off:
                continue
            if texts.isdisjoint(self._texts(dataset, row)):
                self._places[dataset] = (passed, place)
                waiting.update(put_off)
                return Drawn(dataset, row, own_pass)
            put_off[row] = own_pass
        return None

    def _too_few(self, found: int) -> UsageError:
        return UsageError(
            f"A batch of {self._batch_size} needs as many different queries and passages; there are about {found}.",
            hint=f"Give --batch-size {max(1, found)} or less, or more data: no text comes twice in a batch.",
        )

    def _order(self, dataset: int, passed: int) -> NDArray[np.int64]:
        import numpy as np

        known = self._orders.get(dataset)
        if known is None or known[0] != passed:
            order = np.random.default_rng([self._seed, dataset, passed, 2]).permutation(len(self._keys[dataset]))
            self._orders[dataset] = (passed, order)
        return self._orders[dataset][1]

    def _texts(self, dataset: int, row: int) -> list[int]:
        found: list[int] = self._keys[dataset][row].tolist()
        return found


def shares(datasets: int, sampling: str, weights: Sequence[float]) -> list[float]:
    """The share of each dataset, sum 1; equal without weights.

    Raises:
        UsageError: an unknown sampling, weights that do not match the datasets, or weights for `alternate`.
    """
    if sampling not in get_args(Sampling):
        raise unknown_name("sampling", sampling, get_args(Sampling))
    if weights and sampling == "alternate":
        raise UsageError(
            "--sampling alternate takes the datasets in turn; it has no weights.",
            hint="Use --sampling weighted-alternate (whole batches by weight) or mixed, or leave out --weights.",
        )
    if weights and len(weights) != datasets:
        raise UsageError(
            f"{len(weights)} weights for {datasets} data folders.", hint="Give one weight a folder: --weights 33,33,34"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise UsageError("A weight must be a number above 0.", hint="Leave out the folder that should have no share.")
    total = sum(weights)
    return [weight / total for weight in weights] if weights else [1 / datasets] * datasets
