"""The two faces of `slmx models chat`: a prompt in a terminal, lines in and lines out in a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from slmx import console
from slmx.errors import SlmxError
from slmx.events import Listener
from slmx.models.chat import Conversation
from slmx.signals import stopping

PROMPT = "> "


def talk(open_conversation: Callable[[Listener], Conversation]) -> None:
    """Open a conversation and hold it until the user leaves or the input ends."""
    with console.listening() as listen:
        conversation = open_conversation(listen)
    if console.in_terminal():
        _in_terminal(conversation)
    else:
        _in_pipe(conversation)


def _in_terminal(conversation: Conversation) -> None:
    how = "answers" if conversation.chats else "writes on what you give it (no chat template)"
    console.note(f"{conversation.name} {how}. /reset begins anew, /quit leaves, Ctrl-C stops an answer.")
    for line in _typed():
        if line == "/reset":
            conversation.reset()
            console.note("Everything said is forgotten.")
            continue
        if line.startswith("/"):
            console.note(f"There is no {line.split()[0]}: /reset or /quit. A blank before it makes it text.")
            continue
        with stopping() as stop:
            try:
                answer = conversation.ask(line.strip(), console.piece, lambda: not stop.asked)
            except SlmxError as problem:  # too long, say: the conversation goes on
                console.error(problem)
                continue
        console.piece("\n")
        why = {"length": ", cut at --max-new-tokens", "asked": ", stopped"}.get(answer.stop, "")
        out = f", the oldest {answer.left_out} messages not read" if answer.left_out else ""
        console.note(f"[{answer.new_tokens} tokens, {answer.tokens_per_second:.0f} a second{why}{out}]")
        if stop.signal == signal.SIGTERM:
            raise stop.error("The conversation was ended.", hint="")


def _typed() -> Iterator[str]:
    """What the user types, with the arrow keys of readline; ends with /quit and Ctrl-D. Ctrl-C leaves at once."""
    with suppress(ImportError):  # not on every system
        import readline  # noqa: F401  # input() uses it once it is loaded
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            console.piece("\n")
            return
        except KeyboardInterrupt:
            console.piece("\n")
            raise
        if line.strip() == "/quit":
            return
        if line.strip():
            yield line


def _in_pipe(conversation: Conversation) -> None:
    with stopping() as stop:
        for line in sys.stdin:
            question = line.strip()
            if not question:
                continue
            if question == "/quit":
                return
            if question == "/reset":
                conversation.reset()
                continue
            answer = conversation.ask(question, lambda _piece: None, lambda: not stop.asked)
            if stop.asked:
                raise stop.error("Stopped within an answer.", hint="The lines before it were answered.")
            if console.manner.json:
                console.line(answer)
            elif not console.manner.quiet:
                console.piece(" ".join(answer.answer.split()) + "\n")
