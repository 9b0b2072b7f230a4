from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from slmx.app import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "writer"), [("commands.md", "commands"), ("benchmarks.md", "benchmarks")])
def test_the_written_pages_are_those_that_make_docs_would_write(make: ModuleType, page: str, writer: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == getattr(make, writer)(), "run `make docs`"


def test_every_command_has_help_with_an_example() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = re.split(r"\n#+ ", page)
    commands = [s for s in sections if s.startswith("`slmx ") and "**Commands**" not in s]
    assert len(commands) > len(COMMANDS)
    for section in commands:
        name, _, text = section.partition("\n")
        assert re.search(r"Example: .*slmx \w+", text.split("**Usage**")[0], re.DOTALL), name


def test_links_and_files_named_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target
