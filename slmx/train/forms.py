"""The forms of training folders, told apart by their files; each streams into Examples.

A folder holds one dataset. A reader takes the folder and yields Examples one at a time; a row without a query or a
positive comes as it is and is counted by `slmx.train.pairs`, which knows what to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slmx.data import beir
from slmx.data.stream import rows
from slmx.errors import SlmxError, UsageError
from slmx.records import Record
from slmx.registry import unknown_name
from slmx.retrieve.retrievers import passage_text

ROWS_A_BATCH = 1024  # of a parquet file, in memory at a time


class Example(Record, frozen=True):
    """One training pair: a query, a passage that answers it, and passages that do not.

    Ids are empty where the source has none. `scores` are a teacher's, the positive's first, then one a negative.
    """

    query: str
    positive: str
    negatives: list[str] = []
    query_id: str = ""
    positive_id: str = ""
    negative_ids: list[str] = []
    scores: list[float] = []


@dataclass(frozen=True)
class Form:
    """A form of training folder: which names give it away, and how it is read."""

    about: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Example]]


def detect(folder: Path) -> str:
    """The name of a folder's form.

    Raises:
        UsageError: no such folder, an empty one, or one of no known form; the known ones are named.
    """
    if not folder.exists():
        raise UsageError(f"There is no folder {folder}.", hint="Check --data-dirs; relative paths start here.")
    if folder.is_dir() and not any(folder.iterdir()):
        raise UsageError(f"The folder {folder} is empty.", hint="Put a dataset there, or leave it out of --data-dirs.")
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


# ------------------------------------------------------------------------------------------------ rows of pairs


def _tables(folder: Path) -> list[Path]:
    """The files with rows: the path itself, or a folder's JSONL, JSON and parquet files."""
    if folder.is_file():
        return [folder]
    wanted = ("*.jsonl", "*.jsonl.gz", "*.json", "*.parquet")
    return sorted({file for pattern in wanted for file in folder.glob(pattern)})


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of one file, numbered from 1; SlmxError names a line that is no JSON object."""
    if file.suffix == ".parquet":
        yield from enumerate(_parquet(file), 1)
        return
    for line, raw, _ in rows(file):
        try:
            row = msgspec.json.decode(raw)
        except msgspec.DecodeError as error:
            raise SlmxError(f"{file}, line {line} is not valid JSON: {error}.") from None
        if not isinstance(row, dict):
            raise SlmxError(f"{file}, line {line} is no object.", hint="Each row is an object with a query.")
        yield line, row


def _parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_A_BATCH):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise SlmxError(f"{file} is damaged: {error}.", hint="Fetch it again.") from None


def _first_keys(folder: Path) -> frozenset[str]:
    """The keys of the first row; nothing where there is no readable one."""
    for file in _tables(folder):
        try:
            return frozenset(next(_rows(file))[1])
        except (SlmxError, StopIteration):
            return frozenset()
    return frozenset()


QUERY = ("query", "anchor")
POSITIVE = ("positive", "pos", "positive_passages")
NEGATIVE = ("negatives", "negative", "neg", "negative_passages")


def _fits_pairs(folder: Path) -> bool:
    keys = _first_keys(folder)
    return bool(keys & set(QUERY)) and bool(keys & set(POSITIVE))


def _read_pairs(folder: Path) -> Iterator[Example]:
    for file in _tables(folder):
        for line, row in _rows(file):
            try:
                yield from _pair(row)
            except (TypeError, ValueError) as error:
                hint = "A row has query (or anchor), positive (pos, positive_passages) and, if any, negatives."
                raise SlmxError(f"{file}, line {line} is no pair: {error}.", hint=hint) from None


def _pair(row: Mapping[str, Any]) -> Iterator[Example]:
    """The Examples of one row, one for every positive. Raises TypeError or ValueError where it is no pair."""
    query = _first(row, QUERY)
    positives, negatives = _passages(_first(row, POSITIVE)), _passages(_first(row, NEGATIVE))
    # sentence-transformers numbers further negatives: negative_1, negative_2 …
    negatives += [(str(row[key]), "") for key in sorted(row) if key.startswith("negative_") and key[9:].isdigit()]
    if not isinstance(query, str) or not positives:
        raise ValueError("the query or the positive is missing")
    scores = _scores(row)
    if scores[0] and (len(scores[0]) < len(positives) or len(scores[1]) != len(negatives)):
        raise ValueError("the number of scores is not that of the passages")
    for place, (text, own_id) in enumerate(positives):
        yield Example(
            query=query,
            positive=text,
            negatives=[negative for negative, _ in negatives],
            query_id=str(row.get("query_id", "")),
            positive_id=own_id,
            negative_ids=[negative_id for _, negative_id in negatives],
            scores=[scores[0][place], *scores[1]] if scores[0] else [],
        )


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _passages(value: Any) -> list[tuple[str, str]]:
    """Texts with their ids: a text, a list of texts, or Tevatron's objects with docid, title and text."""
    if value is None:
        return []
    if isinstance(value, str):
        return [(value, "")]
    if not isinstance(value, list):
        raise TypeError(f"a passage is a text or a list, not {type(value).__name__}")
    found = []
    for item in value:
        if isinstance(item, str):
            found.append((item, ""))
        elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
            found.append((f"{item.get('title') or ''} {item['text']}".strip(), str(item.get("docid", ""))))
        else:
            raise TypeError("a passage is a text, or an object with a text")
    return found


