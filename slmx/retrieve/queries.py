"""Queries for documents, as a causal language model writes them.

They depend on the model, the prompt, the documents and the seed alone, and lie in the cache under a hash of them: a
killed run goes on there to the same bytes, and who filters them in another way does not ask the model again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.beir import passage_text
from slmx.data.datasets import Dataset
from slmx.data.forms import detect, get
from slmx.data.forms.example import CROPPED, Reading
from slmx.data.forms.making import finished, making
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, Progress
from slmx.files import hash_value, key_of
from slmx.models.generators import Generator, Window, open_generator
from slmx.presets import QueryPreset
from slmx.records import Passage, Prompt, Question, Record, Request
from slmx.signals import Stop
from slmx.text import fill

MADE_BY = "retrieve synthesize"
FILE = "queries.jsonl"
VERSION = 1
BATCH = 64  # documents that are prompted and written together; fixed, since in 16 bits a text depends on its batch
SHOWN_WORDS = 120  # of a document in an example of the user's


@dataclass(frozen=True)
class SynthesizeOptions:
    """What the command line asks for; the defaults are those of the command.

    Attributes:
        corpus: a dataset by name, file or folder.
        prompt: a preset of queries.yaml.
        examples: a training folder whose pairs are shown as examples, `shots` of them.
        documents: how many documents, drawn by a hash of their id; None: all.
        queries: how many for each; above 1 the temperature must be above 0.
        min_words: documents of fewer words are passed over; max_words: no more of a document are shown.
        round_trip: 0: without that filter.
        keep: 0: all.
        generator: options of `open_generator`.
    """

    corpus: str
    model: str
    to: Path
    data_dir: Path
    cache_dir: Path
    prompt: str = "inpars"
    examples: Path | None = None
    shots: int = 4
    documents: int | None = None
    queries: int = 1
    min_words: int = 20
    max_words: int = 300
    batch_size: int | None = None
    min_log_prob: float | None = None
    round_trip: int = 0
    retriever: str = "bm25"
    keep: int = 0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False
    generator: Mapping[str, Any] = field(default_factory=dict)


class Written(Record, frozen=True):
    """A query as the model wrote it, with the document that it was shown; the names are InPars'."""

    question: str
    doc_id: str
    query_id: str
    stop: str = ""
    error: str = ""
    log_prob: float | None = None


