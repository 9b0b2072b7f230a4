"""Dense retrieval: passages and questions as vectors, exact search in blocks, nothing approximate.

Exact search is right up to about a million passages; its memory is bounded by the blocks, whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.data.beir import passage_text
from slmx.errors import UsageError
from slmx.events import Listener, Progress, nobody
from slmx.files import hash_value, write_json
from slmx.models.encoders import Encoder, resolve
from slmx.records import Hit, Question, Ranking
from slmx.retrieve.folders import IndexFolder, damaged, find_or_build
from slmx.retrieve.retrievers import NO_CORPUS, Opening, check_k
from slmx.retrieve.topk import merge, top_k_rows
from slmx.retrieve.vectors import VectorStore, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PASSAGES = 16_384  # passages a block
QUESTIONS = 512  # questions a block: with the above, 32 MiB of scores at a time


class Dense:
    """A text encoder and the vectors of a corpus, memory-mapped."""

    def __init__(self, name: str, folder: IndexFolder, encoder: Encoder) -> None:
        self.name = name
        self._folder = folder
        self._encoder = encoder
        self._ids: list[str] = folder.json("ids.json")
        self._vectors: NDArray[np.float32] = folder.array("vectors.npy")
        if self._vectors.shape != (folder.head.passages, folder.head.dimension) or len(self._ids) != len(self._vectors):
            raise damaged(folder.path, "its files are of different indexes")

    def fingerprint(self) -> dict[str, Any]:
        """Weights, tokenizer, pooling, prompts, normalisation, dimension, number type and corpus."""
        return {**self._folder.head.fingerprint, "dimension": self._folder.head.dimension}

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """The k passages with the greatest cosine similarity (or dot product, as the model says)."""
        check_k(k)
        rankings: list[Ranking] = []
        for start in range(0, len(questions), QUESTIONS):
            block = questions[start : start + QUESTIONS]
            vectors = self._encoder.encode_all([q.question for q in block], "query")
            for question, (values, places) in zip(block, self._nearest(vectors, k), strict=True):
                hits = [Hit(passage_id=self._ids[p], score=v) for v, p in zip(values, places, strict=True)]
                rankings.append(Ranking(question_id=question.question_id, hits=hits))
            listen(Progress(f"search {self.name}", len(rankings), len(questions), "questions"))
        return rankings

    def _nearest(self, questions: NDArray[np.float32], k: int) -> Sequence[tuple[list[float], list[int]]]:
        """Values and places of the k best passages for each row of `questions`, shape (questions, dimension)."""
        import numpy as np
        import torch

        if questions.shape[1] != self._vectors.shape[1]:
            raise damaged(self._folder.path, f"{self._vectors.shape[1]} numbers a vector, not {questions.shape[1]}")
        device = self._encoder.device
        asked = torch.from_numpy(questions).to(device)
        best = None
        for start in range(0, len(self._vectors), PASSAGES):
            block = torch.from_numpy(np.array(self._vectors[start : start + PASSAGES])).to(device)
            values, places = top_k_rows(asked @ block.T, k)
            best = merge(best, (values, places + start), k)
        assert best is not None  # an index holds a passage at least
        return list(zip(best[0].tolist(), best[1].tolist(), strict=True))

    def index_bytes(self) -> int:
        """Bytes of the vectors and ids on disk."""
        return self._folder.bytes()


def open_dense(opening: Opening) -> Dense:
    """The registered opener: finds the encoder, then finds or builds the index."""
    preset = opening.preset
    encoder = Encoder(
        resolve(preset.model, preset.package, listen=opening.listen),
        device=opening.device,
        dtype=opening.dtype,
        query_prompt=preset.query_prompt,
        passage_prompt=preset.passage_prompt,
    )
    fingerprint = {"kind": "dense", **encoder.fingerprint(), "corpus": opening.corpus.corpus_hash}

    def fill(folder: Path) -> dict[str, Any]:
        return _build(folder, opening, encoder)

    return Dense(opening.name, find_or_build(opening, "dense", fingerprint, fill), encoder)


def _build(folder: Path, opening: Opening, encoder: Encoder) -> dict[str, Any]:
    """Encode what the store lacks, then write the corpus's vectors in its order."""
    # How a question is worded does not change a passage's vector.
    content = {key: value for key, value in encoder.fingerprint().items() if key != "query_prompt"}
    store = VectorStore(opening.cache_dir / "vectors" / hash_value(content))
    ids, keys = [], []
    for passage in opening.corpus.passages():
        ids.append(passage.passage_id)
        keys.append(digest(passage_text(passage)))
    if not ids:
        raise UsageError("The corpus has no passages to index.", hint=NO_CORPUS)
    missing = {key for key in keys if key not in store}
    if missing:
        texts = (passage_text(passage) for passage in opening.corpus.passages())
        store.encode(texts, encoder, total=len(missing), listen=opening.listen)
    passages, dimension = store.write(folder / "vectors.npy", keys)
    write_json(folder / "ids.json", ids)
    return {"passages": passages, "dimension": dimension}
