"""`slmx retrieve index`: an index folder that a user owns, whole in itself.

It holds the passages as `corpus.jsonl`, so it is a BEIR folder too and goes wherever a corpus is named, and an index
for every part of the retriever under `parts/`. Weights are not copied: what searches it must have those it was built
with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmx.data.beir import CorpusRow
from slmx.data.datasets import Dataset, open_dataset
from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.files import check_place, whole_folder, write_jsonl
from slmx.presets import RetrieverPreset
from slmx.records import Passage, Record
from slmx.retrieve.folders import HEAD, PARTS, Head, damaged, read_folder, write_head
from slmx.retrieve.opening import open_preset
from slmx.retrieve.retrievers import INDEXED, Opening, Retriever, find_preset

KIND = "index"


class Built(Record, frozen=True):
    """What was built. Sizes are in bytes."""

    folder: str
    retriever: str
    passages: int
    index_bytes: int
    seconds: float
    fingerprint: dict[str, Any]


def build(
    corpus: str,
    retriever: str,
    to: Path,
    *,
    data_dir: Path,
    cache_dir: Path,
    language: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    words: int = 100,
    overlap: int = 0,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Built:
    """Build the index of a corpus into a folder that appears when it is whole.

    Args:
        corpus: a dataset by name, file or folder; its passages are cut as `words` and `overlap` say where it has none.
        retriever: bm25, dense, hybrid, any other preset of these kinds, or the folder or Hub id of an encoder.

    Raises:
        UsageError: a retriever without an index, or a corpus without passages.
        RefusedError: `to` exists and `overwrite` is false, or it is something else than an index.
    """
    started = time.perf_counter()
    check_place(to, marker=HEAD, overwrite=overwrite)  # before a large source is read for nothing
    name, preset = find_preset(retriever)
    if preset.retriever not in INDEXED:
        raise UsageError(f'The retriever "{name}" has no index.', hint=f"Use one of these kinds: {', '.join(INDEXED)}.")
    source = open_dataset(corpus, data_dir=data_dir, cache_dir=cache_dir, words=words, overlap=overlap, listen=listen)
    if not source.has_passages:
        raise UsageError(f"{source.name} has no passages to index.", hint="Name a folder or file with documents.")
    if preset.model and Path(preset.model).expanduser().is_dir():
        preset = preset.model_copy(update={"model": str(Path(preset.model).expanduser().resolve())})
    with whole_folder(to, marker=HEAD, overwrite=overwrite) as made:
        count = write_jsonl(made / "corpus.jsonl", _rows(source.passages()))
        opening = Opening(
            name=name,
            preset=preset,
            corpus=Dataset(source.name, made, made),
            cache_dir=cache_dir,
            parts=made / PARTS,
            device=device,
            dtype=dtype,
            language=language,
            listen=listen,
        )
        found = open_preset(opening)
        fingerprint, size = found.fingerprint(), found.index_bytes()
        del found  # it holds arrays of the folder open that is about to be renamed
        settings = {"preset": preset.model_dump(mode="json"), "language": language, "corpus": source.name}
        write_head(made, KIND, fingerprint, passages=count, name=name, settings=settings)
    return Built(
        folder=str(to),
        retriever=name,
        passages=count,
        index_bytes=size,
        seconds=time.perf_counter() - started,
        fingerprint=fingerprint,
    )


def _rows(passages: Iterator[Passage]) -> Iterator[CorpusRow]:
    return (CorpusRow(id=p.passage_id, title=p.title, text=p.text, doc_id=p.doc_id) for p in passages)


def open_index(
    folder: Path,
    *,
    cache_dir: Path,
    reranker: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listener = nobody,
) -> tuple[Retriever, Dataset]:
    """Open an index folder for searching: its retriever and its passages.

    Raises:
        SlmxError: it is no index, it is damaged, or the model, the analyser or the passages are not those that it was
            built from; names what differs.
    """
    head = read_folder(folder).head
    name, preset, language = _settings(folder, head)
    corpus = Dataset(name, folder, folder)
    opening = Opening(
        name=name,
        preset=preset,
        corpus=corpus,
        cache_dir=cache_dir,
        parts=folder / PARTS,
        build=False,
        device=device,
        dtype=dtype,
        language=language,
        listen=listen,
    )
    return open_preset(opening, reranker), corpus


def _settings(folder: Path, head: Head) -> tuple[str, RetrieverPreset, str]:
    """The retriever's name, its preset and the language, as they were when the index was built."""
    if head.kind != KIND:
        raise UsageError(f"{folder} is a part of an index.", hint=f"Name the index: {folder.parent.parent}")
    try:
        return head.name, RetrieverPreset.model_validate(head.settings["preset"]), str(head.settings["language"])
    except (KeyError, ValueError) as error:
        raise damaged(folder, f"its settings: {error}") from None
