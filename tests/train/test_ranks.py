"""Two processes train as one: the same batches, the same loss, the same weights; they stop together and never hang."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slmx.errors import INTERRUPTED, TERMINATED, UsageError
from slmx.signals import Stop
from slmx.train import checkpoints
from slmx.train.plan import plan_training
from slmx.train.ranks import Ranks, devices
from slmx.train.retriever import train
from slmx.train.retriever_options import TrainOptions

Asked = Callable[..., TrainOptions]
Outcomes = list[list[dict[str, Any]]]
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def start_two(folder: Path, jobs: list[dict[str, Any]]) -> tuple[list[int], Outcomes]:
    """Run jobs on two gloo ranks; their exit codes, and what became of each job, by rank."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **{name: str(v) for name, v in names.items()}}
        command = [sys.executable, str(Path(__file__).with_name("rank_worker.py")), str(folder / "jobs.json")]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    codes = []
    for process in started:
        _, said = process.communicate(timeout=240)
        codes.append(process.returncode)
        (folder / f"{len(codes)}.err").write_text(said)
    return codes, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def job(options: TrainOptions, **more: Any) -> dict[str, Any]:
    return {"options": asdict(options), **more}


@pytest.fixture
def settings(pairs_folder: Path, crops_folder: Path, synthetic_folder: Path) -> dict[str, Any]:
    """Three sets of unequal columns: with negatives, spans of documents, and without negatives."""
    return {"folders": (pairs_folder, crops_folder, synthetic_folder), "mini_batch_tokens": 48, "steps": 40}


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {"loss": "mnrl", "sampling": "mixed"}),
    ("cached", {"loss": "cached-mnrl", "sampling": "alternate"}),
    ("guided", {"loss": "gist", "sampling": "weighted-alternate", "matryoshka_dims": (32, 8)}),
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as rows:
        return [float(row["loss"]) for row in csv.DictReader(rows)]


def test_two_processes_train_as_one_and_go_on_exactly(
    asked: Asked, tmp_path: Path, settings: dict[str, Any], make_encoder: Callable[..., Path]
) -> None:
    folders = settings.pop("folders")
    guide = str(make_encoder(seed=3))

    def options(name: str, **more: Any) -> TrainOptions:
        own = {**settings, **more}
        return asked(*folders, save_dir=tmp_path / name, guide=guide if own.get("loss") == "gist" else "", **own)

    jobs = [job(options(f"two-{name}", **{**more, "steps": 1})) for name, more in LOSSES]
    jobs += [
        job(options("whole", sampling="alternate")),
        job(options("parts", sampling="alternate"), stop_on=1, stop_at=20),
        job(options("parts", sampling="alternate", resume=True)),
        job(options("broken", steps=9, val_check_interval=2), break_on=1, stop_at=5),
    ]
    codes, (first, second) = start_two(tmp_path / "jobs", jobs)
    assert codes == [0, 0]

    for number, (name, more) in enumerate(LOSSES):  # the loss and the weights after a step are those of one process
        train(plan_training(options(f"one-{name}", **{**more, "steps": 1})), stop=Stop())
        one, two = weights(tmp_path / f"one-{name}"), weights(tmp_path / f"two-{name}")
        assert losses(tmp_path / f"two-{name}") == pytest.approx(losses(tmp_path / f"one-{name}"), abs=1e-5)
        moved = [
            load_file(checkpoints.folder_of(tmp_path / f"{n}-{name}", 1) / "optimizer.safetensors")
            for n in ("one", "two")
        ]
        gradients = [
            torch.cat([run[key].flatten() for key in sorted(run) if key.startswith("exp_avg.")]) for run in moved
        ]
        assert torch.allclose(*gradients, atol=1e-7) and torch.cosine_similarity(*gradients, dim=0) > 0.999999
        assert one.keys() == two.keys()
        assert [batch for _, batch in first[number]["seen"]] == [batch for _, batch in second[number]["seen"]]

    whole, stopped, resumed, broken = first[3:]
    assert [batch for _, batch in whole["seen"]] == [batch for _, batch in second[3]["seen"]]
    assert stopped["code"] == TERMINATED and "Stopped after 20 of 40" in stopped["error"]  # the signal came to rank 1
    assert second[4]["left"] == 0 and len(second[4]["seen"]) == len(stopped["seen"]) == 20
    assert "Going on after step 20" in resumed["spoken"][0] and not second[5]["spoken"]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)

    assert second[6]["error"] == "The disk of this process is gone."  # and the other one does not wait for ever
    assert "Another process of this run ended" in broken["error"]
    assert checkpoints.latest(tmp_path / "broken") == checkpoints.folder_of(tmp_path / "broken", 4)


def test_which_device_each_process_gets() -> None:
    assert devices("cpu") == ["cpu"]
    assert devices("cpu", num_gpus=3) == ["cpu"] * 3
    for wrong in ("0,0", "a", ","):
        with pytest.raises(UsageError, match="ids of cards"):
            devices("auto", gpus=wrong)
    with pytest.raises(UsageError, match="both say how many"):
        devices("auto", gpus="0,1", num_gpus=2)
    with pytest.raises(UsageError, match="--gpus names cards, --device cpu"):
        devices("cpu", gpus="0,1")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            devices("auto", gpus="0,1")


def test_a_process_alone_has_the_same_face() -> None:
    alone = Ranks(torch.device("cpu"))
    one = torch.ones(2)
    assert alone.main and alone.add(one) is one and alone.highest(7) == 7 and alone.once(lambda: "done") == "done"
    error = UsageError("wrong")
    assert alone.shared(error) is error


def slmx(*words: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "slmx", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.mark.slow
def test_the_command_starts_its_processes_and_a_signal_stops_them(
    empty_folder: Path, encoder_folder: Path, pairs_folder: Path
) -> None:
    command = ["train", "retriever", "--model", encoder_folder, "--data-dirs", pairs_folder, "--device", "cpu"]
    command += ["--num-gpus", 2, "--batch-size", 4, "--save-dir", "two"]
    wrong = slmx(*command, "--steps", 3, "--loss", "margin-mse")
    said = wrong.communicate(timeout=120)[1]
    assert wrong.returncode == 2 and said.count("needs a teacher's scores") == 1
    process = slmx(*command, "--steps", 100_000, "--val-check-interval", 50)
    while not (empty_folder / "two" / "checkpoints" / "step_50").is_dir():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == TERMINATED, said
    assert said.count("Stopped after") == 1 and "Traceback" not in said
    again = slmx(*command, "--steps", 100_000, "--val-check-interval", 50, "--resume", "--json")
    last = checkpoints.latest(empty_folder / "two")
    assert last is not None
    while checkpoints.latest(empty_folder / "two") == last:
        assert again.poll() is None
        time.sleep(0.1)
    again.send_signal(signal.SIGINT)
    assert again.communicate(timeout=120)[0] == "" and again.returncode == INTERRUPTED
    small = slmx(*command, "--steps", 4, "--overwrite", "--json")
    assert json.loads(small.communicate(timeout=120)[0])["steps"] == 4 and small.returncode == 0
