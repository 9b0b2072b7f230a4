"""What a run of transfers came to: the lines that a person reads, and the error that its failures make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmx.errors import PartlyDone, SlmxError
from slmx.s3.listing import human_size
from slmx.s3.preview import one_line
from slmx.s3.transfer import Moved

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 40


def render(rows: Sequence[Moved]) -> RenderableType:
    """A table of what was moved or failed (not of thousands of files), and a line that counts."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    told = [row for row in rows if row.action != "same"]
    told.sort(key=lambda row: (row.action != "failed", row.verified != "unverified"))
    cells = [[one_line(r.name), r.action, r.verified, one_line(r.error), human_size(r.size)] for r in told[:MOST_ROWS]]
    more = [Text(f"… and {len(told) - MOST_ROWS} more")] if len(told) > MOST_ROWS else []
    shown = [table("", ["file", "action", "verified by", "error", "size"], cells, left=4)] if cells else []
    return Group(*shown, *more, Text(count(rows)))


def count(rows: Sequence[Moved]) -> str:
    """ "3 new, 1 replaced, 20 same; 2 unverified; 12.0 MiB" """
    actions = Counter(row.action for row in rows)
    said = [", ".join(f"{number} {action}" for action, number in actions.items()) or "nothing to do"]
    if unverified := sum(row.verified == "unverified" for row in rows):
        said.append(f"{unverified} unverified (the store keeps no hash of them)")
    moved = sum(row.size for row in rows if row.action in ("new", "replaced"))
    return "; ".join([*said, *([human_size(moved)] if moved else [])])


def problem(rows: Sequence[Moved]) -> SlmxError | None:
    """The error for files that failed: exit code 1 when all did, 3 when some did."""
    failed = [row for row in rows if row.action == "failed"]
    if not failed:
        return None
    if len(rows) == 1:
        return SlmxError(failed[0].error)
    named = "; ".join(f"{row.name}: {row.error}" for row in failed[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    what = f"{len(failed)} of {len(rows)} files failed: {named}{more}"
    kind = SlmxError if len(failed) == len(rows) else PartlyDone
    return kind(what, hint="The same command tries them again; what is there already is skipped.")
