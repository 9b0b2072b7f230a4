"""Index folders: whole or absent, searched only by what they were built with, clear when damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmx.data.beir import read_corpus
from slmx.data.datasets import open_dataset
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.retrieve.index import build, open_index
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.search import search


@pytest.fixture
def beir(tmp_path: Path, corpus: Any) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    rows = [{"_id": i, "title": title, "text": text} for i, (title, text) in corpus.texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


@pytest.fixture
def make(tmp_path: Path, beir: Path) -> Callable[..., Any]:
    def call(retriever: str = "bm25", to: str = "index", **options: Any) -> Any:
        places = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}
        return build(str(beir), retriever, tmp_path / to, device="cpu", dtype="float32", **places, **options)

    return call


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Any]:
    def call(query: str, to: str = "index", **options: Any) -> Any:
        return search(tmp_path / to, query, cache_dir=tmp_path / "cache", device="cpu", dtype="float32", **options)

    return call


def test_an_index_is_built_and_searched(make: Any, find: Any, beir: Path) -> None:
    built = make()
    assert built.passages == 5
    assert built.index_bytes > 0
    shutil.rmtree(beir)  # the folder is whole in itself
    answer = find("who lights the lamps?", k=2)
    assert [(hit.rank, hit.passage_id, hit.title) for hit in answer.hits] == [(1, "p1", "Lighthouse")]
    assert answer.hits[0].text == "The lighthouse keeper filled the lamp with oil."
    assert find("лампы и маяки").hits[0].passage_id == "p4"
    assert find("nothing matches here").hits == []


def test_every_part_of_a_hybrid_is_in_the_folder(
    make: Any, find: Any, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "retrievers.yaml").write_text(
        f"tiny: {{retriever: dense, model: {encoder_folder}}}\nboth: {{retriever: hybrid, parts: [bm25, tiny]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    make("both")
    assert sorted(part.name for part in (tmp_path / "index" / "parts").iterdir()) == ["bm25", "tiny"]
    shutil.rmtree(tmp_path / "cache")
    assert len(find("lamp oil", k=4).hits) == 4
    assert not (tmp_path / "cache").exists()


def test_an_index_goes_wherever_a_corpus_is_named_and_is_used_there(
    make: Any, tmp_path: Path, ask: Any, encoder_folder: Path
) -> None:
    make(str(encoder_folder))
    corpus = open_dataset(str(tmp_path / "index"), data_dir=tmp_path, cache_dir=tmp_path / "other")
    retriever = open_retriever(str(encoder_folder), corpus, cache_dir=tmp_path / "other", device="cpu", dtype="float32")
    assert len(retriever.search(ask("oil"), 3)[0].hits) == 3
    assert not (tmp_path / "other" / "indexes").exists()
    assert [p.passage_id for p in read_corpus(tmp_path / "index")] == ["p1", "p2", "p3", "p4", "p5"]


def test_a_reranker_on_top_of_an_index(make: Any, find: Any, reranker_folder: Path) -> None:
    make()
    answer = find("oil water", k=2, reranker=str(reranker_folder))
    assert answer.retriever == "bm25+tiny-random-reranker"
    assert {hit.passage_id for hit in answer.hits} == {"p1", "p2"}


def test_an_existing_folder_is_replaced_only_when_asked(make: Any, find: Any, tmp_path: Path, beir: Path) -> None:
    make()
    with pytest.raises(RefusedError, match="exists") as caught:
        make()
    assert "--overwrite" in caught.value.hint
    (beir / "corpus.jsonl").write_text('{"_id": "x", "title": "", "text": "a lamp"}\n')
    assert make(overwrite=True).passages == 1
    assert [hit.passage_id for hit in find("lamp").hits] == ["x"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "small"]


def test_a_folder_that_is_no_index_is_never_replaced(make: Any, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(RefusedError, match="is no index"):
        make(overwrite=True)
    assert (tmp_path / "index" / "thesis.txt").read_text() == "years of work"


def test_a_failed_build_leaves_nothing(make: Any, tmp_path: Path, beir: Path) -> None:
    (beir / "corpus.jsonl").write_text('{"_id": "x", "title": "", "text": "…"}\n')
    with pytest.raises(UsageError, match="no words"):
        make()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


def test_a_retriever_without_an_index_is_refused(make: Any) -> None:
    with pytest.raises(UsageError, match='"oracle" has no index'):
        make("oracle")


# ------------------------------------------------------------------------------------------------- mismatch


def test_trap_6_another_model_than_the_index_has_is_one_clear_line(
    make: Any, find: Any, tmp_path: Path, encoder_folder: Path, make_encoder: Callable[..., Path]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(encoder_folder, model)
    make(str(model))
    assert find("lamp").hits
    shutil.rmtree(model)
    shutil.copytree(make_encoder(seed=3), model)
    with pytest.raises(SlmxError) as caught:
        find("lamp")
    assert "weights" in caught.value.what
    assert "\n" not in caught.value.what
    assert "tokenizer" not in caught.value.what
    assert "slmx retrieve index" in caught.value.hint
    shutil.rmtree(tmp_path / "index")


def test_trap_6_another_analyser_than_the_index_has_is_one_clear_line(
    make: Any, find: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    monkeypatch.setattr("slmx.retrieve.bm25.VERSION", 99)
    with pytest.raises(SlmxError, match=r"analyser .* differ"):
        find("lamp")


def test_the_language_of_an_index_is_kept(make: Any, find: Any) -> None:
    make(language="none")
    assert find("lamps").hits == []
    assert find("lamp").hits[0].passage_id == "p1"


def test_other_passages_than_the_index_has_are_one_clear_line(make: Any, find: Any, tmp_path: Path) -> None:
    make()
    file = tmp_path / "index" / "corpus.jsonl"
    file.write_text(file.read_text().replace("lamp", "cask"))
    with pytest.raises(SlmxError, match=r"corpus .* differ"):
        find("lamp")


def test_another_number_type_is_no_mismatch(make: Any, find: Any, encoder_folder: Path, tmp_path: Path) -> None:
    make(str(encoder_folder))
    answer = search(tmp_path / "index", "lamp", cache_dir=tmp_path / "cache", device="cpu", dtype="bfloat16", k=5)
    assert [hit.score for hit in answer.hits] == pytest.approx([h.score for h in find("lamp").hits], abs=0.05)


# --------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "name", ["corpus.jsonl", "parts/bm25/data.npy", "parts/bm25/ids.json", "parts/bm25/index.json"]
)
def test_a_missing_or_cut_file_is_named(make: Any, find: Any, tmp_path: Path, name: str) -> None:
    make()
    file = tmp_path / "index" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(SlmxError, match=f"damaged .{name}"):
        find("lamp")
    file.unlink()
    with pytest.raises(SlmxError, match=f"{name} is missing"):
        find("lamp")


def test_a_damaged_head_and_a_foreign_folder(make: Any, find: Any, tmp_path: Path) -> None:
    make()
    head = tmp_path / "index" / "index.json"
    head.write_text("{}")
    with pytest.raises(SlmxError, match="damaged"):
        find("lamp")
    head.unlink()
    with pytest.raises(SlmxError, match="is no index folder") as caught:
        find("lamp")
    assert "slmx retrieve index" in caught.value.hint


def test_a_part_of_an_index_is_not_the_index(make: Any, find: Any) -> None:
    make()
    with pytest.raises(UsageError, match="part of an index"):
        find("lamp", to="index/parts/bm25")


def test_pickled_arrays_are_not_opened(make: Any, tmp_path: Path) -> None:
    make()
    file = tmp_path / "index" / "parts" / "bm25" / "data.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for head in (file.parent / "index.json", tmp_path / "index" / "index.json"):
        content = json.loads(head.read_text())
        name = file.relative_to(head.parent).as_posix()
        content["files"][name] = file.stat().st_size
        head.write_text(json.dumps(content))
    head = tmp_path / "index" / "index.json"
    content = json.loads(head.read_text())
    content["files"]["parts/bm25/index.json"] = (file.parent / "index.json").stat().st_size
    head.write_text(json.dumps(content))
    with pytest.raises(SlmxError, match=r"damaged \(data.npy"):
        open_index(tmp_path / "index", cache_dir=tmp_path / "cache")


def test_an_empty_query_is_refused(make: Any, find: Any) -> None:
    make()
    with pytest.raises(UsageError, match="query is empty"):
        find("  ")


def test_the_commands(make: Any, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from slmx.retrieve.cli import app

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(app, ["index", str(beir), "--retriever", "bm25", "--to", "shelf"])
    assert done.exit_code == 0, done.output
    assert "5 passages indexed for bm25" in done.output
    done = runner.invoke(app, ["search", "shelf", "маяк", "--k", "1"])
    assert done.exit_code == 0, done.output
    assert "Смотритель" in done.output
