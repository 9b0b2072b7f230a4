"""`slmx models chat`: a conversation with a model, its history, and answers that come piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.models.generators import open_generator
from slmx.models.templates import Message
from slmx.records import Record

if TYPE_CHECKING:
    from slmx.models.transformers import Reply

UNFINISHED = "\ufffd"  # what the bytes of half a character are shown as


@runtime_checkable
class Talker(Protocol):
    """A generator that holds conversations, too: see `TransformersGenerator.reply`."""

    name: str

    @property
    def chats(self) -> bool:
        """Does it take turns? Else it writes on what it is given."""
        ...

    def reply(self, messages: Sequence[Message], told: Callable[[str], bool], *, turn: int = 0) -> Reply:
        """The next turn, told as far as it was written after every token."""
        ...


class Answer(Record, frozen=True, omit_defaults=False):
    """One turn: what was asked and answered. `stop`: `eos`, `length` (the token limit), or `asked` (Ctrl-C).

    `left_out` counts the oldest messages that the model did not read, since its window is too short for them.
    """

    question: str
    answer: str
    stop: str
    prompt_tokens: int
    new_tokens: int
    left_out: int
    tokens_per_second: float


class Conversation:
    """What was said so far, and the model that answers. The history is kept; what exceeds the window is left out.

    Raises:
        SlmxError: the model's template knows no system message.
    """

    def __init__(self, generator: Talker, *, system: str = "") -> None:
        self._generator = generator
        self._first: list[Message] = [("system", system)] if system else []
        self.messages: list[Message] = list(self._first)
        self._turn = 0

    @property
    def name(self) -> str:
        """The model's."""
        return self._generator.name

    @property
    def chats(self) -> bool:
        """Does the model take turns? Else it writes on what it is given."""
        return self._generator.chats

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._first)

    def ask(self, question: str, said: Callable[[str], None], goes_on: Callable[[], bool] = lambda: True) -> Answer:
        """Answer, and remember both.

        Args:
            question: the user's turn.
            said: gets the answer in pieces, as it is written.
            goes_on: asked after every token; False stops the answer, and what was written is kept.

        Raises:
            SlmxError: the question alone is too long for the model.
        """
        shown, begin = "", perf_counter()

        def told(text: str) -> bool:
            nonlocal shown
            whole = text.rstrip(UNFINISHED)
            if whole.startswith(shown):
                said(whole[len(shown) :])
                shown = whole
            return goes_on()

        asked: list[Message] = [*self.messages, ("user", question)]
        reply = self._generator.reply(asked, told, turn=self._turn)
        if reply.text.startswith(shown):
            said(reply.text[len(shown) :])
        self._turn += 1
        self.messages = [*asked, ("assistant", reply.text)]
        return Answer(
            question=question,
            answer=reply.text,
            stop="eos" if reply.ended else "length" if goes_on() else "asked",
            prompt_tokens=reply.prompt_tokens,
            new_tokens=reply.new_tokens,
            left_out=2 * reply.dropped,
            tokens_per_second=round(reply.new_tokens / max(perf_counter() - begin, 1e-9), 1),
        )


def open_conversation(
    model: str,
    *,
    system: str,
    temperature: float,
    max_new_tokens: int,
    chat: bool | None,
    seed: int,
    device: str,
    dtype: str,
    listen: Listener = nobody,
) -> Conversation:
    """Load a model to talk to.

    Args:
        model: a preset, a folder or a Hub id.
        system: what it is told first; "" for nothing.
        temperature: 0 is greedy; above it every turn is drawn from the seed and the turn's number.
        max_new_tokens: at most this long an answer.
        chat: use the chat template; None: if the model has one.
        seed: of the draws.
        device: as everywhere.
        dtype: as everywhere.
        listen: told what a person should know.

    Raises:
        UsageError: no such model, one that only answers questions (a baseline), or a system message without a template.
        SlmxError: the model cannot be loaded.
    """
    generator = open_generator(
        model,
        listen=listen,
        chat=chat,
        stops=(),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    generator.window()  # no room for an answer is said before the weights are loaded
    if not isinstance(generator, Talker):
        raise UsageError(f"{model} is no language model to talk to.", hint="Name a model with weights, or its folder.")
    conversation = Conversation(generator, system=system)
    if system and not conversation.chats:
        raise UsageError(f"{model} has no chat template, so that a system message means nothing to it.")
    generator.load()
    return conversation
