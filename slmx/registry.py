"""Lazy names: a name stands for "module:attribute" and costs nothing until it is used.

Example:
    >>> RETRIEVERS = Registry("retriever", {"bm25": "slmx.retrieve.bm25:BM25"})
    >>> RETRIEVERS.names()
    ['bm25']
    >>> RETRIEVERS.load("bm52")
    Traceback (most recent call last):
    slmx.errors.UsageError: There is no retriever "bm52".
    Did you mean "bm25"? Known: bm25.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from slmx.errors import UsageError


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when nothing comes close."""
    by_lower = {k.lower(): k for k in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown_name(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> UsageError:
    """The error for a name that nobody registered: the nearest name first, then all of them."""
    names = sorted(known)
    near = nearest(name, names)
    said = (f'Did you mean "{near}"? ' if near else "") + f"Known: {', '.join(names)}."
    return UsageError(f'There is no {kind} "{name}".', hint=f"{said} {hint}".strip())


class Registry:
    """Names of one kind; other packages add theirs as entry points of the group `slmx.<kind>s`."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets = dict(builtin)
        self._searched = False

    def names(self) -> list[str]:
        """Every registered name, sorted; looks at the installed entry points the first time."""
        self._search()
        return sorted(self._targets)

    def load(self, name: str) -> Any:
        """Import and return what `name` stands for; UsageError with the nearest name if unknown."""
        if name not in self._targets:
            self._search()
        if name not in self._targets:
            raise unknown_name(self.kind, name, self._targets)
        module, _, attribute = self._targets[name].partition(":")
        return getattr(import_module(module), attribute)

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
        for entry in entry_points(group=f"slmx.{self.kind}s"):
            self._targets.setdefault(entry.name, entry.value)
