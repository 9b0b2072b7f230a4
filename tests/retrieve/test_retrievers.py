"""The protocol: oracle, hybrid, reranker and retrievers of other packages look alike from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, nobody
from slmx.records import Gold, Hit, Question, Ranking
from slmx.retrieve import hybrid, rerank
from slmx.retrieve.hybrid import Hybrid, fuse
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.retrievers import RETRIEVERS, Retriever


def ids(ranking: Ranking) -> list[str]:
    return [hit.passage_id for hit in ranking.hits]


class Fixed:
    """A retriever with one order for every question."""

    def __init__(self, order: Sequence[str], name: str = "fixed") -> None:
        self.name = name
        self._order = order

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "fixed"}

    def search(self, questions: Sequence[Question], k: int, *, listen: Listener = nobody) -> list[Ranking]:
        hits = [Hit(passage_id=p, score=-float(n)) for n, p in enumerate(self._order[:k])]
        return [Ranking(question_id=q.question_id, hits=hits) for q in questions]

    def index_bytes(self) -> int:
        return 0


def check_prefixes(retriever: Retriever, question: Question, most: int) -> None:
    """The first passages and scores of a larger k are those of every smaller one, none comes twice, scores fall."""
    (whole,) = retriever.search([question], most)
    assert len(set(ids(whole))) == len(whole.hits)
    scores = [hit.score for hit in whole.hits]
    assert scores == sorted(scores, reverse=True)
    for k in range(1, most):
        assert retriever.search([question], k)[0].hits == whole.hits[:k]


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


@given(rankings_of_one, st.integers(1, 3), st.integers(1, 60))
def test_a_smaller_k_is_a_prefix_of_a_larger_one_beyond_the_depth(
    orders: list[list[str]], depth: int, rrf_k: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "DEPTH", depth)
        both = Hybrid("both", [Fixed(order) for order in orders], rrf_k)
        question = Question(question_id="q", question="?", answers=[])
        check_prefixes(both, question, 9)
        assert {*ids(both.search([question], 9)[0])} == {p for order in orders for p in order}


def test_what_lies_beyond_the_depth_does_not_lift_a_passage() -> None:
    parts = [Fixed(["x", "y"]), Fixed([*(f"f{n}" for n in range(150)), "y"])]
    question = Question(question_id="q", question="?", answers=[])
    rankings = [ids(Hybrid("both", parts, 60).search([question], k)[0]) for k in (5, 100, 101, 200)]
    assert [ranking[:5] for ranking in rankings] == [["x", "f0", "y", "f1", "f2"]] * 4
    assert [len(ranking) for ranking in rankings] == [5, 100, 101, 152]
    assert rankings[-1][-50:] == [f"f{n}" for n in range(100, 150)]


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
    assert reranked.name == "bm25+tiny-random-reranker"
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


def test_a_reranker_leaves_what_lies_beyond_its_depth(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class ByLength:
        name = "by-length"

        def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [-float(len(text)) for _, text in pairs]

    monkeypatch.setattr(rerank, "DEPTH", 2)
    order = ["p2", "p1", "p5", "p4", "p3"]
    reranked = rerank.Reranked(Fixed(order), ByLength(), corpus)  # type: ignore[arg-type]
    question = Question(question_id="q", question="?", answers=[])
    top = sorted(["p2", "p1"], key=lambda p: len(" ".join(corpus.texts[p])))
    assert ids(reranked.search([question], 5)[0]) == [*top, "p5", "p4", "p3"]
    check_prefixes(reranked, question, 6)
    assert reranked.name == "fixed+by-length"


def test_a_reranker_of_the_hub_is_named_by_its_id_and_not_by_a_commit(
    reranker_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank, "resolve", lambda _model, listen: reranker_folder)
    assert rerank.CrossEncoder("owner/ms-marco-tiny", device="cpu").name == "ms-marco-tiny"


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
