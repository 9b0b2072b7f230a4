"""A list of any length on the screen: only the lines that are seen are drawn."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from slmx.s3.listing import Entry, human_size
from slmx.s3.preview import one_line

SIZE_WIDTH, DATE_WIDTH = 11, 18
NARROW = 56  # columns; below this the dates are left out
AHEAD = 2  # screens of entries that are fetched before they are reached


class Rows(ScrollView, can_focus=True):
    """A list of entries of any length, of which only the lines on the screen are drawn."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"rows--cursor", "rows--folder", "rows--faint"}
    DEFAULT_CSS = """
    Rows { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Rows > .rows--cursor { background: $primary; color: $text; text-style: bold; }
    Rows > .rows--folder { color: $accent; text-style: bold; }
    Rows > .rows--faint { color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,right", "open", "open", key_display="⏎"),
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "move(-1000000000)", show=False),
        Binding("end", "move(1000000000)", show=False),
    ]

    class Seen(Message):
        """Other rows are on the screen now."""

    class Opened(Message):
        """The entry under the cursor is to be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.prefix = ""
        self.cursor = 0

    @property
    def current(self) -> Entry | None:
        """The entry under the cursor."""
        return self.entries[self.cursor] if self.cursor < len(self.entries) else None

    @property
    def nears_its_end(self) -> bool:
        """Is there less to scroll than a screen or two?"""
        return len(self.entries) < max(self.scroll_y, self.cursor) + (1 + AHEAD) * max(self.size.height, 10)

    def show(self, entries: list[Entry], prefix: str, cursor: int = 0) -> None:
        """Show these instead."""
        self.entries, self.prefix, self.cursor = entries, prefix, cursor
        self.grown()
        self._follow()

    def grown(self) -> None:
        """The list has become longer or shorter."""
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.entries))
        self.refresh()

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.cursor = max(0, min(len(self.entries) - 1, self.cursor + by))
        self._follow()

    def action_open(self) -> None:
        """Tell the browser."""
        self.post_message(self.Opened())

    def action_page(self, by: int) -> None:
        """Move the cursor by screens."""
        self.action_move(by * max(1, self.size.height - 1))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is."""
        self.cursor = max(0, min(len(self.entries) - 1, event.y + round(self.scroll_y)))
        self._follow()
        if event.chain == 2:
            self.action_open()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolled by wheel or bar."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Seen())

    def _follow(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)
        self.refresh()
        self.post_message(self.Seen())

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        place = y + round(self.scroll_y)
        width = self.scrollable_content_region.width
        if place >= len(self.entries):
            return Strip.blank(width, self.rich_style)
        entry = self.entries[place]
        base = self.rich_style
        faint = self.get_component_rich_style("rows--faint")
        style = self.get_component_rich_style("rows--folder") if entry.folder else base
        if place == self.cursor:
            base = style = faint = self.get_component_rich_style("rows--cursor")
        date = f"  {entry.modified[:16].replace('T', ' ')}" if width >= NARROW else ""
        room = max(8, width - SIZE_WIDTH - (DATE_WIDTH if date else 0))
        name = one_line(entry.key[len(self.prefix) :]) or "/"
        if cell_len(name) > room:
            name = set_cell_size(name, room - 1) + "…"
        size = "" if entry.folder else human_size(entry.size)
        return Strip(
            [
                Segment(set_cell_size(name, room), style),
                Segment(f"{size:>{SIZE_WIDTH}}", base),
                Segment(date, faint),
            ]
        ).adjust_cell_length(width, base)
