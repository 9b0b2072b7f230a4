"""The forms of training folders, told apart by their files; each streams into Examples.

A folder holds one dataset. A reader takes the folder and yields Examples one at a time; a row without a query or a
positive comes as it is, and who trains on it counts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slmx.data.forms.corpora import AUTORAG, BEIR, CROPS, GOLD
from slmx.data.forms.example import ABOUT, Form, Reading
from slmx.data.forms.msmarco import MSMARCO
from slmx.data.forms.tables import PAIRS, SYNTHETIC
from slmx.data.forms.unarxive import DOC_DOC, QUERY_DOC
from slmx.errors import UsageError
from slmx.files import hash_file, hash_value, key_of
from slmx.records import Passage
from slmx.registry import unknown_name

FORMS: dict[str, Form] = {  # the first that fits
    "ms-marco": MSMARCO,
    "unarxive-query-doc": QUERY_DOC,
    "unarxive-doc-doc": DOC_DOC,
    "autorag": AUTORAG,
    "beir": BEIR,
    "gold": GOLD,
    "crops": CROPS,
    "synthetic": SYNTHETIC,
    "pairs": PAIRS,
}

PARTS = ("queries", "qrels")  # folders within a training folder
SUFFIXES = frozenset({".jsonl", ".json", ".parquet", ".tsv", ".pkl", ".pickle"})


def detect(folder: Path) -> str:
    """The name of a folder's form.

    Raises:
        UsageError: no such folder, an empty one, or one of no known form; the known ones are named.
    """
    if not folder.exists():
        raise UsageError(f"There is no folder {folder}.", hint="Check the path; relative paths start here.")
    if folder.is_dir() and not any(folder.iterdir()):
        raise UsageError(f"The folder {folder} is empty.", hint="Put a dataset there, or leave it out.")
    for name, form in FORMS.items():
        if form.fits(folder):
            return name
    known = "; ".join(f"{name} ({form.about})" for name, form in FORMS.items())
    raise UsageError(f"{folder} has none of the known forms of training data.", hint=f"Known: {known}.")


def get(name: str) -> Form:
    """A form by its name; UsageError with the nearest name if unknown."""
    if name not in FORMS:
        raise unknown_name("form of training data", name, FORMS)
    return FORMS[name]


def content(folder: Path) -> str:
    """A hash of a folder's data, by name and content: what a form may read of it, and nothing that came beside."""
    files = [folder] if folder.is_file() else sorted(_data_files(folder))
    names = [file.name if folder.is_file() else file.relative_to(folder).as_posix() for file in files]
    return hash_value([[name, hash_file(file)] for name, file in zip(names, files, strict=True)])


def _data_files(folder: Path) -> Iterator[Path]:
    """The files of tables and texts in a folder itself and in those of its parts that forms know.

    Other folders in it are somebody else's: a run that trains on it, or negatives that were mined from it.
    """
    for part in (folder, *(folder / name for name in PARTS)):
        for file in part.glob("*"):
            known = not SUFFIXES.isdisjoint(file.suffixes) and file.name != ABOUT
            if known and not file.name.startswith(".") and file.is_file():
                yield file


@dataclass(frozen=True)
class FormCorpus:
    """The passages of a training folder as a corpus: all that it holds, or, in forms of pairs, its positives.

    A positive without an id goes by a hash of its text, and so does one whose id another text has already.
    """

    folder: Path
    form: str
    how: Reading

    @cached_property
    def corpus_hash(self) -> str:
        """By content of the folder."""
        return hash_value(["form", self.form, self.how.split, content(self.folder)])

    def passages(self) -> Iterator[Passage]:
        """Each passage once; those without a text are left out."""
        form = get(self.form)
        if form.passages is not None:
            yield from form.passages(self.folder)
            return
        seen: set[int] = set()
        ids: set[str] = set()
        for example in form.read(self.folder, self.how):
            key = key_of(example.positive)
            if key not in seen and example.positive.strip():
                seen.add(key)
                own = example.positive_id
                passage_id = own if own and own not in ids else f"{key & (1 << 64) - 1:016x}"
                ids.add(passage_id)
                yield Passage(passage_id=passage_id, text=example.positive)
