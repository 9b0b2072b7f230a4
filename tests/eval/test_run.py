from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slmx.app import run

SLOW = """
import os, time
from slmx.records import Completion


class Slow:
    '''Answers with the question's first word, batch by batch, as slowly as a model.'''

    def __init__(self, opening):
        self.name = opening.name

    def fingerprint(self):
        return {"generator": "slow", "weights": os.environ.get("SLOW_WEIGHTS", "")}

    def describe(self):
        return {}

    def size_bytes(self):
        return 0

    def window(self):
        return None

    def load(self):
        return 0.0

    def plan(self, requests, batch_size):
        time.sleep(float(os.environ.get("SLOW_PLAN", "0")))
        places = list(reversed(range(len(requests))))
        return [places[i : i + 3] for i in range(0, len(places), 3)]

    def generate(self, batch):
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        breaks = os.environ.get("SLOW_BREAKS")
        if breaks and any(breaks in r.question.question for r in batch):
            raise RuntimeError("out of memory")
        if failing := os.environ.get("SLOW_FAILS"):
            failed = [failing == "all" or "Town3 " in r.question.question for r in batch]
            return [
                Completion(question_id=r.question.question_id, text="", stop="failed" if f else "eos", error="no" * f)
                for r, f in zip(batch, failed)
            ]
        return [Completion(question_id=r.question.question_id, text=r.question.question.split()[-1]) for r in batch]

    def close(self):
        pass
"""


@pytest.fixture
def work(empty_folder: Path) -> Path:
    """A folder with a small lost-in-the-middle file and a slow generator installed as a plugin."""
    rows = []
    for n in range(30):
        town, river = f"Town{n}", f"River{n}"
        text = f"{town} is a town. It lies on the {river}, north of the hills." if n != 7 else f"{town} is a town."
        rows.append(
            {
                "question": f"on which river does {town} lie",
                "answers": [river],
                "ctxs": [{"title": town, "text": text, "hasanswer": True, "isgold": n != 7}],
                "nq_annotated_gold": {"title": town, "long_answer": text, "short_answers": [river]},
            }
        )
    (empty_folder / "towns.jsonl").write_text("\n".join(map(json.dumps, rows)))
    info = empty_folder / "plugin" / "slow-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slmx.generators]\nslow = slow_generator:Slow\n")
    (empty_folder / "plugin" / "slow_generator.py").write_text(SLOW)
    (empty_folder / "presets").mkdir()
    (empty_folder / "presets" / "models.yaml").write_text("slow: {generator: slow, about: slow}\n")
    return empty_folder


def command(work: Path, *args: str, **environment: str) -> dict[str, Any]:
    """The arguments of Popen for `slmx eval run` with the plugin; slmx is the one that the tests were started with."""
    path = os.pathsep.join(filter(None, (str(work / "plugin"), os.environ.get("PYTHONPATH"))))
    line = [sys.executable, "-m", "slmx", "eval", "run", "--dataset", "towns.jsonl", *args]
    return {"args": line, "cwd": work, "env": {**os.environ, "PYTHONPATH": path, **environment}, "text": True}


def slmx(work: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(work, *args, **environment), capture_output=True, check=False)


