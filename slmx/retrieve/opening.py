"""A retriever by its name, with its index and, where one is named, a reranker on top."""

from __future__ import annotations

from pathlib import Path

from slmx.events import Listener, nobody
from slmx.records import GoldLevel
from slmx.retrieve.rerank import open_reranked
from slmx.retrieve.retrievers import INDEXED, RETRIEVERS, Corpus, Opening, Retriever, find_preset


def open_retriever(
    name: str,
    corpus: Corpus,
    *,
    cache_dir: Path,
    device: str = "auto",
    dtype: str = "auto",
    reranker: str | None = None,
    language: str = "auto",
    oracle: GoldLevel = "long",
    listen: Listener = nobody,
) -> Retriever:
    """Open a retriever over a corpus; its index is built at need and kept in `cache_dir/indexes/` by content.

    Args:
        name: a preset (oracle, bm25, dense, hybrid, …), a registered kind, or the folder or Hub id of an encoder.
        reranker: a cross-encoder (folder or Hub id) that reorders what is found.
        oracle: which gold passages the oracle returns: document, long or short.

    Raises:
        UsageError: an unknown name, language, device or number type.
        SlmxError: the model is not on this machine and cannot be downloaded.
    """
    from slmx.presets import RetrieverPreset

    if name in RETRIEVERS.names() and name not in ("oracle", *INDEXED):
        own, preset = name, RetrieverPreset.model_construct(retriever=name)  # type: ignore[arg-type]  # of another package
    else:
        own, preset = find_preset(name)
    opening = Opening(
        name=own,
        preset=preset,
        corpus=corpus,
        cache_dir=cache_dir,
        device=device,
        dtype=dtype,
        language=language,
        oracle=oracle,
        listen=listen,
    )
    return open_preset(opening, reranker)


def open_preset(opening: Opening, reranker: str | None = None) -> Retriever:
    """Open what the opening's preset says, with a reranker on top when one is named."""
    retriever: Retriever = RETRIEVERS.load(opening.preset.retriever)(opening)
    if reranker is None:
        return retriever
    return open_reranked(retriever, reranker, opening)
