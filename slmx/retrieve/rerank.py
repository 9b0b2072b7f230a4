"""A cross-encoder that reorders what another retriever found: slower than vectors, and it reads question and passage
together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmx.data.beir import passage_text
from slmx.errors import SlmxError
from slmx.events import Listener, Progress, nobody
from slmx.models.encoders import content, load_folder, resolve
from slmx.records import Hit, Question, Ranking
from slmx.retrieve.retrievers import Corpus, Opening, Retriever, check_k, find_passages, model_name

VERSION = 1
ORDER = 2  # raised when the same scores come to give another ranking
DEPTH = 50  # places that are read again, whatever k is
QUESTIONS = 64  # questions whose pairs are sorted and scored together
BATCH = 32  # pairs a batch


class CrossEncoder:
    """A sentence-transformers cross-encoder (folder or Hub id) with one score a pair. Loaded at the first pair."""

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "auto", listen: Listener = nobody) -> None:
        from slmx.models.device import pick_device, pick_dtype

        self.name = model_name(model)
        self.folder: Path = resolve(model, listen=listen)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self._content = content(self.folder)
        self._model: Any = None

    def fingerprint(self) -> dict[str, Any]:
        """Weights, configuration, tokenizer, number type."""
        from slmx.models.device import dtype_name

        return {"version": VERSION, **self._content, "dtype": dtype_name(self.dtype)}

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """One number a (question, passage) pair, fp32, greater for better; independent of the order of the pairs."""
        self._load()
        scores = self._model.predict(list(pairs), batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
        return [float(score) for score in scores.float().cpu()]

    def _load(self) -> None:
        if self._model is not None:
            return
        from sentence_transformers import CrossEncoder as Library

        hint = "Give the folder or Hub id of a sentence-transformers CrossEncoder with one label."
        self._model = load_folder(
            Library, self.folder, device=self.device, dtype=self.dtype, kind="cross-encoder", hint=hint
        )
        if self._model.num_labels != 1:
            raise SlmxError(
                f"{self.folder} gives {self._model.num_labels} scores a pair; a reranker gives one.",
                hint="Give a cross-encoder that was trained to rank, with num_labels 1.",
            )


class Reranked:
    """The top `DEPTH` of another retriever's rankings in a cross-encoder's order; below it, they are as they were.

    Both are named: `bm25+ms-marco-MiniLM-L6-v2`.
    """

    def __init__(self, base: Retriever, reranker: CrossEncoder, corpus: Corpus) -> None:
        self.name = f"{base.name}+{reranker.name}"
        self._base = base
        self._reranker = reranker
        self._corpus = corpus

    def fingerprint(self) -> dict[str, Any]:
        """The base's fingerprint, the cross-encoder's, and how deep it reads."""
        reranker = self._reranker.fingerprint()
        base = self._base.fingerprint()
        return {"kind": "reranked", "version": ORDER, "depth": DEPTH, "base": base, "reranker": reranker}

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """The k best by the cross-encoder's score of the base's top `DEPTH`; a larger k gets what the base has next.

        Those are scored 1, 2, 3 … below the last that was read again, since the base's own scores are of another scale.
        """
        check_k(k)
        found = self._base.search(questions, max(k, DEPTH), listen=listen)
        passages = find_passages(self._corpus, {hit.passage_id for ranking in found for hit in ranking.hits[:DEPTH]})
        texts = {passage_id: passage_text(passage) for passage_id, passage in passages.items()}
        rankings: list[Ranking] = []
        for start in range(0, len(questions), QUESTIONS):
            block = list(zip(questions[start : start + QUESTIONS], found[start : start + QUESTIONS], strict=True))
            pairs = [(q.question, texts[hit.passage_id]) for q, r in block for hit in r.hits[:DEPTH]]
            scores = iter(self._reranker.score(pairs))
            for _, ranking in block:
                scored = [Hit(passage_id=hit.passage_id, score=next(scores)) for hit in ranking.hits[:DEPTH]]
                best = sorted(scored, key=lambda hit: -hit.score)
                below = enumerate(ranking.hits[DEPTH:], 1)
                best += [Hit(passage_id=hit.passage_id, score=best[-1].score - place) for place, hit in below]
                rankings.append(Ranking(question_id=ranking.question_id, hits=best[:k]))
            listen(Progress(f"rerank {self._base.name}", len(rankings), len(questions), "questions"))
        return rankings

    def index_bytes(self) -> int:
        """Bytes of the base's index."""
        return self._base.index_bytes()


def open_reranked(base: Retriever, model: str, opening: Opening) -> Reranked:
    """Put the cross-encoder `model` (folder or Hub id) on top of an open retriever."""
    reranker = CrossEncoder(model, device=opening.device, dtype=opening.dtype, listen=opening.listen)
    return Reranked(base, reranker, opening.corpus)
