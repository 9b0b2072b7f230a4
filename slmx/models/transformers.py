"""Any causal language model of a folder or the Hub, run by torch and transformers.

Greedy unless a temperature is given: the model's own generation settings (sampling, repetition penalties, forbidden
n-grams, which keep a model from copying its context) are not used; of them only the end-of-text ids are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from slmx.errors import SlmxError, UsageError
from slmx.events import Notice
from slmx.files import hash_bytes, hash_value, read_json
from slmx.models.catalogue import fetch_weights, hash_weights, require_weight_files, size_of_weights
from slmx.models.decoding import Decoder, Done, Draw, Drawn, Recorded, greedy
from slmx.models.device import dtype_name, pick_device, pick_dtype
from slmx.models.generators import Opening
from slmx.models.quiet import no_bars
from slmx.models.stopping import Reading, read
from slmx.models.templates import Message, PromptEncoder
from slmx.records import Completion, Request, Stop

VERSION = 1  # raised when the same weights and options come to give other texts
# Per kind of device: most rows of a batch, bytes of its key-value cache, and tokens that are read at once. In 16 bits a
# text can depend on its batch: whoever changes these raises VERSION.
ROWS = {"cpu": 64, "gpu": 256}
CACHE_BYTES = {"cpu": 3 << 29, "gpu": 8 << 30}
CHUNK_TOKENS = {"cpu": 1536, "gpu": 16384}
_UNSTABLE_KEYS = ("transformers_version", "_name_or_path")  # of a configuration: they do not change a text


class TokenWindow:
    """The token budget of a model's prompts, counted by its own tokenizer with the chat template and the BOS."""

    def __init__(self, encoder: PromptEncoder, budget: int) -> None:
        self._encoder = encoder
        self._budget = budget

    @property
    def budget(self) -> int:
        """Most tokens of a prompt: the model's positions less the tokens to be generated."""
        return self._budget

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt."""
        return self._encoder.count(prompts)


class Reply(NamedTuple):
    """A turn of a model: its text, tokens read and written, whether it ended by itself, and turns that were dropped."""

    text: str
    prompt_tokens: int
    new_tokens: int
    ended: bool
    dropped: int


class TransformersGenerator:
    """A causal language model behind the protocol of generators (`slmx.models.generators.Generator`).

    Opening reads the configuration and the tokenizer; weights are loaded by `load()` or the first `generate`.

    Raises:
        SlmxError: the model cannot be had, is no causal language model, or has pickled weights alone.
        UsageError: options that contradict the model (a chat template that it lacks, a limit beyond its window).
    """

    def __init__(self, opening: Opening) -> None:
        self.name = opening.name
        self._options = opening.options
        self._listen = opening.listen
        self._limit = self._options.max_new_tokens or 48
        self._folder = fetch_weights(opening.source, self._listen)
        require_weight_files(self._folder)
        self._config = _read_with(AutoConfig, self._folder, self._options.trust_remote_code)
        if getattr(self._config, "is_encoder_decoder", False):
            raise SlmxError(f"{self.name} is an encoder-decoder model; slmx runs causal language models.")
        tokenizer = _read_with(AutoTokenizer, self._folder, self._options.trust_remote_code)
        self._encoder = PromptEncoder(tokenizer, chat=self._wants_chat(tokenizer), thinking=self._options.thinking)
        if self._options.thinking and not self._encoder.can_think:
            raise UsageError(
                f"{self.name} cannot be asked to think first: its prompt has no switch for it.",
                hint="Leave --thinking out (and --no-chat, for a model that thinks).",
            )
        self._eos = self._end_ids(tokenizer)
        self._decoder: Decoder | None = None
        self._load_seconds = 0.0

    def fingerprint(self) -> dict[str, Any]:
        """Hashes of weights, configuration, tokenizer and template, and the options that change texts.

        The kind of device is among them: it decides the number type's rounding and the batches (see `plan`).
        """
        stated = read_json(self._folder / "config.json")
        sampling = {"temperature": self._options.temperature, "seed": self._options.seed}
        return {
            "generator": "transformers",
            "version": VERSION,
            "weights": self._weights_hash,
            "config": hash_value({key: stated[key] for key in stated if key not in _UNSTABLE_KEYS}),
            **self._encoder.fingerprint(),
            "eos": sorted(self._eos),
            "device": self._device.type,
            "dtype": dtype_name(self._dtype),
            "quantisation": self._quantisation,
            "max_new_tokens": self._limit,
            "thinking": self._options.thinking,
            "stops": sorted(self._options.stops),
            **(sampling if self._options.temperature else {}),
        }

    def describe(self) -> dict[str, str]:
        """The device, the number type and, where there is one, the quantisation that were picked."""
        quantised = {"quantisation": self._quantisation} if self._quantisation else {}
        return {"device": str(self._device), "dtype": dtype_name(self._dtype), **quantised}

    def size_bytes(self) -> int:
        """Bytes of the weight files."""
        return size_of_weights(self._folder)

    def window(self) -> TokenWindow | None:
        """The token budget; None for a model that states no length.

        Raises:
            UsageError: the tokens to be generated leave no room for a prompt.
        """
        length = _context_length(self._config, self._encoder)
        if length is None:
            return None
        if length <= self._limit:
            raise UsageError(
                f"{self.name} has a window of {length} tokens: no room for a prompt and {self._limit} new tokens.",
                hint="Lower --max-new-tokens.",
            )
        return TokenWindow(self._encoder, length - self._limit)

    def load(self) -> float:
        """Load the weights, unless they are loaded; returns the seconds it took.

        Raises:
            SlmxError: they cannot be loaded, or cannot be quantised here.
        """
        if self._decoder is None:
            start = perf_counter()
            model = self._load_8bit() if self._options.load_in_8bit else self._load_plain()
            model.eval()
            self._decoder = Decoder(model, pad=min(self._eos, default=0), chunk_tokens=CHUNK_TOKENS[self._kind])
            self._load_seconds = perf_counter() - start
        return self._load_seconds

    def plan(self, requests: Sequence[Request], batch_size: int | None) -> list[list[int]]:
        """Batches of real prompt lengths, the longest first (so that what does not fit in memory shows at once).

        Without a batch size, as many rows as their key-value cache allows (`CACHE_BYTES`), at most `ROWS`.
        """
        lengths = self._encoder.count([request.prompt.text for request in requests])
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        batches: list[list[int]] = []
        while order:
            rows = batch_size or self._rows_of(lengths[order[0]] + self._limit)
            batches.append(order[:rows])
            order = order[rows:]
        return batches

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        """A completion for each request, in order. A prompt that exceeds the window, or is empty, fails alone."""
        self.load()
        prompts = self._encoder.encode([request.prompt.text for request in batch])
        window = self.window()
        done: dict[int, Completion] = {}
        for i, ids in enumerate(prompts):
            if not ids or (window is not None and len(ids) > window.budget):
                why = f"the prompt has {len(ids)} tokens" + (f", the window {window.budget}" if window and ids else "")
                done[i] = Completion(question_id=batch[i].question.question_id, text="", stop="failed", error=why)
        rows = sorted((i for i in range(len(batch)) if i not in done), key=lambda i: (-len(prompts[i]), i))
        new = self._decode([prompts[i] for i in rows], [batch[i].question.question_id for i in rows])
        for i, (ids, log_prob) in zip(rows, new, strict=True):
            done[i] = self._completion(batch[i], len(prompts[i]), ids, log_prob)
        return [done[i] for i in range(len(batch))]

    def reply(self, messages: Sequence[Message], told: Callable[[str], bool], *, turn: int = 0) -> Reply:
        """The next turn of a conversation. The oldest turns (never a system message) go where the window is too short.

        Args:
            messages: the conversation; its last message is the user's.
            told: gets the text as far as it was written, after every token; False stops the answer.
            turn: with the seed, decides what a temperature draws.

        Raises:
            SlmxError: the last message alone exceeds the window, or the template knows no such conversation.
        """
        self.load()
        window, kept = self.window(), list(messages)
        ids = self._encoder.encode_messages(kept)
        while window is not None and len(ids) > window.budget:
            oldest = next((i for i, (role, _) in enumerate(kept[:-1]) if role != "system"), None)
            if oldest is None:
                why = f"The message has {len(ids)} tokens, and the window of {self.name} leaves {window.budget}."
                raise SlmxError(why, hint="Say it in fewer words, or lower --max-new-tokens.")
            del kept[oldest : oldest + 2]  # a question goes with its answer
            ids = self._encoder.encode_messages(kept)

        def done(_row: int, new: list[int]) -> bool:
            ended = new[-1] in self._eos
            return not told(self._reading(new[:-1] if ended else new).text) or ended

        ((new, _),) = self._decode([ids], [str(turn)], done)
        ended = new[-1] in self._eos
        text = self._reading(new[:-1] if ended else new).text
        return Reply(text, len(ids), len(new), ended, (len(messages) - len(kept)) // 2)

    @property
    def chats(self) -> bool:
        """Is a chat template used? Without one, a conversation is one text that is written on."""
        return self._encoder.chat

    def close(self) -> None:
        """Free the weights."""
        self._decoder = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def _weights_hash(self) -> str:
        return hash_weights(self._folder)

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self._options.device)

    @cached_property
    def _dtype(self) -> torch.dtype:
        return pick_dtype(self._options.dtype, self._device)

    @property
    def _quantisation(self) -> str:
        return "bitsandbytes-int8" if self._options.load_in_8bit else ""

    @property
    def _kind(self) -> str:
        return "cpu" if self._device.type == "cpu" else "gpu"

    def _wants_chat(self, tokenizer: Any) -> bool:
        if self._options.chat is not None:
            return self._options.chat
        if tokenizer.chat_template:
            self._listen(Notice(f"{self.name} has a chat template, which is used; --no-chat leaves it out."))
        return bool(tokenizer.chat_template)

    def _end_ids(self, tokenizer: Any) -> set[int]:
        """Every id that ends a text, wherever the model states it, and the one that ends a turn of its template."""
        stated = [self._config.get_text_config().eos_token_id, tokenizer.eos_token_id, self._encoder.turn_end]
        path = self._folder / "generation_config.json"
        if path.is_file():
            stated.append(read_json(path).get("eos_token_id"))
        flat = [i for ids in stated for i in (ids if isinstance(ids, list) else [ids])]
        return {i for i in flat if i is not None}

    def _load_plain(self) -> Any:
        with no_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._folder,
                dtype=self._dtype,
                use_safetensors=True,
                trust_remote_code=self._options.trust_remote_code,
                local_files_only=True,
            )
        return model.to(self._device)

    def _load_8bit(self) -> Any:
        try:
            with no_bars():
                return AutoModelForCausalLM.from_pretrained(
                    self._folder,
                    dtype=self._dtype,
                    quantization_config=_int8(),
                    device_map={"": str(self._device)},
                    use_safetensors=True,
                    trust_remote_code=self._options.trust_remote_code,
                    local_files_only=True,
                )
        except (ImportError, RuntimeError, ValueError) as error:
            raise SlmxError(
                f"{self.name} cannot be loaded in 8 bits here: {str(error).strip().splitlines()[0]}",
                hint="Type `pip install bitsandbytes accelerate`, or leave --load-in-8bit out.",
            ) from error

    def _rows_of(self, tokens: int) -> int:
        config = self._config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        row: int = tokens * config.num_hidden_layers * kv_heads * size * 2 * self._dtype.itemsize
        return max(1, min(ROWS[self._kind], CACHE_BYTES[self._kind] // row))

    def _decode(
        self, prompts: list[list[int]], question_ids: list[str], done: Done | None = None
    ) -> list[tuple[list[int], float | None]]:
        """New ids of prompts, the longest first, with their mean log-probability where it was asked for.

        Where GPU memory does not suffice, in halves.
        """
        if not prompts:
            return []
        assert self._decoder is not None
        try:
            draw = self._draw(question_ids)
            told = Recorded(draw, len(prompts)) if self._options.log_probs else None
            new = self._decoder.run(prompts, self._limit, done or self._is_done, told or draw)
            return [(ids, told.mean(row, len(ids)) if told else None) for row, ids in enumerate(new)]
        except torch.cuda.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise SlmxError(
                    f"{self.name} does not fit in GPU memory with a prompt of {len(prompts[0])} tokens.",
                    hint="Use a smaller model or k, --load-in-8bit, or --device cpu.",
                ) from error
        torch.cuda.empty_cache()
        half = (len(prompts) + 1) // 2
        self._listen(
            Notice(
                f"GPU memory does not suffice for {len(prompts)} prompts at once: going on with {half} (a smaller "
                "--batch-size avoids this; in 16 bits a text can depend on its batch).",
                "warning",
            )
        )
        parts = [(prompts[:half], question_ids[:half]), (prompts[half:], question_ids[half:])]
        return [made for part, of in parts for made in self._decode(part, of)]

    def _draw(self, question_ids: list[str]) -> Draw:
        if not self._options.temperature:
            return greedy
        keys = [hash_bytes(str(self._options.seed), question_id) for question_id in question_ids]
        return Drawn(self._options.temperature, [int(key[:15], 16) for key in keys])

    def _is_done(self, _row: int, ids: list[int]) -> bool:
        return ids[-1] in self._eos or self._reading(ids).stop is not None

    def _reading(self, ids: list[int]) -> Reading:
        return read(self._encoder.decode(ids), self._options.stops, opened=self._encoder.opened)

    def _completion(self, request: Request, prompt_tokens: int, ids: list[int], log_prob: float | None) -> Completion:
        ended = ids[-1] in self._eos
        reading = self._reading(ids[:-1] if ended else ids)
        stop: Stop = reading.stop or ("eos" if ended else "length")
        return Completion(
            question_id=request.question.question_id,
            text=reading.text,
            stop=stop,
            prompt_tokens=prompt_tokens,
            new_tokens=len(ids),
            thinking=reading.thinking,
            log_prob=log_prob,
        )


def _read_with(reader: Any, folder: Path, trust_remote_code: bool) -> Any:
    """A configuration or tokenizer of the folder; errors say what is missing."""
    try:
        return reader.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        code = "trust_remote_code" in str(error)
        hint = "It brings its own code; if you trust it, name it: --trust-remote-code." if code else "Check the folder."
        raise SlmxError(f"{folder} is no model that transformers can read: {first}", hint=hint) from error


def _context_length(config: Any, encoder: PromptEncoder) -> int | None:
    """The positions that a model has: stated by its configuration, else by its tokenizer; None if by neither."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
    stated = (getattr(text, name, None) for name in names)
    return next((int(length) for length in stated if length), None) or encoder.stated_length


def _int8() -> Any:
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
