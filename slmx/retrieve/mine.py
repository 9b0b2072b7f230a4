"""`slmx retrieve mine`: hard negatives for training pairs, as a folder of pairs that `slmx train retriever` reads.

`slmx.retrieve.negatives` says which passages are taken. Only the marks of one split are read, never those of `test`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from slmx.data.datasets import locate, open_dataset
from slmx.data.forms import FormCorpus, content, detect, get
from slmx.data.forms.example import CROPPED, Example, Reading
from slmx.data.forms.making import Making, finished, making
from slmx.data.passage_texts import open_texts
from slmx.errors import UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import hash_value
from slmx.records import Record
from slmx.registry import unknown_name
from slmx.retrieve.negatives import MinedPair, MineOptions, Miner, Pick, Positives
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.rerank import CrossEncoder
from slmx.retrieve.retrievers import INDEXED, Corpus, Retriever, find_preset
from slmx.signals import Stop

if TYPE_CHECKING:
    from rich.console import RenderableType

MADE_BY = "retrieve mine"
FILE = "mined.jsonl"
VERSION = 2
BATCH = 256  # pairs that are searched and written together; fixed, since in bf16 a vector can depend on its batch


class Mined(Record, frozen=True, omit_defaults=False):
    """What came out.

    `found` counts pairs whose positive is among the first k; `left_out` the passages that each rule took out.
    """

    folder: str
    retriever: str
    form: str
    split: str
    passages: int
    pairs: int
    found: int
    with_negatives: int
    negatives: int
    left_out: dict[str, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class _Source:
    """The pairs to mine for, and the corpus that is searched."""

    path: Path
    form: str
    how: Reading
    corpus: Corpus
    same_ids: bool = True  # are the pairs' ids those of the corpus?

    def examples(self) -> Iterator[Example]:
        """The pairs; both texts are there."""
        return (one for one in get(self.form).read(self.path, self.how) if one.query.strip() and one.positive.strip())


def mine(options: MineOptions, *, stop: Stop, listen: Listener = nobody) -> Mined:
    """Mine what the options ask for, or go on with it.

    Raises:
        UsageError: options that contradict each other, or a source without queries.
        RefusedError: the folder holds something else.
        SlmxError: a damaged file; with exit code 130 or 143 after a clean stop.
    """
    started = time.perf_counter()
    _check(options)
    source = _open_source(options, listen)
    hint = "The same command again begins anew; the vectors so far are kept."
    watched = stop.watched(listen, "Stopped before the first pair was mined.", hint=hint)
    retriever = open_retriever(
        options.retriever,
        source.corpus,
        cache_dir=options.cache_dir,
        language=options.language,
        device=options.device,
        dtype=options.dtype,
        listen=watched,
    )
    teacher = _open_teacher(options, listen)
    identity = _identity(options, source, retriever, teacher)
    known = finished(options.to, MADE_BY, identity, overwrite=options.overwrite)
    if known is not None:
        listen(Notice(f"{options.to} is finished; nothing was done."))
        return msgspec.convert({**known, "folder": str(options.to)}, Mined)
    texts = open_texts(source.corpus, options.cache_dir, watched)
    miner = Miner(options, retriever, teacher, texts, Positives(source.examples()), same_ids=source.same_ids)
    with making(options.to, MADE_BY, identity) as made:
        _work(miner, source, made, stop, listen)
        counts = _count(made)
        result = Mined(
            folder="",  # not of the content
            retriever=retriever.name,
            form=source.form,
            split=options.split if source.form == "beir" else "",
            passages=len(texts),
            **counts,
        )
        made.finish(FILE, msgspec.to_builtins(result))
    seconds = time.perf_counter() - started
    return msgspec.structs.replace(result, folder=str(options.to), seconds=seconds)


def _work(miner: Miner, source: _Source, made: Making, stop: Stop, listen: Listener) -> None:
    """Mine for the pairs that are not in the journal yet."""
    examples, done = source.examples(), made.rows.batches * BATCH
    if done:
        listen(Notice(f"Going on after {min(done, miner.positives.pairs)} of {miner.positives.pairs} pairs."))
        next(islice(examples, done - 1, done), None)
    while batch := list(islice(examples, BATCH)):
        if stop.asked:
            raise stop.error(
                f"Stopped after {made.rows.batches * BATCH} of {miner.positives.pairs} pairs.",
                hint="The same command goes on from there.",
            )
        made.rows.append(miner.mine(batch))
        done = min(made.rows.batches * BATCH, miner.positives.pairs)
        listen(Progress("mine", done, miner.positives.pairs, "pairs"))


def _count(made: Making) -> dict[str, Any]:
    counts: Counter[str] = Counter(pairs=0, found=0, with_negatives=0, negatives=0)
    left_out: Counter[str] = Counter()
    decoder = msgspec.json.Decoder(MinedPair)
    for line in made.rows.lines():
        pair = decoder.decode(line)
        counts.update(pairs=1, found=int(pair.found), with_negatives=int(bool(pair.negatives)))
        counts.update(negatives=len(pair.negatives))
        left_out.update(pair.left_out)
    return {**counts, "left_out": dict(sorted(left_out.items()))}


def _check(options: MineOptions) -> None:
    if options.pick not in get_args(Pick):
        raise unknown_name("way to pick negatives", options.pick, get_args(Pick))
    if options.split == "test":
        hint = "Use train or dev; with --hold-out, `slmx train retriever` keeps questions of train for validation."
        raise UsageError("The split test judges; negatives for training are never mined from it.", hint=hint)
    if options.skip >= options.k:
        raise UsageError(f"--skip {options.skip} leaves nothing of --k {options.k}.", hint="Give a larger --k.")
    if (options.margin or 0.0) < 0 or not 0 <= (options.relative_margin or 0.0) < 1:
        hint = "--margin 0.1 is a difference of scores, --relative-margin 0.05 a share of the positive's."
        raise UsageError("A margin is 0 or above, a relative one below 1.", hint=hint)
    if find_preset(options.retriever)[1].retriever not in INDEXED:
        hint = "Use bm25, dense, hybrid, or an encoder's folder or Hub id."
        raise UsageError(f"{options.retriever} ranks no corpus; negatives need one that does.", hint=hint)


def _open_source(options: MineOptions, listen: Listener) -> _Source:
    """The training folder, and what is searched: --corpus, else the folder's own passages."""
    path = Path(options.source)
    if not path.exists():
        path = locate(options.source, options.data_dir)[1]
    form = detect(path) if options.form == "auto" else options.form
    if options.form == "auto" and form == CROPPED and (path / "qrels" / f"{options.split}.tsv").is_file():
        form = "beir"  # told apart by its train marks, which it may lack
    get(form)
    if form == CROPPED:
        raise UsageError(
            f"{path} has documents and no questions with marks for {options.split}.",
            hint="Name a folder with queries and positives; `slmx retrieve synthesize` makes queries for documents.",
        )
    how = Reading(options.cache_dir, options.split)
    if options.corpus is None and form != "beir":
        return _Source(path, form, how, FormCorpus(path, form, how))
    named = str(path) if options.corpus is None else options.corpus
    corpus = open_dataset(named, data_dir=options.data_dir, cache_dir=options.cache_dir, listen=listen)
    if not corpus.has_passages:
        raise UsageError(f"{corpus.name} has no passages to search.", hint="Name a folder with documents.")
    return _Source(path, form, how, corpus, same_ids=corpus.folder.resolve() == path.resolve())


