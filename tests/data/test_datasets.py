from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from slmx.data import beir
from slmx.data.check import check
from slmx.data.datasets import Dataset, open_dataset
from slmx.data.describe import describe, language, spread
from slmx.errors import SlmxError, UsageError
from slmx.events import Notice, Progress
from slmx.records import Hit, Ranking

Write = Callable[..., Path]
Row = Callable[..., dict[str, Any]]


@pytest.fixture
def opened(empty_folder: Path) -> Callable[..., Dataset]:
    def open_(name: str | Path, **options: Any) -> Dataset:
        return open_dataset(str(name), data_dir=empty_folder / "data", cache_dir=empty_folder / "cache", **options)

    return open_


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    """A foreign BEIR folder under the data folder."""
    made = empty_folder / "data" / "beir" / "tiny"
    (made / "qrels").mkdir(parents=True)
    (made / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "title": null, "text": "two", "metadata": {}}\n'
    )
    (made / "queries.jsonl").write_text('{"_id": "q1", "text": "which", "metadata": {"answers": 3}}\n')
    (made / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\tgone\t1\n")
    (made / "qrels" / "dev.tsv").write_text("q1\td2\t1\n")
    return made


def test_a_beir_folder_by_name_and_by_path(opened: Callable[..., Dataset], folder: Path) -> None:
    for name in ("tiny", folder):
        dataset = opened(name)
        assert dataset.name == "tiny" and dataset.has_passages and dataset.stored is None
        assert [(p.passage_id, p.title, p.text) for p in dataset.passages()] == [("d1", "T", "one"), ("d2", "", "two")]
        assert dataset.questions()[0].answers == [] and dataset.questions()[0].metadata == {"answers": 3}
        assert dataset.splits() == ["test", "dev"]
        assert dataset.qrels() == {"q1": {"d1": 2, "gone": 1}} and dataset.qrels("dev") == {"q1": {"d2": 1}}
        with pytest.raises(UsageError, match="test, dev"):
            dataset.qrels("train")
    first = opened("tiny").corpus_hash
    with (folder / "corpus.jsonl").open("a") as out:
        out.write('{"_id": "d3", "text": "three"}\n')
    assert opened("tiny").corpus_hash != first


def test_a_source_is_cut_once_and_found_again(
    opened: Callable[..., Dataset], write_lines: Write, merged_row: Row, empty_folder: Path
) -> None:
    path = write_lines("m.jsonl", [merged_row(n) for n in range(3)])
    dataset = opened(path)
    corpus = {p.passage_id: p for p in dataset.passages()}
    for question in dataset.questions():
        assert question.answers == ["Anna Berg"]
        assert "Anna Berg" in corpus[question.gold.at("long")[0]].text
    assert dataset.qrels().keys() == {"1000", "1001", "1002"}
    stamp = (dataset.folder / "dataset.json").stat().st_mtime_ns
    assert opened(path).folder == dataset.folder
    assert (dataset.folder / "dataset.json").stat().st_mtime_ns == stamp
    assert opened(path, words=50).folder != dataset.folder
    with path.open("a") as out:
        out.write(json.dumps(merged_row(3)) + "\n")
    assert len(opened(path).questions()) == 4
    assert len(list((empty_folder / "cache" / "datasets").iterdir())) == 3


def test_a_dataset_folder_that_slmx_wrote_opens_like_any_other(
    opened: Callable[..., Dataset], write_lines: Write, merged_row: Row, empty_folder: Path
) -> None:
    from slmx.data.passages import build

    path = write_lines("m.jsonl", [merged_row(0)])
    build(path, empty_folder / "made")
    made, cached = opened(empty_folder / "made"), opened(path)
    assert made.questions() == cached.questions() and made.content_hash == cached.content_hash


def test_presets_and_aliases(opened: Callable[..., Dataset], empty_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nq-open is not here.*NQ-open\.dev\.jsonl"):
        opened("nq-open")
    (empty_folder / "data" / "nq").mkdir(parents=True)
    (empty_folder / "data" / "nq" / "NQ-open.dev.jsonl").write_text('{"question": "q", "answer": ["a"]}\n')
    dataset = opened("nq_open")
    assert dataset.name == "nq-open" and not dataset.has_passages and list(dataset.passages()) == []
    (empty_folder / "data" / "simple_qa").mkdir()
    (empty_folder / "data" / "simple_qa" / "simple_qa_test_set.csv").write_text("metadata,problem,answer\n,q,a\n")
    assert opened("local_simple_qa").simple_qa


def test_a_name_is_looked_up_in_the_data_folder_and_then_in_datasets(
    opened: Callable[..., Dataset], folder: Path, empty_folder: Path
) -> None:
    here = empty_folder / "datasets" / "tiny"
    here.mkdir(parents=True)
    (here / "queries.jsonl").write_text('{"_id": "other", "text": "what"}\n')
    assert opened("tiny").path == folder
    folder.rename(folder.with_name("away"))
    assert [q.question_id for q in opened("tiny").questions()] == ["other"]


def test_bad_rows_are_told_of_at_every_opening(
    opened: Callable[..., Dataset], write_lines: Write, merged_row: Row, empty_folder: Path
) -> None:
    from slmx.data.passages import build

    source = write_lines("m.jsonl", [*[merged_row(n) for n in range(30)], "{broken"])
    build(source, empty_folder / "made")
    for name in (source, source, empty_folder / "made"):
        told: list[Notice | Progress] = []
        dataset = opened(name, listen=told.append)
        (warning,) = [e.text for e in told if isinstance(e, Notice) and e.level == "warning"]
        assert warning.startswith("m.jsonl: 1 rows left out, 0 kept")
        assert dataset.left_out == 1 and str(dataset.folder / "errors.jsonl") in warning
        assert (dataset.folder / "errors.jsonl").is_file()


def test_a_sound_or_foreign_dataset_warns_of_nothing(
    opened: Callable[..., Dataset], write_lines: Write, merged_row: Row, folder: Path
) -> None:
    for name in (write_lines("m.jsonl", [merged_row(0)]), folder):
        told: list[Notice | Progress] = []
        assert opened(name, listen=told.append).left_out == 0
        assert not [e for e in told if isinstance(e, Notice) and e.level == "warning"]


def test_two_questions_with_one_id_are_an_error(
    opened: Callable[..., Dataset], folder: Path, empty_folder: Path
) -> None:
    with (folder / "queries.jsonl").open("a") as out:
        out.write('{"_id": "q1", "text": "another"}\n')
    with pytest.raises(SlmxError, match=r"queries\.jsonl.*1 ids stand at more than one question: q1"):
        opened("tiny").questions()
    assert states("tiny", empty_folder)["question ids twice"] == "fail"


def test_simple_qa_stays_simple_qa_in_every_form(
    opened: Callable[..., Dataset], write_lines: Write, empty_folder: Path
) -> None:
    from slmx.data.convert import convert
    from slmx.data.passages import build

    source = write_lines("test.csv", ["metadata,problem,answer,documents", '"{}",Who?,Anna,"[\'By Anna.\']"'])
    converted = empty_folder / "converted.json"
    convert(source, converted)
    for number, path in enumerate((source, converted)):
        build(path, empty_folder / f"made{number}")
        assert opened(path).simple_qa and opened(empty_folder / f"made{number}").simple_qa


def test_other_sources_are_not_graded_like_simple_qa(
    opened: Callable[..., Dataset], write_lines: Write, folder: Path
) -> None:
    assert not opened(write_lines("o.jsonl", [{"question": "q", "answer": ["a"]}])).simple_qa
    assert not opened(folder).simple_qa


def test_an_unknown_name_says_what_there_is_and_where_to_put_it(opened: Callable[..., Dataset], folder: Path) -> None:
    with pytest.raises(UsageError, match='Did you mean "tiny"') as caught:
        opened("tinyy")
    assert "beir/tinyy/corpus.jsonl" in caught.value.hint and "tinyy.zip" in caught.value.hint


def test_too_many_bad_rows_give_no_dataset(opened: Callable[..., Dataset], write_lines: Write) -> None:
    path = write_lines("o.jsonl", [{"question": "q", "answer": ["a"]}, {"question": "r", "answer": []}])
    with pytest.raises(SlmxError, match="1 of 2 rows"):
        opened(path)


# ---------------------------------------------------------------------------------------------------------------- BEIR

IDS = st.text(alphabet="abcXYZ019-_#é", min_size=1, max_size=8)


@given(st.dictionaries(IDS, st.dictionaries(IDS, st.integers(-1, 3), min_size=1, max_size=4), max_size=5))
@settings(max_examples=60, deadline=None)
def test_qrels_come_back_in_both_forms(tmp_path_factory: pytest.TempPathFactory, qrels: beir.Qrels) -> None:
    folder = tmp_path_factory.mktemp("q")
    for trec in (False, True):
        beir.write_qrels(folder / "q", qrels, trec=trec)
        assert beir.read_qrels(folder / "q") == qrels


def test_bad_qrels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    for text in ("q\td\n", "a\tb\tc\nq\td\tx\n", "q\td\t1\nq\td\t2\n"):
        path.write_text(text)
        with pytest.raises(SlmxError, match="line"):
            beir.read_qrels(path)


def test_trec_runs_come_back(tmp_path: Path) -> None:
    runs = [Ranking(question_id="q", hits=[Hit(passage_id="b", score=0.1 + 0.2), Hit(passage_id="a", score=-1e-9)])]
    beir.write_run(tmp_path / "r", runs, "my run")
    assert (tmp_path / "r").read_text().splitlines()[0] == "q Q0 b 1 0.30000000000000004 my-run"
    assert beir.read_run(tmp_path / "r") == runs


# ---------------------------------------------------------------------------------------------------- check, describe


def states(path: Path | str, folder: Path) -> dict[str, str]:
    found = check([str(path)], data_dir=folder / "data", cache_dir=folder / "cache")
    return {line.what: line.state for line in found.lines}


def test_check_of_a_sound_source(write_lines: Write, merged_row: Row, empty_folder: Path) -> None:
    found = states(write_lines("m.jsonl", [merged_row(n) for n in range(3)]), empty_folder)
    assert set(found.values()) == {"ok"} and "questions whose gold passages hold an answer" in found


def test_check_counts_qrels_that_name_absent_documents(folder: Path, empty_folder: Path) -> None:
    found = states("tiny", empty_folder)
    assert found["qrels test: passages not in the corpus"] == "warn"
    assert found["qrels dev: passages not in the corpus"] == "ok"


def test_check_without_names_takes_what_is_there(folder: Path, empty_folder: Path) -> None:
    found = check([], data_dir=empty_folder / "data", cache_dir=empty_folder / "cache")
    assert {line.dataset for line in found.lines} >= {str(folder)}


def test_check_fails_on_what_cannot_be_used(folder: Path, empty_folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as out:
        out.write('{"_id": "d1", "text": ""}\n')
    found = check([str(folder)], data_dir=empty_folder / "data", cache_dir=empty_folder / "cache")
    assert {(x.what, x.state) for x in found.lines} >= {("passage ids twice", "fail"), ("empty passages", "warn")}
    with pytest.raises(SlmxError, match="checks failed"):
        found.check()
    with (folder / "corpus.jsonl").open("a") as out:
        out.write("{broken\n")
    assert states(folder, empty_folder) | {"readable": "fail"} == states(folder, empty_folder)


def test_describe_a_simple_qa_file(tmp_path: Path, write_lines: Write) -> None:
    meta = "{'topic': 'Art', 'answer_type': 'Person'}"
    path = write_lines(
        "s.csv",
        [
            "metadata,problem,answer,documents",
            f"\"{meta}\",Who was it?,Anna Berg,\"['By anna berg.', 'two words']\"",
            f'"{meta}",Кто это?,Joan,"[\'Joanna\']"',
            f'"{meta}",Who?,Nobody,',
        ],
    )
    found = describe(str(path), data_dir=tmp_path)
    assert (found.questions, found.without_documents) == (3, 1)
    assert (found.found_as_string, found.found_on_words) == (2, 1)
    assert found.documents_a_question == spread([2, 1, 0]) and found.document_words.max == 3
    assert found.topics == {"Art": 3} and found.languages == {"en": 2, "ru": 1}


def test_spread_and_language() -> None:
    assert spread([]).n == 0
    found = spread(range(1, 101))
    assert (found.mean, found.median, found.p95, found.max) == (50.5, 50.5, 95, 100)
    assert [language(t) for t in ("hello", "привет, world мир", "12?")] == ["en", "ru", "other"]
