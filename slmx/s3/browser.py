"""The browser of `slmx s3 browse`: one list, one preview, a filter. It knows a Store and nothing of S3.

Only the rows on the screen are drawn and pages are fetched when the list nears its end, so a folder of 100,000 keys
opens as fast as one of ten.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, ScrollableContainer
from textual.widgets import Footer, Input, Static

from slmx.errors import SlmxError
from slmx.events import Listener, Notice, Progress
from slmx.pool import Pool
from slmx.s3.listing import Entry, human_size
from slmx.s3.preview import one_line
from slmx.s3.rows import Rows
from slmx.signals import Stop

T = TypeVar("T")
THREADS = 8  # a server that stalls may keep some busy while the person has moved on


class Store(Protocol):
    """What the browser shows. Every method may take long and is called from a thread; `stop` ends a download."""

    place: str
    bucket: str
    stop: Stop

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        """Entries under a prefix, page by page; SlmxError when it cannot be listed."""

    def preview(self, entry: Entry) -> str:
        """The beginning of an object, safe to show; SlmxError when it cannot be read."""

    def download(self, entry: Entry, listen: Listener) -> Path:
        """Fetch an object and say where it went; SlmxError when it cannot be, or would overwrite."""


class Browser(App[None]):
    """Folders, sizes, dates, a filter as you type, a preview; download and copy."""

    TITLE = "slmx s3 browse"
    CSS = """
    #path { height: 1; background: $panel; color: $text; text-style: bold; padding: 0 1; }
    #filter { height: 1; border: none; padding: 0 1; background: $surface; }
    #filter:focus { border: none; }
    #body { height: 1fr; }
    Rows { width: 1fr; padding: 0 1; }
    #preview { width: 1fr; border-left: solid $panel; padding: 0 1; display: none; }
    #preview.shown { display: block; }
    #preview-text { width: 100%; }
    #preview-text.table { width: auto; }
    #status { height: 1; background: $panel; color: $text-muted; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("backspace,left", "up", "up"),
        Binding("slash", "filter", "filter"),
        Binding("d", "download", "download"),
        Binding("c", "copy", "copy key"),
        Binding("r", "reload", "reload"),
        Binding("escape", "leave", "back", show=False),
        Binding("up", "rows('move', -1)", show=False),
        Binding("down", "rows('move', 1)", show=False),
        Binding("pageup", "rows('page', -1)", show=False),
        Binding("pagedown", "rows('page', 1)", show=False),
        Binding("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, store: Store, prefix: str = "") -> None:
        super().__init__()
        self.store, self.prefix = store, prefix
        self.loaded: list[Entry] = []
        self.complete = False
        self.problem = ""
        self._more = asyncio.Event()
        self._pool = Pool(THREADS)
        self._downloading = ""
        self._came_from = ""

    def compose(self) -> ComposeResult:
        """Path, filter, list and preview, status, keys."""
        yield Static(id="path", markup=False)
        yield Input(placeholder="/ filters the names", id="filter", compact=True)
        with Horizontal(id="body"):
            yield Rows()
            with ScrollableContainer(id="preview"):
                yield Static(id="preview-text", markup=False)
        yield Static(id="status", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Open the first folder."""
        self.rows.focus()
        self.visit(self.prefix)

    @property
    def rows(self) -> Rows:
        """The list."""
        return self.query_one(Rows)

    @property
    def wanted(self) -> str:
        """What the filter says."""
        return self.query_one("#filter", Input).value.lower()

    # --- listing ---

    def visit(self, prefix: str, came_from: str = "") -> None:
        """Show a folder from its first page on; the cursor goes to `came_from` once that is there."""
        self.prefix, self.loaded, self.complete, self.problem, self._came_from = prefix, [], False, "", came_from
        self.query_one("#path", Static).update(one_line(f"{self.store.place}  s3://{self.store.bucket}/{prefix}"))
        with self.prevent(Input.Changed):
            self.query_one("#filter", Input).value = ""
        self._hide_preview()
        self.rows.show([], prefix)
        self._more.set()
        self._load(prefix)
        self._tell()

    async def _apart(self, job: Callable[[], T]) -> T:
        """Do what may take long in a thread that keeps nobody waiting: leaving the browser leaves it behind."""
        return await asyncio.wrap_future(self._pool.submit(job))

    @work(exclusive=True, group="list")
    async def _load(self, prefix: str) -> None:
        problem, pages = "", self.store.pages(prefix)
        try:
            while (page := await self._apart(lambda: next(pages, None))) is not None:
                self._add(page)
                await self._more.wait()
        except SlmxError as error:
            problem = f"{error.what} {error.hint}"
        self.complete, self.problem = True, problem
        self._tell()

    def _add(self, page: list[Entry]) -> None:
        self.loaded += page
        self.rows.entries += [entry for entry in page if self._fits(entry)]
        if self._came_from:
            for place, entry in enumerate(self.rows.entries):
                if entry.key == self._came_from:
                    self.rows.show(self.rows.entries, self.prefix, place)
                    self._came_from = ""
                    break
        self.rows.grown()
        self._ask_for_more()
        self._tell()

    def _ask_for_more(self) -> None:
        """A filter looks at everything; without one, pages come as they are scrolled to."""
        if self.wanted or self._came_from or self.rows.nears_its_end:
            self._more.set()
        else:
            self._more.clear()

    def _fits(self, entry: Entry) -> bool:
        return self.wanted in entry.key[len(self.prefix) :].lower()

    def on_rows_seen(self) -> None:
        """The list moved: perhaps it nears its end."""
        self._ask_for_more()

    def on_input_changed(self) -> None:
        """Filter as it is typed."""
        self.rows.show([entry for entry in self.loaded if self._fits(entry)], self.prefix)
        self._ask_for_more()
        self._tell()

    def on_input_submitted(self) -> None:
        """Enter in the filter opens what the cursor stands on."""
        self.on_rows_opened()

    def _tell(self) -> None:
        """The line at the bottom: how many, and what is going on."""
        shown, known = len(self.rows.entries), len(self.loaded)
        count = f"{known:,}{'' if self.complete else '+'} {'entry' if known == 1 else 'entries'}"
        if self.wanted:
            count = f"{shown:,} of {count}"
        elif self.complete and not known:
            count = "empty" if not self.prefix else "nothing under this prefix"
        said = [self.problem or count, self._downloading]
        self.query_one("#status", Static).update(one_line("   ".join(filter(None, said))))

    # --- keys ---

    def action_rows(self, what: str, by: int) -> None:
        """Move in the list while the filter is typed in."""
        (self.rows.action_move if what == "move" else self.rows.action_page)(by)

    def on_rows_opened(self) -> None:
        """Into a folder; preview an object."""
        entry = self.rows.current
        if entry is None:
            return
        self.rows.focus()
        if entry.folder:
            self.visit(entry.key)
        else:
            self._show_preview(entry, "…")
            self._preview(entry)

    def action_up(self) -> None:
        """To the folder above."""
        if self.prefix:
            above = self.prefix.rstrip("/").rpartition("/")
            self.visit(above[0] + above[1], came_from=self.prefix)

    def action_filter(self) -> None:
        """Type in the filter."""
        self.query_one("#filter", Input).focus()

    def action_leave(self) -> None:
        """Out of the filter or the preview."""
        field = self.query_one("#filter", Input)
        if field.has_focus or field.value:
            field.value = ""
        else:
            self._hide_preview()
        self.rows.focus()

    def action_reload(self) -> None:
        """List the folder again."""
        self.visit(self.prefix)

    def action_copy(self) -> None:
        """The key, to the clipboard of the terminal."""
        entry = self.rows.current
        if entry is not None:
            self.copy_to_clipboard(entry.key)
            self.notify(one_line(entry.key), title="copied", markup=False)

    def action_download(self) -> None:
        """Fetch the object under the cursor."""
        entry = self.rows.current
        if entry is None:
            return
        if entry.folder:
            said = f"slmx s3 sync s3://{self.store.bucket}/{entry.key} FOLDER"
            self.notify(one_line(said), title="folders are fetched by", markup=False)
        elif self._downloading:
            self.notify("One download at a time.", severity="warning")
        else:
            self._downloading = f"downloading {entry.key} …"
            self._tell()
            self._download(entry)

    # --- preview and download ---

    @work(exclusive=True, group="preview")
    async def _preview(self, entry: Entry) -> None:
        try:
            text = await self._apart(lambda: self.store.preview(entry))
        except SlmxError as error:
            text = f"{error.what}\n{error.hint}"
        self._show_preview(entry, text)

    def _show_preview(self, entry: Entry, text: str) -> None:
        head = f"{one_line(entry.key[len(self.prefix) :])}  {human_size(entry.size)}"
        shown = self.query_one("#preview-text", Static)
        shown.set_class(entry.key.lower().endswith((".csv", ".tsv")), "table")  # rows of a table are not wrapped
        shown.update(f"{head}\n\n{text}")
        self.query_one("#preview").add_class("shown")
        self.query_one("#preview").scroll_home(animate=False)

    def _hide_preview(self) -> None:
        self.workers.cancel_group(self, "preview")
        self.query_one("#preview").remove_class("shown")

    @work(group="download")
    async def _download(self, entry: Entry) -> None:
        loop = asyncio.get_running_loop()

        def listen(event: Progress | Notice) -> None:
            if isinstance(event, Progress) and event.total and not self.store.stop.asked:
                said = f"downloading {entry.key}: {event.done:,} of {event.total:,} {event.unit}"
                loop.call_soon_threadsafe(self._downloads, said)

        try:
            path = await self._apart(lambda: self.store.download(entry, listen))
            self.notify(one_line(f"saved as {path}"), markup=False, timeout=10)
        except SlmxError as error:
            self.notify(one_line(f"{error.what} {error.hint}"), severity="error", markup=False, timeout=10)
        self._downloads("")

    def _downloads(self, said: str) -> None:
        self._downloading = said
        self._tell()

    def on_unmount(self) -> None:
        """Leaving: a download ends and takes its unfinished file with it."""
        self.store.stop.signal = signal.SIGINT
        self._pool.close()