def _scores(row: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """A teacher's scores: `scores` (positive first) of slmx, or FlagEmbedding's `pos_scores` and `neg_scores`."""
    if row.get("scores"):
        return [float(row["scores"][0])], [float(score) for score in row["scores"][1:]]
    positive, negative = row.get("pos_scores") or [], row.get("neg_scores") or []
    return [float(score) for score in positive], [float(score) for score in negative]


def _fits_synthetic(folder: Path) -> bool:
    return {"question", "doc_text"} <= _first_keys(folder)


def _read_synthetic(folder: Path) -> Iterator[Example]:
    for file in _tables(folder):
        for line, row in _rows(file):
            question, text = row.get("question"), row.get("doc_text")
            if not isinstance(question, str) or not isinstance(text, str):
                raise SlmxError(f"{file}, line {line}: question and doc_text must be texts.")
            yield Example(query=question, positive=text, positive_id=str(row.get("doc_id", "")))


# ------------------------------------------------------------------------- a corpus, questions and relevance marks


def _fits_beir(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file() and (folder / "qrels" / "train.tsv").is_file()


def _read_beir(folder: Path) -> Iterator[Example]:
    """Every train query with every passage that its marks call relevant."""
    qrels = beir.read_qrels(folder / "qrels" / "train.tsv")
    wanted = {passage for marks in qrels.values() for passage, grade in marks.items() if grade > 0}
    texts = {p.passage_id: passage_text(p) for p in beir.read_corpus(folder) if p.passage_id in wanted}
    for question in beir.read_queries(folder):
        for passage_id, grade in qrels.get(question.question_id, {}).items():
            if grade > 0 and passage_id in texts:
                yield Example(
                    query=question.question,
                    positive=texts[passage_id],
                    query_id=question.question_id,
                    positive_id=passage_id,
                )


def _fits_autorag(folder: Path) -> bool:
    return (folder / "corpus.parquet").is_file() and (folder / "qa.parquet").is_file()


def _read_autorag(folder: Path) -> Iterator[Example]:
    """Every query with each document of its `retrieval_gt`, groups flattened."""
    gold = [(row, [one for group in row["retrieval_gt"] for one in group]) for row in _parquet(folder / "qa.parquet")]
    wanted = {doc_id for _, ids in gold for doc_id in ids}
    texts = {row["doc_id"]: row["contents"] for row in _parquet(folder / "corpus.parquet") if row["doc_id"] in wanted}
    for row, ids in gold:
        for doc_id in ids:
            if doc_id in texts:
                yield Example(
                    query=row["query"], positive=texts[doc_id], query_id=str(row["qid"]), positive_id=str(doc_id)
                )


# ------------------------------------------------------------------------------------------------ independent cropping

CROPPED = "crops"


def _fits_crops(folder: Path) -> bool:
    return (folder / "corpus_train.tsv").is_file() or (folder / "corpus.jsonl").is_file()


def _read_crops(folder: Path) -> Iterator[Example]:
    """Every document as a positive without a query: both spans are cut when the pair is drawn (`slmx.train.pairs`)."""
    if not (folder / "corpus_train.tsv").is_file():
        for passage in beir.read_corpus(folder):
            yield Example(query="", positive=passage_text(passage), positive_id=passage.passage_id)
        return
    from slmx.files import read_lines

    for line, raw in read_lines(folder / "corpus_train.tsv"):
        title, _, abstract = raw.decode(errors="replace").rstrip("\r\n").partition("\t")
        if line > 1 or title.lower() != "title":
            yield Example(query="", positive=f"{title} {abstract}".strip(), positive_id=str(line))


FORMS: dict[str, Form] = {
    "autorag": Form("corpus.parquet and qa.parquet", _fits_autorag, _read_autorag),
    "beir": Form("corpus.jsonl, queries.jsonl and qrels/train.tsv", _fits_beir, _read_beir),
    "crops": Form("corpus_train.tsv, or corpus.jsonl without train marks: random spans", _fits_crops, _read_crops),
    "synthetic": Form("JSONL with question and doc_text", _fits_synthetic, _read_synthetic),
    "pairs": Form("JSONL or parquet with query and positive", _fits_pairs, _read_pairs),
}
