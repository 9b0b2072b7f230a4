"""Write docs/commands.md from the commands themselves, docs/benchmarks.md from benchmarks/results, and .env.example."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from slmx.app import COMMANDS, app
from slmx.config import dotenv_text
from slmx.files import write_bytes

ROOT = Path(__file__).resolve().parent.parent


def commands() -> str:
    """The help of every command as Markdown."""
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="slmx")
    for name in COMMANDS:
        root.resolve_command(context, [name])
    text = get_docs_for_click(obj=root, ctx=context, name="slmx")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    note = "Written by `make docs` from the commands themselves; do not edit."
    return f"<!-- {note} -->\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def benchmarks() -> str:
    """The results of all benchmarks as one page."""
    lines = [
        "<!-- Written by `make docs` from benchmarks/results; do not edit. -->",
        "",
        "# Benchmarks",
        "",
        "Each compares slmx with the plain way, both in turn within one run, so that the ratio holds when the speed of",
        "the machine drifts. `make bench` runs all of them; every script tells in its docstring what it measures.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## {result['title']}", "", result["what"], ""]
        lines += ["| figure | value | target |", "|---|---|---|"]
        lines += [f"| {row['figure']} | {row['value']} | {row.get('target', '')} |" for row in result["rows"]]
        lines += ["", *(f"{note}\n" for note in result.get("notes", []))]
        machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        lines += [f"`python benchmarks/{path.stem}.py`, {result['date']}: {machine}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write all generated pages."""
    pages = {
        ROOT / "docs" / "commands.md": commands(),
        ROOT / "docs" / "benchmarks.md": benchmarks(),
        ROOT / ".env.example": dotenv_text(),
    }
    for path, text in pages.items():
        write_bytes(path, text.encode())
        typer.echo(f"written: {path.relative_to(ROOT)}", err=True)


if __name__ == "__main__":
    main()
