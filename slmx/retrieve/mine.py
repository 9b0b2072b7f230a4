"""`slmx retrieve mine`: hard negatives for training pairs, as a folder of pairs that `slmx train retriever` reads.

For each pair the retriever ranks the corpus; from its first k passages those are taken as negatives, best first, that
no rule takes out. The rules, in this order:

- known positive: the passage is marked for this question, has the text of one that is, or the question's own id;
- same as query: its text is the question's;
- there twice: a passage with the same text stands above it;
- skipped ranks: the first `skip` of those that are left, among which unmarked answers are most likely;
- margin: it does not score below the positive by more than the margin (NV-Retriever, Moreira et al. 2024, calls the
  relative one TopK-PercPos). A positive that is not among the first k scores no more than any of them: none is taken;
- bounds: its score is above `max_score` or below `min_score`.

Only the marks of one split are read, and never those of `test`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from slmx.data.datasets import locate, open_dataset
from slmx.data.forms import FormCorpus, content, detect, get
from slmx.data.forms.example import CROPPED, Example, Reading
from slmx.data.forms.making import Making, finished, making
from slmx.data.passage_texts import Texts, open_texts
from slmx.errors import UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import hash_value, key_of
from slmx.records import Hit, Question, Record
from slmx.registry import unknown_name
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.rerank import CrossEncoder
from slmx.retrieve.retrievers import INDEXED, Corpus, Retriever, find_preset
from slmx.signals import Stop

if TYPE_CHECKING:
    from rich.console import RenderableType

MADE_BY = "retrieve mine"
FILE = "mined.jsonl"
VERSION = 1
BATCH = 256  # pairs that are searched and written together; fixed, since in bf16 a vector can depend on its batch

Pick = Literal["top", "random"]


@dataclass(frozen=True)
class MineOptions:
    """What the command line asks for; the defaults are those of the command.

    Attributes:
        source: a training folder with queries and positives, or the name of a BEIR set.
        corpus: where negatives come from: a dataset or folder; None: the source's own passages.
        k: places of a ranking that are looked at.
        negatives: how many are taken at most.
        margin, relative_margin: what the positive must score above a negative, as a difference, and as a share of the
            positive's own score. Either None: without that rule.
        pick: "top" takes the best that are left, "random" any of them, drawn from the seed.
        teacher: a cross-encoder whose scores are held against margin and bounds, and written, in place of the
            retriever's.
    """

    source: str
    to: Path
    data_dir: Path
    cache_dir: Path
    retriever: str = "bm25"
    corpus: str | None = None
    form: str = "auto"
    split: str = "train"
    k: int = 100
    negatives: int = 8
    skip: int = 0
    margin: float | None = None
    relative_margin: float | None = 0.05
    max_score: float = math.inf
    min_score: float = -math.inf
    pick: str = "top"
    seed: int = 0
    teacher: str | None = None
    language: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False


class MinedPair(Example, frozen=True):
    """One line of mined.jsonl: a pair with its negatives.

    `ranks` are the places of the negatives in the ranking, from 1; `found` whether the positive is in it; `left_out`
    counts the passages that each rule took out.
    """

    ranks: list[int] = []
    found: bool = False
    left_out: dict[str, int] = {}


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
    retriever = open_retriever(
        options.retriever,
        source.corpus,
        cache_dir=options.cache_dir,
        language=options.language,
        device=options.device,
        dtype=options.dtype,
        listen=listen,
    )
    teacher = _open_teacher(options, listen)
    identity = _identity(options, source, retriever, teacher)
    known = finished(options.to, MADE_BY, identity, overwrite=options.overwrite)
    if known is not None:
        listen(Notice(f"{options.to} is finished; nothing was done."))
        return msgspec.convert({**known, "folder": str(options.to)}, Mined)
    texts = open_texts(source.corpus, options.cache_dir, listen)
    miner = Miner(options, retriever, teacher, texts, Positives(source.examples()))
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


class Positives:
    """What is known to answer each question: 8 bytes a text and an id, and a small object a question."""

    def __init__(self, examples: Iterator[Example]) -> None:
        self.pairs = 0
        self._known: dict[int, set[int]] = {}
        for example in examples:
            self.pairs += 1
            keys = self._known.setdefault(key_of(example.query), set())
            keys.add(key_of(example.positive))
            if example.positive_id:
                keys.add(key_of("id", example.positive_id))

    def has(self, query_key: int, passage_id: str, text_key: int) -> bool:
        """Is the passage known to answer the question, by its id or by its text?"""
        known = self._known[query_key]
        return text_key in known or key_of("id", passage_id) in known


@dataclass(frozen=True)
class _Candidate:
    rank: int
    place: int
    passage_id: str
    score: float


class Miner:
    """Finds the negatives of some pairs; what it finds depends on them and the options alone."""

    def __init__(
        self,
        options: MineOptions,
        retriever: Retriever,
        teacher: CrossEncoder | None,
        texts: Texts,
        positives: Positives,
    ) -> None:
        self.options, self.positives = options, positives
        self._retriever, self._teacher, self._texts = retriever, teacher, texts

    def mine(self, examples: Sequence[Example]) -> list[MinedPair]:
        """Each pair with its negatives."""
        texts = list(dict.fromkeys(example.query for example in examples))
        asked = [Question(question_id=str(number), question=text, answers=[]) for number, text in enumerate(texts)]
        rankings = dict(zip(texts, self._retriever.search(asked, self.options.k), strict=True))
        return [self._pair(example, rankings[example.query].hits) for example in examples]

    def _pair(self, example: Example, hits: Sequence[Hit]) -> MinedPair:
        left_out: Counter[str] = Counter()
        own, candidates = self._candidates(example, hits, left_out)
        found = own is not None
        if self._teacher is not None and candidates:
            own, candidates = self._taught(self._teacher, example, candidates)
        chosen = self._choose(example, self._below(own, candidates, left_out))
        return MinedPair(
            query=example.query,
            positive=example.positive,
            negatives=[self._texts.text(one.place) for one in chosen],
            query_id=example.query_id,
            positive_id=example.positive_id,
            negative_ids=[one.passage_id for one in chosen],
            scores=[own, *(one.score for one in chosen)] if own is not None and chosen else [],
            ranks=[one.rank for one in chosen],
            found=found,
            left_out=dict(sorted(left_out.items())),
        )

    def _candidates(
        self, example: Example, hits: Sequence[Hit], left_out: Counter[str]
    ) -> tuple[float | None, list[_Candidate]]:
        """The positive's score, None where it was not found; and what is left by the rules of ids, texts and ranks."""
        query, positive = key_of(example.query), key_of(example.positive)
        own: float | None = None
        left: list[_Candidate] = []
        seen: set[int] = set()
        for rank, hit in enumerate(hits, 1):
            place = self._texts.place(hit.passage_id)
            assert place is not None  # retriever and texts are of one corpus
            text = self._texts.key(place)
            if own is None and (text == positive or hit.passage_id == example.positive_id):
                own = hit.score
            if hit.passage_id == example.query_id or self.positives.has(query, hit.passage_id, text):
                left_out["known positive"] += 1
            elif text == query:
                left_out["same as query"] += 1
            elif text in seen:
                left_out["there twice"] += 1
            else:
                left.append(_Candidate(rank, place, hit.passage_id, hit.score))
            seen.add(text)
        skipped = min(self.options.skip, len(left))
        left_out.update({"skipped ranks": skipped} if skipped else {})
        return own, left[skipped:]

    def _taught(
        self, teacher: CrossEncoder, example: Example, candidates: Sequence[_Candidate]
    ) -> tuple[float, list[_Candidate]]:
        """The positive's score and the candidates with theirs, by the teacher."""
        passages = [example.positive, *(self._texts.text(one.place) for one in candidates)]
        scores = teacher.score([(example.query, text) for text in passages])
        return scores[0], [replace(one, score=score) for one, score in zip(candidates, scores[1:], strict=True)]

    def _below(
        self, own: float | None, candidates: Sequence[_Candidate], left_out: Counter[str]
    ) -> Iterator[_Candidate]:
        """What is left by the rules of scores."""
        options = self.options
        limit = math.inf
        if options.margin is not None or options.relative_margin is not None:
            # The positive, where it was not found, scores no more than the last of them.
            limit = -math.inf if own is None else own
            limit -= max(options.margin or 0.0, (options.relative_margin or 0.0) * abs(limit) if own else 0.0)
        for one in candidates:
            if one.score >= limit:
                left_out["margin"] += 1
            elif not (options.min_score <= one.score <= options.max_score):
                left_out["bounds"] += 1
            else:
                yield one

    def _choose(self, example: Example, candidates: Iterator[_Candidate]) -> list[_Candidate]:
        found, wanted = list(candidates), self.options.negatives
        if self.options.pick == "random" and len(found) > wanted:
            draw = Random(f"{self.options.seed} {key_of(example.query)}")
            found = sorted(draw.sample(found, wanted), key=lambda one: one.rank)
        return found[:wanted]


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
    return _Source(path, form, how, corpus)


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
