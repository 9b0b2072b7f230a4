"""`slmx config show|init`: the settings, where each comes from, and a first file to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx.group import Group
from slmx.options import Overwrite

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.settings import Setting

app = Group("config", "The settings: show them, write a first file.")


@app.command("show")
def show() -> None:
    """Every setting, its value and where it comes from; secrets are masked.

    Example: `SLMX_EVAL__K=10 slmx config show`
    """
    from slmx import console, settings

    console.result(settings.show(), render)


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write slmx.toml and .env.")] = Path(),
    overwrite: Overwrite = False,
) -> None:
    """Write slmx.toml and .env with every setting at its default, commented out.

    Example: `slmx config init`
    """
    from slmx import console
    from slmx.errors import RefusedError
    from slmx.files import write_bytes

    contents = {"slmx.toml": toml_text(), ".env": dotenv_text()}
    there = [name for name in contents if (folder / name).exists()]
    if there and not overwrite:
        raise RefusedError(f"{', '.join(there)} in {folder} would be replaced.", hint="Give --overwrite to do it.")
    for name, content in contents.items():
        write_bytes(folder / name, content.encode())
    console.result(
        {"written": [str(folder / name) for name in contents]}, lambda r: "written: " + ", ".join(r["written"])
    )


def render(lines: list[Setting]) -> RenderableType:
    """The settings as a table."""
    from slmx.console import table

    return table(
        "", ["setting", "value", "source", "what it is"], [[s.name, s.value, s.source, s.about] for s in lines], left=4
    )


def toml_text() -> str:
    """A slmx.toml with every setting commented out; secrets are not in it."""
    from slmx.settings import fields, is_secret

    lines = ["# Settings of slmx. Order: options > environment > .env > this file > defaults.", ""]
    section = ""
    for name, field in fields():
        head, _, leaf = name.rpartition(".")
        if is_secret(field):
            continue
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines += [f"# {field.description}", f"# {leaf} = {_toml_value(field.default)}"]
    return "\n".join(lines) + "\n"


def dotenv_text() -> str:
    """A .env with every setting commented out and placeholders for secrets. `.env.example` holds the same."""
    from slmx.settings import env_name, fields, is_secret

    lines = ["# Environment of slmx; read from the folder where slmx is started. Never commit the real one.", ""]
    for name, field in fields():
        value = _placeholder(name) if is_secret(field) else _env_value(field.default)
        lines += [f"# {field.description}", f"# {env_name(name, field)}={value}"]
    return "\n".join(lines) + "\n"


def _placeholder(secret: str) -> str:
    return f"your-{secret.rpartition('.')[2].replace('_', '-').removeprefix('hf-')}-here"


def _env_value(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _toml_value(value: object) -> str:
    if value is None:
        return '""   # unset'
    return _env_value(value) if isinstance(value, (bool, int, float, list)) else f'"{value}"'
