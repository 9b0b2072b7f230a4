"""MS MARCO as sentence-transformers publishes it: a collection, queries, mined negatives, and a teacher's scores.

Passages and queries are read by id out of memory-mapped copies in the cache, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.forms.example import Example, Form, Reading
from slmx.data.forms.scores import open_scores
from slmx.data.passage_texts import Texts, open_texts
from slmx.errors import SlmxError
from slmx.files import hash_file, read_lines
from slmx.records import Passage

MARGIN = 3.0  # a negative's score is at most the lowest positive's less this: else it may well be an answer
NEGATIVES = 32  # a query, over all systems: memory and disk are bounded, and a step uses a few
COLLECTION = "collection.tsv"
MINED = ("msmarco-hard-negatives.jsonl.gz", "msmarco-hard-negatives.jsonl")


class Row(msgspec.Struct):
    """A line of the hard negatives: positives, and by mining system what it found."""

    qid: int | str
    pos: list[int | str | dict[str, Any]]
    neg: dict[str, list[int | str | dict[str, Any]]]


@dataclass(frozen=True)
class Tsv:
    """A file of `id<TAB>text` lines as passages."""

    path: Path

    @cached_property
    def corpus_hash(self) -> str:
        """By content."""
        return hash_file(self.path)

    def passages(self) -> Iterator[Passage]:
        """Each line; SlmxError names one without a tab."""
        for line, raw in read_lines(self.path):
            own, tab, text = raw.decode(errors="replace").rstrip("\r\n").partition("\t")
            if not tab:
                raise SlmxError(f"{self.path}, line {line} has no tab.", hint="A line is: id, tab, text.")
            yield Passage(passage_id=own.strip(), text=text)


def _queries(folder: Path) -> Path | None:
    places = (folder / "queries" / "queries.train.tsv", folder / "queries.train.tsv")
    return next((path for path in places if path.is_file()), None)


def _mined(folder: Path) -> Path | None:
    return next((folder / name for name in MINED if (folder / name).is_file()), None)


def _scores(folder: Path) -> Path | None:
    return next(iter(sorted([*folder.glob("*scores*.pkl*"), *folder.glob("*scores*.pickle*")])), None)


def _fits(folder: Path) -> bool:
    return (folder / COLLECTION).is_file() and _queries(folder) is not None and _mined(folder) is not None


def _read(folder: Path, how: Reading) -> Iterator[Example]:
    """Every query with each of its positives, and the negatives that its scores allow."""
    mined, queries = _mined(folder), _queries(folder)
    if mined is None or queries is None:
        raise SlmxError(f"{folder} lacks queries or hard negatives.", hint=MSMARCO.about)
    asked, texts = (open_texts(Tsv(path), how.cache_dir) for path in (queries, folder / COLLECTION))
    scored = _scores(folder)
    scores = open_scores(scored, how.cache_dir) if scored is not None else None
    decoder = msgspec.json.Decoder(Row)
    for line, raw in read_lines(mined):
        where = f"{mined}, line {line}"
        try:
            row = decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise SlmxError(f"{where} has no qid, pos and neg: {error}.") from None
        query = _text(asked, str(row.qid), where, queries)
        own = scores.of(_number(row.qid, where)) if scores is not None else None
        positives = [_id(one) for one in row.pos]
        negatives = _choose(row, positives, own, where)
        for positive in positives:
            told = own is not None and _number(positive, where) in own
            yield Example(
                query=query,
                positive=_text(texts, positive, where, folder / COLLECTION),
                negatives=[_text(texts, negative, where, folder / COLLECTION) for negative in negatives],
                query_id=str(row.qid),
                positive_id=positive,
                negative_ids=negatives,
                scores=[own[int(pid)] for pid in (positive, *negatives)] if own and told and negatives else [],
            )


def _choose(row: Row, positives: list[str], scores: Mapping[int, float] | None, where: str) -> list[str]:
    """Negatives from all systems in turn, the first of each first; with scores only those that MARGIN allows."""
    limit = None
    if scores is not None:
        known = [scores[number] for number in (_number(pid, where) for pid in positives) if number in scores]
        if not known:
            return []
        limit = min(known) - MARGIN
    found: dict[str, None] = {}
    lists = [[_id(one) for one in ranked] for ranked in row.neg.values()]
    for rank in range(max(map(len, lists), default=0)):
        for ranked in lists:
            if rank >= len(ranked) or len(found) == NEGATIVES or ranked[rank] in positives:
                continue
            if limit is None or scores is None or scores.get(_number(ranked[rank], where), limit + 1) <= limit:
                found[ranked[rank]] = None
    return list(found)


def _id(value: int | str | dict[str, Any]) -> str:
    """A passage's id; older files have an object with `pid` in its place."""
    return str(value.get("pid", "") if isinstance(value, dict) else value)


def _number(value: int | str, where: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise SlmxError(f"{where}: the id {value!r} is no whole number, and the scores' ids are.") from None


def _text(texts: Texts, own: str, where: str, file: Path) -> str:
    place = texts.place(own)
    if place is None:
        raise SlmxError(f"{where}: {own!r} is not in {file}.", hint="Do these files belong together?")
    return texts.text(place)


def _passages(folder: Path) -> Iterator[Passage]:
    return Tsv(folder / COLLECTION).passages()


ABOUT = "collection.tsv, queries/queries.train.tsv and msmarco-hard-negatives.jsonl.gz"
MSMARCO = Form(ABOUT, _fits, _read, _passages)
