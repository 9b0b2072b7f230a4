"""Retrievers behind one protocol: questions in, rankings out. The pipeline never asks which one it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.records import GoldLevel, Passage, Question, Ranking
from slmx.registry import Registry, unknown_name

if TYPE_CHECKING:
    from slmx.presets import RetrieverPreset

RETRIEVERS = Registry(
    "retriever",
    {
        "oracle": "slmx.retrieve.oracle:open_oracle",
        "bm25": "slmx.retrieve.bm25:open_bm25",
        "dense": "slmx.retrieve.dense:open_dense",
        "hybrid": "slmx.retrieve.hybrid:open_hybrid",
    },
)
NO_CORPUS = "Name a dataset or folder that has documents (a BEIR folder has them in corpus.jsonl)."
INDEXED = ("bm25", "dense", "hybrid")  # what has an index that can be put into a folder


class Retriever(Protocol):
    """Finds passages for questions. The smallest complete one, which finds the passages with the most words in common:

    Example:
        >>> class Overlap:
        ...     name = "overlap"
        ...     def __init__(self, opening: Opening) -> None:
        ...         self.corpus = opening.corpus
        ...     def fingerprint(self):
        ...         return {"kind": "overlap", "version": 1, "corpus": self.corpus.corpus_hash}
        ...     def search(self, questions, k, *, listen=nobody):
        ...         return [Ranking(question_id=q.question_id, hits=self._hits(q.question, k)) for q in questions]
        ...     def _hits(self, question, k):
        ...         words = set(question.lower().split())
        ...         scored = ((len(words & set(p.text.lower().split())), p.passage_id) for p in self.corpus.passages())
        ...         return [Hit(passage_id=i, score=float(s)) for s, i in sorted(scored, reverse=True)[:k] if s]
        ...     def index_bytes(self):
        ...         return 0

    It is registered as an entry point of the group `slmx.retrievers`; what is registered takes an `Opening`.
    """

    name: str

    def fingerprint(self) -> dict[str, Any]:
        """All that the rankings depend on, by content: never a name, a time or a path."""
        ...

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """At most k passages for each question, in the order of the questions.

        Scores never grow along a ranking. The first passages of a larger k are those of a smaller one.
        """
        ...

    def index_bytes(self) -> int:
        """Bytes of the index on disk; 0 for a retriever without one."""
        ...


class Corpus(Protocol):
    """Passages and the hash of their content; `slmx.data.datasets.Dataset` is one, and so is an index folder."""

    @property
    def corpus_hash(self) -> str:
        """A hash of the passages' content."""
        ...

    def passages(self) -> Iterator[Passage]:
        """All passages in a fixed order; may be called more than once."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a retriever is opened with.

    Attributes:
        cache_dir: vectors are kept here by content, and so are indexes where `parts` names no place for them.
        parts: the folder of an index that a user owns, with an index in it for every part, by name.
        build: whether an index that is missing is built. In `parts` one that is there must then fit: made from the
            same corpus, settings and model, or it is an error.
        language: of BM25's analyser; "auto" leaves it to the preset.
    """

    name: str
    preset: RetrieverPreset
    corpus: Corpus
    cache_dir: Path
    parts: Path | None = None
    build: bool = True
    device: str = "auto"
    dtype: str = "auto"
    language: str = "auto"
    oracle: GoldLevel = "long"
    listen: Listener = nobody

    def of(self, name: str) -> Opening:
        """The same opening for another retriever (a part of a hybrid)."""
        own, preset = find_preset(name)
        return replace(self, name=own, preset=preset)


def find_preset(name: str) -> tuple[str, RetrieverPreset]:
    """A retriever by preset, alias, or as any text encoder: a folder or a Hub id.

    An id that a preset names brings that preset's prompts and package along.

    Raises:
        UsageError: the name is none of these; the nearest preset is named.
    """
    from slmx import presets
    from slmx.models.catalogue import is_hub_id
    from slmx.presets import RetrieverPreset

    found = presets.find(RetrieverPreset, name)
    if found is not None:
        return found
    known = {own: p for own, p in presets.load("retrievers").items() if isinstance(p, RetrieverPreset)}
    for preset in known.values():
        if preset.model and preset.model == name:
            return Path(name).name, preset
    path = Path(name).expanduser()
    if path.is_dir() or is_hub_id(name):
        return model_name(name), RetrieverPreset(retriever="dense", model=str(path))
    names = [n for own, preset in known.items() for n in (own, *preset.aliases)]
    raise unknown_name("retriever", name, names, hint="A folder or a Hub id (owner/model) of a text encoder will do.")


def model_name(id_or_path: str) -> str:
    """What a model is called in tables and folders: the last part of its Hub id or of its folder's path."""
    path = Path(id_or_path).expanduser()
    if not path.is_dir():
        return path.name
    whole = path.resolve()
    return whole.parent.name if whole.name == "model" else whole.name  # "model" alone would tell nothing


def find_passages(corpus: Corpus, ids: set[str]) -> dict[str, Passage]:
    """The passages with these ids, in one walk through the corpus that ends when all are found."""
    if not ids:
        return {}
    found: dict[str, Passage] = {}
    for passage in corpus.passages():
        if passage.passage_id in ids:
            found[passage.passage_id] = passage
            if len(found) == len(ids):
                break
    return found


def check_k(k: int) -> None:
    """UsageError for a k below 1."""
    if k < 1:
        raise UsageError(f"k must be 1 or more, not {k}.")
