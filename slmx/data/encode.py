"""Texts to ids, fast: a word that was seen before is looked up, not tokenised again.

Byte-level BPE cuts a text into words first and never merges across them. Where a cut is known to fall before each space
that stands between two visible characters (the patterns of GPT-2, Llama 3 and Qwen), a text is the concatenation of
such stretches, and its ids are those of its stretches. The tokenizer's own file tells whether that holds; any other
tokenizer is run as it is. Control tokens that a text spells stay text: `<|im_end|>` in a web page ends nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

from slmx.data.token_files import Dtype, dtype_for
from slmx.models.tokenizers import Tokenizer

# A stretch: white space and visible characters up to the next single space between two visible characters.
_STRETCH = re.compile(r"\s*\S+(?:(?! \S)\s+\S*)*|\s+")
_LAST_CUT = re.compile(r"(?<=\S) (?=\S)")
_TYPECODES: dict[Dtype, str] = {"uint16": "H", "uint32": "I"}
_KEPT = 200_000  # stretches remembered; with their ids some 40 MB
_GATHERED = 1 << 18  # characters whose new stretches are tokenised together
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS_BEFORE_SPACE = (  # the patterns of GPT-2, Qwen and Llama 3 to the letter: any other is not trusted
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _LLAMA % "",
    _LLAMA % "{1,3}",
)


class Encoder:
    """Encodes texts for one tokenizer, without special tokens, as bytes of little-endian ids of `dtype`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.dtype: Dtype = dtype_for(tokenizer.vocab_size)
        self._backend = tokenizer.backend
        self._backend.encode_special_tokens = True
        self._typecode = _TYPECODES[self.dtype]
        self.by_stretches = cuts_before_spaces(tokenizer.content)
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text."""
        if not self.by_stretches:
            return self._plain(texts)
        done: list[bytes] = []
        waiting: list[list[str]] = []
        size = 0
        for text in texts:
            waiting.append(_STRETCH.findall(text))
            size += len(text)
            if size >= _GATHERED:
                done += self._look_up(waiting)
                waiting, size = [], 0
        return done + self._look_up(waiting)

    def _look_up(self, texts: list[list[str]]) -> list[bytes]:
        if len(self._known) > _KEPT:
            self._known.clear()
        known = self._known
        new = list(set().union(*texts).difference(known))
        known.update(zip(new, self._plain(new), strict=True))
        return [b"".join(map(known.__getitem__, stretches)) for stretches in texts]

    def _plain(self, texts: Sequence[str]) -> list[bytes]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [array(self._typecode, encoding.ids).tobytes() for encoding in encodings]


def last_cut(text: str) -> int:
    """Where a long text may be cut so that its parts give the ids of the whole: before its last single space.

    0 where it has none.
    """
    place = len(text)
    while (place := text.rfind(" ", 1, place)) > 0:
        if _LAST_CUT.match(text, place):
            return place
    return 0


def cuts_before_spaces(content: dict[str, Any]) -> bool:
    """Does the tokenizer of this tokenizer.json cut before every single space between two visible characters?"""
    if (content["model"].get("type") != "BPE") or content["model"].get("dropout"):
        return False
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":  # NFC joins nothing with a space
        return False
    # An added token that is no special one is still found in texts, and may hold a space or eat those around it.
    if any(not t["special"] and (t["lstrip"] or t["rstrip"] or " " in t["content"]) for t in content["added_tokens"]):
        return False
    before = content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    allowed = all(step.get("type") in ("ByteLevel", "Digits", "Split") for step in steps)
    return allowed and not any(step.get("add_prefix_space") for step in steps) and any(map(_cuts, steps))


def _cuts(step: dict[str, Any]) -> bool:
    if step.get("type") == "ByteLevel":
        return bool(step.get("use_regex"))
    pattern = step.get("pattern", {}).get("Regex")
    return step.get("type") == "Split" and step.get("behavior") == "Isolated" and pattern in _CUTS_BEFORE_SPACE
