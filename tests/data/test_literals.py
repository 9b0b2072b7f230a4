from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from slmx.data.literals import NotLiteral, literal, strings, value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_what_repr_writes_comes_back(held: object) -> None:
    assert literal(repr(held)) == held


@given(st.lists(st.text(max_size=30)))
def test_a_list_of_strings_comes_back(texts: list[str]) -> None:
    assert strings(repr(texts)) == texts


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "[1 for _ in ()]",
        "x",
        "('a', open)",
        "['a' 'b' + c]",
        "[" * 5000,
        "-" * 100_000 + "1",
        "['a",
    ],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(NotLiteral):
        literal(text)


@given(st.text(max_size=60))
def test_any_text_is_a_literal_or_refused(text: str) -> None:
    with suppress(NotLiteral):
        literal(text)


def test_cells() -> None:
    assert value("  ") is None
    assert value('{"topic": "Art"}') == {"topic": "Art"} == value("{'topic': 'Art'}")
    assert strings("") == []
    assert strings('["a", "b"]') == ["a", "b"] == strings("['a', 'b']") == strings("('a', 'b')")
    assert strings("[4] It is named after him") == ["[4] It is named after him"]
    assert strings("plain text") == ["plain text"]
    assert strings("['cut off") is None
    assert strings("[1, 2]") is None


def test_a_field_of_half_a_million_characters() -> None:
    texts = ['it\'s a "web" page\n' * 15_000, 'x"' * 130_000]
    assert strings(repr(texts)) == texts
