"""`slmx train lm` as a whole: what is trained, stopped, resumed, shared by processes and refused."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slmx import app
from slmx.errors import TERMINATED, RefusedError, SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.signals import Stop
from slmx.train import checkpoints, lm, settle
from slmx.train.lm import train_lm
from slmx.train.lm_plan import LmOptions, plan_lm
from slmx.train.loop import LoopReport
from slmx.train.ranks import Ranks
from tests.train.lm_files import PRESET, write_folder

Asked = Callable[..., LmOptions]
ALONE = Ranks(torch.device("cpu"))


@pytest.fixture
def asked(empty_folder: Path) -> Asked:
    """Options for a quick run of the thin preset, in an empty folder with small token files."""
    (empty_folder / "presets").mkdir()
    (empty_folder / "presets" / "transformers.yaml").write_text(PRESET)
    write_folder(empty_folder / "tokens")

    def make(**settings: Any) -> LmOptions:
        plain: dict[str, Any] = {
            "data": empty_folder / "tokens",
            "save_dir": empty_folder / "run",
            "preset": "thin",
            "steps": 8,
            "lr": 1e-2,
            "device": "cpu",
            "compile": False,
            "log_interval": 1,
            "micro_tokens": 32,
        }
        return LmOptions(**{**plain, **settings})

    return make


def run(options: LmOptions, *, stop_at: int = 0, listen: Listener = nobody) -> LoopReport:
    """Train; at step `stop_at` somebody sends SIGTERM."""
    stop = Stop()

    def told(event: Progress | Notice) -> None:
        if isinstance(event, Progress) and event.task == "train" and event.done == stop_at:
            stop.signal = signal.SIGTERM
        listen(event)

    return train_lm(plan_lm(options), ranks=ALONE, stop=stop, listen=told)


def tensors(save_dir: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(checkpoints.folder_of(save_dir, step) / name)
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "adamw", "schedule": "cosine", "dtype": "bfloat16"}, {"attention": "sdpa"}]
)
def test_twenty_steps_equal_nine_a_stop_and_eleven_more(asked: Asked, tmp_path: Path, settings: dict[str, Any]) -> None:
    run(asked(save_dir=tmp_path / "whole", steps=20, **settings))
    with pytest.raises(SlmxError, match="Stopped after 9 of 20") as stopped:
        run(asked(save_dir=tmp_path / "parts", steps=20, **settings), stop_at=9)
    assert stopped.value.code == TERMINATED
    run(asked(save_dir=tmp_path / "parts", steps=20, resume=True, **settings))
    for name in ("weights.safetensors", "optimizer.safetensors"):
        whole, parts = (tensors(tmp_path / one, 20, name) for one in ("whole", "parts"))
        assert whole.keys() == parts.keys() and whole
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    rows = [
        [(row["step"], row["loss"], row["val_loss"]) for row in csv.DictReader((tmp_path / one / METRICS).open())]
        for one in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


METRICS = "training_metrics.csv"


def test_the_loss_falls_and_all_files_are_there(asked: Asked, tmp_path: Path) -> None:
    heard: list[str] = []
    options = asked(steps=60, sample_interval=20, val_interval=20)
    report = run(options, listen=lambda event: heard.append(event.text) if isinstance(event, Notice) else None)
    assert report.last_loss < 0.5 * report.first_loss
    assert report.tokens == 60 * 64 and report.skipped == 0
    assert report.scores["bits_per_byte"] == pytest.approx(report.scores["val_loss"] / np.log(2) / 3, rel=1e-6)
    with (tmp_path / "run" / METRICS).open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:6] == ["step", "loss", "lr", "tokens_per_sec", "eta_hours", "elapsed_hours"]
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 61))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [20, 40, 60]
    assert "step 60/60" in (tmp_path / "run" / "training.log").read_text()
    assert {path.name for path in checkpoints.all_of(tmp_path / "run")} == {"step_50", "step_60"}
    assert any("bits_per_byte" in text for text in heard)


def test_the_learning_does_not_depend_on_the_size_of_the_pieces(asked: Asked, tmp_path: Path) -> None:
    for micro in (16, 64):
        run(asked(save_dir=tmp_path / str(micro), steps=3, micro_tokens=micro, dtype="float32", optimizer="adamw"))
    one, other = (tensors(tmp_path / name, 3, "weights.safetensors") for name in ("16", "64"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


class Bad(lm.LmTask):
    """A task whose loss is no number at some steps (by the batches asked for)."""

    at: tuple[int, ...] = ()

    def batches(self, step: int) -> Any:
        self.step = step
        return super().batches(step)

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        loss = super().loss(model, batch)
        return loss * float("nan") if self.step in self.at else loss


def test_steps_of_bad_numbers_are_skipped_and_counted(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "LmTask", Bad)
    monkeypatch.setattr(Bad, "at", (2, 5))
    heard: list[str] = []
    report = run(asked(), listen=lambda event: heard.append(event.text) if isinstance(event, Notice) else None)
    assert report.skipped == 2
    assert any("loss of step 3 is no number; the step is skipped (1 so far)" in text for text in heard)
    assert all(torch.isfinite(one).all() for one in tensors(tmp_path / "run", 8, "weights.safetensors").values())


def test_too_many_bad_steps_in_a_row_stop_the_run_and_the_last_good_checkpoint_stays(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "LmTask", Bad)
    monkeypatch.setattr(Bad, "at", tuple(range(3, 20)))
    with pytest.raises(SlmxError, match="no number for 5 steps in a row, the last at step 8") as caught:
        run(asked(steps=20, save_interval=3))
    assert "step_3 is the last good checkpoint" in str(caught.value)


def test_a_full_disk_leaves_the_checkpoint_before(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 4"):
        run(asked(), stop_at=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # no file may grow beyond: as on a full disk
    try:
        with pytest.raises(SlmxError, match="could not be written") as caught:
            run(asked(resume=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step_4 is whole" in str(caught.value) and "Make room" in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_4"]
    run(asked(resume=True))


def test_data_that_does_not_fit(asked: Asked, tmp_path: Path) -> None:
    short = write_folder(tmp_path / "short", tokens=50)
    with pytest.raises(SlmxError, match="too few for one batch of 4 windows of 16 tokens") as caught:
        plan_lm(asked(data=short))
    assert "--batch-tokens" in caught.value.hint
    raw = write_folder(tmp_path / "raw", vocab_size=100, sidecar=False)
    with pytest.raises(SlmxError, match=r"token id \d+ at place [\d,]+, past its vocabulary of 64"):
        run(asked(data=raw))
    with pytest.raises(SlmxError, match=r"holds no train\.bin"):
        plan_lm(asked(data=tmp_path / "run2", save_dir=tmp_path) if (tmp_path / "run2").mkdir() is None else asked())
    whole = (short / "train.bin").read_bytes()
    (short / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(SlmxError, match="it was cut"):
        plan_lm(asked(data=short))


def test_the_vocabulary_of_the_file_wins(asked: Asked, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", vocab_size=90)
    assert plan_lm(asked(data=other)).plan.shape.vocab_size == 90


def test_raw_files_of_the_older_system(asked: Asked, tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw", sidecar=False)
    report = run(asked(data=raw))
    assert set(report.scores) == {"val_loss"}


def test_flex_attention_cannot_train_on_a_processor(asked: Asked) -> None:
    with pytest.raises(UsageError, match="no backward on cpu"):
        run(asked(attention="flex"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 100}, "all say how long"),
        ({"preset": ""}, "give one of them"),
        ({"preset": "nano-6n"}, "nano-6m"),
        ({"schedule": "wsb"}, "wsd"),
        ({"optimizer": "moun"}, "muon"),
        ({"attention": "blokced"}, "blocked"),
        ({"strategy": "dpp"}, "ddp"),
        ({"batch_tokens": 70}, "--batch-tokens 64"),
    ],
)
def test_options_that_contradict(asked: Asked, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_lm(asked(**settings))
    assert message in str(caught.value)


def test_what_is_there_is_not_replaced_by_chance(asked: Asked, tmp_path: Path) -> None:
    run(asked(steps=2))
    with pytest.raises(RefusedError, match="not empty"):
        run(asked(steps=2))
    with pytest.raises(UsageError, match="belongs to another run: lr differ"):
        run(asked(steps=2, resume=True, lr=0.5))
    run(asked(steps=2, overwrite=True))


def test_a_warm_start_begins_where_the_other_ended(asked: Asked, tmp_path: Path) -> None:
    run(asked(steps=10))
    one = tensors(tmp_path / "run", 10, "weights.safetensors")
    for start in (tmp_path / "run", checkpoints.folder_of(tmp_path / "run", 10)):
        still = {"steps": 1, "lr": 0.0, "matrix_lr": 0.0, "overwrite": True}
        run(asked(preset="", init_from=start, save_dir=tmp_path / "more", **still))
        other = tensors(tmp_path / "more", 1, "weights.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_dry_run_tells_the_cost_and_writes_nothing(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    asked()
    words = ["train", "lm", "--preset", "thin", "--data", "tokens", "--save-dir", "new", "--steps", "50", "--dry-run"]
    assert app.run([*words, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["parameters"] == 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 8 + 2 * 32 * 48 + 64) + 32
    assert found["seconds_per_step"] > 0 and found["peak_memory_bytes"] > 0
    assert not Path("new").exists()
    assert app.run([*words, "--device", "cpu"]) == 0
    assert "Nothing was written" in capsys.readouterr().out


def test_the_command_trains_tracks_and_says_what_to_type_next(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked()
    words = ["train", "lm", "--preset", "thin", "--data", "tokens", "--save-dir", "runs/a", "--device", "cpu"]
    assert app.run([*words, "--steps", "3", "--tensorboard"]) == 0
    said = capsys.readouterr()
    assert "runs/a holds the model after 3 steps, 192 tokens" in said.out
    assert "slmx eval run --model runs/a" in said.out and "2 layers × 32" in said.err
    assert list((tmp_path / "runs" / "a" / "logs").rglob("events.out.tfevents.*"))
    assert app.run([*words, "--steps", "3"]) == 4
    assert app.run([*words, "--steps", "3", "--tokens", "5"]) == 2


@pytest.mark.slow
def test_compiled_layers_learn_the_same(asked: Asked, tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        run(asked(save_dir=tmp_path / name, steps=3, compile=compiled, dtype="float32", optimizer="adamw"))
    one, other = (tensors(tmp_path / name, 3, "weights.safetensors") for name in ("plain", "compiled"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    kept = settle.remembered(tmp_path / "compiled")
    assert kept is not None and kept.compiled
    run(asked(save_dir=tmp_path / "compiled", steps=3, compile=True, dtype="float32", optimizer="adamw", resume=True))


def test_what_was_settled_at_the_beginning_holds_when_it_goes_on(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(attention="sdpa"), stop_at=2)
    kept = settle.remembered(tmp_path / "run")
    assert kept is not None and kept.attention == "sdpa"
    run(asked(resume=True))  # says nothing of attention, and goes on with sdpa


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "slmx", "train", "lm", "--preset", "thin", "--data", "tokens", "--steps", "6"]
    more = ["--device", "cpu", "--no-compile", "--dtype", "float32", "--no-tensorboard"]
    return subprocess.run([*line, *more, *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(asked: Asked, tmp_path: Path, strategy: str) -> None:
    asked()
    one = command("--save-dir", "one")
    two = command("--save-dir", "two", "--num-gpus", "2", "--strategy", strategy)
    assert one.returncode == 0 and two.returncode == 0, two.stderr
    whole, shared = (tensors(tmp_path / name, 6, "weights.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(whole[name], shared[name], atol=2e-3) for name in whole)
    more = command("--save-dir", "two", "--num-gpus", "2", "--strategy", strategy, "--resume")
    assert more.returncode == 0, more.stderr


def test_what_a_run_is_made_from_is_not_removed(asked: Asked, tmp_path: Path) -> None:
    run(asked(steps=1))
    folder = asked().save_dir
    with pytest.raises(RefusedError, match="which this run is made from"):
        run(asked(steps=1, preset="", init_from=folder, overwrite=True))
    inside = shutil.copytree(asked().data, folder / "tokens")
    with pytest.raises(RefusedError, match="which this run is made from"):
        run(asked(steps=1, data=inside, overwrite=True))
    assert (folder / "model.safetensors").is_file() and (inside / "train.bin").is_file()
