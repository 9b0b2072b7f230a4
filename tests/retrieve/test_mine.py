"""Hard negatives: what the rules promise holds for every row, and a killed run ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmx import app
from slmx.data.datasets import open_dataset
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.retrieve import mine as module
from slmx.retrieve.mine import Mined, mine
from slmx.retrieve.negatives import MineOptions
from slmx.retrieve.opening import open_retriever
from slmx.signals import Stop
from slmx.train.pairs import open_sets

WORDS = ["harbour", "lighthouse", "engine", "tower", "stone", "builder", "water", "river", "keeper", "lamp", "oil"]
WORDS += ["ship", "captain", "rope", "sail"]
QUERIES = 12


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BEIR folder: passages of random words, one of them there twice; each query is words of its first positive."""
    draw, made = random.Random(1), tmp_path / "made"
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(60)]
    texts.append(texts[0])
    write(made / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)])
    queries = [{"_id": f"q{n}", "text": " ".join(texts[n].split()[:5])} for n in range(QUERIES)]
    queries.append({"_id": "d7", "text": texts[7]})  # its own document has its id, and its text
    write(made / "queries.jsonl", queries)
    marks = [f"q{n}\td{n}\t1\n" for n in range(QUERIES)] + ["q0\td20\t1\n", "d7\td8\t1\n"]
    (made / "qrels").mkdir()
    (made / "qrels" / "train.tsv").write_text("".join(marks), encoding="utf-8")
    (made / "qrels" / "test.tsv").write_text("q1\td30\t1\n", encoding="utf-8")
    return made


@pytest.fixture
def asked(folder: Path, tmp_path: Path) -> Callable[..., MineOptions]:
    def make(**settings: Any) -> MineOptions:
        plain = {"source": str(folder), "to": tmp_path / "out", "data_dir": tmp_path, "cache_dir": tmp_path / "cache"}
        return MineOptions(**{**plain, "k": 30, "negatives": 4, "device": "cpu", "dtype": "float32", **settings})

    return make


