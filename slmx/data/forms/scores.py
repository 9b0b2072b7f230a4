"""A teacher's scores out of a pickle, {query: {passage: score}}, without running any of it.

Unpickling a foreign file with the standard library can run what its author put there, and would hold all of MS MARCO's
scores (some 160 million) as objects in memory. This reader knows the few instructions that write dicts, whole numbers,
floats and numpy's scalars, does nothing else, refuses every other one by name, and hands on each query as soon as it is
read. What it reads goes into arrays in the cache, memory-mapped: 12 bytes a score.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from slmx.errors import RefusedError, SlmxError
from slmx.files import BLOCK, hash_file, hash_value, open_bytes, whole_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
LAST = "queries.npy"  # written last: a folder that has it is whole
_RUN = re.compile(rb"(?:J.{4}G.{8}){2,}+", re.DOTALL)
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_SIZES = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u4": "I", "u8": "Q", "i2": "h", "u2": "H"}


class Scores:
    """Scores by query and passage, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self._passages: NDArray[np.int64] = np.load(folder / "passages.npy", mmap_mode="r", allow_pickle=False)
        self._scores: NDArray[np.float32] = np.load(folder / "scores.npy", mmap_mode="r", allow_pickle=False)
        rows = np.load(folder / LAST, allow_pickle=False)
        self._places = {query: (start, end) for query, start, end in rows.tolist()}

    def of(self, query: int) -> dict[int, float]:
        """The scores of a query's passages; none where it has none."""
        start, end = self._places.get(query, (0, 0))
        return dict(zip(self._passages[start:end].tolist(), self._scores[start:end].tolist(), strict=True))


def open_scores(path: Path, cache_dir: Path) -> Scores:
    """The scores of a file (gzip too), from the cache or written there now.

    Raises:
        RefusedError: the pickle holds more than dicts and numbers.
        SlmxError: it is cut off or damaged.
    """
    place = cache_dir / "scores" / hash_value([VERSION, hash_file(path)])
    if not (place / LAST).is_file():
        try:
            with whole_folder(place, marker=LAST) as made:
                _write(made, path)
        except (RefusedError, OSError):  # another process was faster, and its folder has the same content
            if not (place / LAST).is_file():
                raise
    return Scores(place)


def _write(folder: Path, path: Path) -> None:
    import numpy as np

    passages, scores, rows = array("q"), array("f"), array("q")
    for query, found in read_scores(path):
        start = len(passages)
        passages.extend(found)
        scores.extend(found.values())
        rows.extend((query, start, len(passages)))
    np.save(folder / "passages.npy", np.array(passages, np.int64), allow_pickle=False)
    np.save(folder / "scores.npy", np.array(scores, np.float32), allow_pickle=False)
    np.save(folder / LAST, np.array(rows, np.int64).reshape(-1, 3), allow_pickle=False)


def read_scores(path: Path) -> Iterator[tuple[int, dict[int, float]]]:
    """Each query with the scores of its passages, one at a time."""
    with open_bytes(path) as stream:
        try:
            for query, found in _Reader(path, stream).items():
                if not isinstance(found, dict):
                    raise _refused(path, f"{query!r} has no dict of scores")
                yield _whole(path, query), {_whole(path, own): float(score) for own, score in found.items()}
        except (EOFError, OSError, IndexError, struct.error) as error:
            raise SlmxError(f"{path} is damaged: {error}.", hint="Fetch it again.") from None
        except (TypeError, ValueError) as error:
            raise _refused(path, f"a score is no number ({error})") from None


def _whole(path: Path, value: Any) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >> 63:
        raise _refused(path, f"the id {str(value)[:40]!r} is no whole number")
    return value


def _refused(path: Path, what: str) -> RefusedError:
    hint = "Scores are a pickled dict {query id: {passage id: number}}; nothing else of a pickle is read or run."
    return RefusedError(f"{path} is not read: {what}.", hint=hint)


class _Mark:
    """Where the items of a dict or tuple begin on the stack."""


class _Name:
    """A name that the pickle asks for; it is compared, never imported."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Kind:
    """numpy's dtype as far as scalars need it: a format of `struct`."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def value(self, raw: bytes) -> float | int:
        """The number that the bytes hold."""
        found: float | int = struct.unpack(self.order + self.code, raw)[0]
        return found


_MARK, _SEEN = _Mark(), object()


