"""From a prompt's text to token ids: the chat template around it, exactly one BOS, and nothing in it that acts.

The template is rendered once, around a placeholder; what it writes before and after is the frame of every prompt. A
prompt is tokenised together with its frame, so that ordinary text gives the very ids of the rendered template. Where a
passage spells a control token (`<|im_end|>`, `<think>`, `</s>`), the text is tokenised in two pieces, cut inside that
spelling: it stays readable text, and cannot end the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from slmx.errors import SlmxError, UsageError
from slmx.files import hash_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[Literal["system", "user", "assistant"], str]
"""A turn of a conversation: who speaks, and what."""
_MESSAGE = "slmxmessageslmx"
_DATE = "26 Jul 2024"  # some templates write today's date unless they are given one; a run must not depend on the day


class PromptEncoder:
    """Turns prompts into ids and ids into text for one tokenizer.

    Args:
        tokenizer: a fast tokenizer; its padding and truncation are switched off.
        chat: use its chat template.
        thinking: what templates that can switch thinking are told.

    Raises:
        SlmxError: no fast tokenizer, no chat template where one is wanted, or one that fails.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool, thinking: bool = False) -> None:
        if not tokenizer.is_fast:
            raise SlmxError("This model has no fast tokenizer (tokenizer.json).", hint="Convert its tokenizer first.")
        self._tokenizer: Any = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._control = {i for i, token in self._backend.get_added_tokens_decoder().items() if acts(token.content)}
        self._bos = _bos(tokenizer)
        self.chat = chat
        self.head, self.tail, self._strips = self._frame(thinking) if chat else ("", "", False)
        self._frame_controls = self._controls(self._ids([self.head + "x" + self.tail])[0])

    @property
    def opened(self) -> bool:
        """Does the template leave a thinking block open, so that the model's text begins inside it?"""
        return self.tail.rstrip().endswith("<think>")

    @property
    def can_think(self) -> bool:
        """Does the template ask for thinking, always or where it is told to?"""
        return self.chat and (self.opened or self._frame(True) != self._frame(False))

    @property
    def stated_length(self) -> int | None:
        """The longest text that the tokenizer is stated for, in tokens; None if it is not."""
        length = int(self._tokenizer.model_max_length)
        return length if length < 10**9 else None  # transformers writes 1e30 for "not stated"

    @cached_property
    def turn_end(self) -> int | None:
        """The control token with which the template ends the user's turn, which ends the model's as well; if any."""
        if not self.chat:
            return None
        return next((i for i in self._ids([self.tail])[0] if i in self._control), None)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the tokenizer and of what the chat template writes around a prompt ("" without one)."""
        return {
            "tokenizer": hash_bytes(self._backend.to_str(), str(self._bos)),
            "chat_template": hash_bytes(self.head, self.tail, str(self._strips)) if self.chat else "",
        }

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, frame and BOS included."""
        return [len(ids) for ids in self.encode(texts)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt, frame and BOS included."""
        contents = [text.strip() for text in texts] if self._strips else texts
        encoded = self._ids([self.head + content + self.tail for content in contents])
        for i, ids in enumerate(encoded):
            plain = ids if self._controls(ids) <= self._frame_controls else self._framed_defused(contents[i])
            encoded[i] = self._begun(plain)
        return encoded

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the model speaks next, BOS included; no message can end its turn.

        Without a chat template the messages are one text, each but the last with a line feed behind it.

        Raises:
            SlmxError: the template knows no such conversation (no system message, as a rule).
        """
        if not self.chat:
            text = "\n".join(content for _, content in messages)
            return self._begun(self._defused(text, [(0, len(text))]))
        places = [f"{_MESSAGE}{i}x" for i in range(len(messages))]
        turns = [{"role": role, "content": place} for (role, _), place in zip(messages, places, strict=True)]
        rest, text = self._rendered(turns, False), ""
        spans: list[tuple[int, int]] = []
        for place, (_, content) in zip(places, messages, strict=True):
            before, found, rest = rest.partition(place)
            if not found:
                raise SlmxError("The chat template does not hold every message of a conversation in order.")
            text += before
            spans.append((len(text), len(text) + len(content)))
            text += content
        return self._begun(self._defused(text + rest, spans))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of new tokens, without special ones; the marks of a thinking block stay even if they are special."""
        return str(self._backend.decode([i for i in ids if i not in self._silent], skip_special_tokens=False))

    @cached_property
    def _silent(self) -> frozenset[int]:
        marks = {self._backend.token_to_id(mark) for mark in ("<think>", "</think>")}
        return frozenset(self._tokenizer.all_special_ids) - marks

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _controls(self, ids: Sequence[int]) -> int:
        return sum(map(self._control.__contains__, ids))

    def _begun(self, ids: list[int]) -> list[int]:
        """With exactly one BOS, where the tokenizer has one."""
        return ids if ids[: len(self._bos)] == self._bos else self._bos + ids

    def _framed_defused(self, content: str) -> list[int]:
        text, first = self.head + content + self.tail, len(self.head)
        return self._defused(text, [(first, first + len(content))])

    def _defused(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """The ids of a text whose `spans` may spell control tokens: cut inside each spelling until none is left."""
        cuts: set[int] = set()
        while True:
            edges = [0, *sorted(cuts), len(text)]
            pieces = [text[a:b] for a, b in pairwise(edges)]
            encodings = self._backend.encode_batch(pieces, add_special_tokens=False)
            new: set[int] = set()
            for offset, encoding in zip(edges, encodings, strict=False):
                for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True):
                    if i in self._control:
                        for first, last in spans:
                            new.update(_cut(text, offset + a, offset + b, first, last))
            if not new - cuts:
                return [i for encoding in encodings for i in encoding.ids]
            cuts |= new

    def _frame(self, thinking: bool) -> tuple[str, str, bool]:
        """What the template writes before and after a message, and whether it strips the message."""
        if not self._tokenizer.chat_template:
            raise UsageError("This model has no chat template.", hint="Use --no-chat.")
        rendered = self._rendered([{"role": "user", "content": f" {_MESSAGE} "}], thinking)
        strips = f" {_MESSAGE} " not in rendered
        head, found, tail = rendered.partition(_MESSAGE if strips else f" {_MESSAGE} ")
        if not found or _MESSAGE in tail:
            raise SlmxError("The chat template does not hold the message just once.", hint="Use --no-chat.")
        return head, tail, strips

    def _rendered(self, messages: list[dict[str, str]], thinking: bool) -> str:
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
                date_string=_DATE,
            )
        except jinja2.TemplateError as error:
            raise SlmxError(f"The chat template of this model fails: {error}.", hint="Use --no-chat.") from error
        return str(text)


def acts(token: str) -> bool:
    """Is an added token one that acts (`<|im_end|>`, `</s>`, `[INST]`) and not plain text (a word, a run of spaces)?"""
    bare = token.strip()
    return len(bare) > 1 and not "".join(bare.split()).isalnum()


def _cut(text: str, start: int, end: int, first: int, last: int) -> list[int]:
    """Where to cut a spelling at [start, end) that lies, but for white space, in the content [first, last)."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    middle = min(max((start + end) // 2, first), last)
    return [middle] if start < last and end > first and start < middle < end else []


def _bos(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: a BOS or nothing."""
    bare, full = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return list(full[:start])
