"""`slmx data crop`: training pairs out of documents alone, by independent cropping and its relatives.

A pair is two pieces of one document. Which pieces depends on (seed, document, pass) alone, so that each pass over the
documents gives others, and the same ones in every run. `slmx train retriever` cuts them when they are drawn; this
command writes them down, for other tools or to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from slmx.data.beir import passage_text
from slmx.data.datasets import locate, open_dataset
from slmx.data.forms import content
from slmx.data.forms.corpora import CROPS, documents
from slmx.data.forms.example import ABOUT, Example
from slmx.data.forms.making import About
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Progress, nobody
from slmx.files import key_of, whole_folder, write_json, write_jsonl
from slmx.records import Passage, Record
from slmx.registry import unknown_name
from slmx.text import sentences

if TYPE_CHECKING:
    from rich.console import RenderableType

Style = Literal["spans", "sentence", "title"]
MADE_BY = "data crop"
FILE = "crops.jsonl"
MIN_SPAN = 10  # words a span has at least, after Contriever
QUERY_SENTENCE = 4  # words a sentence has at least that is asked as a query
KEPT = 0.1  # how often the sentence stays in the passage too, as in the inverse cloze task (Lee et al. 2019)
EVERY = 1000  # documents between two progress events


@dataclass(frozen=True)
class Cropping:
    """How a document is cut.

    Attributes:
        style: "spans": two random spans of words, drawn independently (Contriever); "sentence": a random sentence, and
            the rest of the document; "title": the title, and the text. A document without two sentences, or without a
            title, is cut as the style before says.
        min_words, max_words: of a span; a document of fewer words is taken whole. 0: no upper limit.
    """

    style: str = "spans"
    min_words: int = MIN_SPAN
    max_words: int = 0

    def check(self) -> None:
        """UsageError for an unknown style or lengths that contradict each other."""
        if self.style not in get_args(Style):
            raise unknown_name("style of crops", self.style, get_args(Style))
        if self.min_words < 1 or (self.max_words and self.max_words < self.min_words):
            raise UsageError(
                f"Spans of {self.min_words} to {self.max_words} words cannot be cut.",
                hint="Give a lower least or a higher most number of words.",
            )

    def cut(self, text: str, title: str, seed: int, document: int, passed: int) -> tuple[str, str]:
        """Query and passage of a document, `text` with its title in front, at a pass (from 0)."""
        draw = Random(f"{seed} {document} {passed}")
        body = text[len(title) :].strip() if title.strip() and text.startswith(title) else ""
        if self.style == "title" and body:
            return title.strip(), self._limited(body, draw)
        if self.style in ("sentence", "title"):
            found = self._sentence(text, draw)
            if found is not None:
                return found
        return self._span(text.split(), draw), self._span(text.split(), draw)

    def _sentence(self, text: str, draw: Random) -> tuple[str, str] | None:
        spans = sentences(text)
        fit = [span for span in spans if len(text[slice(*span)].split()) >= QUERY_SENTENCE]
        if len(spans) < 2 or not fit:
            return None
        start, end = fit[draw.randrange(len(fit))]
        kept = draw.random() < KEPT
        rest = text if kept else f"{text[:start].rstrip()} {text[end:].lstrip()}".strip()
        return text[start:end], self._limited(rest, draw)

    def _limited(self, text: str, draw: Random) -> str:
        words = text.split()
        return self._span(words, draw) if self.max_words and len(words) > self.max_words else text

    def _span(self, words: list[str], draw: Random) -> str:
        most = min(self.max_words or len(words), len(words))
        size = draw.randint(min(self.min_words, most), most)
        start = draw.randint(0, len(words) - size)
        return " ".join(words[start : start + size])


class Cropped(Record, frozen=True, omit_defaults=False):
    """What was written. Words are means; `without_text` documents were left out."""

    folder: str
    documents: int
    pairs: int
    without_text: int
    query_words: float
    positive_words: float


def crop(
    source: str,
    to: Path,
    *,
    data_dir: Path,
    cache_dir: Path,
    cropping: Cropping,
    passes: int = 1,
    seed: int = 0,
    max_items: int | None = None,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Cropped:
    """Write `passes` pairs of each document of a corpus into a folder of pairs, whole or not at all.

    Args:
        source: a dataset by name, file or folder, or a folder with corpus_train.tsv.
        max_items: only the first documents.

    Raises:
        UsageError: no such corpus, one without documents, or lengths that contradict each other.
        RefusedError: `to` exists and `overwrite` is false, or it is something else than pairs of slmx.
    """
    cropping.check()
    passages, identity = _open(source, data_dir, cache_dir, listen)
    counts = {"documents": 0, "pairs": 0, "without_text": 0, "query_words": 0, "positive_words": 0}

    def rows() -> Iterator[Example]:
        for passage in islice(passages, max_items):
            text = passage_text(passage)
            counts["documents"] += 1
            if not text:
                counts["without_text"] += 1
                continue
            for passed in range(passes):
                query, positive = cropping.cut(text, passage.title, seed, key_of(passage.passage_id), passed)
                counts["pairs"] += 1
                counts["query_words"] += len(query.split())
                counts["positive_words"] += len(positive.split())
                yield Example(query=query, positive=positive, positive_id=passage.passage_id)
            if counts["documents"] % EVERY == 0:
                listen(Progress("crop", counts["documents"], None, "documents"))

    with whole_folder(to, marker=ABOUT, overwrite=overwrite) as made:
        write_jsonl(made / FILE, rows())
        if not counts["pairs"]:
            raise SlmxError(f"{source} has no document with a text.", hint="Name a corpus with documents.")
        pairs = counts["pairs"]
        cropped = Cropped(
            folder="",  # not of the content
            documents=counts["documents"],
            pairs=pairs,
            without_text=counts["without_text"],
            query_words=counts["query_words"] / pairs,
            positive_words=counts["positive_words"] / pairs,
        )
        asked = {"passes": passes, "seed": seed, "max_items": max_items, **vars(cropping)}
        about = About(made_by=MADE_BY, identity={"source": identity, **asked}, result=msgspec.to_builtins(cropped))
        write_json(made / ABOUT, about)
    return msgspec.structs.replace(cropped, folder=str(to))


def _open(source: str, data_dir: Path, cache_dir: Path, listen: Listener) -> tuple[Iterator[Passage], str]:
    """The documents of a corpus, and a hash of its content."""
    path = Path(source) if Path(source).exists() else locate(source, data_dir)[1]
    if path.is_dir() and CROPS.fits(path):
        return documents(path), content(path)
    dataset = open_dataset(source, data_dir=data_dir, cache_dir=cache_dir, listen=listen)
    if not dataset.has_passages:
        raise UsageError(f"{dataset.name} has no documents to crop.", hint="Name a folder or file with documents.")
    return dataset.passages(), dataset.corpus_hash


def render(cropped: Cropped) -> RenderableType:
    """What was written, and what to type next."""
    left_out = f" ({cropped.without_text:,} without a text left out)" if cropped.without_text else ""
    return (
        f"{cropped.pairs:,} pairs of {cropped.documents:,} documents{left_out}: "
        f"{cropped.query_words:.1f} words a query, {cropped.positive_words:.1f} a passage.\n"
        f"Train on them: slmx train retriever --data-dirs {cropped.folder} --save-dir …"
    )