class Writer:
    """Asks the model for queries; the answers lie in the cache, by content."""

    def __init__(self, options: SynthesizeOptions, preset: QueryPreset, corpus: Dataset, listen: Listener) -> None:
        self._options, self._preset, self._corpus, self._listen = options, preset, corpus, listen
        limits = {"max_new_tokens": preset.max_new_tokens, "log_probs": True, "seed": options.seed}
        asked = {name: value for name, value in options.generator.items() if value is not None}
        self.generator: Generator = open_generator(options.model, listen=listen, **{**limits, **asked})
        self._examples = _examples(options, preset)
        self._chosen = _chosen(options, corpus)
        self.documents = len(self._chosen)
        if not self.documents:
            raise UsageError(
                f"No document of {corpus.name} has {options.min_words} words.", hint="Give a lower --min-words."
            )

    def identity(self) -> dict[str, Any]:
        """All that the queries depend on."""
        options = self._options
        names = ("documents", "queries", "min_words", "max_words", "batch_size", "seed")
        return {
            "version": VERSION,
            "corpus": self._corpus.corpus_hash,
            "generator": hash_value(self.generator.fingerprint()),
            "prompt": hash_value([self._preset.template, self._examples]),
            **{name: getattr(options, name) for name in names},
        }

    def write(self, stop: Stop) -> list[Written]:
        """All queries, in the order of the documents; those that are in the cache are not asked for again."""
        identity = self.identity()
        folder = self._options.cache_dir / "queries" / hash_value(identity)
        if finished(folder, MADE_BY, identity, overwrite=False) is None:
            with making(folder, MADE_BY, identity) as made:
                done = made.rows.batches * BATCH
                if done:
                    told = f"Going on after {min(done, self.documents)} of {self.documents} documents."
                    self._listen(Notice(told))
                documents = islice(self._documents(), done, None)
                while batch := list(islice(documents, BATCH)):
                    if stop.asked:
                        raise stop.error(
                            f"Stopped after {made.rows.batches * BATCH} of {self.documents} documents.",
                            hint="The same command goes on from there.",
                        )
                    made.rows.append(self._ask(batch))
                    done = min(made.rows.batches * BATCH, self.documents)
                    self._listen(Progress("write queries", done, self.documents, "documents"))
                made.finish(FILE, {"documents": self.documents})
            self.generator.close()
        decoder = msgspec.json.Decoder(Written)
        with (folder / FILE).open("rb") as stream:
            return [decoder.decode(line) for line in stream]

    def _documents(self) -> Iterator[Passage]:
        return (passage for passage in self._corpus.passages() if passage.passage_id in self._chosen)

    def _ask(self, documents: Sequence[Passage]) -> list[Written]:
        """The queries of some documents, in their order."""
        window = self.generator.window()
        requests = [
            Request(
                question=Question(question_id=f"{passage.passage_id}-{number}", question="", answers=[]),
                prompt=Prompt(text=text, passages=[passage]),
            )
            for passage in documents
            for text in (self._prompt(passage, window),)
            for number in range(1, self._options.queries + 1)
        ]
        found: dict[int, Written] = {}
        for batch in self.generator.plan(requests, self._options.batch_size):
            asked = [requests[place] for place in batch]
            for place, request, completion in zip(batch, asked, self.generator.generate(asked), strict=True):
                found[place] = Written(
                    question=completion.text.strip(),
                    doc_id=request.prompt.passages[0].passage_id,
                    query_id=request.question.question_id,
                    stop=completion.stop,
                    error=completion.error,
                    log_prob=completion.log_prob,
                )
        return [found[place] for place in range(len(requests))]

    def _prompt(self, passage: Passage, window: Window | None) -> str:
        """The prompt for a document; of what does not fit the window the document's end goes, word by word."""
        words = passage_text(passage).split()
        size = min(len(words), self._options.max_words)
        text = self._filled(words[:size])
        if window is None or window.count([text])[0] <= window.budget:
            return text
        low, high = 0, size - 1  # the most words that fit
        while low < high:
            middle = (low + high + 1) // 2
            fits = window.count([self._filled(words[:middle])])[0] <= window.budget
            low, high = (middle, high) if fits else (low, middle - 1)
        if not low:
            raise SlmxError(
                f'The prompt "{self._options.prompt}" leaves no room for a document: {self.generator.name} reads '
                f"{window.budget} tokens beside the query.",
                hint="Use --prompt zero-shot, fewer --shots, or a model with a longer window.",
            )
        return self._filled(words[:low])

    def _filled(self, words: Sequence[str]) -> str:
        preset = self._preset
        shown = preset.separator.join(fill(preset.example, example) for example in self._examples)
        return fill(preset.template, {"examples": shown, "document": " ".join(words)})


def _chosen(options: SynthesizeOptions, corpus: Dataset) -> set[str]:
    """The ids of the documents that are asked about: those long enough, of them the lowest by a hash of id and seed."""
    ids = (p.passage_id for p in corpus.passages() if len(passage_text(p).split()) >= options.min_words)
    if options.documents is None:
        return set(ids)
    return set(nsmallest(options.documents, ids, key=lambda own: key_of(str(options.seed), own)))


def _examples(options: SynthesizeOptions, preset: QueryPreset) -> list[dict[str, str]]:
    """What the prompt shows: the user's pairs, drawn by a hash of the query and the seed, else the preset's own."""
    if options.examples is None or "{examples}" not in preset.template:
        return [{str(key): text for key, text in one.items()} for one in preset.examples]
    form = detect(options.examples)
    if form == CROPPED:
        raise UsageError(
            f"{options.examples} has no queries to show.", hint="Name a folder of pairs: --examples FOLDER"
        )
    found = get(form).read(options.examples, Reading(options.cache_dir))
    usable = (one for one in found if one.query.strip() and one.positive.strip())
    pairs = nsmallest(options.shots, usable, key=lambda one: (key_of(str(options.seed), one.query), one.positive))
    return [{"document": " ".join(one.positive.split()[:SHOWN_WORDS]), "query": one.query.strip()} for one in pairs]
