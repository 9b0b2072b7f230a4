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
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from slmx import presets
from slmx.data.beir import passage_text
from slmx.data.datasets import Dataset, open_dataset
from slmx.data.forms import content
from slmx.data.forms.example import ABOUT
from slmx.data.forms.making import About, finished
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import check_place, hash_value, key_of, whole_folder, write_json, write_jsonl
from slmx.models import encoders
from slmx.presets import QueryPreset
from slmx.records import Question, Record
from slmx.registry import unknown_name
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.queries import MADE_BY, SynthesizeOptions, Writer, Written
from slmx.retrieve.retrievers import INDEXED, RETRIEVERS, find_preset
from slmx.signals import Stop

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE = "synthetic.jsonl"
SEARCHED = 512  # queries that are searched together


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
    wanted = _identity(options, writer, listen)
    known = finished(options.to, MADE_BY, wanted, overwrite=options.overwrite)
    if known is not None:
        listen(Notice(f"{options.to} is finished; nothing was done."))
        return msgspec.convert({**known, "folder": str(options.to)}, Synthesized)
    queries = writer.write(stop)
    watched = stop.watched(
        listen, "Stopped while filtering.", hint="The same command again filters; the queries are kept."
    )
    kept, left_out = _filter(options, queries, corpus, watched)
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


def _filter(
    options: SynthesizeOptions, queries: Sequence[Written], corpus: Dataset, listen: Listener
) -> tuple[list[Written], dict[str, int]]:
    """What passes the rules, in the order of the documents, and how many each rule took out."""
    left_out: Counter[str] = Counter()
    kept: list[Written] = []
    seen: set[int] = set()
    starts = _starts(queries, corpus)
    for query in queries:
        text = _plain(query.question)
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


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _starts(queries: Sequence[Written], corpus: Dataset) -> dict[str, str]:
    """How the documents begin that were asked about, no longer than the longest query."""
    asked = {query.doc_id for query in queries}
    longest = max((len(query.question) for query in queries), default=0)
    return {p.passage_id: _plain(passage_text(p))[:longest] for p in corpus.passages() if p.passage_id in asked}


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


def _identity(options: SynthesizeOptions, writer: Writer, listen: Listener) -> dict[str, Any]:
    """All that the folder depends on."""
    filters = {
        "min_log_prob": options.min_log_prob,
        "round_trip": options.round_trip,
        "retriever": hash_value(_retriever(options.retriever, listen)) if options.round_trip else "",
        "keep": options.keep,
    }
    shown = content(options.examples) if options.examples is not None else ""
    return {**writer.identity(), **filters, "examples": shown}


def _retriever(name: str, listen: Listener) -> dict[str, Any]:
    """What a retriever is, by content: its preset, and the model of it or of each of its parts."""
    if name in RETRIEVERS.names() and name not in ("oracle", *INDEXED):
        return {"name": name}  # of another package
    preset = find_preset(name)[1]
    model = encoders.content(encoders.resolve(preset.model, preset.package, listen=listen)) if preset.model else {}
    told = preset.model_dump(exclude={"model", "package", "parts", "aliases", "about"})
    return {**told, "content": model, "parts": [_retriever(part, listen) for part in preset.parts]}


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
