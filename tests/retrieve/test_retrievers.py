"""The protocol: oracle, hybrid, reranker and retrievers of other packages look alike from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from slmx.errors import SlmxError, UsageError
from slmx.events import nobody
from slmx.records import Gold, Hit, Question, Ranking
from slmx.retrieve import rerank
from slmx.retrieve.hybrid import fuse
from slmx.retrieve.retrievers import RETRIEVERS, open_retriever


def ids(ranking: Ranking) -> list[str]:
    return [hit.passage_id for hit in ranking.hits]


# --------------------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize(
    ("level", "expected"), [("document", ["p1", "p2", "p3"]), ("long", ["p2", "p3"]), ("short", ["p3"])]
)
def test_the_oracle_finds_the_gold_passages_of_a_level(
    corpus: Any, tmp_path: Path, level: Any, expected: list[str]
) -> None:
    gold = Gold(document=["p1", "p2", "p3"], long=["p2", "p3"], short=["p3"])
    question = Question(question_id="q", question="?", answers=[], gold=gold)
    without = Question(question_id="r", question="?", answers=[])
    retriever = open_retriever("oracle", corpus, cache_dir=tmp_path, oracle=level)
    first, second = retriever.search([question, without], 5)
    assert ids(first) == expected
    assert second.hits == []
    scores = [hit.score for hit in first.hits]
    assert scores == sorted(set(scores), reverse=True)
    assert [ids(r) for r in retriever.search([question], 1)] == [expected[:1]]
    assert retriever.fingerprint()["level"] == level
    assert retriever.index_bytes() == 0


# --------------------------------------------------------------------------------------------------- hybrid

rankings_of_one = st.lists(
    st.permutations("abcdefg").flatmap(lambda p: st.integers(0, 7).map(lambda n: p[:n])), min_size=1, max_size=4
)


@given(rankings_of_one, st.integers(1, 10), st.integers(1, 100))
def test_fusion_is_the_sum_of_reciprocal_ranks(orders: list[list[str]], k: int, rrf_k: int) -> None:
    rankings = [Ranking(question_id="q", hits=[Hit(passage_id=p, score=1.0) for p in order]) for order in orders]
    fused = fuse(rankings, k, rrf_k)
    expected = {p: sum(1 / (rrf_k + o.index(p) + 1) for o in orders if p in o) for o in orders for p in o}
    assert len(fused.hits) == min(k, len(expected))
    assert [hit.score for hit in fused.hits] == pytest.approx(sorted(expected.values(), reverse=True)[:k])
    for hit in fused.hits:
        assert hit.score == pytest.approx(expected[hit.passage_id])


def test_hybrid_fuses_its_parts_and_smaller_k_is_a_prefix(
    encoder_folder: Path, corpus: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "retrievers.yaml").write_text(
        f"tiny: {{retriever: dense, model: {encoder_folder}}}\n"
        "both: {retriever: hybrid, parts: [bm25, tiny], rrf_k: 7}\n"
        "nested: {retriever: hybrid, parts: [bm25, both]}\n"
        "single: {retriever: hybrid, parts: [bm25]}\n"
    )
    monkeypatch.chdir(tmp_path)
    both = open_retriever("both", corpus, cache_dir=tmp_path, device="cpu")
    parts = [open_retriever(name, corpus, cache_dir=tmp_path, device="cpu") for name in ("bm25", "tiny")]
    questions = ask("oil of the lamp", "столица")
    found = both.search(questions, 4)
    expected = [fuse(pair, 4, 7) for pair in zip(*(part.search(questions, 100) for part in parts), strict=True)]
    assert found == expected
    assert [ids(r) for r in both.search(questions, 2)] == [ids(r)[:2] for r in found]
    assert both.index_bytes() == sum(part.index_bytes() for part in parts)
    assert [part["kind"] for part in both.fingerprint()["parts"]] == ["bm25", "dense"]
    with pytest.raises(UsageError, match="hybrid itself"):
        open_retriever("nested", corpus, cache_dir=tmp_path)
    with pytest.raises(UsageError, match="no two parts"):
        open_retriever("single", corpus, cache_dir=tmp_path)


# ------------------------------------------------------------------------------------------------- reranker


def test_a_reranker_reorders_the_top_by_its_own_scores(
    reranker_folder: Path, corpus: Any, ask: Any, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    options = {"cache_dir": tmp_path, "device": "cpu", "dtype": "float32"}
    plain = open_retriever("bm25", corpus, **options)
    reranked = open_retriever("bm25", corpus, reranker=str(reranker_folder), **options)
    questions = ask("oil water stone", "nothing matches here", "lamp")
    model = CrossEncoder(str(reranker_folder), device="cpu")
    for question, before, after in zip(
        questions, plain.search(questions, 50), reranked.search(questions, 2), strict=True
    ):
        texts = [" ".join(corpus.texts[p]) for p in ids(before)]
        scores = (
            dict(zip(ids(before), model.predict([(question.question, t) for t in texts]), strict=True)) if texts else {}
        )
        expected = sorted(scores, key=lambda p: -scores[p])[:2]
        assert ids(after) == expected
        assert [hit.score for hit in after.hits] == pytest.approx([scores[p] for p in expected], abs=1e-5)
    assert reranked.name == "bm25-tiny-random-reranker"
    assert reranked.fingerprint()["base"] == plain.fingerprint()
    assert reranked.fingerprint()["reranker"]["weights"]


def test_the_reranker_does_not_depend_on_how_questions_are_grouped(
    reranker_folder: Path, corpus: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = open_retriever(
        "bm25", corpus, cache_dir=tmp_path, device="cpu", dtype="float32", reranker=str(reranker_folder)
    )
    questions = ask("oil water stone", "lamp", "engine of the ship")
    together = retriever.search(questions, 5)
    monkeypatch.setattr(rerank, "QUESTIONS", 1)
    assert [ids(r) for r in retriever.search(questions, 5)] == [ids(r) for r in together]


def test_a_classifier_is_no_reranker(two_label_folder: Path, corpus: Any, ask: Any, tmp_path: Path) -> None:
    retriever = open_retriever("bm25", corpus, cache_dir=tmp_path, device="cpu", reranker=str(two_label_folder))
    with pytest.raises(SlmxError, match="2 scores a pair"):
        retriever.search(ask("oil"), 2)


# -------------------------------------------------------------------------------------------------- opening


def test_an_unknown_retriever_brings_the_nearest(corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_retriever("bm52", corpus, cache_dir=tmp_path)
    assert 'Did you mean "bm25"?' in caught.value.hint
    assert "folder" in caught.value.hint


class First:
    """A retriever of another package: always the corpus's first passages."""

    def __init__(self, opening: Any) -> None:
        self.name = opening.name
        self._corpus = opening.corpus

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "first", "corpus": self._corpus.corpus_hash}

    def search(self, questions: Any, k: int, *, listen: Any = nobody) -> list[Ranking]:
        hits = [Hit(passage_id=p.passage_id, score=-float(n)) for n, p in enumerate(self._corpus.passages())]
        return [Ranking(question_id=q.question_id, hits=hits[:k]) for q in questions]

    def index_bytes(self) -> int:
        return 0


def test_a_retriever_of_another_package(
    corpus: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reranker_folder: Path
) -> None:
    monkeypatch.setitem(RETRIEVERS._targets, "first", "first_of_another_package:First")
    import sys
    import types

    module = types.ModuleType("first_of_another_package")
    module.First = First  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "first_of_another_package", module)
    retriever = open_retriever("first", corpus, cache_dir=tmp_path)
    assert ids(retriever.search(ask("?"), 2)[0]) == ["p1", "p2"]
    reranked = open_retriever("first", corpus, cache_dir=tmp_path, device="cpu", reranker=str(reranker_folder))
    assert sorted(ids(reranked.search(ask("?"), 5)[0])) == ["p1", "p2", "p3", "p4", "p5"]
