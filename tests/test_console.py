"""What a person sees holds no character that steers the terminal, wherever the text comes from."""

from __future__ import annotations

import io
import shlex
import sys

import pytest
from rich.text import Text

from slmx import console
from slmx.errors import SlmxError
from slmx.events import Notice, Progress

EVIL = "a\x1b]0;title\x07b\x9b2Jc\x7fd\re"
SEEN = "a\\x1b]0;title\\x07b\\x9b2Jc\\x7fd\\x0de"


class Terminal(io.StringIO):
    """What a terminal would get."""

    def isatty(self) -> bool:
        return True


def steers(text: str) -> bool:
    return any(character in text for character in "\x1b\x07\x9b\x7f\r")


def test_tables_show_control_characters_as_numbers_and_keep_the_whole_cell(capsys: pytest.CaptureFixture[str]) -> None:
    console.result([EVIL], lambda rows: console.table("", ["name", "size"], [[rows[0], "1"]]))
    out = capsys.readouterr().out
    assert SEEN in out
    assert not steers(out)


def test_no_text_reaches_the_terminal_as_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.result(EVIL, Text)
    console.note(EVIL)
    console.error(SlmxError(EVIL, hint=EVIL))
    monkeypatch.setattr(console, "EVERY_SECONDS", 0.0)
    with console.listening() as listen:
        listen(Notice(EVIL, level="warning"))
        listen(Progress(EVIL, 1, 2, EVIL, EVIL))
    out, err = capsys.readouterr()
    assert out.count("\\x1b]0;title") == 1
    assert err.count("\\x1b]0;title") == 7
    assert not steers(out + err)


def test_bars_write_no_control_code_but_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    with console.listening() as listen:
        listen(Progress(EVIL, 1, 2, EVIL, EVIL))
    assert "\x1b[" in terminal.getvalue()
    assert "\\x1b]0;title" in terminal.getvalue()
    assert not any(sequence in terminal.getvalue() for sequence in ("\x1b]0;", "\x07", "\x9b", "\x7f"))


def test_other_languages_lines_and_tabs_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Ж 漢 é می\u200cخواهم\r\nsecond"
    console.result(text, lambda said: console.table("", [""], [[said]]))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["Ж 漢 é می\u200cخواهم", "second", ""]
    assert console.harmless("a\tb\n") == "a\tb\n"


def test_a_typed_command_is_written_down_so_that_a_shell_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "lm", "--save-dir", "runs/it's mine", "--preset=nano-6m"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/slmx", *words])
    assert shlex.split(console.typed()) == ["slmx", *words]
