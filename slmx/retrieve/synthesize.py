"""`slmx retrieve synthesize`: queries for documents by a causal language model, as pairs to train on.

A prompt of `presets/queries.yaml` asks for a query that a document answers: with examples of its own (InPars, Bonifacio
et al. 2022), or with the user's (Promptagator, Dai et al. 2023). What is written depends on the model, the prompt, the
documents and the seed alone, and lies in the cache under a hash of them: a killed run goes on there to the same bytes,
and other filters do not ask the model again. Then rules take out, in this order, what is

- failed, empty or cut off at the token limit;
- a repetition: of the document's beginning, or of a query of an earlier document;
- improbable: its mean log-probability is below `min_log_prob`;
- not found: the retriever does not bring the query's document back among the first `round_trip` (Promptagator);
- not among the `keep` most probable (InPars keeps the best 10,000).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slmx import presets
from slmx.data.beir import passage_text
from slmx.data.datasets import Dataset, open_dataset
from slmx.data.forms import content, detect, get
from slmx.data.forms.example import ABOUT, CROPPED, Reading
from slmx.data.forms.making import About, finished, making
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import check_place, hash_value, key_of, whole_folder, write_json, write_jsonl
from slmx.models.generators import Generator, Window, open_generator
from slmx.presets import QueryPreset
from slmx.records import Passage, Prompt, Question, Record, Request
from slmx.registry import unknown_name
from slmx.retrieve.opening import open_retriever
from slmx.signals import Stop
from slmx.text import fill

if TYPE_CHECKING:
    from rich.console import RenderableType

MADE_BY = "retrieve synthesize"
FILE = "synthetic.jsonl"
ALL = "queries.jsonl"  # in the cache: everything that the model wrote
VERSION = 1
BATCH = 64  # documents that are prompted and written together; fixed, since in 16 bits a text depends on its batch
SEARCHED = 512  # queries that are searched together
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


class Synthetic(Record, frozen=True, omit_defaults=False):
    """One line of synthetic.jsonl."""

    question: str
    doc_text: str
    doc_id: str
    query_id: str
    log_prob: float | None = None


class Synthesized(Record, frozen=True, omit_defaults=False):
    """What came out. `left_out` counts queries by the rule that took them out; `log_prob` is the mean of those kept."""

    folder: str
    model: str
    prompt: str
    documents: int
    written: int
    kept: int
    left_out: dict[str, int]
    log_prob: float | None
    seconds: float = 0.0


def synthesize(options: SynthesizeOptions, *, stop: Stop, listen: Listener = nobody) -> Synthesized:
    """Write queries for documents and keep those that pass the filters, or go on with it.

    Raises:
        UsageError: options that contradict each other, an unknown prompt, or a corpus without documents.
        RefusedError: the folder holds something else.
        SlmxError: nothing passed the filters; with exit code 130 or 143 after a clean stop.
    """
    started = time.perf_counter()
    preset = _check(options)
    check_place(options.to, marker=ABOUT, overwrite=True)
    corpus = open_dataset(options.corpus, data_dir=options.data_dir, cache_dir=options.cache_dir, listen=listen)
    if not corpus.has_passages:
        raise UsageError(f"{corpus.name} has no documents to ask about.", hint="Name a folder or file with documents.")
    writer = Writer(options, preset, corpus, listen)
    wanted = _identity(options, writer)
    known = finished(options.to, MADE_BY, wanted, overwrite=options.overwrite)
    if known is not None:
        listen(Notice(f"{options.to} is finished; nothing was done."))
        return msgspec.convert({**known, "folder": str(options.to)}, Synthesized)
    queries = writer.write(stop)
    kept, left_out = _filter(options, queries, corpus, listen)
    if not kept:
        told = ", ".join(f"{rule}: {count}" for rule, count in left_out.items())
        raise SlmxError(
            f"None of {len(queries)} queries passed the filters ({told}).", hint="Loosen them, or use another model."
        )
    result = Synthesized(
        folder="",  # not of the content
        model=writer.generator.name,
        prompt=options.prompt,
        documents=writer.documents,
        written=len(queries),
        kept=len(kept),
        left_out=left_out,
        log_prob=_mean([one.log_prob for one in kept]),
    )
    with whole_folder(options.to, marker=ABOUT, overwrite=options.overwrite) as made:
        write_jsonl(made / FILE, _rows(kept, corpus))
        write_json(made / ABOUT, About(made_by=MADE_BY, identity=wanted, result=msgspec.to_builtins(result)))
    return msgspec.structs.replace(result, folder=str(options.to), seconds=time.perf_counter() - started)


def _check(options: SynthesizeOptions) -> QueryPreset:
    found = presets.find(QueryPreset, options.prompt)
    if found is None:
        raise unknown_name("prompt for queries", options.prompt, presets.load("queries"))
    if options.queries > 1 and not options.generator.get("temperature"):
        raise UsageError(
            "Several queries a document need a temperature: greedy ones would all be the same.",
            hint="Give --temperature 0.7, or --queries 1.",
        )
    preset = found[1]
    if "{examples}" in preset.template and not preset.examples and options.examples is None:
        raise UsageError(
            f'The prompt "{options.prompt}" shows examples of your own.',
            hint="Name a training folder: --examples FOLDER; or use --prompt inpars, which has examples.",
        )
    return preset


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
                made.finish(ALL, {"documents": self.documents})
            self.generator.close()
        decoder = msgspec.json.Decoder(Written)
        with (folder / ALL).open("rb") as stream:
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
    from heapq import nsmallest

    ids = (p.passage_id for p in corpus.passages() if len(passage_text(p).split()) >= options.min_words)
    if options.documents is None:
        return set(ids)
    return set(nsmallest(options.documents, ids, key=lambda own: key_of(str(options.seed), own)))


def _examples(options: SynthesizeOptions, preset: QueryPreset) -> list[dict[str, str]]:
    """What the prompt shows: the user's pairs, drawn by a hash of the query and the seed, else the preset's own."""
    if options.examples is None or "{examples}" not in preset.template:
        return [{str(key): text for key, text in one.items()} for one in preset.examples]
    from heapq import nsmallest

    form = detect(options.examples)
    if form == CROPPED:
        raise UsageError(
            f"{options.examples} has no queries to show.", hint="Name a folder of pairs: --examples FOLDER"
        )
    found = get(form).read(options.examples, Reading(options.cache_dir))
    usable = (one for one in found if one.query.strip() and one.positive.strip())
    pairs = nsmallest(options.shots, usable, key=lambda one: (key_of(str(options.seed), one.query), one.positive))
    return [{"document": " ".join(one.positive.split()[:SHOWN_WORDS]), "query": one.query.strip()} for one in pairs]


def _filter(
    options: SynthesizeOptions, queries: Sequence[Written], corpus: Dataset, listen: Listener
) -> tuple[list[Written], dict[str, int]]:
    """What passes the rules, in the order of the documents, and how many each rule took out."""
    left_out: Counter[str] = Counter()
    kept: list[Written] = []
    seen: set[int] = set()
    starts = {p.passage_id: " ".join(passage_text(p).lower().split()) for p in corpus.passages()}
    for query in queries:
        text = " ".join(query.question.lower().split())
        if query.error or not text:
            left_out["failed or empty"] += 1
        elif query.stop == "length":
            left_out["cut off"] += 1
        elif starts[query.doc_id].startswith(text) or key_of(text) in seen:
            left_out["repetition"] += 1
        elif options.min_log_prob is not None and (query.log_prob is None or query.log_prob < options.min_log_prob):
            left_out["improbable"] += 1
        else:
            seen.add(key_of(text))
            kept.append(query)
    if options.round_trip:
        found = _found(options, kept, corpus, listen)
        left_out["not found"] += len(kept) - len(found)
        kept = found
    if options.keep and len(kept) > options.keep:
        left_out["not among the best"] += len(kept) - options.keep
        order = sorted(range(len(kept)), key=lambda place: -_of(kept[place].log_prob))
        kept = [kept[place] for place in sorted(order[: options.keep])]
    return kept, {rule: count for rule, count in left_out.items() if count}


def _found(options: SynthesizeOptions, queries: Sequence[Written], corpus: Dataset, listen: Listener) -> list[Written]:
    """The queries whose document the retriever finds among the first `round_trip`."""
    retriever = open_retriever(
        options.retriever,
        corpus,
        cache_dir=options.cache_dir,
        device=options.device,
        dtype=options.dtype,
        listen=listen,
    )
    found: list[Written] = []
    for start in range(0, len(queries), SEARCHED):
        block = queries[start : start + SEARCHED]
        asked = [Question(question_id=one.query_id, question=one.question, answers=[]) for one in block]
        rankings = retriever.search(asked, options.round_trip)
        found += [
            one
            for one, ranking in zip(block, rankings, strict=True)
            if any(hit.passage_id == one.doc_id for hit in ranking.hits)
        ]
        listen(Progress("round trip", start + len(block), len(queries), "queries"))
    return found


def _rows(kept: Sequence[Written], corpus: Dataset) -> Iterator[Synthetic]:
    """The lines of the file; the documents come by in the order of the queries."""
    waiting = iter(kept)
    query = next(waiting, None)
    for passage in corpus.passages():
        while query is not None and query.doc_id == passage.passage_id:
            yield Synthetic(
                question=query.question,
                doc_text=passage_text(passage),
                doc_id=query.doc_id,
                query_id=query.query_id,
                log_prob=query.log_prob,
            )
            query = next(waiting, None)


def _identity(options: SynthesizeOptions, writer: Writer) -> dict[str, Any]:
    """All that the folder depends on."""
    filters = {
        "min_log_prob": options.min_log_prob,
        "round_trip": options.round_trip,
        "retriever": options.retriever if options.round_trip else "",
        "keep": options.keep,
    }
    shown = content(options.examples) if options.examples is not None else ""
    return {**writer.identity(), **filters, "examples": shown}


def _of(log_prob: float | None) -> float:
    return float("-inf") if log_prob is None else log_prob


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def render(made: Synthesized) -> RenderableType:
    """What came out, and what to type next."""
    from rich.console import Group

    from slmx.console import table

    rows = [
        ["documents", f"{made.documents:,}"],
        ["queries written", f"{made.written:,}"],
        *([f"left out: {rule}", f"{count:,}"] for rule, count in made.left_out.items()),
        ["kept", f"{made.kept:,} ({100 * made.kept / max(1, made.written):.1f} %)"],
        *([["their mean log-probability", f"{made.log_prob:.3f}"]] if made.log_prob is not None else []),
    ]
    told = f"Train on them: slmx train retriever --data-dirs {made.folder} --save-dir …"
    return Group(table(f"{made.model}, prompt {made.prompt}", ["", ""], rows), told)
