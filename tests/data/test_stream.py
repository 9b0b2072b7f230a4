from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from slmx import files
from slmx.data import stream
from slmx.errors import SlmxError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), max_size=8)


def read(path: Path) -> list[Any]:
    return [json.loads(row.raw) for row in stream.rows(path)]


@given(rows=ROWS, indent=st.sampled_from([None, 0, 2]), ascii_=st.booleans(), block=st.sampled_from([1, 2, 3, 7, 64]))
@settings(max_examples=150, deadline=None)
def test_an_array_comes_row_by_row_wherever_the_blocks_end(
    rows: list[Any], indent: int | None, ascii_: bool, block: int
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    scan = stream._Scanner(Path("x"), io.BytesIO())
    data = io.BytesIO(text.encode("utf-8", "surrogatepass"))
    scan.stream = _Dribble(data.read(), block)  # type: ignore[assignment]
    assert [json.loads(r.raw) for r in stream._array(scan, "")] == rows


class _Dribble:
    """A stream that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content, self.size = io.BytesIO(content), size

    def read(self, _: int) -> bytes:
        return self.content.read(self.size)


@pytest.mark.parametrize("gz", [False, True])
def test_lines_array_and_sections_give_the_same_rows(tmp_path: Path, gz: bool) -> None:
    rows = [{"question": f"q{n}", "answer": ['a "b" \\', "é]}"]} for n in range(5)]
    texts = {
        "lines": "\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n",
        "array": json.dumps(rows, indent=2),
        "sections": json.dumps({"total_items": 5, "description": "[x]", "train": rows[:4], "eval": rows[4:]}),
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())
        assert read(path) == rows
        assert stream.head(path).layout == name
        assert stream.head(path).keys >= {"question", "answer"}
    assert [r.section for r in stream.rows(tmp_path / "sections")] == ["train"] * 4 + ["eval"]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2},\n{"a": 3}\n]\n')
    assert [r.line for r in stream.rows(path)] == [2, 4, 6]


@pytest.mark.parametrize(
    "cut", ['[{"a": 1}, {"b": "x', '[{"a": 1}, {"b": "\\', '[{"a": 1}, {"b": [1, 2}', '[{"a": 1},']
)
def test_an_array_that_stops_short_ends_in_an_empty_row(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(cut)
    found = list(stream.rows(path))
    assert found[0].raw == b'{"a": 1}' and found[-1].raw == b""


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_junk_never_hangs_or_crashes(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "f"
    for content in (junk, b"[" + junk, b'{"train": [' + junk):
        path.write_bytes(content)
        with suppress(SlmxError):
            list(stream.rows(path))


def test_a_row_without_an_end_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ROW", 1 << 20)
    array, lines = tmp_path / "a.json", tmp_path / "l.jsonl"
    array.write_bytes(b'[{"a": "' + b"x" * (4 << 20))
    lines.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * (4 << 20))
    for path in (array, lines):
        with pytest.raises(SlmxError, match="longer than 1 MiB"):
            list(stream.rows(path))


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 10_000)[:-20])
    with pytest.raises(SlmxError, match="damaged"):
        list(stream.rows(path))


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, layout: str) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}"
        row = json.dumps({"a": "x" * 5000})
        with path.open("w") as out:
            out.write("[\n" if layout == "array" else "")
            for number in range(count):
                out.write(row + (",\n" if layout == "array" and number + 1 < count else "\n"))
            out.write("]" if layout == "array" else "")
        tracemalloc.start()
        assert sum(1 for _ in stream.rows(path)) == count
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(4000) < 1.3 * peak(1000)


def test_array_writer_writes_one_row_a_line(tmp_path: Path) -> None:
    for rows in ([], [b"1"], [b"1", b'{"a":2}']):
        out = io.BytesIO()
        writer = stream.ArrayWriter(out)
        for row in rows:
            writer.write(row)
        writer.close()
        assert json.loads(out.getvalue()) == [json.loads(r) for r in rows]
        assert len(out.getvalue().splitlines()) in (1, len(rows) + 2)


def test_csv_rows_name_their_line_and_go_on_after_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfa,b\r\n"  # 1
        b'1,"two\nlines"\r\n'  # 2 and 3
        b"1,2,3\r\n"  # 4: too many
        b"\xff,2\r\n"  # 5: not UTF-8
        b'"x"y,2\r\n'  # 6: text behind a quote
        b"7,8\r\n"
    )
    found = list(stream.csv_rows(path))
    assert [r.line for r in found] == [2, 4, 5, 6, 7]
    assert found[0].cells == {"a": "1", "b": "two\nlines"} and found[-1].cells == {"a": "7", "b": "8"}
    assert [bool(r.problem) for r in found] == [False, True, True, True, False]


def test_csv_fields_may_be_longer_than_the_module_s_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "x" * 600_000 + "\n")
    assert len(next(stream.csv_rows(path)).cells["a"]) == 600_000
