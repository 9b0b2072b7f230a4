"""A folder of pairs that a long command makes: it grows batch by batch, and a killed command goes on where it stopped.

Until the pairs are finished the folder holds a journal and `about.json`; then `about.json` and the file of pairs. The
same command again goes on, or finds it finished; another command's folder is not touched without being told.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.forms.example import ABOUT
from slmx.errors import RefusedError, SlmxError
from slmx.files import atomic_write, check_place, read_json, write_json
from slmx.journal import Rows, open_rows
from slmx.records import Record

JOURNAL = ".rows.part"


class About(Record, frozen=True, omit_defaults=False):
    """`about.json`: which command made the pairs, from what (by content), and, when it is finished, what came out."""

    made_by: str
    identity: dict[str, Any]
    result: dict[str, Any] | None = None


class Making:
    """A folder in the making. Use `making`."""

    def __init__(self, folder: Path, about: About, rows: Rows) -> None:
        self.folder, self.about, self.rows = folder, about, rows

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Write the journal's rows as the file `name`, then what came out; the journal goes."""
        with atomic_write(self.folder / name) as out:
            for line in self.rows.lines():
                out.write(line + b"\n")
        write_json(self.folder / ABOUT, msgspec.structs.replace(self.about, result=dict(result)))
        self.rows.path.unlink()


def finished(folder: Path, made_by: str, identity: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """What the same command, from the same content, left here when it ended; None: there is something to do.

    A folder of another command, or of the same one with other settings, is passed when `overwrite` says so; it stays as
    it is until `making` begins, or another is put in its place.

    Raises:
        RefusedError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    check_place(folder, marker=ABOUT, overwrite=True)
    about = _read(folder)
    differing = _differing(about, About(made_by=made_by, identity=dict(identity)))
    if differing and overwrite:
        return None
    if differing:
        raise RefusedError(
            f"{folder} holds other pairs: {', '.join(differing)} differ.",
            hint="Give --overwrite to replace them, or another --to.",
        )
    return about.result


@contextmanager
def making(folder: Path, made_by: str, identity: Mapping[str, Any]) -> Iterator[Making]:
    """Begin, or go on with, a folder that `finished` let pass; what another command left there is removed now.

    Raises:
        RefusedError: another process is at it.
    """
    about = About(made_by=made_by, identity=dict(identity))
    if (folder / ABOUT).is_file() and _differing(_read(folder), about):
        with open_rows(folder / JOURNAL):
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).is_file():
        write_json(folder / ABOUT, about)
    with open_rows(folder / JOURNAL) as rows:
        yield Making(folder, about, rows)


def _differing(one: About, other: About) -> list[str]:
    """In what two folders of pairs differ, by name."""
    known, wanted = ({**about.identity, "command": about.made_by} for about in (one, other))
    return [name for name in dict.fromkeys([*known, *wanted]) if known.get(name) != wanted.get(name)]


def _read(folder: Path) -> About:
    try:
        return msgspec.convert(read_json(folder / ABOUT), About)
    except msgspec.ValidationError as error:
        raise SlmxError(
            f"{folder / ABOUT} cannot be read: {error}.", hint="Give --overwrite, or another --to."
        ) from None
