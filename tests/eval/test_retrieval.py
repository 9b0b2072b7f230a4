"""`slmx eval retrieval`: a folder a pair, written whole, read again when nothing changed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from slmx.data.beir import read_run
from slmx.errors import SlmxError, UsageError
from slmx.eval import retrieval
from slmx.eval.retrieval import RetrievalReport, render, run_retrieval


@pytest.fixture
def small(tmp_path: Path, corpus: Any) -> Path:
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": i, "title": title, "text": text} for i, (title, text) in corpus.texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"_id": "q1", "text": "oil lamp"}, {"_id": "q2", "text": "столица"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp2\t1\nq2\tp5\t1\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, small: Path) -> Any:
    def call(*models: str, **options: Any) -> RetrievalReport:
        places = {"data_dir": tmp_path, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "outputs"}
        return run_retrieval(models, [str(small)], device="cpu", dtype="float32", **places, **options)

    return call


def test_metrics_and_runs_are_written(run: Any, tmp_path: Path, encoder_folder: Path) -> None:
    report = run("bm25", str(encoder_folder))
    encoder = encoder_folder.parent.name  # the folder itself is called "model", which tells nothing
    assert [Path(pair.folder).name for pair in report.pairs] == ["bm25_small", f"{encoder}_small"]
    for pair in report.pairs:
        folder = Path(pair.folder)
        assert folder.parent == tmp_path / "outputs" / "retrieval"
        written = json.loads((folder / "metrics.json").read_text())
        assert written["metrics"] == pair.result.metrics
        assert written["queries"] == 2
        low, high = written["intervals_95"]["ndcg@10"]
        assert low <= written["metrics"]["ndcg@10"] <= high
        assert written["machine"]["cpu_count"] >= 1
        assert {"q1", "q2"} == set(json.loads((folder / "per_query.json").read_text()))
        assert [ranking.question_id for ranking in read_run(folder / "run.trec")] == ["q1", "q2"]
    bm25 = report.pairs[0].result.metrics
    assert bm25["mrr@10"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_finished_pair_is_not_run_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("bm25")
    monkeypatch.setattr(retrieval, "evaluate", None)  # whoever calls it fails
    again = run("bm25")
    assert again.pairs[0].had_finished
    assert msgspec.json.encode(again.pairs[0].result) == msgspec.json.encode(first.pairs[0].result)


def test_another_configuration_gets_a_folder_of_its_own(run: Any, tmp_path: Path) -> None:
    run("bm25")
    other = run("bm25", language="none")
    assert not other.pairs[0].had_finished
    assert Path(other.pairs[0].folder).name.startswith("bm25_small-")
    assert run("bm25", language="none").pairs[0].had_finished
    assert len(list((tmp_path / "outputs" / "retrieval").iterdir())) == 2
    replaced = run("bm25", language="none", overwrite=True)
    assert replaced.pairs[0].folder == other.pairs[0].folder  # its own results are replaced, not the other's
    assert run("bm25").pairs[0].had_finished
    new = run("bm25", language="russian", overwrite=True)
    assert Path(new.pairs[0].folder).name == "bm25_small"


def test_other_content_under_the_same_name_is_run_anew(run: Any, small: Path) -> None:
    run("bm25")
    (small / "qrels" / "test.tsv").write_text("q1\tp1\t1\nq2\tp5\t1\n")
    again = run("bm25")
    assert not again.pairs[0].had_finished
    assert again.pairs[0].result.metrics["mrr@10"] == 1.0


def test_a_run_that_was_killed_is_run_again(run: Any, tmp_path: Path) -> None:
    folder = Path(run("bm25").pairs[0].folder)
    (folder / "metrics.json").unlink()
    again = run("bm25").pairs[0]
    assert not again.had_finished
    assert (Path(again.folder) / "metrics.json").is_file()


def test_what_cannot_be_scored_is_said_before_anything_is_encoded(run: Any, tmp_path: Path) -> None:
    for wrong, options in (("No retriever", {}), ("no qrels", {"split": "dev"}), ("1 or more", {"ks": [0]})):
        with pytest.raises(UsageError, match=wrong):
            run(*(["bm25"] if options else []), **options)
    assert not (tmp_path / "cache").exists()


def test_ids_with_spaces_cannot_stand_in_a_trec_run(run: Any, small: Path) -> None:
    text = (small / "corpus.jsonl").read_text().replace('"p2"', '"p 2"')
    (small / "corpus.jsonl").write_text(text)
    with pytest.raises(SlmxError, match="cannot stand in a TREC run"):
        run("bm25")


def test_the_table_shows_models_by_datasets_and_what_was_left_out(run: Any) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(run("bm25", ks=[10, 100])))
    text = console.export_text()
    for expected in ("nDCG@10", "recall@100", "MRR@10", "MAP", "bm25", "small", "outputs/retrieval/bm25_small"):
        assert expected in text