class _Reader:
    """A stack machine for the instructions of pickle (protocols 2 to 5) that dicts of numbers need.

    The outermost dict is never filled: its items are handed on. Containers are not remembered for later use in the
    stream, so that they can be freed.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._block, self._at = b"", 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def _read(self, size: int) -> bytes:
        if size > BLOCK:
            raise _refused(self._path, f"it holds a text of {size} bytes")
        while len(self._block) - self._at < size:
            more = self._stream.read(BLOCK)
            if not more:
                raise EOFError("the file ends in the middle")
            self._block, self._at = self._block[self._at :] + more, 0
        raw = self._block[self._at : self._at + size]
        self._at += size
        return raw

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _line(self) -> str:
        found = bytearray()
        while (byte := self._read(1)) != b"\n":
            found += byte
        return found.decode()

    def items(self) -> Iterator[tuple[Any, Any]]:
        """The items of the outermost dict."""
        stack, read, pushes = self._stack, self._read, self._pushes()
        while (code := read(1)) != b".":
            if code == b"J" and self._run():
                continue
            push = pushes.get(code)
            if push is not None:
                stack.append(push())
            elif code in b"su":
                yield from self._set(code)
            else:
                self._other(code)
        if len(stack) != 1 or not isinstance(stack[0], dict):
            raise _refused(self._path, "it holds no dict")

    def _run(self) -> bool:
        """Push as many pairs of a four-byte id and a float as stand here side by side; most of a file is that."""
        import numpy as np

        found = _RUN.match(self._block, self._at - 1)
        if found is None:
            return False
        kinds = [("J", "S1"), ("id", "<i4"), ("G", "S1"), ("score", ">f8")]
        pairs = np.frombuffer(found[0], dtype=kinds)
        self._stack += chain.from_iterable(zip(pairs["id"].tolist(), pairs["score"].tolist(), strict=True))
        self._at = found.end()
        return True

    def _pushes(self) -> dict[bytes, Callable[[], Any]]:
        """The instructions that put one value on the stack, the frequent ones first."""
        number = self._number

        def text(size: int) -> str:
            return self._read(size).decode("utf-8", "surrogatepass")

        return {
            b"J": lambda: number("<i"),
            b"G": lambda: number(">d"),
            b"K": lambda: self._read(1)[0],
            b"M": lambda: number("<H"),
            b"\x8a": lambda: int.from_bytes(self._read(self._read(1)[0]), "little", signed=True),
            b"}": dict,
            b"(": lambda: _MARK,
            b"h": lambda: self._recall(self._read(1)[0]),
            b"j": lambda: self._recall(number("<I")),
            b"\x8c": lambda: text(self._read(1)[0]),
            b"X": lambda: text(number("<I")),
            b"C": lambda: self._read(self._read(1)[0]),
            b"B": lambda: self._read(number("<I")),
            b"c": lambda: _Name(self._line(), self._line()),
            b"\x88": lambda: True,
            b"\x89": lambda: False,
            b"N": lambda: None,
            b")": tuple,
        }

    def _recall(self, place: int) -> Any:
        found = self._memo.get(place, _SEEN)
        if found is _SEEN:
            raise _refused(self._path, "it uses one dict in two places")
        return found

    def _set(self, code: bytes) -> Iterator[tuple[Any, Any]]:
        """One item (s), or all down to the mark (u), go into the dict below them."""
        stack = self._stack
        start = len(stack) - 2 if code == b"s" else self._mark() + 1
        items = stack[start:]
        del stack[start - (code == b"u") :]
        if not isinstance(stack[-1], dict):
            raise _refused(self._path, "it fills something that is no dict")
        pairs = zip(items[::2], items[1::2], strict=True)
        if len(stack) == 1:
            yield from pairs
        else:
            stack[-1].update(pairs)

    def _mark(self) -> int:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                return place
        raise IndexError("a mark is missing")

    def _other(self, code: bytes) -> None:
        """The instructions that name, remember, bundle or call."""
        stack = self._stack
        if code == b"\x80":
            self._read(1)
        elif code == b"\x95":
            self._read(8)
        elif code in b"\x94qr":
            place = len(self._memo) if code == b"\x94" else self._read(1)[0] if code == b"q" else self._number("<I")
            self._memo[place] = _SEEN if isinstance(stack[-1], dict) else stack[-1]
        elif code in b"\x85\x86\x87":
            size = code[0] - 0x84
            stack[-size:] = [tuple(stack[-size:])]
        elif code == b"t":
            start = self._mark()
            stack[start:] = [tuple(stack[start + 1 :])]
        elif code == b"\x93":
            module, name = stack[-2:]
            stack[-2:] = [_Name(str(module), str(name))]
        elif code == b"R":
            arguments, called = stack.pop(), stack.pop()
            stack.append(self._call(called, arguments))
        elif code == b"b":
            state, built = stack.pop(), stack[-1]
            if not isinstance(built, _Kind):
                raise _refused(self._path, "it builds an object")
            built.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"
        else:
            import pickletools

            known = {one.code: one.name for one in pickletools.opcodes}
            name = known.get(code.decode("latin-1"), code.hex())
            raise _refused(self._path, f"it holds more than dicts and numbers ({name})")

    def _call(self, called: Any, arguments: Any) -> Any:
        """numpy's dtype and scalar, in our own words; no other name is called."""
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise _refused(self._path, "it calls something that is no name")
        if (called.module, called.name) == ("numpy", "dtype") and arguments and arguments[0] in _SIZES:
            return _Kind(_SIZES[arguments[0]])
        if called.module in _NUMPY and called.name == "scalar" and len(arguments) == 2:
            kind, raw = arguments
            if isinstance(kind, _Kind) and isinstance(raw, bytes):
                return kind.value(raw)
        if (called.module, called.name) == ("_codecs", "encode") and len(arguments) == 2:
            text, encoding = arguments  # how protocol 2 writes bytes
            if isinstance(text, str) and encoding == "latin1":
                return text.encode("latin-1")
        raise _refused(self._path, f"it calls {called.module}.{called.name}")
