"""The decoding loop: many prompts of one causal language model at once, with the texts they would have had alone.

What all prompts begin with is read once. The rest is read in chunks of nearly equal length (little padding, activations
that fit the cache), then all are decoded together, because a step costs about the same for one row as for many. Rows
that are done leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from slmx.errors import SlmxError

NEARLY_EQUAL = 0.85  # rows at least this long, relative to the longest, are read in one chunk
WORTH_SHARING = 4  # a beginning of fewer tokens is read with each prompt
STAYING = 0.75  # rows leave when at most this share goes on: leaving copies the cache

Done = Callable[[int, list[int]], bool]
"""Given a row and its new ids so far: is it finished?"""
Draw = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""Given logits [rows, vocabulary] and the rows' numbers: the next id of each row, [rows]."""


def greedy(logits: torch.Tensor, _rows: list[int]) -> torch.Tensor:
    """The likeliest id of each row."""
    return logits.argmax(dim=-1)


class Drawn:
    """Draws from the softmax of logits / temperature; every row has a random stream of its own.

    So a row's text does not depend on its neighbours.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """The next id of each row, drawn."""
        chances = (logits.float().cpu() / self._temperature).softmax(dim=-1)
        drawn = [torch.multinomial(chances[i], 1, generator=self._streams[row]) for i, row in enumerate(rows)]
        return torch.cat(drawn).to(logits.device)


class Recorded:
    """Another way to draw, with the log-probability of every id drawn, under the model itself (temperature 1)."""

    def __init__(self, draw: Draw, rows: int) -> None:
        self._draw = draw
        self._log_probs: list[list[float]] = [[] for _ in range(rows)]

    def __call__(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """The next id of each row, as the other way draws it."""
        ids = self._draw(logits, rows)
        found = logits.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0].tolist()
        for row, log_prob in zip(rows, found, strict=True):
            self._log_probs[row].append(log_prob)
        return ids

    def mean(self, row: int, ids: int) -> float:
        """The mean over a row's first `ids` ids; a row that is done may have been drawn for a little longer."""
        return sum(self._log_probs[row][:ids]) / ids


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with room for `room` more tokens, so that a step writes one column instead of copying them all."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [rows, heads, tokens, size]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = self._grown(key_states, end), self._grown(value_states, end)
            if start:
                assert self.keys is not None and self.values is not None
                self._buffers[0][..., :start, :] = self.keys
                self._buffers[1][..., :start, :] = self.values
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = self._buffers[0][..., :end, :], self._buffers[1][..., :end, :]
        return self.keys, self.values

    def _grown(self, states: torch.Tensor, length: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        return states.new_empty((rows, heads, length + self._room, size))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self._buffers = None

    def drop(self) -> None:
        """Free the memory; the layer is not used again."""
        self.keys = self.values = self._buffers = None


@dataclass
class _State:
    """A batch between two steps: its cache, mask [rows, tokens], positions of the last ids [rows, 1], next logits."""

    cache: Any
    mask: torch.Tensor
    last: torch.Tensor
    logits: torch.Tensor

    def select(self, rows: list[int]) -> None:
        """Keep these rows."""
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.last, self.logits = self.mask[index], self.last[index], self.logits[index]


class Decoder:
    """Decodes batches with one model.

    Args:
        model: a causal language model in evaluation mode.
        pad: an id to fill with; what it means does not matter, it is masked.
        chunk_tokens: most tokens (padding included) that are read at once.

    Raises:
        SlmxError: the model keeps no key-value cache.
    """

    def __init__(self, model: PreTrainedModel, *, pad: int, chunk_tokens: int) -> None:
        self._model, self._pad, self._chunk_tokens = model, pad, chunk_tokens
        known = inspect.signature(model.forward).parameters
        if "past_key_values" not in known:
            raise SlmxError(
                f"{type(model).__name__} keeps no key-value cache; only models with attention can be run.",
                hint="Choose another model.",
            )
        self._takes_positions = "position_ids" in known
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        layers = DynamicCache(config=model.config).layers
        # Sliding windows and recurrent states are left to the library, and read as one chunk.
        self._plain = all(type(layer) is DynamicLayer for layer in layers)
        self._layers = len(layers)
        self._rows_can_leave = all(hasattr(layer, "batch_select_indices") for layer in layers)

    @torch.inference_mode()
    def run(self, prompts: Sequence[list[int]], limit: int, done: Done, draw: Draw = greedy) -> list[list[int]]:
        """The new ids of each prompt, in order.

        Args:
            prompts: ids of each prompt, none empty; the longest first wastes least.
            limit: most new ids of a prompt.
            done: ends a row before the limit; asked once for every new id.
            draw: picks the next ids.
        """
        new: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # the batch's rows as they stand, by their number in `prompts`
        going = set(rows)
        state = self._read(prompts, limit)
        for step in range(limit):
            ids = draw(state.logits, rows)
            for row, i in zip(rows, ids.tolist(), strict=True):
                if row in going:
                    new[row].append(i)
                    if done(row, new[row]):
                        going.discard(row)
            if not going or step == limit - 1:
                break
            if self._rows_can_leave and len(going) <= STAYING * len(rows):
                kept = [place for place, row in enumerate(rows) if row in going]
                state.select(kept)
                ids, rows = ids[torch.tensor(kept, device=ids.device)], [rows[place] for place in kept]
            self._step(state, ids)
        return new

    def _read(self, prompts: Sequence[list[int]], room: int) -> _State:
        """Read the prompts chunk by chunk, and join the chunks into one batch."""
        begun, shared = None, self._shared(prompts)
        if shared:
            begun = self._read_chunk([prompts[0][:shared]], 0)
            prompts = [prompt[shared:] for prompt in prompts]
        states = [self._read_chunk(chunk, room, begun) for chunk in self._chunks(prompts)]
        if len(states) == 1:
            return states[0]
        width = max(state.mask.shape[1] for state in states)
        mask = torch.cat([_widened(state.mask, width, 1) for state in states])
        last, logits = torch.cat([state.last for state in states]), torch.cat([state.logits for state in states])
        cache = self._roomy(room)
        for number, layer in enumerate(cache.layers):
            parts = [state.cache.layers[number] for state in states]
            layer.update(
                torch.cat([_widened(part.keys, width, 2) for part in parts]),
                torch.cat([_widened(part.values, width, 2) for part in parts]),
            )
            for part in parts:
                part.drop()  # so that the cache is held once
        return _State(cache, mask, last, logits)

    def _shared(self, prompts: Sequence[list[int]]) -> int:
        """How many tokens all prompts begin with, none of them whole; 0 where reading them once saves nothing."""
        if not self._plain or len(prompts) < 2:
            return 0
        first, last = min(prompts), max(prompts)  # in order of ids: what these two begin with, all between them do
        most = min(len(prompt) for prompt in prompts) - 1
        shared = next((i for i in range(most) if first[i] != last[i]), most)
        return shared if shared >= WORTH_SHARING else 0

    def _chunks(self, prompts: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
        if not self._plain:
            yield prompts
            return
        start, shortest, longest = 0, len(prompts[0]), len(prompts[0])
        for end, prompt in enumerate(prompts):
            low, high = min(shortest, len(prompt)), max(longest, len(prompt))
            if high * (end - start + 1) > self._chunk_tokens or low < NEARLY_EQUAL * high:
                if end > start:
                    yield prompts[start:end]
                start, low, high = end, len(prompt), len(prompt)
            shortest, longest = low, high
        yield prompts[start:]

    def _read_chunk(self, prompts: Sequence[list[int]], room: int, begun: _State | None = None) -> _State:
        """Left-pad, so that every row's next id comes in the same column; padding is masked and has no position.

        `begun` is one row that holds the beginning of all: columns are beginning, padding, rest.
        """
        width = max(len(prompt) for prompt in prompts)
        device = self._model.device
        ids = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = self._roomy(room) if self._plain else DynamicCache(config=self._model.config)
        if begun is not None:
            rows, shared = len(prompts), begun.mask.shape[1]
            mask = torch.cat([begun.mask.expand(rows, -1), mask], dim=1)
            positions = positions + shared
            for layer, part in zip(cache.layers, begun.cache.layers, strict=True):
                layer.update(part.keys.expand(rows, -1, -1, -1), part.values.expand(rows, -1, -1, -1))
        state = _State(cache, mask, positions[:, -1:], torch.empty(0))
        self._forward(state, ids, positions)
        return state

    def _roomy(self, room: int) -> Any:
        return Cache(layers=[RoomyLayer(room) for _ in range(self._layers)])

    def _step(self, state: _State, ids: torch.Tensor) -> None:
        """Read one new id a row."""
        state.mask = torch.cat([state.mask, state.mask.new_ones((len(ids), 1))], dim=1)
        state.last = state.last + 1
        self._forward(state, ids[:, None], state.last)

    def _forward(self, state: _State, ids: torch.Tensor, positions: torch.Tensor) -> None:
        where = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(
            input_ids=ids,
            attention_mask=state.mask,
            past_key_values=state.cache,
            use_cache=True,
            **where,
            **self._extra,
        )
        state.cache, state.logits = out.past_key_values, out.logits[:, -1]


def _widened(states: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Zeros put before `states` along `dim`, so that it is `width` long."""
    shape = list(states.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([states.new_zeros(shape), states], dim=dim) if shape[dim] else states
