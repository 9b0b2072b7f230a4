"""The first kilobytes of an object as text that is safe to show: nothing in it can steer a terminal."""

from __future__ import annotations

import codecs
import csv
import io
import re
import zlib
from typing import Any

import msgspec

from slmx import console
from slmx.s3.problems import Target, told_apart

FIRST = 16 * 1024
CELL = 40  # characters of a CSV cell that are shown
# Characters that reorder or hide text: a file name or a line could pose as another one.
HIDDEN = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


def first_bytes(client: Any, bucket: str, key: str, size: int, limit: int = FIRST) -> bytes:
    """The first `limit` bytes of an object, by a range request; S3Error when it cannot be read."""
    if not size:
        return b""  # a range of nothing is an error to most servers
    with told_apart(Target(client.meta.endpoint_url, bucket, key)):
        answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{min(limit, size) - 1}")
        return bytes(answer["Body"].read(limit))  # a server that ignores the range does not get to fill the memory


def readable(key: str, content: bytes, size: int) -> str:
    """What a person sees of the first bytes: JSON indented, JSON lines and CSV by rows, other text as it is."""
    name, whole = key.lower(), len(content) >= size
    if not content:
        return "(empty)"
    if content[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(31)
        try:
            content = unpacker.decompress(content, 4 * FIRST)
        except zlib.error:
            return "(damaged gzip)"
        name, whole = name.removesuffix(".gz"), unpacker.eof
    if b"\x00" in content:
        return f"(binary, {size:,} bytes)"
    text = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(content)
    if text.count("\ufffd") > len(text) // 10:
        return f"(binary, {size:,} bytes)"
    if name.endswith((".jsonl", ".ndjson")):
        shown = _json_lines(text, whole)
    elif name.endswith(".json") and whole:
        shown = _json(text)
    elif name.endswith((".csv", ".tsv")):
        shown = _csv(text, "\t" if name.endswith(".tsv") else ",", whole)
    else:
        shown = text
    return harmless(shown) + ("" if whole else "\n…")


def harmless(text: str) -> str:
    """Control characters and those that reorder or hide text, written out; line ends and tabs stay."""
    return HIDDEN.sub(console.written_out, console.harmless(text))


def one_line(text: str) -> str:
    """The same for a name, which has one line."""
    return harmless(text).replace("\n", "\\x0a").replace("\t", "\\x09")


def _json(text: str) -> str:
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


def _json_lines(text: str, whole: bool) -> str:
    lines = text.removesuffix("\n").split("\n")
    shown = []
    for number, line in enumerate(lines):
        cut = number == len(lines) - 1 and not whole  # the last line may be cut in the middle
        shown.append(line if cut or not line.strip() else _json(line))
    return "\n".join(shown)


def _csv(text: str, delimiter: str, whole: bool) -> str:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:
        return text
    rows = rows if whole else rows[:-1] or rows
    cells = [[_short(cell) for cell in row] for row in rows]
    columns = max((len(row) for row in cells), default=0)
    widths = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(columns)]
    lines = ("  ".join(f"{cell:<{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in cells)
    return "\n".join(lines)


def _short(cell: str) -> str:
    cell = " ".join(cell.split())
    return cell if len(cell) <= CELL else cell[: CELL - 1] + "…"
