"""From a conversation to ids, and which of them are learnt: the assistant's words, the mark that ends its turn, and the
end of the text.

A template is rendered once a shape (the roles in order) around placeholders; what it writes between them is the frame.
A prompt is tokenised as one text, just as it is when the model is asked; an answer is tokenised by itself, as it is
generated. What a conversation says cannot act: control tokens that it spells stay text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from slmx.data.conversations import Conversation
from slmx.errors import SlmxError, UsageError
from slmx.models.templates import acts
from slmx.models.tokenizers import Tokenizer, load_tokenizer
from slmx.registry import unknown_name

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
PLAIN = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
NAMES = {
    "chat": "the tokenizer's own chat template",
    "chatml": "<|im_start|>user … <|im_end|>",
    "alpaca": "### Instruction: … ### Response: …",
    "plain": "prompt, space, answer",
    "qa": "questions with passages as `slmx eval run` asks them, plain",
    "qa-chat": "the same within the chat template, or ChatML",
}
_SLOT = re.compile(r"slmx(\d+)slot")


class Encoded(NamedTuple):
    """Ids of a conversation, and for each whether it is learnt (0 or 1)."""

    ids: list[int]
    mask: list[int]


class _Frame(NamedTuple):
    """What a template writes before each turn (None: it leaves the turn out), and behind the last one."""

    before: list[str | None]
    behind: str


class Template:
    """A named template for one tokenizer.

    Args:
        name: one of NAMES.
        tokenizer: its end-of-text id closes every conversation.

    Raises:
        UsageError: no such template, the tokenizer has no chat template of its own, or no end of text.
    """

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        if name not in NAMES:
            raise unknown_name("template", name, NAMES)
        if tokenizer.end_of_text is None:
            raise UsageError(f"The tokenizer {tokenizer.name} has no end-of-text token.", hint="State an eos_token.")
        self.name = name
        self._end = tokenizer.end_of_text
        self._tokenizer = _auto(tokenizer)
        own = self._tokenizer.chat_template
        if name == "chat" and not own:
            raise UsageError(f"The tokenizer {tokenizer.name} has no chat template.", hint="Use --template chatml.")
        chosen = {"chat": own, "alpaca": ALPACA, "plain": PLAIN, "qa": PLAIN, "qa-chat": own or CHATML}
        self.jinja: str = chosen.get(name, CHATML)
        # The saved model carries it, so that it is asked as it was taught; a plain prompt needs none.
        self.saved = "" if self.jinja == PLAIN else self.jinja
        self._acting = load_tokenizer(tokenizer.folder).backend
        self._quiet = tokenizer.backend
        self._quiet.encode_special_tokens = True
        self._controls = {i: t.content for i, t in self._acting.get_added_tokens_decoder().items() if acts(t.content)}
        self._first = self._beginning()
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def encode(self, conversation: Conversation) -> Encoded:
        """The ids of a conversation and their mask.

        Raises:
            UsageError: the template does not hold the turns one after another, each once.
        """
        roles = tuple(turn.role for turn in conversation.turns)
        frame = self._frames.get(roles)
        if frame is None:
            frame = self._frames[roles] = self._frame(roles)
        parts: list[tuple[bool, str, bool]] = []  # learnt?, text, the conversation's own?
        for before, turn in zip(frame.before, conversation.turns, strict=True):
            if before is None:
                continue
            learnt = turn.role == "assistant"
            # A space before an answer is generated with its first word.
            moved = learnt and before.endswith(" ")
            parts.append((False, before[:-1] if moved else before, False))
            parts.append((learnt, " " + turn.content if moved else turn.content, True))
        parts.append((False, frame.behind, False))
        return self._close(self._encode(parts))

    def _encode(self, parts: list[tuple[bool, str, bool]]) -> Encoded:
        """Ids of what the template and the conversation say; a turn's end behind an answer is learnt with it."""
        ids, mask = list(self._first), [0] * len(self._first)
        answered = False
        for learnt, group in groupby(parts, key=lambda part: part[0]):
            run = list(group)
            found = self._ids([(text, own) for _, text, own in run])
            marks = [int(learnt)] * len(found)
            if answered and not learnt:
                ends = next((place for place, i in enumerate(found) if i in self._controls), None)
                opening = run[0][1].lstrip()
                if ends is not None and opening.startswith(self._controls[found[ends]]):
                    marks[ends] = 1
            ids += found
            mask += marks
            answered = learnt
        return Encoded(ids, mask)

    def _ids(self, parts: list[tuple[str, bool]]) -> list[int]:
        """One text, unless the conversation spells a control token: then its own parts are encoded by themselves."""
        whole = "".join(text for text, _ in parts)
        if all(own for _, own in parts):
            return list(self._quiet.encode(whole, add_special_tokens=False).ids)
        if not any(own and control in text for text, own in parts for control in self._controls.values()):
            return list(self._acting.encode(whole, add_special_tokens=False).ids)
        pieces = ((self._quiet if own else self._acting).encode(text, add_special_tokens=False) for text, own in parts)
        return [i for piece in pieces for i in piece.ids]

    def _close(self, encoded: Encoded) -> Encoded:
        """Drop what stands behind the last thing learnt, and put the end of the text there, learnt too."""
        ids, mask = encoded
        last = max((place for place, learnt in enumerate(mask) if learnt), default=None)
        if last is None:
            return encoded  # nothing is learnt: whoever writes the file says so
        ids, mask = ids[: last + 1], mask[: last + 1]
        if ids[-1] != self._end:
            ids, mask = [*ids, self._end], [*mask, 1]
        return Encoded(ids, mask)

    def _frame(self, roles: Sequence[str]) -> _Frame:
        import jinja2

        messages = [{"role": role, "content": f"slmx{n}slot"} for n, role in enumerate(roles)]
        try:
            text = str(self._tokenizer.apply_chat_template(messages, chat_template=self.jinja, tokenize=False))
        except jinja2.TemplateError as error:
            raise UsageError(
                f"The template {self.name} fails for a conversation of {', '.join(roles)}: {error}.",
                hint="Use --template chatml.",
            ) from None
        pieces = _SLOT.split(text)
        order = [int(n) for n in pieces[1::2]]
        asked = [n for n, role in enumerate(roles) if role != "assistant"]
        if order != list(range(len(roles))) and order != asked:
            raise UsageError(
                f"The template {self.name} does not hold the turns of a conversation ({', '.join(roles)}) each once.",
                hint="Use --template chatml.",
            )
        if order != list(range(len(roles))):  # it writes no answer: nothing can be learnt, and the mask will show it
            before = iter(pieces[0::2])
            return _Frame([None if role == "assistant" else next(before) for role in roles], pieces[-1])
        return _Frame([*pieces[0:-1:2]], pieces[-1])

    def _beginning(self) -> list[int]:
        """A BOS, where the tokenizer puts one before every text and the template does not write it."""
        bare, full = (self._tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
        place = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        begins = list(full[:place])
        written = (self._tokenizer.bos_token and self._tokenizer.bos_token in self.jinja) or "bos_token" in self.jinja
        return [] if written else begins


def _auto(tokenizer: Tokenizer) -> Any:
    """The tokenizer as transformers loads it: its chat template is rendered in a sandbox there."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().partition("\n")[0]
        raise SlmxError(f"{tokenizer.folder} is no tokenizer that transformers can read: {said}") from None
