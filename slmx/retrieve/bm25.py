"""BM25 over stemmed words (Robertson & Zaragoza 2009, in Lucene's variant), scored by bm25s.

The analyser that cut the corpus into words is stored with the index and cuts the questions too: an index that was built
with a stemmer and is asked without one finds nothing, and no error tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from slmx.data.beir import passage_text
from slmx.errors import UsageError
from slmx.events import Listener, Progress, nobody
from slmx.files import hash_value, write_json
from slmx.records import Hit, Question, Ranking
from slmx.registry import unknown_name
from slmx.retrieve.folders import IndexFolder, damaged, find_or_build, save_array
from slmx.retrieve.retrievers import NO_CORPUS, Opening, check_k
from slmx.retrieve.topk import top_k

VERSION = 1
METHOD = "lucene"
WORD = r"(?u)\b\w\w+\b"
LANGUAGES = {"auto": ("english", "russian"), "english": ("english",), "russian": ("russian",), "none": ()}
EVERY = 1000  # passages or questions between two progress events


class Analyser:
    """Text to terms: lower case, words of two letters or more, stop words out, stems.

    A word's script decides its language, so that a corpus in which Russian and English meet is analysed rightly:
    Cyrillic words get the Russian stemmer (ё is е), all others the English one. "auto" has both; with one language
    named, words of the other script stay as they are; "none" leaves all words as they are.
    """

    def __init__(self, language: str = "auto") -> None:
        if language not in LANGUAGES:
            raise unknown_name("language", language, LANGUAGES)
        from bm25s.stopwords import STOPWORDS_EN, STOPWORDS_RUSSIAN

        lists = {"english": STOPWORDS_EN, "russian": STOPWORDS_RUSSIAN}
        self.languages = LANGUAGES[language]
        self._stopwords = {word.replace("ё", "е") for name in self.languages for word in lists[name]}
        self._find = re.compile(WORD).findall
        self._stems: dict[str, str] = {}

    def describe(self) -> dict[str, Any]:
        """What the terms depend on, for fingerprints: also the stemmer's version, since stems change with it."""
        import Stemmer

        return {
            "version": VERSION,
            "languages": list(self.languages),
            "stemmer": f"snowball {Stemmer.version()}" if self.languages else "",
            "stopwords": hash_value(sorted(self._stopwords))[:16],
            "pattern": WORD,
            "lower": True,
        }

    def terms(self, text: str) -> list[str]:
        """The terms of a text in their order, repeated ones repeated."""
        stems, found = self._stems, []
        for word in self._find(text.lower()):
            stem = stems.get(word)
            if stem is None:
                stem = stems[word] = self._stem(word)
            if stem:
                found.append(stem)
        return found

    def _stem(self, word: str) -> str:
        """The stem of a word; empty for a stop word."""
        plain = word.replace("ё", "е") if "russian" in self.languages else word
        if plain in self._stopwords:
            return ""
        language = "russian" if re.search("[а-я]", plain) else "english"
        return self._stemmers[language](plain) if language in self.languages else plain

    @cached_property
    def _stemmers(self) -> dict[str, Any]:
        import Stemmer

        # Our own dictionary caches every word, so the stemmer's own cache would only cost.
        return {name: Stemmer.Stemmer(name, 0).stemWord for name in self.languages}


class Bm25:
    """A BM25 index, memory-mapped. Passages that share no term with the question are not found at all."""

    def __init__(self, name: str, folder: IndexFolder, analyser: Analyser) -> None:
        from bm25s import BM25

        self.name = name
        self._folder = folder
        self._analyser = analyser
        self._ids: list[str] = folder.json("ids.json")
        terms: list[str] = folder.json("terms.json")
        self._vocabulary = {term: number for number, term in enumerate(terms)}
        self._bm25 = BM25(method=METHOD)
        self._bm25.scores = {part: folder.array(f"{part}.npy") for part in ("data", "indices", "indptr")}
        self._bm25.scores["num_docs"] = len(self._ids)
        self._bm25.nonoccurrence_array = None
        if len(self._ids) != folder.head.passages or len(self._bm25.scores["indptr"]) != len(terms) + 1:
            raise damaged(folder.path, "its files are of different indexes")

    def fingerprint(self) -> dict[str, Any]:
        """Analyser, parameters and corpus."""
        return self._folder.head.fingerprint

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        """The k passages with the highest BM25 score above 0."""
        check_k(k)
        rankings = []
        for number, question in enumerate(questions, 1):
            rankings.append(Ranking(question_id=question.question_id, hits=self._hits(question.question, k)))
            if number % EVERY == 0 or number == len(questions):
                listen(Progress(f"search {self.name}", number, len(questions), "questions"))
        return rankings

    def _hits(self, question: str, k: int) -> list[Hit]:
        terms = [self._vocabulary[term] for term in self._analyser.terms(question) if term in self._vocabulary]
        if not terms:
            return []
        scores = self._bm25.get_scores_from_ids(terms)
        return [Hit(passage_id=self._ids[p], score=float(scores[p])) for p in top_k(scores, k, above=0.0)]

    def index_bytes(self) -> int:
        """Bytes of the index on disk."""
        return self._folder.bytes()


def open_bm25(opening: Opening) -> Bm25:
    """The registered opener: finds or builds the index."""
    analyser = Analyser(opening.preset.language if opening.language == "auto" else opening.language)
    settings = {"k1": opening.preset.k1, "b": opening.preset.b}
    fingerprint = {
        "kind": "bm25",
        "analyser": analyser.describe(),
        "method": METHOD,
        **settings,
        "corpus": opening.corpus.corpus_hash,
    }

    def fill(folder: Path) -> dict[str, Any]:
        return _build(folder, opening, analyser, settings)

    return Bm25(opening.name, find_or_build(opening, "bm25", fingerprint, fill), analyser)


def _build(folder: Path, opening: Opening, analyser: Analyser, settings: dict[str, float]) -> dict[str, Any]:
    """Write the index's files: for every term the passages that hold it and what it adds to their score."""
    from bm25s import BM25

    vocabulary: dict[str, int] = {}
    ids, rows = [], []
    for number, passage in enumerate(opening.corpus.passages(), 1):
        ids.append(passage.passage_id)
        rows.append([vocabulary.setdefault(t, len(vocabulary)) for t in analyser.terms(passage_text(passage))])
        if number % EVERY == 0:
            opening.listen(Progress("index words", number, None, "passages"))
    opening.listen(Progress("index words", len(ids), len(ids), "passages"))
    if not vocabulary:
        raise UsageError("The corpus has no words to index.", hint=NO_CORPUS)
    bm25 = BM25(method=METHOD, **settings)
    bm25.index((rows, vocabulary), create_empty_token=False, show_progress=False)
    for part in ("data", "indices", "indptr"):
        save_array(folder / f"{part}.npy", bm25.scores[part])
    _write_lists(folder, ids, vocabulary)
    return {"passages": len(ids)}


def _write_lists(folder: Path, ids: Iterable[str], terms: Iterable[str]) -> None:
    write_json(folder / "ids.json", list(ids))
    write_json(folder / "terms.json", list(terms))
