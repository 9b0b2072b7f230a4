"""What every form of training folder streams into, and what a form is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slmx.records import Passage, Record

CROPPED = "crops"  # the form whose pairs are cut when they are drawn
ABOUT = "about.json"  # what slmx wrote down beside the pairs that it made: no row of them


class Example(Record, frozen=True):
    """One training pair: a query, a passage that answers it, and passages that do not.

    Ids are empty where the source has none. `scores` are a teacher's, the positive's first, then one a negative.
    `title` is that with which the positive begins, where it matters (documents that are cropped).
    """

    query: str
    positive: str
    negatives: list[str] = []
    query_id: str = ""
    positive_id: str = ""
    negative_ids: list[str] = []
    scores: list[float] = []
    title: str = ""


@dataclass(frozen=True)
class Reading:
    """How a folder is read.

    Attributes:
        cache_dir: texts of large collections are kept here, by content, so that they need not lie in memory.
        split: which relevance marks of a BEIR folder.
    """

    cache_dir: Path
    split: str = "train"


@dataclass(frozen=True)
class Form:
    """A form of training folder.

    Attributes:
        about: the files that give it away, for a person.
        fits: whether a folder has them.
        read: its Examples, one at a time.
        passages: all passages that its positives come from; None: it holds no more than the positives.
    """

    about: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, Reading], Iterator[Example]]
    passages: Callable[[Path], Iterator[Passage]] | None = None
