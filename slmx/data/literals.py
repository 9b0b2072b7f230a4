"""Cells of a table that hold a value: JSON, a Python literal, plain text, or nothing. Nothing is ever evaluated."""

from __future__ import annotations

import ast
import re
from typing import Any

import msgspec

_STRINGS = re.compile(r"'(?:[^'\\\n]|\\.)*+'|\"(?:[^\"\\\n]|\\.)*+\"", re.DOTALL)
_PLAIN = re.compile(r"(?:[\[\](){},:\s\d.eE+-]|True|False|None|u?\"\")*+")
_MAX_DEPTH = 20
_MAX_REST = 1 << 20


class NotLiteral(ValueError):
    """The text is no literal of lists, dicts, tuples, strings, numbers, True, False and None."""


def literal(text: str) -> Any:
    """A Python literal's value; NotLiteral where it is none.

    The parser proper sees the text only when its nesting is shallow and everything outside its strings is brackets,
    numbers and the three names: what makes a parser recurse does not reach it.
    """
    rest = _STRINGS.sub('""', text)
    if len(rest) > _MAX_REST or not _PLAIN.fullmatch(rest) or _depth(rest) > _MAX_DEPTH:
        raise NotLiteral("not a literal")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotLiteral(str(error)) from None


def _depth(text: str) -> int:
    deepest = depth = 0
    for c in re.findall(r"[\[({\])}]", text):
        depth += 1 if c in "[({" else -1
        deepest = max(deepest, depth)
    return deepest


def value(text: str) -> Any:
    """What a cell holds: None when it is blank, a list or dict (JSON first, then a literal), else the text itself."""
    stripped = text.strip()
    if not stripped:
        return None
    if stripped[0] in "[{(":
        try:
            return msgspec.json.decode(stripped)
        except (msgspec.DecodeError, RecursionError):
            pass
        try:
            return literal(stripped)
        except NotLiteral:
            pass
    return text


def strings(text: str) -> list[str] | None:
    """The strings of a cell: a list's, or the plain text alone; None where a list was begun and is broken."""
    held = value(text)
    if held is None:
        return []
    if isinstance(held, (list, tuple)):
        return list(held) if all(isinstance(s, str) for s in held) else None
    if isinstance(held, str):
        return None if re.match(r"\s*\[\s*[\"']", held) else [held]
    return None
