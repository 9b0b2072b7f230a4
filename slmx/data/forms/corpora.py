"""Forms with a corpus: BEIR folders, AutoRAG's tables, and documents alone, which are cropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmx.data import beir
from slmx.data.beir import passage_text
from slmx.data.forms.example import Example, Form, Reading
from slmx.data.forms.tables import as_id, parquet_rows
from slmx.errors import SlmxError, UsageError
from slmx.files import read_lines
from slmx.records import Passage

# --------------------------------------------------------------------------------------------------------------- BEIR


def _fits_beir(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file() and (folder / "qrels" / "train.tsv").is_file()


def _read_beir(folder: Path, how: Reading) -> Iterator[Example]:
    """Every query of the split with every passage that its marks call relevant; without a text where it is absent."""
    path = folder / "qrels" / f"{how.split}.tsv"
    if not path.is_file():
        raise UsageError(f"{folder} has no {path.name} in qrels.", hint=f"There are: {', '.join(beir.splits(folder))}.")
    qrels = beir.read_qrels(path)
    wanted = {passage for marks in qrels.values() for passage, grade in marks.items() if grade > 0}
    texts = {p.passage_id: passage_text(p) for p in beir.read_corpus(folder) if p.passage_id in wanted}
    for question in beir.read_queries(folder):
        for passage_id, grade in qrels.get(question.question_id, {}).items():
            if grade > 0:
                yield Example(
                    query=question.question,
                    positive=texts.get(passage_id, ""),
                    query_id=question.question_id,
                    positive_id=passage_id,
                )


BEIR = Form("corpus.jsonl, queries.jsonl and qrels/train.tsv", _fits_beir, _read_beir, beir.read_corpus)


# ---------------------------------------------------------------------------------------------------- gold passages


def _read_gold(folder: Path, _how: Reading) -> Iterator[Example]:
    """Every question with each of its gold passages, as `slmx.data.passages` marked them: long answers, else short.

    A passage that is absent has no text.
    """
    gold = {question.question_id: question.gold.at("long") for question in beir.read_queries(folder)}
    wanted = {passage for ids in gold.values() for passage in ids}
    texts = {p.passage_id: passage_text(p) for p in beir.read_corpus(folder) if p.passage_id in wanted}
    for question in beir.read_queries(folder):
        for passage_id in gold[question.question_id]:
            query_id, query = question.question_id, question.question
            yield Example(query=query, positive=texts.get(passage_id, ""), query_id=query_id, positive_id=passage_id)


# Never told apart by the files: the same folder may be there to be evaluated on.
GOLD = Form(
    "a dataset of questions with gold passages, by --forms", lambda _folder: False, _read_gold, beir.read_corpus
)


# ------------------------------------------------------------------------------------------------------------- AutoRAG


def _fits_autorag(folder: Path) -> bool:
    return (folder / "corpus.parquet").is_file() and (folder / "qa.parquet").is_file()


def _read_autorag(folder: Path, _how: Reading) -> Iterator[Example]:
    """Every query with each document of its `retrieval_gt`, groups flattened; without a text where it is absent."""
    gold = [
        (as_id(qid), query or "", [as_id(one) for group in groups or [] for one in group or []])
        for qid, query, groups in _columns(folder / "qa.parquet", "qid", "query", "retrieval_gt")
    ]
    wanted = {doc_id for _, _, ids in gold for doc_id in ids}
    texts = {one.passage_id: one.text for one in _autorag_passages(folder) if one.passage_id in wanted}
    for query_id, query, ids in gold:
        for doc_id in ids:
            yield Example(query=query, positive=texts.get(doc_id, ""), query_id=query_id, positive_id=doc_id)


def _autorag_passages(folder: Path) -> Iterator[Passage]:
    for doc_id, contents in _columns(folder / "corpus.parquet", "doc_id", "contents"):
        yield Passage(passage_id=as_id(doc_id), text=contents or "")


def _columns(file: Path, *names: str) -> Iterator[tuple[Any, ...]]:
    """The named columns of a table, row by row; SlmxError for one that is absent."""
    for row in parquet_rows(file):
        if missing := [name for name in names if name not in row]:
            raise SlmxError(
                f"{file} has no column {', '.join(missing)}.", hint=f"AutoRAG's columns are {', '.join(names)}."
            )
        yield tuple(row[name] for name in names)


AUTORAG = Form("corpus.parquet and qa.parquet", _fits_autorag, _read_autorag, _autorag_passages)


# ------------------------------------------------------------------------------------------------ independent cropping


def _fits_crops(folder: Path) -> bool:
    return (folder / "corpus_train.tsv").is_file() or (folder / "corpus.jsonl").is_file()


def _read_crops(folder: Path, _how: Reading) -> Iterator[Example]:
    """Every document as a positive without a query: both pieces are cut when the pair is drawn (`slmx.data.crop`)."""
    for passage in documents(folder):
        yield Example(query="", positive=passage_text(passage), positive_id=passage.passage_id, title=passage.title)


def documents(folder: Path) -> Iterator[Passage]:
    """The documents of corpus_train.tsv (title, text), else of corpus.jsonl."""
    if not (folder / "corpus_train.tsv").is_file():
        yield from beir.read_corpus(folder)
        return
    for line, raw in read_lines(folder / "corpus_train.tsv"):
        title, _, abstract = raw.decode(errors="replace").rstrip("\r\n").partition("\t")
        if line > 1 or title.lower() != "title":
            yield Passage(passage_id=str(line), title=title, text=abstract)


CROPS = Form("corpus_train.tsv, or corpus.jsonl without train marks: random spans", _fits_crops, _read_crops, documents)
