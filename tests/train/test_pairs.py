"""Training folders: every form streams into the same pairs, and what cannot be trained on is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmx.data.forms import content, detect
from slmx.data.forms.example import Example
from slmx.errors import SlmxError, UsageError
from slmx.events import Notice
from slmx.files import key_of
from slmx.train.losses import make_batch
from slmx.train.pairs import TrainSet, find_leaks, known_positives, open_sets


def opened(folder: Path, *more: Path, **settings: Any) -> list[TrainSet]:
    return open_sets([folder, *more], cache_dir=folder.parent / "cache", **settings)


def test_forms_are_told_apart_by_their_files(
    pairs_folder: Path, beir_folder: Path, autorag_folder: Path, crops_folder: Path, synthetic_folder: Path
) -> None:
    folders = [pairs_folder, beir_folder, autorag_folder, crops_folder, synthetic_folder]
    assert [detect(folder) for folder in folders] == ["pairs", "beir", "autorag", "crops", "synthetic"]
    assert [len(one) for one in open_sets(folders, cache_dir=pairs_folder.parent / "cache")] == [6, 7, 7, 6, 6]


def test_a_corpus_without_train_marks_is_cropped(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "train.tsv").unlink()
    (one,) = opened(beir_folder)
    assert one.form == "crops"
    assert one.pair(0, 0, 0).example.positive_id == "d0"


def test_beir_pairs_are_the_relevant_train_marks(beir_folder: Path, lines: list[tuple[str, str]]) -> None:
    (one,) = opened(beir_folder)
    pairs = {(e.query_id, e.positive_id) for e in one.examples()}
    assert pairs == {(f"q{n}", f"d{n}") for n in range(6)} | {("q0", "d5")}
    assert next(one.examples()).query == lines[0][0]


@pytest.mark.parametrize(
    ("row", "negatives", "scores"),
    [
        ({"query": "q", "positive": "p"}, [], []),
        ({"query": "q", "positive": "p", "negative": "n"}, ["n"], []),
        ({"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"}, ["n", "m"], []),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [9], "neg_scores": [2]}, ["n"], [9.0, 2.0]),
        ({"query": "q", "positive": "p", "negatives": ["n"], "scores": [1, 0.5]}, ["n"], [1.0, 0.5]),
    ],
)
def test_names_of_columns(
    rows_folder: Callable[..., Path], row: dict[str, Any], negatives: list[str], scores: list[float]
) -> None:
    (one,) = opened(rows_folder("set", row))
    assert list(one.examples()) == [
        Example(query="q", positive="p", negatives=negatives, negative_ids=[""] * len(negatives), scores=scores)
    ]


def test_tevatron_passages_have_ids_and_titles(rows_folder: Callable[..., Path]) -> None:
    passage = {"docid": "7", "title": "T", "text": "text"}
    row = {"query_id": "1", "query": "q", "positive_passages": [passage], "negative_passages": [passage]}
    (one,) = opened(rows_folder("set", row))
    example = one.example(0)
    assert (example.positive, example.positive_id, example.query_id) == ("T text", "7", "1")
    assert example.negatives == ["T text"] and example.negative_ids == ["7"]


def test_empty_texts_and_repeated_pairs_are_left_out_and_counted(rows_folder: Callable[..., Path]) -> None:
    rows = [{"query": "q", "positive": "p"}, {"query": "q ", "positive": "p"}, {"query": " ", "positive": "p"}]
    notices: list[str] = []
    (one,) = opened(
        rows_folder("set", *rows),
        listen=lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
    )
    assert len(one) == 1
    assert one.left_out == {"without a text": 1, "there twice": 1}
    assert any("1 pairs left out (there twice)" in text for text in notices)


def test_a_second_opening_reads_the_cache(pairs_folder: Path) -> None:
    opened(pairs_folder)
    heard: list[object] = []
    (again,) = opened(pairs_folder, listen=heard.append)
    assert not heard and len(again) == 6


def test_crops_depend_on_seed_document_and_pass_alone(crops_folder: Path) -> None:
    (one,) = opened(crops_folder)
    assert one.pair(2, 0, 1) == one.pair(2, 0, 1)
    assert one.pair(2, 0, 1) != one.pair(2, 1, 1)
    assert one.pair(2, 0, 1) != one.pair(2, 0, 2)
    whole = one.example(2).positive
    drawn = one.pair(2, 0, 1).example
    assert drawn.query in whole and drawn.positive in whole
    assert min(len(drawn.query.split()), len(drawn.positive.split())) >= 10


def test_known_positives_join_over_sets(beir_folder: Path, autorag_folder: Path, lines: list[tuple[str, str]]) -> None:
    known = known_positives(opened(beir_folder, autorag_folder))
    assert known[key_of(lines[0][0])] == {key_of(lines[0][1]), key_of(lines[5][1])}
    assert key_of(lines[1][0]) not in known


def test_leaks_are_found_in_queries_and_positives(pairs_folder: Path, lines: list[tuple[str, str]]) -> None:
    leaks = find_leaks(opened(pairs_folder), {"v1": lines[0][0] + " ", "v2": lines[1][1], "v3": "another"})
    assert sorted(leak.query_id for leak in leaks) == ["v1", "v2"]


def test_sets_of_one_name_are_numbered(pairs_folder: Path) -> None:
    assert [one.name for one in opened(pairs_folder, pairs_folder)] == ["pairs", "pairs-2"]


def test_what_cannot_be_read_is_one_clear_line(rows_folder: Callable[..., Path], tmp_path: Path) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    rows_folder("foreign", {"text": "no pair"})
    with pytest.raises(UsageError, match="is empty"):
        opened(empty)
    with pytest.raises(UsageError, match="none of the known forms") as caught:
        opened(foreign)
    assert "autorag" in caught.value.hint
    with pytest.raises(UsageError, match="There is no folder"):
        opened(tmp_path / "absent")
    with pytest.raises(SlmxError, match="no pair to train on"):
        opened(rows_folder("blank", {"query": "", "positive": "p"}))
    with pytest.raises(SlmxError, match="line 2"):
        opened(rows_folder("bad", {"query": "q", "positive": "p"}, {"query": "q"}))
    with pytest.raises(UsageError, match="no form of training data"):
        opened(foreign, forms=["pair"])


def test_gold_passages_of_a_dataset_are_pairs(
    empty_folder: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --data-dirs: the part for training of the dataset in the settings; here of slmx's own sample."""
    import json
    from importlib.resources import files

    from slmx import app

    train = ["train", "retriever", "--model", str(encoder_folder), "--batch-size", "4", "--save-dir", "x", "--dry-run"]
    assert app.run(train) == 2
    told = capsys.readouterr().err
    assert "data/nq/nq_converted_train.json serves, and it is not here" in told and "slmx data process" in told
    source = str(files("slmx") / "sample" / "NQ-open.dev.merged.jsonl")
    assert app.run(["data", "convert", source, "--to", "data/nq/nq_converted.json", "--split", "0.8"]) == 0
    capsys.readouterr()
    assert app.run([*train, "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["sets"]
    assert planned["name"] == "nq_converted_train" and planned["form"] == "gold" and planned["pairs"] > 100
    from slmx.data.datasets import open_dataset

    path = empty_folder / "data" / "nq" / "nq_converted_train.json"
    dataset = open_dataset(str(path), data_dir=empty_folder, cache_dir=empty_folder / ".cache")
    (one,) = open_sets([dataset.folder], cache_dir=empty_folder / ".cache", forms=["gold"])
    gold = {question.question_id: question.gold.at("long") for question in dataset.questions()}
    assert all(example.positive_id in gold[example.query_id] for example in one.examples())
    assert (
        app.run(["--quiet", "train", "retriever", "--save-dir", "x", "--dry-run", "--model", str(encoder_folder)]) == 0
    )


def test_a_null_is_no_id_and_a_zero_is_one(rows_folder: Callable[..., Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    synthetic = [{"question": f"q{n}", "doc_text": f"p{n}", "doc_id": None, "query_id": None} for n in range(3)]
    rows = [{"query": f"a{n}", "positive": f"b{n}", "negatives": ["c"], "negative_ids": [None]} for n in range(3)]
    rows[0]["positive_id"] = rows[0]["query_id"] = 0
    rows[1]["positive_id"] = None
    (tmp_path / "table").mkdir()
    passages = [[{"docid": None, "text": f"e{n}"}] for n in range(3)]
    table = pa.table({"query": ["d0", "d1", "d2"], "query_id": pa.nulls(3, pa.string()), "positive_passages": passages})
    pq.write_table(table, tmp_path / "table" / "a.parquet")
    sets = opened(rows_folder("synthetic", *synthetic), rows_folder("rows", *rows), tmp_path / "table")
    assert [one.form for one in sets] == ["synthetic", "pairs", "pairs"]
    ids = [[(e.query_id, e.positive_id) for e in one.examples()] for one in sets]
    assert ids == [[("", "")] * 3, [("0", "0"), ("", ""), ("", "")], [("", "")] * 3]
    assert all(e.negative_ids == [""] for e in sets[1].examples())
    for one in sets:
        batch = make_batch([one.pair(row, 0, 0) for row in range(3)], {}, 0)
        assert not batch.false_negative.any()


def test_marks_that_name_absent_documents_are_counted(
    beir_folder: Path, autorag_folder: Path, lines: list[tuple[str, str]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("corpus.jsonl", "queries.jsonl"):
        path = beir_folder / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    rows = {"doc_id": [f"d{n}" for n in range(5)], "contents": [None, *(text for _, text in lines[1:5])]}
    pq.write_table(pa.table(rows), autorag_folder / "corpus.parquet")
    one, two = opened(beir_folder, autorag_folder)
    assert len(one) == 5 and one.left_out == {"without a text": 1}  # d5 is gone; q5 asks nothing any more
    assert len(two) == 5 and two.left_out == {"without a text": 2}  # d0 is empty, d5 is gone


def test_autorag_without_its_files_or_columns_is_said(autorag_folder: Path, pairs_folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(SlmxError, match=r"There is no file .*qa\.parquet"):
        opened(pairs_folder, forms=["autorag"])
    pq.write_table(pa.table({"doc_id": ["d0"], "text": ["a"]}), autorag_folder / "corpus.parquet")
    with pytest.raises(SlmxError, match=r"corpus\.parquet has no column contents") as caught:
        opened(autorag_folder)
    assert "doc_id, contents" in caught.value.hint


def test_names_are_never_given_twice(pairs_folder: Path, tmp_path: Path) -> None:
    for name in ("x/pairs-2", "y/pairs"):
        shutil.copytree(pairs_folder, tmp_path / name)
    names = [one.name for one in opened(tmp_path / "x/pairs-2", pairs_folder, tmp_path / "y/pairs")]
    assert names == ["pairs-2", "pairs-3", "pairs-4"]


def test_content_is_what_a_form_reads(beir_folder: Path) -> None:
    before = content(beir_folder)
    (beir_folder / "README.md").write_text("About these questions.")
    (beir_folder / ".DS_Store").write_bytes(b"0")
    shutil.copytree(beir_folder / "qrels", beir_folder / "run" / "checkpoints")
    assert content(beir_folder) == before
    (beir_folder / "qrels" / "train.tsv").write_text("q0\td0\t1\n")
    assert content(beir_folder) != before
