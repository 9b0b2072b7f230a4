"""The root command: groups that are imported when they are used, global options, and the one place that turns an
error into a message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from slmx import __version__, console
from slmx.errors import FAILED, INTERRUPTED, WRONG_USAGE, SlmxError, UsageError

COMMANDS = {
    "demo": ("slmx.demo:app", "The whole main job on the bundled sample, offline."),
    "data": ("slmx.data.cli:app", "Sources in, records and training files out."),
    "retrieve": ("slmx.retrieve.cli:app", "Passages in, rankings out."),
    "train": ("slmx.train.cli:app", "Pairs in, weights out."),
    "eval": ("slmx.eval.cli:app", "Questions in, predictions and metrics out."),
    "models": ("slmx.models.cli:app", "The catalogue, and models in the terminal."),
    "s3": ("slmx.s3.cli:app", "Files and buckets."),
    "config": ("slmx.config:app", "The settings: show them, write a first file."),
}
FLAGS = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--verbose": "verbose", "--no-color": "color"}


class Root(TyperGroup):
    """Knows its commands by name; the module behind a name is imported when the command runs, not for help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command if it is loaded, else a stand-in that knows its line of help."""
        if cmd_name not in COMMANDS:
            return None
        return self.commands.get(cmd_name) or TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is about to run or to be completed."""
        name = args[0] if args else ""
        if name in COMMANDS and name not in self.commands:
            module, _, attribute = COMMANDS[name][0].partition(":")
            self.commands[name] = typer.main.get_command(getattr(import_module(module), attribute))
        elif name and not name.startswith("-") and name not in COMMANDS and not ctx.resilient_parsing:
            from slmx.registry import unknown_name

            raise unknown_name("command", name, COMMANDS, hint="`slmx --help` tells what each does.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="slmx",
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"slmx {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more; show tracebacks.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (NO_COLOR works too).")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Read this file instead of slmx.toml.")] = None,
) -> None:
    """What small language models and retrievers know, read and find, measured.

    The options below stand before a group or behind a command. First steps: `slmx demo`.
    """


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(run(sys.argv[1:]))
    try:
        code: object = run(sys.argv[1:])
    except SystemExit as leave:
        code = leave.code
    # One of several processes that train: threads of its group may still run, and would abort an ordinary end.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code (slmx.errors lists them)."""
    try:
        args = _take_global_options(argv)
        outcome = typer.main.get_command(app).main(args=args, prog_name="slmx", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except SlmxError as problem:
        console.error(problem)
        return problem.code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except typer.Exit as leave:
        return int(leave.exit_code)
    except BrokenPipeError:  # the reader of our output went away (`slmx … | head`); that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        return _unexpected(problem)


def _unexpected(problem: Exception) -> int:
    if hasattr(problem, "exit_code") and hasattr(problem, "format_message"):  # the parser's own usage errors
        context = getattr(problem, "ctx", None)
        path = context.command_path if context is not None else "slmx"
        if not problem.format_message():  # a group without a command: its help was shown, and that says it all
            return WRONG_USAGE
        console.error(UsageError(problem.format_message(), hint=f"`{path} --help` shows what it takes."))
        return WRONG_USAGE
    if console.manner.verbose:
        import traceback

        traceback.print_exception(problem)
    said = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    console.error(SlmxError(f"Unexpected: {said}", hint="The same command with --verbose shows where."))
    return FAILED


def _take_global_options(argv: Sequence[str]) -> list[str]:
    """Read the global options wherever they stand before `--`, so that each command need not declare them."""
    rest: list[str] = []
    manner = console.Manner()
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in FLAGS:
            setattr(manner, FLAGS[word], word != "--no-color")
        elif word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] or next(words, "")
            if not name:
                raise UsageError("--config needs the name of a file.", hint="Such as --config slmx.toml.")
            from slmx.settings import use_file

            use_file(Path(name))
        else:
            rest.append(word)
    console.manner = manner
    return rest
