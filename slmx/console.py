"""What a person or a pipe sees. stdout carries the result, stderr everything else; nothing else in slmx prints.

A command does its work inside `listening()` and hands its record to `result()`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmx.errors import SlmxError
from slmx.events import Listener, Notice, Progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
EVERY_SECONDS = 5.0  # how often a line of progress is written where there is no terminal


@dataclass
class Manner:
    """How slmx speaks in this process; set once from the global options."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True


manner = Manner()


def typed() -> str:
    """The command as it was typed, quoted so that it can be typed again: for records and model cards."""
    return shlex.join(["slmx", *sys.argv[1:]])


def harmless(text: str) -> str:
    """Control characters written out (\\x1b): a name from outside must not steer the terminal. \\n and \\t stay."""
    return STEERS.sub(written_out, text.replace("\r\n", "\n"))


def written_out(found: re.Match[str]) -> str:
    """A character as its number."""
    return f"\\x{ord(found[0]):02x}"


def _console(stderr: bool) -> Console:
    from rich.console import Console
    from rich.segment import Segment

    class Harmless(Console):
        """Whatever is shown passes here; rich's own control codes are no text."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else harmless(text), style, control)

    no_color = not manner.color or bool(os.environ.get("NO_COLOR"))
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120  # a pipe has no width: leave room for tables
    return Harmless(stderr=stderr, no_color=no_color, highlight=False, width=width, soft_wrap=False)


def result(record: Any, render: Callable[[Any], RenderableType]) -> None:
    """Write a command's result: JSON with --json, nothing with --quiet, else what `render` makes of it."""
    if manner.json:
        import msgspec

        encoded = msgspec.json.format(msgspec.json.encode(record, enc_hook=str), indent=2)
        sys.stdout.write(encoded.decode() + "\n")
    elif not manner.quiet:
        _console(stderr=False).print(render(record))
    sys.stdout.flush()


def stream(rows: Iterable[Any], line: Callable[[Any], str]) -> None:
    """Write rows as they come, however many: a JSON array with --json, nothing with --quiet, else lines."""
    encode, first = None, True
    if manner.json:
        import msgspec

        encode = msgspec.json.Encoder(enc_hook=str).encode
        sys.stdout.write("[")
    for row in rows:
        if encode:
            sys.stdout.write(("\n" if first else ",\n") + encode(row).decode())
        elif not manner.quiet:
            sys.stdout.write(line(row) + "\n")
        first = False
    if encode:
        sys.stdout.write("\n]\n")
    sys.stdout.flush()


def piece(text: str) -> None:
    """A piece of a text that comes bit by bit, on stdout; what would steer the terminal is left out."""
    sys.stdout.write("".join(c for c in text if c in "\n\t" or c.isprintable()))
    sys.stdout.flush()


def in_terminal() -> bool:
    """Does a person sit before stdin and stdout, and wants more than data?"""
    return sys.stdin.isatty() and sys.stdout.isatty() and not manner.json and not manner.quiet


def line(record: Any) -> None:
    """With --json, one line on stdout at once: for commands that tell one thing a file, and whose end may be far."""
    if manner.json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(record, enc_hook=str).decode() + "\n")
        sys.stdout.flush()


def summary(record: Any, render: Callable[[Any], RenderableType]) -> None:
    """What closes a command that wrote `line`s: for a person only."""
    if not manner.json:
        result(record, render)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> RenderableType:
    """A table; the first `left` columns are text, the others numbers set to the right. No heads: no line for them."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_header=any(columns), show_edge=False)
    for place, column in enumerate(columns):
        made.add_column(
            column,
            justify="left" if place < left else "right",
            overflow="fold",
            no_wrap=place >= left,  # a number broken over two lines is no number
            min_width=min(len(column), 8) if place < left else None,
        )
    for row in rows:
        # Text: a passage may hold [brackets] that are not markup. Written out before the columns get their widths.
        made.add_row(*(Text(harmless(cell)) for cell in row))
    return Group(Text(title, style="bold"), made, "") if title else Group(made, "")


@dataclass(frozen=True)
class Fitting:
    """The first of several forms of the same thing that fits the width, widest first; the last one if none does."""

    forms: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement

        for form in self.forms[:-1]:
            if Measurement.get(console, options.update(width=10_000), form).minimum <= options.max_width:
                yield form
                return
        yield self.forms[-1]


def tokens(view: Sequence[tuple[str, bool]]) -> RenderableType:
    """Tokens of an example: what is in the loss in green and underlined, the rest dim."""
    from rich.text import Text

    legend = Text.assemble("In the loss: ", ("green and underlined", "green underline"), "; the rest is read only.\n")
    return Text.assemble(legend, *((token, "green underline" if learnt else "dim") for token, learnt in view), "\n")


def note(text: str) -> None:
    """One line on stderr for the person who waits."""
    _show_notice(Notice(text))


def show(renderable: RenderableType) -> None:
    """Something for the person who waits, on stderr: a plan before it runs."""
    if not manner.quiet and not manner.json:
        _console(stderr=True).print(renderable)


def _show_notice(event: Notice) -> None:
    if manner.quiet and event.level == "note":
        return
    from rich.text import Text

    prefix = Text("warning: ", style="yellow") if event.level == "warning" else Text("")
    _console(stderr=True).print(prefix + Text(event.text), soft_wrap=True)


def error(problem: SlmxError) -> None:
    """What happened and what to type next, on stderr; with --json an object, so that scripts need not parse prose."""
    if manner.json:
        import msgspec

        body = {"error": {"what": problem.what, "hint": problem.hint, "code": problem.code}}
        sys.stderr.write(msgspec.json.encode(body).decode() + "\n")
        return
    from rich.text import Text

    out = _console(stderr=True)
    out.print(Text("error: ", style="bold red") + Text(problem.what), soft_wrap=True)
    if problem.hint:
        out.print(Text(problem.hint), soft_wrap=True)


@contextmanager
def listening() -> Iterator[Listener]:
    """A listener for the length of a block: bars in a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty() and not manner.quiet and not manner.json:
        with _bars() as listen:
            yield listen
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[Listener]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bars,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=_console(stderr=True), transient=False) as bars:
        tasks: dict[str, Any] = {}

        def listen(event: Progress | Notice) -> None:
            if isinstance(event, Notice):
                if event.level == "warning":
                    bars.console.print(Text("warning: ", style="yellow") + Text(event.text), soft_wrap=True)
                else:
                    bars.console.print(Text(event.text), soft_wrap=True)
                return
            if event.task not in tasks:
                tasks[event.task] = bars.add_task(event.task, total=event.total, unit="", note="")
            bars.update(tasks[event.task], completed=event.done, total=event.total, unit=event.unit, note=event.note)

        yield listen


class _Lines:
    """Progress as plain lines, at most one every few seconds a task, and its last one if any was written before."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._spoken: set[str] = set()

    def __call__(self, event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            _show_notice(event)
            return
        if manner.quiet:
            return
        now = time.monotonic()
        due = now - self._last.setdefault(event.task, now) >= EVERY_SECONDS
        if due or (event.done == event.total and event.task in self._spoken):
            self._last[event.task] = now
            self._spoken.add(event.task)
            of = f" of {event.total}" if event.total is not None else ""
            said = f"{event.task}: {event.done}{of} {event.unit} {event.note}"
            sys.stderr.write(harmless(" ".join(said.split())) + "\n")
            sys.stderr.flush()
