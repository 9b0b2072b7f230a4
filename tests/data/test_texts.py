from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from slmx.data import texts
from slmx.data.sources import BadRow
from slmx.data.texts import Piece, Splitting, find_texts, guess_encoding, read_texts, split
from slmx.errors import SlmxError, UsageError

CYRILLIC = "У лукоморья дуб зелёный; златая цепь на дубе том: и днём и ночью кот учёный всё ходит по цепи кругом.\n"


def pieces(path: Path, **how: Any) -> list[Piece | BadRow]:
    found, _ = find_texts([path])
    return [piece for file in found for piece in read_texts(file, Splitting(**how))]


def documents(read: list[Piece | BadRow]) -> list[str]:
    whole: list[str] = []
    for piece in read:
        assert isinstance(piece, Piece)
        if piece.first:
            whole.append("")
        whole[-1] += piece.text
    return whole


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("end-of-text", ["One.\nTwo.", "Three.\n\nFour."]),
        ("line", ["One.", "Two.", "<|endoftext|>", "Three.", "Four.", "<|endoftext|>"]),
        ("blank", ["One.\nTwo.\n<|endoftext|>\nThree.", "Four.\n<|endoftext|>"]),
        (r"\n?(?=T\w+\.)", ["One.", "Two.\n<|endoftext|>", "Three.\n\nFour.\n<|endoftext|>"]),
    ],
)
def test_documents_are_split_as_asked(tmp_path: Path, on: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\n<|endoftext|>\nThree.\n\nFour.\n<|endoftext|>\n")
    assert documents(pieces(tmp_path, on=on)) == expected


@given(
    st.lists(st.text(alphabet="ab \n\u00a0ж", max_size=40), max_size=12),
    st.integers(1, 9),
    st.integers(5, 20),
)
@settings(max_examples=150, deadline=None)
def test_blocks_and_long_documents_change_nothing(parts: list[str], block: int, longest: int) -> None:
    """Whatever the blocks a file is read in and wherever long documents are cut, the documents are the same."""
    whole = "<|end|>".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "LONGEST", longest)
        patch.setattr(texts, "_SEPARATOR", 8)
        blocks = (whole[i : i + block] for i in range(0, len(whole), block))
        found = list(split(blocks, Splitting(on=r"<\|end\|>").pattern()))
    expected = [part.strip() for part in whole.split("<|end|>") if part.strip()]
    assert [d.strip() for d in documents([*found])] == expected
    assert all(len(piece.text) <= longest for piece in found)
    assert [piece.last for piece in found if piece.last] == [True] * len(expected)


def test_every_kind_of_file_in_a_folder_is_read_and_others_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as out:
        out.write("packed")
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(b'{"text": "zst"}\n{"text": "row"}\n', "zstd", asbytes=True))
    (tmp_path / "d.json").write_text(json.dumps([{"text": "array"}]), encoding="utf-8")
    pq.write_table(pa.table({"text": ["column"], "n": [1]}), tmp_path / "sub" / "e.parquet")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no", encoding="utf-8")
    found, others = find_texts([tmp_path])
    assert others == ["picture.png"]
    read = [piece for file in found for piece in read_texts(file, Splitting())]
    assert documents(read) == ["plain", "packed", "zst", "row", "array", "column"]


def test_a_wrong_encoding_is_named_with_the_file_and_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("fine", encoding="utf-8")
    (tmp_path / "pushkin.txt").write_bytes((CYRILLIC * 3).encode("cp1251"))
    with pytest.raises(SlmxError, match=r"pushkin\.txt is not utf-8: byte 0xd3 at line 1") as caught:
        pieces(tmp_path)
    assert "looks like cp1251" in caught.value.hint
    assert documents(pieces(tmp_path / "pushkin.txt", encoding="cp1251")) == [(CYRILLIC * 3).strip()]
    with pytest.raises(UsageError, match="There is no encoding klingon"):
        pieces(tmp_path, encoding="klingon")


ENCODED = [
    ("utf-8", CYRILLIC),
    ("cp1251", CYRILLIC),
    ("koi8-r", CYRILLIC),
    ("cp1252", "Déjà vu in a naïve café – “quoted” text with plain words around it.\n"),
    ("utf-16", CYRILLIC),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODED)
def test_json_rows_of_another_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    rows = [json.dumps({"text": text * 5}, ensure_ascii=False) for _ in range(2)]
    for name, content in (("a.jsonl", "\n".join(rows)), ("b.json", f"[{','.join(rows)}]")):
        (tmp_path / name).write_bytes(content.encode(encoding))
        for asked in (encoding, "auto"):
            if encoding == "utf-16":
                with pytest.raises(SlmxError, match=r"JSON rows in utf-16|no JSON rows"):
                    pieces(tmp_path / name, encoding=asked)
            else:
                assert documents(pieces(tmp_path / name, encoding=asked)) == [(text * 5).strip()] * 2


@pytest.mark.parametrize(("encoding", "text"), ENCODED)
def test_auto_takes_a_file_for_what_it_looks_like(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((text * 5).encode(encoding))
    assert documents(pieces(path, encoding="auto")) == [(text * 5).strip()]
    if encoding != "utf-16":
        assert guess_encoding(path).removesuffix("-sig") == encoding


def test_a_file_cut_in_the_middle_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_bytes(CYRILLIC.encode()[:12])
    with pytest.raises(SlmxError, match=r"a\.txt ends inside a character \(utf-8\): it was cut"):
        pieces(tmp_path / "a.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(range(32, 127)) * 5000)[:-20])
    with pytest.raises(SlmxError, match=r"b\.txt\.gz is damaged"):
        pieces(tmp_path / "b.txt.gz")
    (tmp_path / "c.txt.zst").write_bytes(pa.compress(CYRILLIC.encode() * 500, "zstd", asbytes=True)[:-9])
    with pytest.raises(SlmxError, match=r"c\.txt\.zst is damaged"):
        pieces(tmp_path / "c.txt.zst")
    pq.write_table(pa.table({"text": ["x" * 1000]}), tmp_path / "d.parquet")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:-30])
    with pytest.raises(SlmxError, match=r"d\.parquet is damaged"):
        pieces(tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").write_text('{"text": "whole"}\n{"text": "cu', encoding="utf-8")
    good, bad = pieces(tmp_path / "e.jsonl")
    assert isinstance(good, Piece)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field) == (2, "row")


def test_rows_without_the_field_are_bad_rows_that_say_what_there_is(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"content": "x", "n": 1}\n', encoding="utf-8")
    (row,) = pieces(tmp_path / "a.jsonl")
    assert isinstance(row, BadRow)
    assert row.reason == "no text here; it has content, n"
    assert documents(pieces(tmp_path / "a.jsonl", key="content")) == ["x"]
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="has no column 'text'"):
        pieces(tmp_path / "b.parquet")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes([7, 0, 9, 0]))
    with pytest.raises(SlmxError, match="is no text"):
        find_texts([tmp_path / "train.bin"])
    with pytest.raises(SlmxError, match="There is no file"):
        find_texts([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlmxError, match="holds no texts"):
        find_texts([tmp_path / "empty"])
    for on in ("x*", "["):
        with pytest.raises(UsageError, match="--split-on"):
            Splitting(on=on).pattern()
