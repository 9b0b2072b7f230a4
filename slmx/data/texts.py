"""Texts to train on: plain files, JSON rows and parquet, compressed or not, as documents in pieces of bounded size.

    >>> found, others = find_texts([Path("corpus")])
    >>> for piece in read_texts(found[0], Splitting()):
    ...     piece.text, piece.first, piece.last     # a document of less than 1 MiB is one piece, first and last

A plain file is split at a literal `<|endoftext|>`, or by line, at blank lines, at a pattern; where that does not
occur, the file is one document. White space around a document is dropped, blank documents are left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from slmx import files
from slmx.data.encode import last_cut
from slmx.data.sources import BadRow
from slmx.data.stream import head, rows
from slmx.errors import SlmxError, UsageError

Kind = Literal["text", "json", "parquet"]
ENDINGS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst", ".zstd")
END_MARK = "<|endoftext|>"
LONGEST = 1 << 20  # characters of a piece; a longer document is cut before a space
_SEPARATOR = 1 << 12  # characters that a separator may have
_BLOCK = 1 << 20
_NAMED = {"end-of-text": re.escape(END_MARK), "line": r"\n+", "blank": r"\n\s*\n"}


class Piece(NamedTuple):
    """A document or, of one that is long, a part. Its parts follow each other; `first` and `last` mark its ends."""

    text: str
    first: bool
    last: bool


@dataclass(frozen=True)
class TextFile:
    """A file of texts and how it is read."""

    path: Path
    kind: Kind


@dataclass(frozen=True)
class Splitting:
    """How texts are cut out of files.

    Attributes:
        on: "end-of-text", "line", "blank" or a regular expression: what separates documents in plain files.
        encoding: of plain files and JSON rows; "auto" takes UTF-8 where a file is, else what it looks like.
        key: the field of JSON rows or the column of parquet that holds the text.
    """

    on: str = "end-of-text"
    encoding: str = "utf-8"
    key: str = "text"

    def pattern(self) -> re.Pattern[str]:
        """The separator; UsageError when it is no regular expression, or matches everywhere."""
        try:
            made = re.compile(_NAMED.get(self.on, self.on), re.MULTILINE)
        except re.error as error:
            raise UsageError(f"--split-on {self.on!r} is no regular expression: {error}.") from None
        if made.search(""):
            raise UsageError(f"--split-on {self.on!r} matches everywhere.", hint="Try line, blank or '\\n={5,}\\n'.")
        return made


def find_texts(paths: Iterable[Path]) -> tuple[list[TextFile], list[str]]:
    """The text files among paths and in folders, sorted by name within each, and the names of other files in folders.

    Raises:
        SlmxError: a path does not exist, is empty as a folder, or is no text.
    """
    found: list[TextFile] = []
    others: list[str] = []
    for path in paths:
        if not path.is_dir():
            found.append(TextFile(path, _kind(path) or _kind_by_content(path)))
            continue
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
        kinds = [(p, _kind(p)) for p in inside]
        if not any(kind for _, kind in kinds):
            raise SlmxError(f"{path} holds no texts.", hint=f"Known endings: {' '.join(ENDINGS)}, .gz and .zst too.")
        found += [TextFile(p, kind) for p, kind in kinds if kind]
        others += [p.relative_to(path).as_posix() for p, kind in kinds if not kind]
    return found, others


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path) -> Kind | None:
    name = Path(path.stem) if path.suffix in PACKED else path
    return ENDINGS.get(name.suffix.lower())


def _kind_by_content(path: Path) -> Kind:
    with files.open_bytes(path) as stream:
        try:
            start = stream.read(4096)
        except (EOFError, OSError) as error:
            raise _damaged(path, error) from None
    if start.startswith(b"PAR1"):
        return "parquet"
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
        hint = "Texts are plain files, JSON rows or parquet. A file of token ids is trained on as it is."
        raise SlmxError(f"{path} is no text: it holds zero bytes.", hint=hint)
    return "json" if head(path).layout in ("lines", "array", "sections") else "text"


def read_texts(file: TextFile, how: Splitting) -> Iterator[Piece | BadRow]:
    """The documents of a file in order; a row of JSON or parquet that holds no text comes as a BadRow.

    Raises:
        SlmxError: the file is absent, damaged, cut or in another encoding; the message names it.
    """
    if file.kind == "text":
        yield from split(_blocks(file.path, how.encoding), how.pattern())
        return
    for found in _json_texts(file.path, how) if file.kind == "json" else _parquet_texts(file.path, how.key):
        if isinstance(found, BadRow):
            yield found
        else:
            yield from _pieces(found, first=True)


def split(blocks: Iterable[str], separator: re.Pattern[str]) -> Iterator[Piece]:
    """Cut a stream of text into documents at the separators, which are dropped."""
    buffer, first = "", True
    for block in _and_end(blocks):
        buffer += block or ""
        at, hold = 0, len(buffer)
        for match in separator.finditer(buffer):
            if block is not None and match.end() > len(buffer) - _SEPARATOR:
                hold = match.start()  # it may go on in the next block
                break
            yield from _pieces(buffer[at : match.start()], first=first)
            at, first = match.end(), True
        buffer, hold = buffer[at:], hold - at
        while block is not None and len(buffer) > LONGEST + _SEPARATOR and hold > LONGEST:
            cut = last_cut(buffer[:LONGEST]) or LONGEST
            part = buffer[:cut].lstrip() if first else buffer[:cut]
            if part:
                yield Piece(part, first, False)
                first = False
            buffer, hold = buffer[cut:], hold - cut
    yield from _pieces(buffer, first=first)


def _and_end(blocks: Iterable[str]) -> Iterator[str | None]:
    yield from blocks
    yield None


def _pieces(text: str, *, first: bool) -> Iterator[Piece]:
    """The rest of a document, in pieces; nothing for a blank one."""
    text = text.strip() if first else text.rstrip()
    if first and not text:
        return
    while len(text) > LONGEST:
        cut = last_cut(text[:LONGEST]) or LONGEST
        yield Piece(text[:cut], first, False)
        text, first = text[cut:], False
    yield Piece(text, first, True)


# ----------------------------------------------------------------------------------------------------------- encodings


def _blocks(path: Path, encoding: str) -> Iterator[str]:
    """The decoded text of a file, block by block, line ends as \\n."""
    lines, taken = 1, encoding
    with files.open_bytes(path) as stream:
        try:
            taken = _taken_encoding(path, stream, encoding)
            text = io.TextIOWrapper(stream, encoding=taken)
            while block := text.read(_BLOCK):
                lines += block.count("\n")
                yield block
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, taken, lines, error) from None
        except (EOFError, OSError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> SlmxError:
    return SlmxError(f"{path} is damaged: {error}.", hint="Fetch or unpack it again.")


def _taken_encoding(path: Path, stream: Any, encoding: str) -> str:
    start = stream.peek(4)[:4]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if encoding == "auto":
        return guess_encoding(path)
    try:
        "".encode(encoding)
    except LookupError:
        raise UsageError(f"There is no encoding {encoding}.", hint="Such as utf-8, cp1251, latin-1, auto.") from None
    return "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding


def guess_encoding(path: Path) -> str:
    """UTF-8 where the whole file is; else cp1251 or koi8-r for words of high bytes, cp1252 for single ones."""
    sample = b""
    with files.open_bytes(path) as stream:
        decoder = io.IncrementalNewlineDecoder(_utf8_decoder(), translate=False)
        try:
            while block := stream.read(_BLOCK):
                high = bytes(b if b > 127 else 32 for b in block[: 1 << 16]) if len(sample) < 1 << 20 else b""
                sample += high
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return "utf-8-sig"
        except UnicodeDecodeError:
            pass
        except (EOFError, OSError) as error:
            raise _damaged(path, error) from None
    words = sample.split()
    if not words or sum(len(word) > 2 for word in words) < len(words) / 3:
        return "cp1252" if not any(b in sample for b in b"\x81\x8d\x8f\x90\x9d") else "latin-1"
    text = b" ".join(words)
    small = {name: sum(c.islower() for c in text.decode(name, "replace")) for name in ("cp1251", "koi8-r")}
    return max(small, key=lambda name: small[name])


def _utf8_decoder() -> Any:
    import codecs

    return codecs.getincrementaldecoder("utf-8")()


def _wrong_encoding(path: Path, encoding: str, line: int, error: UnicodeDecodeError) -> SlmxError:
    named = encoding.removesuffix("-sig")
    if error.reason == "unexpected end of data":
        return SlmxError(
            f"{path} ends inside a character ({named}): it was cut in the middle, or has another encoding.",
            hint="Copy it again, or name its --encoding.",
        )
    line += error.object[: error.start].count(b"\n")
    seen = guess_encoding(path) if named == "utf-8" else ""
    looks = f"It looks like {seen} (--encoding {seen}). " if seen and seen != "utf-8-sig" else ""
    return SlmxError(
        f"{path} is not {named}: byte 0x{error.object[error.start]:02x} at line {line} or later.",
        hint=f"{looks}--encoding auto takes each file for what it looks like.",
    )


# ---------------------------------------------------------------------------------------------------------------- rows


def _json_texts(path: Path, how: Splitting) -> Iterator[str | BadRow]:
    decoder, key, other = msgspec.json.Decoder(), how.key, _other_encoding(path, how.encoding)
    for line, raw, _ in rows(path):
        if not raw:
            yield BadRow(line=line, field="row", reason="the file ends inside this row or before its array is closed")
            continue
        try:
            row = decoder.decode(raw.decode(other) if other else raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield BadRow(line=line, field="row", reason=f"not valid JSON: {error}")
            continue
        text = row.get(key) if isinstance(row, dict) else row
        if isinstance(text, str):
            yield text
        else:
            has = f"it has {', '.join(list(row)[:8])}" if isinstance(row, dict) else "it is no object"
            yield BadRow(line=line, field=key, reason=f"no text here; {has}")


def _other_encoding(path: Path, encoding: str) -> str:
    """The encoding of JSON rows that are not UTF-8; "" for those that are."""
    with files.open_bytes(path) as stream:
        try:
            taken = _taken_encoding(path, stream, encoding)
        except (EOFError, OSError) as error:
            raise _damaged(path, error) from None
    if taken == "utf-8-sig":
        return ""
    if '{"'.encode(taken) != b'{"':  # rows are found by the bytes of ASCII
        raise SlmxError(f"{path} holds JSON rows in {taken}.", hint=f"Make it UTF-8: iconv -f {taken} -t utf-8 FILE")
    return taken


def _parquet_texts(path: Path, key: str) -> Iterator[str | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise SlmxError(f"There is no file {path}.", hint="Check the path; relative paths start here.")
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            if key not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names[:12])
                raise UsageError(f"{path} has no column {key!r}.", hint=f"Name one with --text-key: {columns}.")
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[key], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    text = value.as_py()
                    yield text if isinstance(text, str) else BadRow(line=number, field=key, reason="no text here")
    except (pa.ArrowException, OSError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SlmxError(f"{path} is damaged: {said}", hint="Was it cut? Fetch it again.") from None
