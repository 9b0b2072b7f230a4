"""Text from outside stays text in HTML, Markdown and LaTeX."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, strategies as st

from slmx.eval.page import html, latex, markdown
from slmx.eval.page.parts import Column, Link, Measured, Report, Section, Svg, Table, clean
from tests.eval.page.conftest import HOSTILE


def report(words: str) -> Report:
    """A report that says `words` wherever text from outside can stand."""
    columns = [Column(words, "words"), Column("bar", "drawing"), Column("n"), Column("more")]
    table = Table(
        words, columns, [[words, Svg("<svg></svg>"), Link(words, 0, 1, "hurt"), Measured(words, words)]], note=words
    )
    return Report(words, words, [words, words], [words], [Section("one", words, words, [table])])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@given(st.text())
def test_html_text_brings_no_markup_and_loses_nothing(words: str) -> None:
    parser = Tags()
    parser.feed(f'<td title="{html.text(words)}">{html.text(words)}</td>')
    parser.close()
    assert parser.tags == ["td"]
    assert "".join(parser.text) == clean(words)


@given(st.text(alphabet=st.characters()))
def test_clean_text_can_be_encoded_and_is_kept_where_it_is_allowed(words: str) -> None:
    cleaned = clean(words)
    cleaned.encode()
    assert len(cleaned) == len(words)
    assert all(b in (a, "\N{REPLACEMENT CHARACTER}") for a, b in zip(words, cleaned, strict=True))


def test_what_no_file_may_hold_becomes_a_replacement_character() -> None:
    assert clean("a\ud800b\x00c\x85d\ufffee\U0010ffff") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd"
    assert clean("tab\tline\nünï\u2028\u202e漢字 ё") == "tab\tline\nünï\u2028\u202e漢字 ё"


@pytest.mark.parametrize("words", HOSTILE)
def test_markdown_tables_keep_their_shape(words: str) -> None:
    lines = markdown.render(report(words)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 3
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table), (
        "the drawing is left out, no text adds a cell"
    )
    assert not re.search(r"(?<!\\)<", "\n".join(lines))


def test_markdown_writes_one_bold_sentence_and_the_support_as_a_list() -> None:
    lines = markdown.render(report("a*b")).splitlines()
    assert lines[:3] == [r"# a\*b", "", r"a\*b"]
    assert r"**a\*b**" in lines
    assert lines.count(r"- a\*b") == 2


@given(st.text())
def test_latex_text_holds_no_bare_special(words: str) -> None:
    written = latex.text(words)
    assert "\n" not in written
    for known in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"):
        written = written.replace(f"\\{known}{{}}", "")
    bare = re.sub(
        r"\\ensuremath\{(-|\\[a-z]+)\}|\\textquotedbl\{\}|\{\\text[a-z]+\}|\\dots\{\}|\\[,&%$#_{}]", "", written
    )
    assert not set(bare) & set('\\&%$#_{}^<>|"')


@pytest.mark.parametrize("words", HOSTILE)
def test_latex_tables_have_as_many_cells_as_columns(words: str) -> None:
    text = latex.render(report(words))
    shape = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert shape is not None
    assert shape[1] == "lrr", "the drawing is left out"
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [2, 2]


def test_a_row_that_begins_with_a_bracket_is_no_argument() -> None:
    table = Table("t", [Column("a", "words"), Column("b")], [["[x]", "1"]])
    text = latex.render(Report("t", "", ["v"], [], [Section("s", "s", "", [table])]))
    assert "{}[x] & 1 \\\\" in text


def test_a_table_with_a_row_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="not as many cells"):
        Table("t", [Column("a"), Column("b")], [["1"]])
