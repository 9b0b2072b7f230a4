"""`slmx s3 check SRC DST`: two sides compared by content, a symbol a file as in rclone's combined report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slmx.errors import SlmxError
from slmx.events import Listener, Progress
from slmx.files import hash_file
from slmx.pool import Pool, Stopped, outcomes
from slmx.records import Record
from slmx.s3.objects import Remote
from slmx.s3.plan import Filter, Side, local_files, remote_files
from slmx.s3.preview import one_line
from slmx.s3.store import Store
from slmx.s3.verify import remote_sha256, same_content
from slmx.signals import Stop

if TYPE_CHECKING:
    from rich.console import RenderableType

Symbol = Literal["=", "-", "+", "*", "!"]
MEANING: Mapping[Symbol, str] = {
    "=": "the same",
    "-": "missing in the source",
    "+": "missing in the target",
    "*": "different",
    "!": "could not be compared",
}


class Compared(Record, frozen=True):
    """One name: `=` the same, `-` only in the target, `+` only in the source, `*` different, `!` not readable."""

    symbol: Symbol
    name: str
    error: str = ""


def check(
    store: Store, source: Side, target: Side, wanted: Filter, *, read: bool, stop: Stop, listen: Listener
) -> Iterator[Compared]:
    """Compare two sides, each a folder or a prefix in a bucket; yields every name once.

    Args:
        read: read every object to its end, instead of trusting the SHA-256 or the MD5 that the store has of it.

    Raises:
        SlmxError: a side is absent, or somebody asked to stop.
    """
    ours, theirs = _names(store, source, wanted), _names(store, target, wanted)
    for name in sorted(ours.keys() - theirs.keys()):
        yield Compared(symbol="+", name=name)
    for name in sorted(theirs.keys() - ours.keys()):
        yield Compared(symbol="-", name=name)
    both = sorted(ours.keys() & theirs.keys())
    pool = Pool(store.s3.concurrency)

    def same(name: str) -> bool:
        return _same(store, ours[name], theirs[name], stop, read)

    try:
        with closing(outcomes(pool, both, same, stop=stop)) as compared:
            for number, (name, future) in enumerate(compared, 1):
                listen(Progress("check", number, len(both), "files"))
                yield _compared(name, future.result)
    except Stopped:
        raise stop.error("Stopped; not all files were compared.", hint="The same command starts anew.") from None
    finally:
        pool.close()


def render(rows: Sequence[Compared]) -> RenderableType:
    """One line a name that is not the same, and a line that counts."""
    from rich.text import Text

    told = (row for row in rows if row.symbol != "=")
    lines = [one_line(f"{row.symbol} {row.name}" + (f"  ({row.error})" if row.error else "")) for row in told]
    return Text("\n".join([*lines, count(rows)]))


def count(rows: Sequence[Compared]) -> str:
    """ "12 the same, 1 different" """
    found = Counter(row.symbol for row in rows)
    return ", ".join(f"{found[s]} {said}" for s, said in MEANING.items() if found[s]) or "nothing to compare"


def _names(store: Store, where: Side, wanted: Filter) -> dict[str, Path | Remote]:
    if where.path is not None:
        return dict(local_files(where.path, wanted))
    return dict(remote_files(store, where.bucket, where.prefix, wanted))


def _compared(name: str, outcome: Callable[[], bool]) -> Compared:
    try:
        return Compared(symbol="=" if outcome() else "*", name=name)
    except SlmxError as problem:
        return Compared(symbol="!", name=name, error=problem.what)
    except OSError as error:
        return Compared(symbol="!", name=name, error=error.strerror or type(error).__name__)


def _same(store: Store, one: Path | Remote, other: Path | Remote, stop: Stop, read: bool) -> bool:
    if isinstance(one, Path) and isinstance(other, Remote):
        return same_content(one, store, other, stop, read=read)
    if isinstance(one, Remote) and isinstance(other, Path):
        return same_content(other, store, one, stop, read=read)
    sizes = [side.stat().st_size if isinstance(side, Path) else side.size for side in (one, other)]
    return sizes[0] == sizes[1] and _hash(store, one, stop, read) == _hash(store, other, stop, read)


def _hash(store: Store, side: Path | Remote, stop: Stop, read: bool) -> str:
    if isinstance(side, Path):
        return hash_file(side)
    seen = None if read else store.look(side.bucket, side.key)
    return seen.sha256 if seen is not None and seen.sha256 else remote_sha256(store, side, stop)
