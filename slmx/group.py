"""The Typer pieces that all groups share: commands that take several values after one list option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

F = TypeVar("F", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command whose list options also take several values: `--datasets scifact arguana`.

    The argument list is rewritten before it is parsed (`--datasets scifact --datasets arguana`), and only where the
    command has no positional that takes any number of values, which would be ambiguous.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite, then parse as ever."""
        positional = [p for p in self.params if p.param_type_name == "argument"]
        if not any(p.nargs == -1 for p in positional):
            lists = {o for p in self.params if getattr(p, "multiple", False) for o in (*p.opts, *p.secondary_opts)}
            args = spread(args, lists)
        return list(super().parse_args(ctx, args))


def spread(args: list[str], lists: set[str]) -> list[str]:
    """Repeat a list option before each of its values; everything behind `--` stays as it is."""
    out: list[str] = []
    current, has_value = "", False
    for place, arg in enumerate(args):
        if arg == "--":
            return out + args[place:]
        if arg.startswith("-") and len(arg) > 1:
            name, equals, _ = arg.partition("=")
            current, has_value = (name if name in lists else ""), bool(equals)
        elif current:
            if has_value:
                out.append(current)
            has_value = True
        out.append(arg)
    return out


class Group(typer.Typer):
    """A group of commands: `app = Group("data", "Sources in, records out.")`."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(
            name=name,
            help=help,
            no_args_is_help=True,
            rich_markup_mode="rich",
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """As in Typer, with our Command."""
        settings.setdefault("cls", Command)
        return super().command(name, **settings)
