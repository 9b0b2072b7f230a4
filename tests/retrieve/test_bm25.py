"""BM25: one analyser for corpus and questions, Russian and English, cached by content."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from slmx.errors import UsageError
from slmx.events import Notice
from slmx.retrieve.bm25 import Analyser
from slmx.retrieve.opening import open_retriever


def found(retriever: Any, questions: Any, k: int = 5) -> list[list[str]]:
    return [[hit.passage_id for hit in ranking.hits] for ranking in retriever.search(questions, k)]


def test_trap_6_questions_are_stemmed_as_the_corpus_was(corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path)
    assert found(retriever, ask("lamps of keepers", "engines", "towers and rivers")) == [["p1"], ["p2"], ["p3"]]


def test_trap_6_the_analyser_is_part_of_the_fingerprint(corpus: Any, ask: Any, tmp_path: Path) -> None:
    stemmed = open_retriever("bm25", corpus, cache_dir=tmp_path)
    plain = open_retriever("bm25", corpus, cache_dir=tmp_path, language="none")
    assert stemmed.fingerprint()["analyser"]["stemmer"].startswith("snowball")
    assert stemmed.fingerprint()["analyser"] != plain.fingerprint()["analyser"]
    assert len(list((tmp_path / "indexes").iterdir())) == 2
    assert found(plain, ask("engines", "engine")) == [[], ["p2"]]
    assert found(stemmed, ask("engines", "engine")) == [["p2"], ["p2"]]


def test_russian_and_english_in_one_corpus(corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path)
    asked = ask("Кто зажигает лампы на маяках?", "житель столиц", "the keepers' oils")
    assert [hits[0] for hits in found(retriever, asked)] == ["p4", "p5", "p1"]


def test_a_words_script_decides_its_stemmer() -> None:
    analyser = Analyser("auto")
    assert analyser.terms("Ёлки и ЕЛКИ у столицы; running in the towers") == ["елк", "елк", "столиц", "run", "tower"]
    assert Analyser("english").terms("столицы towers") == ["столицы", "tower"]
    assert Analyser("russian").terms("столицы towers") == ["столиц", "towers"]
    assert Analyser("none").terms("The towers") == ["the", "towers"]


def test_an_unknown_language_brings_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        Analyser("rusian")
    assert 'Did you mean "russian"?' in caught.value.hint


def test_the_score_is_lucenes_formula(corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path)
    analyser = Analyser("auto")
    rows = {i: analyser.terms(f"{title} {text}") for i, (title, text) in corpus.texts.items()}
    mean = sum(map(len, rows.values())) / len(rows)
    tf, length, df = rows["p3"].count("tower"), len(rows["p3"]), 1
    idf = math.log(1 + (len(rows) - df + 0.5) / (df + 0.5))
    expected = idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean))
    (ranking,) = retriever.search(ask("tower"), 1)
    assert ranking.hits[0].score == pytest.approx(expected, rel=1e-5)


def test_passages_without_a_common_word_are_not_found(corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path)
    assert found(retriever, ask("nothing matches here", "", "the of a", "oil")) == [[], [], [], ["p1", "p2"]]


def test_smaller_k_is_a_prefix_of_larger_k(corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path)
    (all_of_them,) = found(retriever, ask("oil water stone lamp"), 5)
    for k in range(1, 5):
        assert found(retriever, ask("oil water stone lamp"), k) == [all_of_them[:k]]


def test_the_index_is_found_again_and_a_damaged_one_is_built_again(corpus: Any, ask: Any, tmp_path: Path) -> None:
    first = open_retriever("bm25", corpus, cache_dir=tmp_path)
    walks = corpus.walks
    again = open_retriever("bm25", corpus, cache_dir=tmp_path)
    assert corpus.walks == walks
    assert again.fingerprint() == first.fingerprint()
    assert again.index_bytes() == first.index_bytes() > 0
    (folder,) = (tmp_path / "indexes").iterdir()
    (folder / "data.npy").write_bytes(b"")
    told: list[Any] = []
    mended = open_retriever("bm25", corpus, cache_dir=tmp_path, listen=told.append)
    assert any(isinstance(event, Notice) and "damaged" in event.text for event in told)
    assert found(mended, ask("engine")) == [["p2"]]


def test_trap_5_another_corpus_is_another_index(corpus: Any, ask: Any, tmp_path: Path) -> None:
    open_retriever("bm25", corpus, cache_dir=tmp_path)
    corpus.texts["p6"] = ("Engine", "An engine engine engine.")
    assert found(open_retriever("bm25", corpus, cache_dir=tmp_path), ask("engine"))[0][0] == "p6"


def test_a_corpus_without_words_is_an_error(corpus: Any, tmp_path: Path) -> None:
    corpus.texts = {}
    with pytest.raises(UsageError, match="no words") as caught:
        open_retriever("bm25", corpus, cache_dir=tmp_path)
    assert "--" not in caught.value.hint  # no option of one command: others end here too
    assert not list((tmp_path / "indexes").iterdir())
