"""Two processes train as one: the same batches, the same loss, the same weights; they stop together and never hang."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slmx.errors import TERMINATED, SlmxError, UsageError
from slmx.signals import Stop
from slmx.train import checkpoints
from slmx.train.plan import TrainOptions, plan_training
from slmx.train.ranks import Ranks, devices
from slmx.train.retriever import train

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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


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

    whole, stopped, resumed = first[3:]
    assert [batch for _, batch in whole["seen"]] == [batch for _, batch in second[3]["seen"]]
    assert stopped["code"] == TERMINATED and "Stopped after 20 of 40" in stopped["error"]  # the signal came to rank 1
    assert second[4]["left"] == 0 and len(second[4]["seen"]) == len(stopped["seen"]) == 20
    assert "Going on after step 20" in resumed["spoken"][0] and not second[5]["spoken"]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)