def _open_teacher(options: MineOptions, listen: Listener) -> CrossEncoder | None:
    if options.teacher is None:
        return None
    return CrossEncoder(options.teacher, device=options.device, dtype=options.dtype, listen=listen)


def _identity(
    options: MineOptions, source: _Source, retriever: Retriever, teacher: CrossEncoder | None
) -> Mapping[str, Any]:
    """All that the negatives depend on, by content."""
    names = ("k", "negatives", "skip", "margin", "relative_margin", "max_score", "min_score", "pick", "seed")
    asked = {name: getattr(options, name) for name in names}
    asked |= {name: None for name in ("max_score", "min_score") if math.isinf(asked[name])}  # JSON has no infinity
    return {
        "version": VERSION,
        "form": source.form,
        "split": options.split if source.form == "beir" else "",
        "source": content(source.path),
        "retriever": hash_value(retriever.fingerprint()),
        "teacher": hash_value(teacher.fingerprint()) if teacher else "",
        **asked,
    }


def render(mined: Mined) -> RenderableType:
    """What came out, and what to type next."""
    from rich.console import Group

    from slmx.console import table

    share = 100 / max(1, mined.pairs)
    rows = [
        ["pairs", f"{mined.pairs:,}"],
        ["positive among the first k", f"{mined.found:,} ({mined.found * share:.1f} %)"],
        ["with negatives", f"{mined.with_negatives:,} ({mined.with_negatives * share:.1f} %)"],
        [
            "negatives",
            f"{mined.negatives:,} ({mined.negatives / max(1, mined.with_negatives):.2f} a pair that has any)",
        ],
        *([f"left out: {rule}", f"{count:,}"] for rule, count in mined.left_out.items()),
    ]
    told = f"Train on them: slmx train retriever --data-dirs {mined.folder} --save-dir …"
    return Group(table(f"{mined.retriever} over {mined.passages:,} passages", ["", ""], rows), told)