def rows_of(mined: Mined) -> list[dict[str, Any]]:
    lines = (Path(mined.folder) / "mined.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("retriever", ["bm25", "encoder"])
@pytest.mark.parametrize("settings", [{"relative_margin": 0.1}, {"margin": 0.02, "skip": 2}, {"pick": "random"}])
def test_the_rules_hold_for_every_row(
    folder: Path,
    asked: Callable[..., MineOptions],
    encoder_folder: Path,
    retriever: str,
    settings: dict[str, Any],
) -> None:
    name = str(encoder_folder) if retriever == "encoder" else retriever
    options = asked(retriever=name, **settings)
    mined = mine(options, stop=Stop())
    dataset = open_dataset(str(folder), data_dir=folder, cache_dir=options.cache_dir)
    texts = {passage.passage_id: passage.text for passage in dataset.passages()}
    questions = {question.question_id: question for question in dataset.questions()}
    ranks = open_retriever(name, dataset, cache_dir=options.cache_dir, device="cpu", dtype="float32")
    qrels = dataset.qrels("train")
    judged = [question for question in questions.values() if question.question_id in qrels]
    rankings = {found.question_id: found.hits for found in ranks.search(judged, options.k)}
    rows = rows_of(mined)
    assert [(row["query_id"], row["positive_id"]) for row in rows] == [
        (question, passage) for question in questions for passage in qrels.get(question, {})
    ]
    for row in rows:
        scores = {hit.passage_id: hit.score for hit in rankings[row["query_id"]]}
        known = {texts[own] for own in qrels[row["query_id"]]}
        allowed = [p for p in scores if texts[p] not in known | {row["query"]} and p != row["query_id"]]
        allowed = [p for p in allowed if all(texts[p] != texts[q] for q in list(scores)[: list(scores).index(p)])]
        allowed = allowed[options.skip :]
        own = scores.get(row["positive_id"])
        limit = float("-inf") if own is None else own
        if own is not None:
            limit -= max(options.margin or 0, (options.relative_margin or 0) * abs(own))
        allowed = [p for p in allowed if scores[p] < limit]
        chosen = row.get("negative_ids", [])
        assert len(chosen) == min(options.negatives, len(allowed))
        assert set(chosen) <= set(allowed) if options.pick == "random" else chosen == allowed[: options.negatives]
        assert row.get("negatives", []) == [texts[p] for p in chosen]
        if chosen:
            assert row["scores"] == pytest.approx([own, *(scores[p] for p in chosen)], rel=1e-5)
            assert [list(scores)[rank - 1] for rank in row["ranks"]] == chosen
    assert mined.negatives == sum(len(row.get("negatives", [])) for row in rows) > 0
    assert mined.left_out["known positive"] > 0


def test_any_score_takes_what_scores_above_the_positive(asked: Callable[..., MineOptions]) -> None:
    mined = mine(asked(margin=None, relative_margin=None), stop=Stop())
    assert mined.with_negatives == mined.pairs
    bounded = mine(asked(to=asked().to.with_name("b"), relative_margin=None, max_score=1.0), stop=Stop())
    assert bounded.left_out["bounds"] > 0
    assert all(score <= 1.0 for row in rows_of(bounded) for score in row.get("scores", [0, 0])[1:])


def test_trainers_read_it_with_all_ids_and_scores(asked: Callable[..., MineOptions], tmp_path: Path) -> None:
    mined = mine(asked(), stop=Stop())
    (one,) = open_sets([Path(mined.folder)], cache_dir=tmp_path / "cache")
    assert one.form == "pairs" and one.negatives == one.scored == mined.with_negatives
    assert len(one) == mined.pairs
    example = next(example for example in one.examples() if example.negatives)
    assert example.query_id.startswith("q") and example.positive_id.startswith("d")
    assert len(example.negative_ids) == len(example.negatives) == len(example.scores) - 1


def test_pairs_without_a_corpus_are_mined_among_their_positives(
    asked: Callable[..., MineOptions], tmp_path: Path
) -> None:
    rows = [
        {"query": f"{WORDS[n]} {WORDS[n + 1]}", "positive": f"{WORDS[n]} {WORDS[n + 1]} and water"} for n in range(8)
    ]
    write(tmp_path / "pairs" / "a.jsonl", rows)
    mined = mine(asked(source=str(tmp_path / "pairs")), stop=Stop())
    assert mined.form == "pairs" and mined.passages == 8 and mined.found == 8
    positives = {row["positive"] for row in rows}
    for row in rows_of(mined):
        assert set(row.get("negatives", [])) <= positives - {row["positive"]}


def test_a_teacher_decides_and_its_scores_are_written(
    asked: Callable[..., MineOptions], reranker_folder: Path, folder: Path
) -> None:
    mined = mine(asked(teacher=str(reranker_folder), relative_margin=0.0, k=10), stop=Stop())
    from slmx.retrieve.rerank import CrossEncoder

    teacher = CrossEncoder(str(reranker_folder), device="cpu", dtype="float32")
    rows = [row for row in rows_of(mined) if row.get("negatives")]
    assert rows
    for row in rows[:4]:
        again = teacher.score([(row["query"], text) for text in (row["positive"], *row["negatives"])])
        assert row["scores"] == pytest.approx(again, abs=1e-4)
        assert all(score < row["scores"][0] for score in row["scores"][1:])


def test_a_stopped_run_goes_on_to_the_same_bytes(
    asked: Callable[..., MineOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    whole = mine(asked(to=tmp_path / "whole"), stop=Stop())
    stop = Stop()

    def after_two(event: Any) -> None:
        if getattr(event, "task", "") == "mine" and event.done == 6:
            stop.signal = signal.SIGTERM

    with pytest.raises(SlmxError, match="Stopped after 6 of") as caught:
        mine(asked(), stop=stop, listen=after_two)
    assert caught.value.code == 143
    journal = asked().to / ".rows.part"
    with journal.open("ab") as out:
        out.write(b'{"query":"torn')
    heard: list[str] = []
    again = mine(asked(), stop=Stop(), listen=lambda event: heard.append(getattr(event, "text", "")))
    assert any(text.startswith("Going on after 6 of") for text in heard)
    for name in ("mined.jsonl", "about.json"):
        assert (Path(again.folder) / name).read_bytes() == (Path(whole.folder) / name).read_bytes()
    assert not journal.exists()
    assert (
        mine(asked(), stop=Stop(), listen=lambda event: heard.append(getattr(event, "text", ""))).pairs == again.pairs
    )
    assert heard[-1].endswith("is finished; nothing was done.")


def test_killed_by_the_system_it_goes_on(folder: Path, tmp_path: Path) -> None:
    """kill -9 while batches are being written: the second run gives what an undisturbed one gives."""
    options = f"""MineOptions(source={str(folder)!r}, to=Path(TO), data_dir=Path({str(tmp_path)!r}),
        cache_dir=Path({str(tmp_path / "cache")!r}), k=30, negatives=4)"""
    script = f"""
import sys, time
from pathlib import Path
from slmx.retrieve import mine as module
from slmx.retrieve.mine import mine
from slmx.retrieve.negatives import MineOptions
from slmx.signals import Stop
module.BATCH, TO, slow = 1, sys.argv[1], len(sys.argv) > 2
def listen(event):
    if getattr(event, "task", "") == "mine" and slow:
        print("batch", flush=True)
        time.sleep(0.05)
mine({options}, stop=Stop(), listen=listen)
"""
    process = subprocess.Popen([sys.executable, "-c", script, "killed", "slow"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "killed" / ".rows.part").exists() and not (tmp_path / "killed" / "mined.jsonl").exists()
    for name in ("killed", "whole"):
        subprocess.run([sys.executable, "-c", script, name], cwd=tmp_path, check=True)
    assert (tmp_path / "killed" / "mined.jsonl").read_bytes() == (tmp_path / "whole" / "mined.jsonl").read_bytes()


def test_another_command_does_not_take_the_folder(asked: Callable[..., MineOptions], tmp_path: Path) -> None:
    mine(asked(), stop=Stop())
    with pytest.raises(RefusedError, match="holds other pairs: negatives differ"):
        mine(asked(negatives=2), stop=Stop())
    assert (
        max(len(row.get("negatives", [])) for row in rows_of(mine(asked(negatives=2, overwrite=True), stop=Stop())))
        == 2
    )
    foreign = tmp_path / "foreign"
    write(foreign / "thesis.jsonl", [])
    with pytest.raises(RefusedError, match=r"holds no about\.json"):
        mine(asked(to=foreign, overwrite=True), stop=Stop())
    assert (foreign / "thesis.jsonl").exists()


def test_what_cannot_be_mined_is_said(asked: Callable[..., MineOptions], folder: Path, tmp_path: Path) -> None:
    for settings, told in (
        ({"split": "test"}, "The split test judges"),
        ({"split": "dev"}, "has no dev.tsv in qrels"),
        ({"retriever": "oracle"}, "oracle ranks no corpus"),
        ({"skip": 30}, "leaves nothing of --k 30"),
        ({"relative_margin": 1.5}, "A margin is 0 or above"),
        ({"pick": "best"}, 'no way to pick negatives "best"'),
        ({"source": "nothing-here"}, 'no dataset, file or folder "nothing-here"'),
    ):
        with pytest.raises(UsageError, match=told):
            mine(asked(**settings), stop=Stop())
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "dev.tsv")
    assert mine(asked(split="dev", to=tmp_path / "dev"), stop=Stop()).pairs == QUERIES + 2
    with pytest.raises(UsageError, match="has documents and no questions with marks for train"):
        mine(asked(), stop=Stop())
    assert not asked().to.exists()


def test_the_command(folder: Path, empty_folder: Path) -> None:
    command = [sys.executable, "-m", "slmx", "retrieve", "mine", str(folder), "--to", "out", "--negatives", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=empty_folder)
    assert done.returncode == 0, done.stderr
    assert "positive among the first k" in done.stdout and "slmx train retriever --data-dirs out" in done.stdout
    refused = subprocess.run(
        [*command, "--split", "test"], check=False, capture_output=True, text=True, cwd=empty_folder
    )
    assert refused.returncode == 2 and "never mined from it" in refused.stderr


def test_a_stop_while_the_corpus_is_encoded_ends_there(
    asked: Callable[..., MineOptions], encoder_folder: Path, tmp_path: Path
) -> None:
    stop = Stop()

    def at_once(event: Any) -> None:
        if getattr(event, "task", "").startswith("encode"):
            stop.signal = signal.SIGINT

    with pytest.raises(SlmxError, match="Stopped before the first pair was mined") as caught:
        mine(asked(retriever=str(encoder_folder)), stop=stop, listen=at_once)
    assert caught.value.code == 130 and not (tmp_path / "out").exists()


def test_ids_of_another_corpus_mean_nothing(asked: Callable[..., MineOptions], folder: Path, tmp_path: Path) -> None:
    """Its d0 is another passage than the source's d0; the source's positive is there under another id."""
    texts = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    moved = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts[1:] + texts[:1])]
    write(tmp_path / "other" / "corpus.jsonl", moved)
    settings: dict[str, Any] = {"k": 61, "negatives": 61, "margin": None, "relative_margin": None}
    other = rows_of(mine(asked(corpus=str(tmp_path / "other"), **settings), stop=Stop()))
    own = rows_of(mine(asked(to=tmp_path / "own", **settings), stop=Stop()))
    for one, two in zip(other, own, strict=True):
        assert sorted(one["negatives"]) == sorted(two["negatives"])


def test_pairs_that_share_an_id_are_passages_of_their_own(asked: Callable[..., MineOptions], tmp_path: Path) -> None:
    rows = [
        {"query": f"{WORDS[n]} {n}", "positive": f"{WORDS[n]} {n} and oil", "positive_id": n // 2} for n in range(8)
    ]
    write(tmp_path / "pairs" / "a.jsonl", rows)
    mined = mine(asked(source=str(tmp_path / "pairs")), stop=Stop())
    assert mined.passages == mined.found == 8


def test_a_folder_in_its_source_goes_on(
    asked: Callable[..., MineOptions], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    stop, heard = Stop(), []

    def listen(event: Any) -> None:
        heard.append(getattr(event, "text", ""))
        if getattr(event, "task", "") == "mine":
            stop.signal = signal.SIGTERM

    with pytest.raises(SlmxError, match="Stopped after 3 of"):
        mine(asked(to=folder / "mined"), stop=stop, listen=listen)
    (folder / "README.md").write_text("About these pairs.", encoding="utf-8")
    (folder / ".DS_Store").write_bytes(b"\0")
    mine(asked(to=folder / "mined"), stop=Stop(), listen=listen)
    assert any(text.startswith("Going on after 3 of") for text in heard)


def test_any_score_and_a_margin_contradict(
    folder: Path, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--margin", "--relative-margin"):
        assert app.run(["retrieve", "mine", str(folder), "--to", "out", "--any-score", option, "0.1"]) == 2
        assert "--any-score takes what a margin would leave out" in capsys.readouterr().err
