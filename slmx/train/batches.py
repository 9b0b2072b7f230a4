"""The batches of a run, made ahead in the background: drawn, read, tokenized, and cut into pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

from slmx.errors import UsageError
from slmx.train.gradients import Piece, cut
from slmx.train.losses import Batch, make_batch
from slmx.train.pairs import Pair, TrainSet
from slmx.train.sampling import Drawn, Sampler, State
from slmx.train.tokens import TokenFile, Tokens, tokens_of
from slmx.train.towers import Tower


class Ready(NamedTuple):
    """A batch, its texts in pieces, and where the sampler stood when it was drawn."""

    batch: Batch
    pieces: list[Piece]
    state: State


class Batches:
    """The batches from the sampler's next step on.

    Args:
        known: text keys of all positives of a query, for queries with several.
        files: tokens of each set, or None where texts are tokenized when they are drawn.
        negatives: hard negatives a pair, at most. piece_tokens: tokens a piece, padding counted.
        workers: threads that make batches ahead, and how many they make; 0: each is made when it is asked for.
        last: the number of batches that are wanted in all.
    """

    def __init__(
        self,
        sampler: Sampler,
        sets: Sequence[TrainSet],
        files: Sequence[TokenFile | None],
        known: Mapping[int, frozenset[int]],
        tower: Tower,
        *,
        negatives: int,
        piece_tokens: int,
        workers: int,
        last: int,
        seed: int,
    ) -> None:
        self._sampler, self._sets, self._files, self._known, self._tower = sampler, sets, files, known, tower
        self._negatives, self._piece_tokens, self._seed = negatives, piece_tokens, seed
        self._pool = ThreadPoolExecutor(max(1, workers), "batches")
        self._ahead, self._last = workers, last
        self._waiting: deque[Future[Ready]] = deque()
        self._too_few: UsageError | None = None
        self.state = sampler.state

    def next(self) -> Ready:
        """The batch of the next step; `state` is then where a run that goes on must begin.

        Raises:
            UsageError: the datasets have too few different texts for it.
        """
        while len(self._waiting) <= self._ahead and self._sampler.state.step < self._last and not self._too_few:
            try:
                drawn = self._sampler.next()
            except UsageError as error:  # of a batch ahead: those before it are whole
                self._too_few = error
                break
            self._waiting.append(self._pool.submit(self._make, drawn, self._sampler.state))
        if self._too_few and not self._waiting:
            raise self._too_few
        ready = self._waiting.popleft().result()
        self.state = ready.state
        return ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was made ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, drawn: Sequence[Drawn], state: State) -> Ready:
        pairs = [self._sets[item.dataset].pair(item.row, item.passed, self._seed) for item in drawn]
        batch = make_batch(pairs, self._known, self._negatives)
        tokens = self._tokens(drawn, pairs)
        queries, passages = [one.query for one in tokens], [one.positive for one in tokens]
        passages += [text for one in tokens for text in one.negatives]
        return Ready(batch, cut(self._tower, queries, passages, self._piece_tokens), state)

    def _tokens(self, drawn: Sequence[Drawn], pairs: Sequence[Pair]) -> list[Tokens]:
        files = [self._files[item.dataset] for item in drawn]
        texts = [pair.example for pair, file in zip(pairs, files, strict=True) if file is None]
        made = iter(tokens_of(texts, self._tower, self._negatives))
        return [next(made) if file is None else file.tokens(item.row) for item, file in zip(drawn, files, strict=True)]