def begin(work: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(**command(work, *args, **environment), **silent)


def wait_for(path: Path) -> None:
    """Until the file is there and not empty."""
    for _ in range(1200):
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


ALL = ("--mode", "no_context", "oracle", "retriever", "--retriever", "bm25", "--k", "1", "3")


def test_one_command_runs_every_cell_and_writes_the_known_files(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["eval", "run", "--model", "extractive", "oracle-answer", "--dataset", "towns.jsonl", *ALL, "--json"]
    assert run(args) == 0
    report = json.loads(capsys.readouterr().out)
    folders = sorted(p.name for p in (work / "outputs").iterdir())
    modes = ["no_context", "oracle_context", "retriever_context_bm25_k1", "retriever_context_bm25_k3"]
    assert folders == sorted(f"{m}_towns_{mode}" for m in ("extractive", "oracle-answer") for mode in modes)
    assert len(report["cells"]) == 8
    for folder in (work / "outputs").iterdir():
        files = {"results.json", "predictions.json", "predictions.jsonl", "memory_usage.json", "run.json", "run.log"}
        assert {p.name for p in folder.iterdir()} == files
    known = {"token_recall", "num_examples", "duration_seconds", "model_size_bytes", "model_size_mb"}
    known |= {"retriever_index_size_bytes", "retriever_index_size_mb", "cpu_ram_used_mb", "gpu_ram_used_mb"}
    known |= {"gpu_ram_peak_mb", "reserved_gpu_ram_mb", "gpu_power_draw_w"}
    one = results(work / "outputs" / "extractive_towns_retriever_context_bm25_k3")
    assert all(isinstance(one[name], int | float) for name in known)
    assert one["retriever_index_size_bytes"] > 0
    assert one["num_examples"] == 30
    assert one["cpu_ram_used_mb"] > 10
    low, high = one["intervals_95"]["token_recall"]
    assert low <= one["token_recall"] <= high


def test_the_oracle_answer_scores_one_and_extraction_reads_what_it_is_given(work: Path) -> None:
    assert run(["eval", "run", "--model", "oracle-answer", "extractive", "--dataset", "towns.jsonl", *ALL, "-q"]) == 0
    for mode in ("no_context", "oracle_context", "retriever_context_bm25_k1"):
        checked = results(work / "outputs" / f"oracle-answer_towns_{mode}")
        assert [checked[name] for name in ("em", "f1", "token_recall", "match")] == [1.0] * 4
    assert results(work / "outputs" / "extractive_towns_no_context")["match"] == 0.0
    assert results(work / "outputs" / "extractive_towns_no_context")["empty"] == 1.0
    assert results(work / "outputs" / "extractive_towns_oracle_context")["match"] > 0.5


def test_trap_20_every_mode_scores_the_same_ids_and_missing_context_is_named(work: Path) -> None:
    assert run(["eval", "run", "--model", "extractive", "--dataset", "towns.jsonl", *ALL, "-q"]) == 0
    ids = [
        [p["question_id"] for p in json.loads((folder / "predictions.json").read_text())["predictions"]]
        for folder in (work / "outputs").iterdir()
    ]
    assert all(one == ids[0] for one in ids)
    oracle = results(work / "outputs" / "extractive_towns_oracle_context")
    assert oracle["prompts"]["without_context"] == 1
    assert len(oracle["prompts"]["without_context_ids"]) == 1
    assert oracle["n"]["match"] == 30


def test_the_same_command_again_says_that_it_is_finished_and_changes_nothing(work: Path) -> None:
    first = slmx(work, "--model", "extractive", "--mode", "retriever")
    assert first.returncode == 0, first.stderr
    (folder,) = (work / "outputs").iterdir()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    second = slmx(work, "--model", "extractive", "--mode", "retriever")
    assert "is finished" in second.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    third = slmx(work, "--model", "extractive", "--mode", "retriever", "--metrics-preset", "bergen")
    assert "is finished" in third.stderr
    assert {"precision", "em", "f1", "k_precision"} <= set(results(folder))
    (folder / "results.json").unlink()
    assert slmx(work, "--model", "extractive", "--mode", "retriever").returncode == 0
    assert "em" in results(folder)
    assert (folder / "predictions.jsonl").read_bytes() == before["predictions.jsonl"]


def test_another_configuration_gets_a_folder_of_its_own(work: Path) -> None:
    assert slmx(work, "--model", "extractive", "--mode", "no_context").returncode == 0
    (first,) = (work / "outputs").iterdir()
    before = (first / "results.json").read_bytes()
    assert slmx(work, "--model", "extractive", "--mode", "no_context", "--max-samples", "5").returncode == 0
    others = [p.name for p in (work / "outputs").iterdir() if p != first]
    assert len(others) == 1
    assert others[0].startswith(first.name + "-")
    assert (first / "results.json").read_bytes() == before
    apart = work / "outputs" / others[0]
    stamp = (apart / "run.json").stat().st_mtime_ns
    done = slmx(work, "--model", "extractive", "--mode", "no_context", "--max-samples", "5", "--overwrite")
    assert done.returncode == 0
    assert (first / "results.json").read_bytes() == before  # what is replaced are the configuration's own results
    assert (apart / "run.json").stat().st_mtime_ns != stamp
    done = slmx(work, "--model", "extractive", "--mode", "no_context", "--max-samples", "6", "--overwrite")
    assert done.returncode == 0
    assert results(first)["num_examples"] == 6  # a new configuration takes the plain name when it may


def test_trap_24_a_sample_says_of_how_many(work: Path) -> None:
    done = slmx(work, "--model", "extractive", "--max-samples", "5", "--seed", "3")
    assert "5 questions of towns (a seeded sample of 30)" in done.stdout
    (folder,) = (work / "outputs").iterdir()
    assert (results(folder)["num_examples"], results(folder)["dataset_questions"]) == (5, 30)
    asked = json.loads((folder / "run.json").read_text())["options"]
    assert (asked["seed"], asked["max_samples"], asked["words"], asked["metrics_preset"]) == (3, 5, 100, "default")


def test_trap_18_overwriting_a_cell_that_another_process_writes_is_refused(work: Path) -> None:
    args = ["--model", "slow", "--mode", "no_context"]
    child = begin(work, *args, SLOW_SECONDS="0.8")
    wait_for(work / "outputs" / "slow_towns_no_context" / "predictions.jsonl")
    other = slmx(work, *args, "--overwrite")
    assert (other.returncode, "Another process" in other.stderr) == (4, True)
    assert child.wait(timeout=60) == 0
    assert results(work / "outputs" / "slow_towns_no_context")["num_examples"] == 30


def test_trap_23_a_kill_before_the_plan_is_written_leaves_the_folder_free(work: Path) -> None:
    args = ["--model", "slow", "--mode", "no_context"]
    child = begin(work, *args, SLOW_PLAN="30")
    folder = work / "outputs" / "slow_towns_no_context"
    wait_for(folder / "run.log")
    child.kill()
    child.wait()
    assert slmx(work, *args).returncode == 0
    assert [p.name for p in (work / "outputs").iterdir()] == [folder.name]


def test_trap_16_other_weights_under_the_same_name_never_get_the_old_answers(work: Path) -> None:
    assert slmx(work, "--model", "slow", "--max-samples", "4").returncode == 0
    assert slmx(work, "--model", "slow", "--max-samples", "4", SLOW_WEIGHTS="others").returncode == 0
    assert len(list((work / "outputs").iterdir())) == 2


def test_trap_21_a_sample_is_seeded_and_in_the_order_of_the_dataset(work: Path) -> None:
    def ids(name: str, *args: str) -> list[str]:
        assert slmx(work, "--model", "extractive", "--name", name, *args).returncode == 0
        (folder,) = (work / "outputs" / name).iterdir()
        return [p["question_id"] for p in json.loads((folder / "predictions.json").read_text())["predictions"]]

    everything = ids("all")
    some = ids("a", "--max-samples", "8", "--seed", "1")
    assert some == ids("b", "--max-samples", "8", "--seed", "1") == [i for i in everything if i in set(some)]
    assert some != ids("c", "--max-samples", "8", "--seed", "2")
    assert len(ids("d", "--mode", "test_10_samples")) == 10


def stripped(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """predictions.json as bytes, and results.json without timings, memory, load and energy."""
    kept = results(folder)
    for name in list(kept):
        if name.endswith(("_seconds", "_per_second", "_mb", "_w", "_percent")) or name.startswith(
            ("energy_", "timed_")
        ):
            del kept[name]
    return (folder / "predictions.json").read_bytes(), kept


@pytest.mark.slow
def test_trap_23_a_run_killed_many_times_ends_in_the_same_bytes(work: Path) -> None:
    args = ("--model", "slow", "--mode", "no_context", "retriever", "--max-samples", "30")
    assert slmx(work, *args, "--name", "unbroken").returncode == 0
    dice = random.Random(4)
    kills = 0
    for _ in range(12):
        child = begin(work, *args, "--name", "killed", SLOW_SECONDS="0.1")
        time.sleep(dice.uniform(0.6, 1.8))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills >= 3
    assert slmx(work, *args, "--name", "killed").returncode == 0
    for folder in (work / "outputs" / "unbroken").iterdir():
        assert stripped(folder) == stripped(work / "outputs" / "killed" / folder.name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_saves_and_says_how_to_go_on(work: Path, number: int, code: int) -> None:
    args = ["--model", "slow", "--mode", "no_context"]
    child = subprocess.Popen(**command(work, *args, SLOW_SECONDS="0.3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = work / "outputs" / "slow_towns_no_context" / "predictions.jsonl"
    wait_for(journal)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code, said
    assert "The same command again goes on from there." in said
    answered = len(journal.read_text().splitlines())
    assert 0 < answered < 30
    assert answered % 3 == 0
    again = slmx(work, *args)
    assert again.returncode == 0
    assert f"going on after {answered} of 30 questions" in again.stderr
    log = (journal.parent / "run.log").read_text()
    for told in ("going on after", "Plan: 1 cells", "Reading towns.jsonl"):
        assert told in log


def timed(folder: Path) -> tuple[list[int], int]:
    """How many questions each sitting answered, and how many the cost is of."""
    sessions = json.loads((folder / "run.json").read_text())["sessions"]
    return [session["questions"] for session in sessions], results(folder)["timed_questions"]


def test_the_time_of_a_killed_run_is_told_of_the_questions_that_it_is_of(work: Path) -> None:
    args = ["--model", "slow", "--mode", "no_context"]
    child = begin(work, *args, SLOW_SECONDS="0.5")
    folder = work / "outputs" / "slow_towns_no_context"
    wait_for(folder / "predictions.jsonl")
    child.kill()
    child.wait()
    again = slmx(work, *args)
    answered = int(again.stderr.partition("going on after ")[2].partition(" of ")[0])
    assert 0 < answered < 30
    assert timed(folder) == ([30 - answered], 30 - answered)


def test_the_time_before_an_engine_failed_counts(work: Path) -> None:
    args = ("--model", "slow", "--mode", "no_context")
    assert slmx(work, *args, SLOW_BREAKS="Town20 ").returncode == 1
    assert slmx(work, *args).returncode == 0
    assert timed(work / "outputs" / "slow_towns_no_context") == ([9, 21], 30)


def test_trap_22_an_engine_that_fails_fails_the_run(work: Path) -> None:
    done = slmx(work, "--model", "slow", "--mode", "no_context", SLOW_BREAKS="Town")
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert not (work / "outputs" / "slow_towns_no_context" / "results.json").exists()
    assert slmx(work, "--model", "slow", "--mode", "no_context").returncode == 0


def test_trap_22_generations_that_failed_are_no_success(work: Path) -> None:
    some = slmx(work, "--model", "slow", SLOW_FAILS="some")
    assert (some.returncode, "slow_towns_no_context: 1" in some.stderr) == (3, True)
    assert results(work / "outputs" / "slow_towns_no_context")["failed_generations"] == 1
    every = slmx(work, "--model", "slow", "--overwrite", SLOW_FAILS="all")
    assert (every.returncode, "No answer could be generated" in every.stderr) == (1, True)


def test_ctrl_c_while_retrieving_stops_before_the_retrieval_ends(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal as signals

    from slmx.retrieve import bm25

    def asked(*args: Any, **kwargs: Any) -> Any:
        signals.raise_signal(signals.SIGINT)
        return original(*args, **kwargs)

    original = bm25.Bm25.search
    monkeypatch.setattr(bm25.Bm25, "search", asked)
    command = ["eval", "run", "--model", "extractive", "--dataset", "towns.jsonl", "--mode", "retriever"]
    assert run(command) == 130
    assert not (work / "outputs").exists()


def test_retrievers_go_by_their_own_names(work: Path) -> None:
    done = slmx(
        work, "--model", "extractive", "--mode", "retriever", "--retriever", "minilm", "dense", "--dry-run", "--json"
    )
    assert [cell["retriever"] for cell in json.loads(done.stdout)["cells"]] == ["dense"]


def test_a_dry_run_fetches_nothing(work: Path) -> None:
    done = slmx(work, "--model", "smollm2-360m", "--dry-run", "--json", HF_HOME=str(work / "hub"))
    assert done.returncode == 0
    assert not (work / "hub").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(work: Path) -> None:
    done = slmx(work, "--model", "extractive", *ALL, "--dry-run", "--json")
    assert done.returncode == 0
    assert [cell["k"] for cell in json.loads(done.stdout)["cells"] if "k" in cell] == [1, 3]
    assert not (work / "outputs").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "extractiv"], 'Did you mean "extractive"?'),
        (["--model", "extractive", "--mode", "orakle"], 'Did you mean "oracle"?'),
        (["--model", "extractive", "--mode", "retriever", "--retriever", "bm52"], 'Did you mean "bm25"?'),
        (["--model", "extractive", "--metrics-preset", "sqad"], 'Did you mean "squad"?'),
        (["--model", "extractive", "--oracle", "lang"], 'Did you mean "long"?'),
        (["--model", "extractive", "--mode", "no_context", "test_10_samples"], "--max-samples"),
        (["--model", "extractive", "--mode", "retriever", "--retriever", "bm52", "--dry-run"], 'Did you mean "bm25"?'),
        (["--model", "extractive", "--metrics-preset", "seed-v1"], "--vocabulary"),
        (["--model", "extractive", "--output-dir", "towns.jsonl"], "is a file"),
        (["--model", "extractive", "--dataset", "foreign"], "slmx eval retrieval"),
        (["--model", "extractive", "--dataset", "open.jsonl", "--mode", "retriever"], "--corpus"),
        (["--model", "extractive", "--dataset", "towns.jsnl"], "There is no dataset"),
        (["--mode", "none"], "--model"),
    ],
)
def test_wrong_usage_is_exit_2_with_what_to_type(work: Path, args: list[str], said: str) -> None:
    (work / "open.jsonl").write_text('{"question": "who", "answer": ["me"]}\n')
    (work / "foreign" / "qrels").mkdir(parents=True)
    (work / "foreign" / "corpus.jsonl").write_text('{"_id": "x", "title": "", "text": "me"}\n')
    (work / "foreign" / "queries.jsonl").write_text('{"_id": "q", "text": "who"}\n')
    (work / "foreign" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tx\t1\n")
    done = slmx(work, *args)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corpus_of_ones_own_is_searched_instead(work: Path) -> None:
    corpus = work / "corpus"
    (corpus / "qrels").mkdir(parents=True)
    (corpus / "corpus.jsonl").write_text('{"_id": "x", "title": "", "text": "Town3 lies on the River3."}\n')
    (corpus / "queries.jsonl").write_text('{"_id": "q", "text": "?"}\n')
    (corpus / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tx\t1\n")
    assert slmx(work, "--model", "extractive", "--mode", "retriever", "--corpus", "corpus").returncode == 0
    (folder,) = (work / "outputs").iterdir()
    assert 0 < results(folder)["answer_coverage"] < 0.1
    assert "ndcg" not in results(folder)
