"""Index folders that are whole or absent: built beside their place and renamed, opened memory-mapped, never unpickled.

A folder holds `index.json` (fingerprint, counts, the size of every file), arrays as .npy and lists as .json. It is
found by the hash of its fingerprint, so an index of other content is never taken for this one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.errors import RefusedError, SlmxError
from slmx.events import Notice
from slmx.files import hash_value, read_json, slug, whole_folder, write_json
from slmx.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmx.retrieve.retrievers import Opening

FORMAT = 1
HEAD = "index.json"
PARTS = "parts"  # inside an index that a user owns: an index folder for every retriever it was built with


class Head(Record, frozen=True):
    """`index.json`: what an index was made from, and which files belong to it."""

    kind: str
    fingerprint: dict[str, Any]
    passages: int
    files: dict[str, int]
    format: int = FORMAT
    dimension: int = 0
    name: str = ""
    settings: dict[str, Any] = {}


class IndexFolder:
    """An index folder that was opened: every file of it is there with its full size."""

    def __init__(self, path: Path, head: Head) -> None:
        self.path = path
        self.head = head

    def array(self, name: str) -> NDArray[Any]:
        """The array of a file, memory-mapped."""
        import numpy as np

        try:
            found: NDArray[Any] = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise damaged(self.path, f"{name}: {error}") from None
        return found

    def json(self, name: str) -> Any:
        """The value of a JSON file."""
        return read_json(self.path / name)

    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.head.files.values())


def damaged(path: Path, what: str) -> SlmxError:
    """The one error for an index that cannot be read."""
    return SlmxError(f"The index {path} is damaged ({what}).", hint="Build it again: slmx retrieve index … --overwrite")


def read_folder(path: Path) -> IndexFolder:
    """Open an index folder.

    Raises:
        SlmxError: it is no index, of a newer format, or a file is missing or has another size than when it was written.
    """
    import msgspec

    if not (path / HEAD).is_file():
        raise SlmxError(
            f"{path} is no index folder.", hint=f"Build one: slmx retrieve index CORPUS --retriever bm25 --to {path}"
        )
    try:
        head = msgspec.convert(read_json(path / HEAD), Head)
    except (msgspec.ValidationError, SlmxError) as error:
        raise damaged(path, f"{HEAD}: {error}") from None
    if head.format != FORMAT:
        raise SlmxError(
            f"The index {path} has format {head.format}; this version reads {FORMAT}.",
            hint="Build it again: slmx retrieve index … --overwrite",
        )
    for name, size in head.files.items():
        file = path / name
        if not file.is_file():
            raise damaged(path, f"{name} is missing")
        if file.stat().st_size != size:
            raise damaged(path, f"{name} has {file.stat().st_size} bytes of {size}")
    return IndexFolder(path, head)


def write_head(path: Path, kind: str, fingerprint: Mapping[str, Any], *, passages: int, **more: Any) -> None:
    """Write `index.json` last, with the sizes of all files that are there."""
    sizes = {f.relative_to(path).as_posix(): f.stat().st_size for f in sorted(path.rglob("*")) if f.is_file()}
    sizes.pop(HEAD, None)
    write_json(path / HEAD, Head(kind=kind, fingerprint=dict(fingerprint), passages=passages, files=sizes, **more))


def find_or_build(
    opening: Opening, kind: str, fingerprint: Mapping[str, Any], fill: Callable[[Path], dict[str, Any]]
) -> IndexFolder:
    """The index of a fingerprint: in the folder that the user names, in one that the corpus brings along, or cached.

    Args:
        opening: says where to look, and whether a missing one may be built.
        kind: "bm25" or "dense".
        fingerprint: what the index must have been made from.
        fill: writes the index's files into a folder and returns `passages` and other fields of its head.
    """
    if opening.parts is not None:
        path = opening.parts / slug(opening.name)
        if not opening.build:
            folder = read_folder(path)
            check_fits(opening.parts.parent, folder.head.fingerprint, fingerprint)
            return folder
    else:
        brought = _brought_along(opening, fingerprint)
        if brought is not None:
            return brought
        path = opening.cache_dir / "indexes" / hash_value([FORMAT, fingerprint])
    if path.exists():
        try:
            return read_folder(path)
        except SlmxError as error:  # a cache: what is broken is made anew
            opening.listen(Notice(f"{error.what} It is built again.", "warning"))
            shutil.rmtree(path)
    try:
        with whole_folder(path, marker=HEAD) as made:
            write_head(made, kind, fingerprint, **fill(made))
    except (RefusedError, OSError):  # another process was faster, and its index has the same content
        if not (path / HEAD).is_file():
            raise
    return read_folder(path)


def _brought_along(opening: Opening, fingerprint: Mapping[str, Any]) -> IndexFolder | None:
    """An index inside the corpus's own folder, where that is an index folder and one of its parts fits exactly."""
    folder = getattr(opening.corpus, "folder", None)
    if not isinstance(folder, Path) or not (folder / HEAD).is_file():
        return None
    parts = (read_folder(head.parent) for head in sorted((folder / PARTS).glob(f"*/{HEAD}")))
    return next((part for part in parts if part.head.fingerprint == fingerprint), None)


def check_fits(index: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """One line that says in what an index differs from what would search it; the number type may differ.

    Raises:
        SlmxError: it does differ.
    """
    differing = [
        f"{key} ({_short(recorded.get(key))} in the index, {_short(wanted.get(key))} here)"
        for key in dict.fromkeys([*recorded, *wanted])
        if key != "dtype" and recorded.get(key) != wanted.get(key)
    ]
    if differing:
        raise SlmxError(
            f"The index {index} does not fit: {'; '.join(differing)} differ.",
            hint=f"Build it again: slmx retrieve index CORPUS --retriever … --to {index} --overwrite",
        )


def _short(value: Any) -> str:
    text = value[:8] + "…" if isinstance(value, str) and len(value) == 64 else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write one .npy file without pickle."""
    import numpy as np

    np.save(path, array, allow_pickle=False)
