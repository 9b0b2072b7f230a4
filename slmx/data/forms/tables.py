"""Forms whose rows are pairs: JSONL, JSON or parquet with a query and a positive, and InPars' generated questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.forms.example import ABOUT, Example, Form, Reading
from slmx.data.stream import rows
from slmx.errors import SlmxError

ROWS_A_BATCH = 1024  # of a parquet file, in memory at a time
QUERY = ("query", "anchor")
POSITIVE = ("positive", "pos", "positive_passages")
NEGATIVE = ("negatives", "negative", "neg", "negative_passages")


def parquet_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a parquet file, streamed."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_A_BATCH):
            yield from batch.to_pylist()
    except FileNotFoundError:
        raise SlmxError(f"There is no file {file}.", hint="Check the folder and its form (--forms).") from None
    except ArrowInvalid as error:
        raise SlmxError(f"{file} is damaged: {error}.", hint="Fetch it again.") from None


def table_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of one file, numbered from 1; SlmxError names a line that is no JSON object."""
    if file.suffix == ".parquet":
        yield from enumerate(parquet_rows(file), 1)
        return
    for line, raw, _ in rows(file):
        try:
            row = msgspec.json.decode(raw)
        except msgspec.DecodeError as error:
            raise SlmxError(f"{file}, line {line} is not valid JSON: {error}.") from None
        if not isinstance(row, dict):
            raise SlmxError(f"{file}, line {line} is no object.", hint="Each row is an object with a query.")
        yield line, row


def _tables(folder: Path) -> list[Path]:
    """The files with rows: the path itself, or a folder's JSONL, JSON and parquet files."""
    if folder.is_file():
        return [folder]
    wanted = ("*.jsonl", "*.jsonl.gz", "*.json", "*.parquet")
    found = {file for pattern in wanted for file in folder.glob(pattern)}
    return sorted(file for file in found if file.name != ABOUT and not file.name.startswith("."))


def _first_keys(folder: Path) -> frozenset[str]:
    """The keys of the first row; nothing where there is no readable one."""
    for file in _tables(folder):
        try:
            return frozenset(next(table_rows(file))[1])
        except (SlmxError, StopIteration):
            return frozenset()
    return frozenset()


# -------------------------------------------------------------------------------------------------------------- pairs


def _fits_pairs(folder: Path) -> bool:
    keys = _first_keys(folder)
    return bool(keys & set(QUERY)) and bool(keys & set(POSITIVE))


def _read_pairs(folder: Path, _how: Reading) -> Iterator[Example]:
    for file in _tables(folder):
        for line, row in table_rows(file):
            try:
                yield from _pair(row)
            except (TypeError, ValueError) as error:
                hint = "A row has query (or anchor), positive (pos, positive_passages) and, if any, negatives."
                raise SlmxError(f"{file}, line {line} is no pair: {error}.", hint=hint) from None


def _pair(row: Mapping[str, Any]) -> Iterator[Example]:
    """The Examples of one row, one for every positive. Raises TypeError or ValueError where it is no pair."""
    query = _first(row, QUERY)
    positives, negatives = _passages(_first(row, POSITIVE)), _passages(_first(row, NEGATIVE))
    if len(positives) == 1 and as_id(row.get("positive_id")):
        positives = [(positives[0][0], as_id(row["positive_id"]))]
    own_ids = row.get("negative_ids") or []
    if len(own_ids) == len(negatives):
        negatives = [(text, as_id(own)) for (text, _), own in zip(negatives, own_ids, strict=True)]
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
            query_id=as_id(row.get("query_id")),
            positive_id=own_id,
            negative_ids=[negative_id for _, negative_id in negatives],
            scores=[scores[0][place], *scores[1]] if scores[0] else [],
        )


def as_id(value: Any) -> str:
    """An id as a text; null is no id, and 0 is one."""
    return "" if value is None else str(value)


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
            found.append((f"{item.get('title') or ''} {item['text']}".strip(), as_id(item.get("docid"))))
        else:
            raise TypeError("a passage is a text, or an object with a text")
    return found


def _scores(row: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """A teacher's scores: `scores` (positive first) of slmx, or FlagEmbedding's `pos_scores` and `neg_scores`."""
    if row.get("scores"):
        return [float(row["scores"][0])], [float(score) for score in row["scores"][1:]]
    positive, negative = row.get("pos_scores") or [], row.get("neg_scores") or []
    return [float(score) for score in positive], [float(score) for score in negative]


PAIRS = Form("JSONL or parquet with query and positive", _fits_pairs, _read_pairs)


# -------------------------------------------------------------------------------------------------- generated questions


def _fits_synthetic(folder: Path) -> bool:
    return {"question", "doc_text"} <= _first_keys(folder)


def _read_synthetic(folder: Path, _how: Reading) -> Iterator[Example]:
    for file in _tables(folder):
        for line, row in table_rows(file):
            question, text = row.get("question"), row.get("doc_text")
            if not isinstance(question, str) or not isinstance(text, str):
                raise SlmxError(f"{file}, line {line}: question and doc_text must be texts.")
            query_id, doc_id = as_id(row.get("query_id")), as_id(row.get("doc_id"))
            yield Example(query=question, positive=text, query_id=query_id, positive_id=doc_id)


SYNTHETIC = Form("JSONL with question and doc_text", _fits_synthetic, _read_synthetic)
