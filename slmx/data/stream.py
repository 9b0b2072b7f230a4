"""Rows of JSON and CSV files, one at a time: memory is one row and one block, however long the file is.

A JSON file may be JSON lines, an array of rows, or an object of such arrays (`{"train": [...], "eval": [...]}`); all of
them through gzip too. Rows come as bytes with their line, so that a bad one can be named, and the reader decodes them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from slmx import files
from slmx.errors import SlmxError

SECTIONS = ("train", "eval")
Layout = Literal["folder", "array", "sections", "lines", "text"]
_QUOTE, _OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _COLON = b'"[]{:'
_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}:]*")
_SPACE = re.compile(rb"[\s,]*")


class Row(NamedTuple):
    """One row's JSON text as it stands in the file. `section` is its array's key where the file is an object."""

    line: int
    raw: bytes
    section: str = ""


class Head(NamedTuple):
    """What a file looks like from its beginning: enough to tell the accepted forms apart.

    `keys` are the keys of the first row (JSON), or the columns of the first line (text); a folder's are the names in
    it. `start` is the beginning of a text file.
    """

    layout: Layout
    keys: frozenset[str]
    start: str = ""


class _Scanner:
    """Cuts JSON values out of a stream by their brackets and quotes, without decoding them."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.buffer = bytearray()
        self.at = 0
        self.line = 1
        if self._more() and self.buffer.startswith(b"\xef\xbb\xbf"):
            self.at = 3

    def _more(self) -> bool:
        """Drop what was used and read a block; False at the end of the file."""
        if self.at:
            del self.buffer[: self.at]
            self.at = 0
        try:
            block = self.stream.read(files.BLOCK)
        except (EOFError, OSError) as error:
            raise SlmxError(f"{self.path} is damaged: {error}.", hint="Fetch or unpack it again.") from None
        self.buffer += block
        return bool(block)

    def _advance(self, to: int) -> None:
        self.line += self.buffer.count(b"\n", self.at, to)
        self.at = to

    def peek(self) -> int:
        """The next byte that is neither white space nor a comma, not yet taken; -1 at the end."""
        while True:
            found = _SPACE.match(self.buffer, self.at)
            assert found is not None  # the empty string matches
            self._advance(found.end())
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return -1

    def take(self) -> None:
        """Take the byte that `peek` showed."""
        self._advance(self.at + 1)

    def value(self) -> bytes | None:
        """Take the value that begins here; None when the file ends inside it."""
        if self.peek() not in (_QUOTE, _OPEN_LIST, _OPEN_OBJECT):
            return self._scalar()
        size = self._size()
        if size is None:
            return None
        raw = bytes(self.buffer[self.at : self.at + size])
        self._advance(self.at + size)
        return raw

    def _size(self) -> int | None:
        """Bytes of the string, array or object that begins here. Places count from `at`, which reading on moves."""
        size = depth = 0
        while True:
            found = _STRUCTURE.search(self.buffer, self.at + size)
            if found is None:
                size = len(self.buffer) - self.at
                if not self._more_of_row(size):
                    return None
                continue
            size = found.end() - self.at
            byte = self.buffer[found.start()]
            if byte == _QUOTE:
                end = self._string_end(size)
                if end is None:
                    return None
                size = end
            else:
                depth += 1 if byte in (_OPEN_LIST, _OPEN_OBJECT) else -1
            if depth <= 0:
                return size

    def _string_end(self, size: int) -> int | None:
        """Where the string ends whose inside begins at `size`."""
        while True:
            found = _STRING_REST.match(self.buffer, self.at + size)
            assert found is not None  # the empty string matches
            size = found.end() - self.at
            if self.buffer[found.end() : found.end() + 1] == b'"':
                return size + 1
            if not self._more_of_row(size):  # the block ends inside the string, or between a backslash and its letter
                return None

    def _more_of_row(self, size: int) -> bool:
        if size > files.MAX_ROW:
            limit = files.MAX_ROW >> 20
            raise SlmxError(f"{self.path}, line {self.line}: a row is longer than {limit} MiB.", hint=BROKEN)
        return self._more()

    def _scalar(self) -> bytes:
        found = _SCALAR.match(self.buffer, self.at)
        assert found is not None  # the empty string matches
        end = max(found.end(), self.at + 1)  # never stand still, whatever junk is here
        raw = bytes(self.buffer[self.at : end])
        self._advance(end)
        return raw

    def key(self) -> str | None:
        """Take the next key of an object and its colon; None at the object's end or at junk."""
        if self.peek() != _QUOTE:
            return None
        raw = self.value()
        if raw is None or self.peek() != _COLON:
            return None
        self.take()
        return raw[1:-1].decode(errors="replace")


BROKEN = "Is the file whole and of one of the accepted forms? `slmx data convert --help` lists them."


def rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON file of any layout. A row that the file ends in comes as far as it goes.

    Raises:
        SlmxError: the file is absent, damaged, or not JSON at all.
    """
    layout = head(path).layout
    if layout == "lines":
        for line, raw in files.read_lines(path):
            yield Row(line, raw)
        return
    if layout not in ("array", "sections"):
        raise SlmxError(f"{path} holds no JSON rows.", hint=BROKEN)
    with files.open_bytes(path) as stream:
        scan = _Scanner(path, stream)
        if layout == "array":
            yield from _array(scan, "")
            return
        scan.peek()
        scan.take()
        while (key := scan.key()) is not None:
            if key in SECTIONS and scan.peek() == _OPEN_LIST:
                yield from _array(scan, key)
            elif scan.value() is None:
                return


def _array(scan: _Scanner, section: str) -> Iterator[Row]:
    scan.peek()
    scan.take()
    while True:
        first = scan.peek()
        if first == _CLOSE_LIST:
            scan.take()
            return
        line = scan.line
        raw = scan.value() if first != -1 else None
        if raw is None:
            yield Row(line, b"", section)  # the array was not closed: its end is missing
            return
        yield Row(line, raw, section)


def head(path: Path) -> Head:
    """Look at the beginning of a file, or at the names in a folder."""
    if path.is_dir():
        return Head("folder", frozenset(p.name for p in path.iterdir()))
    with files.open_bytes(path) as stream:
        scan = _Scanner(path, stream)
        first = scan.peek()
        if first == _OPEN_OBJECT:
            return _object_head(scan)
        if first == _OPEN_LIST:
            scan.take()
            keys = _keys(scan)[0] if scan.peek() == _OPEN_OBJECT else []
            return Head("array", frozenset(keys))
        start = bytes(scan.buffer[scan.at : scan.at + 4000]).decode(errors="replace")
    try:
        columns = next(csv.reader(io.StringIO(start, newline="")), [])
    except csv.Error:
        columns = []
    return Head("text", frozenset(c.strip() for c in columns), start)


def _object_head(scan: _Scanner) -> Head:
    keys, in_section = _keys(scan, stop_at_section=True)
    if not in_section:
        return Head("lines", frozenset(keys))
    scan.peek()
    scan.take()
    keys = _keys(scan)[0] if scan.peek() == _OPEN_OBJECT else []
    return Head("sections", frozenset(keys))


def _keys(scan: _Scanner, *, stop_at_section: bool = False) -> tuple[list[str], bool]:
    """The keys of the object that begins here, and whether the scan stopped before a section's array."""
    keys: list[str] = []
    scan.take()
    while (key := scan.key()) is not None:
        keys.append(key)
        if stop_at_section and key in SECTIONS and scan.peek() == _OPEN_LIST:
            return keys, True
        if scan.value() is None:
            break
    return keys, False


class CsvRow(NamedTuple):
    """One row of a CSV file by column, or why it is bad. `line` is where the row begins."""

    line: int
    cells: dict[str, str]
    problem: str = ""


def csv_rows(path: Path) -> Iterator[CsvRow]:
    """The rows of a CSV file with a header; fields up to MAX_ROW. Bad rows come with their problem."""
    csv.field_size_limit(files.MAX_ROW)
    with files.open_bytes(path) as binary:
        # A byte that is not UTF-8 becomes a surrogate: it spoils its own row and no other.
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield CsvRow(line, {}, f"{error}")
                continue
            except (EOFError, OSError) as error:
                raise SlmxError(f"{path} is damaged: {error}.", hint="Fetch or unpack it again.") from None
            if cells is None:
                return
            if header is None:
                header = [c.strip() for c in cells]
            elif cells:
                yield _csv_row(line, header, cells)


def _csv_row(line: int, header: list[str], cells: list[str]) -> CsvRow:
    if len(cells) != len(header):
        return CsvRow(line, {}, f"{len(cells)} columns where the header has {len(header)}")
    try:
        for cell in cells:
            cell.encode()
    except UnicodeEncodeError:
        return CsvRow(line, {}, "not UTF-8")
    return CsvRow(line, dict(zip(header, cells, strict=True)))


class ArrayWriter:
    """Writes a JSON array row by row, one row a line, into an open stream."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._empty = True

    def write(self, row: bytes) -> None:
        """Append one row's JSON."""
        self._out.write(b"[\n" if self._empty else b",\n")
        self._out.write(row)
        self._empty = False

    def close(self) -> None:
        """Write the array's end (not the stream's)."""
        self._out.write(b"[]\n" if self._empty else b"\n]\n")


class LineWriter:
    """Writes JSON lines; the same face as ArrayWriter."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, row: bytes) -> None:
        """Append one row's JSON and a line end."""
        self._out.write(row)
        self._out.write(b"\n")

    def close(self) -> None:
        """JSON lines have no end of their own."""


@contextmanager
def row_writer(path: Path, *, lines: bool, overwrite: bool) -> Iterator[ArrayWriter | LineWriter]:
    """An atomic file of JSON rows: lines, or an array."""
    with files.atomic_write(path, overwrite=overwrite) as out:
        writer: ArrayWriter | LineWriter = LineWriter(out) if lines else ArrayWriter(out)
        yield writer
        writer.close()
