"""Files and folders that are whole or absent: atomic writes, hashes, JSON and JSONL (gzip too), safe paths."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from slmx.errors import RefusedError, SlmxError

BLOCK = 1 << 20
MAX_ROW = 64 << 20  # a JSON value longer than this is taken for a broken file, so that memory stays bounded
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_umask_lock = threading.Lock()


def open_bytes(path: Path) -> BinaryIO:
    """Open for reading, through gzip where the content says so (its magic number, not the name)."""
    try:
        stream = cast(io.BufferedReader, path.open("rb", buffering=BLOCK))
    except FileNotFoundError:
        raise SlmxError(f"There is no file {path}.", hint="Check the path; relative paths start here.") from None
    except IsADirectoryError:
        raise SlmxError(f"{path} is a folder; a file is needed here.") from None
    except PermissionError:
        raise SlmxError(f"{path} may not be read (permission denied).") from None
    if stream.peek(2)[:2] == b"\x1f\x8b":
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=stream)), BLOCK))
    return stream


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True, buffer: int = BLOCK) -> Iterator[BinaryIO]:
    """Write to a temporary file beside `path`; flush, sync and rename it when the block ends without an error.

    Args:
        path: the final name.
        overwrite: replace what is there.
        buffer: bytes gathered before they are written; little (never 0: a raw write may be cut short) for large pieces.

    Raises:
        RefusedError: `path` exists and `overwrite` is false.
    """
    if not overwrite and path.exists():
        raise RefusedError(f"{path} exists.", hint="Give --overwrite to replace it, or another name.")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        handle = os.open(temporary, NEW, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, NEW, 0o666)
    try:
        # Opened by its name, so that out.name is one.
        with open(temporary, "wb", buffering=buffer, opener=lambda _path, _flags: handle) as out:
            yield out
            out.flush()
            os.fsync(handle)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_foreign(path: Path, marker: str) -> bool:
    """Does `path` hold what slmx did not put there: a file, or a folder with something in it but no file `marker`?"""
    if not path.is_dir():
        return path.exists()
    return not (path / marker).is_file() and any(path.iterdir())


def check_place(path: Path, *, marker: str, overwrite: bool) -> None:
    """May a folder that holds a file `marker` be put here?

    Raises:
        RefusedError: `path` exists and `overwrite` is false; or it holds something else, whatever `overwrite` says.
    """
    if is_foreign(path, marker):
        hint = "Give the name of a new folder, or remove this yourself."
        raise RefusedError(f"{path} exists and holds no {marker}: it is not replaced.", hint=hint)
    if path.exists() and not overwrite:
        raise RefusedError(f"{path} exists.", hint="Give --overwrite to replace it, or another name.")


@contextmanager
def whole_folder(path: Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; synced and renamed to it when the block ends without an error.

    Args:
        path: the folder to make. Where it is a link, the folder that it leads to is replaced.
        marker: a file that every folder of this kind holds; a folder without it is somebody else's.
        overwrite: replace a folder of this kind; the old one is gone only after the new one has its name.

    Raises:
        RefusedError: as `check_place`, before the block and, since that may take long, after it again.
    """
    check_place(path, marker=marker, overwrite=overwrite)
    place = path.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    try:
        yield made
        for file in made.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        made.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        check_place(path, marker=marker, overwrite=overwrite)
        _swap(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, place: Path) -> None:
    """Give a finished folder its name; a folder that had it comes back when that fails."""
    if not place.exists():
        made.rename(place)
        return
    old = made.with_suffix(".old")
    place.rename(old)
    try:
        made.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Write a small file atomically."""
    with atomic_write(path, overwrite=overwrite) as out:
        out.write(content)


def write_json(path: Path, value: Any, *, overwrite: bool = True) -> None:
    """Write a value as indented JSON, atomically; keys keep their order, so equal values give equal bytes."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", overwrite=overwrite)


def read_json(path: Path) -> Any:
    """Read one JSON file whole; SlmxError names the file when it is not JSON."""
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise SlmxError(f"{path} is not valid JSON: {error}.") from None


def write_jsonl(path: Path, rows: Iterable[Any], *, overwrite: bool = True) -> int:
    """Write rows as JSON lines, atomically, one at a time; returns how many."""
    encoder, count = msgspec.json.Encoder(), 0
    with atomic_write(path, overwrite=overwrite) as out:
        for row in rows:
            out.write(encoder.encode(row))
            out.write(b"\n")
            count += 1
    return count


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers (from 1), blank ones left out; a byte-order mark is dropped."""
    with open_bytes(path) as stream:
        try:
            for number, raw in enumerate(iter(lambda: stream.readline(MAX_ROW + 1), b""), 1):
                if len(raw) > MAX_ROW:
                    raise SlmxError(f"{path}, line {number} is longer than {MAX_ROW >> 20} MiB: is it JSON lines?")
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise SlmxError(f"{path} is damaged: {error}.", hint="Fetch or unpack it again.") from None


def hash_bytes(*parts: bytes | str) -> str:
    """SHA-256 over parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys: the key of everything that is cached by content."""
    return sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def safe_join(folder: Path, name: str) -> Path:
    """`folder / name`, refused when the result would lie outside the folder (`..`, absolute and drive paths)."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise RefusedError(f"The name {name!r} leads out of {folder}.")
    return folder.joinpath(*parts)


def slug(name: str) -> str:
    """A name as one path segment: letters, digits, `.`, `_` and `-`; never empty, never `.` or `..`."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    return kept or "unnamed"


def _umask() -> int:
    with _umask_lock:  # reading it means setting it: two threads at once would leave it at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask
