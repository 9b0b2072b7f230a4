"""`slmx s3 browse` in a terminal, driven by Textual's pilot over a store of the test's own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from slmx.errors import RefusedError, SlmxError
from slmx.events import Listener, Progress
from slmx.s3 import browse
from slmx.s3.browser import Browser
from slmx.s3.listing import Entry
from slmx.s3.preview import FIRST, harmless, readable
from slmx.settings import load
from slmx.signals import Stop
from tests.s3.servers import Server

PAGE = 1000


class Shelf:
    """A store of given keys; counts the pages that were asked for."""

    place, bucket = "https://s3.example", "datasets"

    def __init__(self, keys: list[str], problem: str = "") -> None:
        self.keys, self.problem, self.fetched = keys, problem, 0
        self.saved: list[str] = []
        self.stop = Stop()

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        if self.problem:
            raise SlmxError(self.problem, hint="Ask somebody.")
        entries: dict[str, Entry] = {}
        for key in self.keys:
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and rest:
                head, slash, _ = rest.partition("/")
                name = prefix + head + slash
                entries[name] = Entry(key=name, folder=bool(slash), size=2048, modified="2026-02-01T10:00:00Z")
        found = list(entries.values())
        for start in range(0, max(1, len(found)), PAGE):
            self.fetched += 1
            yield found[start : start + PAGE]

    def preview(self, entry: Entry) -> str:
        return readable(entry.key, b'{"question": "[red]who\x1b[2J?"}', 31)

    def download(self, entry: Entry, listen: Listener) -> Path:
        if entry.key in self.saved:
            raise RefusedError(f"{entry.key} exists.", hint="Remove it first.")
        listen(Progress("download", 1, 2, "bytes"))
        self.saved.append(entry.key)
        return Path("data") / entry.key


def drive(shelf: Shelf, steps: Callable[[Pilot[None], Browser], Awaitable[None]], prefix: str = "") -> None:
    """Run the browser headless and let `steps` press its keys."""

    async def main() -> None:
        browser = Browser(shelf, prefix)
        async with browser.run_test(size=(100, 24)) as pilot:
            await pilot.pause()
            await steps(pilot, browser)

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await pilot.pause(0.01)
    raise AssertionError("did not come true")


def text(browser: Browser, name: str) -> str:
    return str(browser.query_one(f"#{name}", Static).render())


KEYS = ["nq/dev.jsonl", "nq/old/a.json", "nq/old/b.csv", "readme.txt", "simple_qa/x.json"]


def test_folders_are_entered_and_left_with_the_cursor_where_it_was() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        assert [entry.key for entry in browser.rows.entries] == ["nq/", "readme.txt", "simple_qa/"]
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: browser.complete and browser.prefix == "simple_qa/")
        assert "s3://datasets/simple_qa/" in text(browser, "path")
        assert [entry.key for entry in browser.rows.entries] == ["simple_qa/x.json"]
        await pilot.press("backspace")
        await until(pilot, lambda: browser.complete and browser.prefix == "")
        assert browser.rows.current is not None
        assert browser.rows.current.key == "simple_qa/"

    drive(Shelf(KEYS), steps)


def test_the_filter_works_as_it_is_typed() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("slash", "Q")
        await pilot.pause()
        assert [entry.key for entry in browser.rows.entries] == ["nq/", "simple_qa/"]
        await pilot.press("a")
        await pilot.pause()
        assert [entry.key for entry in browser.rows.entries] == ["simple_qa/"]
        assert "1 of 3 entries" in text(browser, "status")
        await pilot.press("escape")
        await pilot.pause()
        assert len(browser.rows.entries) == 3
        await pilot.press("slash", "n", "q", "enter")  # Enter opens what the cursor stands on
        await until(pilot, lambda: browser.complete and browser.prefix == "nq/")
        assert not browser.query_one("#filter", Input).value

    drive(Shelf(KEYS), steps)


def test_a_preview_shows_text_that_can_steer_nothing() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("enter")
        await until(pilot, lambda: "question" in text(browser, "preview-text"))
        shown = text(browser, "preview-text")
        assert "[red]who" in shown
        assert "\x1b" not in shown
        assert browser.query_one("#preview").has_class("shown")
        await pilot.press("escape")
        assert not browser.query_one("#preview").has_class("shown")

    drive(Shelf(["x.json"]), steps)


def test_names_that_would_steer_a_terminal_are_written_out() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        line = browser.rows.render_line(0).text
        assert "\\x1b[31m[bold]" in line
        assert "\x1b" not in line

    drive(Shelf(["\x1b[31m[bold]name\n.txt"]), steps)


def test_download_and_copy() -> None:
    shelf = Shelf(KEYS)

    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("d")  # a folder: told how, nothing fetched
        await pilot.press("down", "d")
        await until(pilot, lambda: shelf.saved == ["readme.txt"])
        await until(pilot, lambda: not browser._downloading)
        await pilot.press("d")
        await until(pilot, lambda: any("exists" in note.message for note in browser._notifications))
        await pilot.press("c")
        assert browser.clipboard == "readme.txt"

    drive(shelf, steps)


def test_a_hundred_thousand_keys_start_at_once_and_are_fetched_as_they_are_reached() -> None:
    shelf = Shelf([f"row-{number:06d}.json" for number in range(100_000)])

    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        started = time.perf_counter()
        await until(pilot, lambda: len(browser.rows.entries) >= PAGE)
        assert time.perf_counter() - started < 5
        await pilot.pause(0.3)
        assert shelf.fetched <= 2  # no more than what the screen shows
        assert "1,000+ entries" in text(browser, "status")
        await pilot.press("end")
        await until(pilot, lambda: len(browser.loaded) >= 2 * PAGE)
        await pilot.press("slash", *"099999")
        await until(pilot, lambda: browser.complete)
        assert [entry.key for entry in browser.rows.entries] == ["row-099999.json"]
        assert "1 of 100,000 entries" in text(browser, "status")
        await pilot.press("escape")
        await until(pilot, lambda: len(browser.rows.entries) == 100_000)
        await pilot.press("end")
        assert browser.rows.render_line(browser.rows.size.height - 1).text.strip().startswith("row-099999.json")

    drive(shelf, steps)


def test_what_cannot_be_listed_is_said() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        assert "denied" in text(browser, "status")

    drive(Shelf([], problem="s3://datasets: denied."), steps)


def test_an_empty_bucket_and_an_empty_prefix_are_told_apart() -> None:
    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        assert text(browser, "status") == ("nothing under this prefix" if browser.prefix else "empty")

    drive(Shelf([]), steps)
    drive(Shelf(["a"]), steps, prefix="b/")


def test_leaving_a_folder_that_is_still_loading_shows_nothing_of_it() -> None:
    gate = threading.Event()

    class Slow(Shelf):
        def pages(self, prefix: str) -> Iterator[list[Entry]]:
            if prefix == "nq/":
                gate.wait(10)
            yield from super().pages(prefix)

    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("enter", "backspace")
        await until(pilot, lambda: browser.complete and browser.prefix == "")
        gate.set()
        await pilot.pause(0.1)
        assert [entry.key for entry in browser.rows.entries] == ["nq/", "readme.txt", "simple_qa/"]

    drive(Slow(KEYS), steps)


@pytest.mark.parametrize(
    ("name", "content", "size", "shown"),
    [
        ("a.json", b'{"a":[1]}', 9, '{\n  "a": [\n    1\n  ]\n}'),
        ("a.json", b'{"a":[1', 90, '{"a":[1\n…'),
        ("a.jsonl", b'{"a":1}\n{"b":', 90, '{\n  "a": 1\n}\n{"b":\n…'),
        ("a.csv", b'id,text\n1,"a, b"\n22,c\n', 22, "id  text\n1   a, b\n22  c"),
        ("a.txt", b"plain\r\ntext\x07", 12, "plain\ntext\\x07"),
        ("a.bin", b"\x00\x01", 2, "(binary, 2 bytes)"),
        ("a.bin", bytes(range(128, 256)), 128, "(binary, 128 bytes)"),
        ("a.txt", b"", 0, "(empty)"),
        ("a.txt", "Ж".encode()[:1], 9, "\n…"),
        ("a.txt", "\u202egnp.exe\u200b".encode(), 13, "\\x202egnp.exe\\x200b"),
    ],
)
def test_readable(name: str, content: bytes, size: int, shown: str) -> None:
    assert readable(name, content, size) == shown


def test_readable_gzip() -> None:
    import gzip

    packed = gzip.compress(b'{"a": 1}\n')
    assert readable("a.jsonl.gz", packed, len(packed)) == '{\n  "a": 1\n}'
    assert readable("a.gz", b"\x1f\x8bbroken", 8) == "(damaged gzip)"


def test_harmless_keeps_what_is_harmless() -> None:
    assert harmless("tab\tline\nЖ 漢 é") == "tab\tline\nЖ 漢 é"
    assert harmless("\x9b31m\x7f") == "\\x9b31m\\x7f"


def test_leaving_does_not_wait_for_a_server_that_stalls_and_stops_a_download() -> None:
    gate, ended = threading.Event(), threading.Event()

    class Stalled(Shelf):
        def preview(self, entry: Entry) -> str:
            gate.wait(20)
            return ""

        def download(self, entry: Entry, listen: Listener) -> Path:
            while not self.stop.asked:
                time.sleep(0.01)
            ended.set()
            raise SlmxError("stopped")

    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("enter", "d")
        await pilot.pause(0.1)
        await pilot.press("q")

    started = time.perf_counter()
    drive(Stalled(["a.txt"]), steps)
    assert time.perf_counter() - started < 5
    assert ended.wait(5)
    gate.set()


def test_a_bucket_on_a_real_server(rclone: Server, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rclone.environment().items():
        monkeypatch.setenv(name, value)
    client, long = rclone.client(), b"line of text\n" * 100_000
    client.put_object(Bucket=rclone.bucket, Key="nq_full_dataset.json", Body=b"[]")
    client.put_object(Bucket=rclone.bucket, Key="notes/long.txt", Body=long)
    shelf = browse.Shelf(load().s3, rclone.bucket, Path("data"))
    read: list[int] = []
    real = browse.first_bytes
    monkeypatch.setattr(browse, "first_bytes", lambda *a: read.append(len(real(*a))) or real(*a))

    async def steps(pilot: Pilot[None], browser: Browser) -> None:
        await until(pilot, lambda: browser.complete)
        await pilot.press("end", "d")
        await until(pilot, lambda: Path("data/nq/nq_full_dataset.json").exists())
        await pilot.press("home", "enter")
        await until(pilot, lambda: browser.complete and browser.prefix == "notes/")
        await pilot.press("enter")
        await until(pilot, lambda: "line of text" in text(browser, "preview-text"))
        await until(pilot, lambda: not browser._downloading)
        await pilot.press("d")
        await until(pilot, lambda: Path("data/long.txt").exists())

    drive(shelf, steps)  # type: ignore[arg-type]
    assert read == [FIRST]
    assert Path("data/long.txt").read_bytes() == long


def test_in_a_real_terminal(rclone: Server, empty_folder: Path) -> None:
    """The command itself under a pseudo-terminal: it draws, takes a key, and leaves with 0."""
    import os
    import pty
    import select
    import subprocess
    import sys

    rclone.client().put_object(Bucket=rclone.bucket, Key="one-key.txt", Body=b"x")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "slmx", "s3", "browse"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **rclone.environment(), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        start_new_session=True,
    )
    os.close(slave)
    try:
        seen, deadline = b"", time.monotonic() + 30
        while b"one-key.txt" not in seen and time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536)
        assert b"one-key.txt" in seen
        os.write(master, b"q")
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    os.read(master, 65536)
                except OSError:
                    break
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
