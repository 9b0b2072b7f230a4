"""`slmx train lm` as a whole: what is trained, stopped, resumed, shared by processes and refused."""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slmx import app
from slmx.errors import TERMINATED, RefusedError, SlmxError, UsageError
from slmx.events import Notice
from slmx.train import checkpoints, export, lm, settle
from slmx.train.lm_plan import plan_lm
from tests.train.lm_files import METRICS, Asked, asked_in, run, tensors, write_folder


@pytest.fixture
def asked(empty_folder: Path) -> Asked:
    """Options for a quick run of the thin preset, in an empty folder with small token files."""
    return asked_in(empty_folder)


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


def test_the_time_that_is_left_counts_the_steps_since_the_run_went_on(asked: Asked, tmp_path: Path) -> None:
    """It went on at step 7 of rows of ten: three steps took the time up to the next row."""
    long = {"steps": 1_000_000, "log_interval": 10}
    for more, at in (({}, 7), ({"resume": True}, 11)):
        with pytest.raises(SlmxError, match=f"Stopped after {at}"):
            run(asked(**long, **more), stop_at=at)
    with (tmp_path / "run" / METRICS).open() as stream:
        row = next(row for row in csv.DictReader(stream) if row["step"] == "10")
    one = 64 / float(row["tokens_per_sec"])
    assert float(row["eta_hours"]) == pytest.approx((1_000_000 - 10) * one / 3600, rel=1e-3)


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


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 4"):
        run(asked(), stop_at=4)
    with no_file_beyond(20_000), pytest.raises(SlmxError, match="could not be written") as caught:
        run(asked(resume=True))
    assert "step_4 is whole" in str(caught.value) and "Make room" in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_4"]
    run(asked(resume=True))


def test_a_full_disk_at_the_end_leaves_no_model_and_the_run_is_finished_later(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = lm.LmTask.save_model

    def on_a_full_disk(self: lm.LmTask, to: Path, weights: Any) -> None:
        with no_file_beyond(20_000):
            save(self, to, weights)

    monkeypatch.setattr(lm.LmTask, "save_model", on_a_full_disk)
    with pytest.raises(SlmxError, match="The model could not be written") as caught:
        run(asked())
    assert "step_8 is whole" in str(caught.value) and "--resume finishes" in caught.value.hint
    folder = tmp_path / "run"
    assert not [path.name for path in folder.rglob("*") if path.name == "model.safetensors" or "part" in path.name]
    monkeypatch.setattr(lm.LmTask, "save_model", save)
    report = run(asked(resume=True))
    assert report.scores["val_loss"] > 0
    with (folder / METRICS).open() as stream:
        assert [row["step"] for row in csv.DictReader(stream) if row["val_loss"]] == ["8"]
    whole = export.load_model(folder)[1]
    assert all(torch.equal(whole[name], one) for name, one in tensors(folder, 8, "weights.safetensors").items())


def test_data_that_does_not_fit(asked: Asked, tmp_path: Path) -> None:
    short = write_folder(tmp_path / "short", tokens=50)
    with pytest.raises(SlmxError, match="too few for one batch of 4 windows of 16 tokens") as caught:
        plan_lm(asked(data=short))
    assert "--batch-tokens" in caught.value.hint
    raw = write_folder(tmp_path / "raw", vocab_size=100, sidecar=False)
    with pytest.raises(SlmxError, match=r"token id \d+ at place [\d,]+, past its vocabulary of 64"):
        plan_lm(asked(data=raw))
    with pytest.raises(SlmxError, match=r"holds no train\.bin"):
        plan_lm(asked(data=tmp_path / "run2", save_dir=tmp_path) if (tmp_path / "run2").mkdir() is None else asked())
    whole = (short / "train.bin").read_bytes()
    (short / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(SlmxError, match="it was cut"):
        plan_lm(asked(data=short))


def test_a_validation_file_shorter_than_a_window_is_told_and_left_out(asked: Asked, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "other")
    for path in folder.glob("val*"):
        path.unlink()
    (folder / "val.bin").write_bytes((folder / "train.bin").read_bytes()[: 2 * 16])
    heard: list[str] = []
    planned = plan_lm(asked(data=folder), lambda event: heard.append(getattr(event, "text", "")))
    assert planned.plan.val_tokens == 0 and "16 tokens, less than a window of 16" in heard[0]
    assert run(asked(data=folder)).scores == {}


def test_a_checkpoint_is_written_before_what_may_fail(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(self: lm.LmTask) -> dict[str, float]:
        raise SlmxError("out of memory")

    monkeypatch.setattr(lm.LmTask, "validate", validate)
    with pytest.raises(SlmxError, match="out of memory"):
        run(asked(save_interval=2, val_interval=2))
    assert [path.name for path in checkpoints.all_of(tmp_path / "run")] == ["step_2"]


def test_the_vocabulary_of_the_file_wins(asked: Asked, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", vocab_size=90)
    assert plan_lm(asked(data=other)).plan.shape.vocab_size == 90


def test_raw_files_of_the_older_system(asked: Asked, tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw", sidecar=False)
    report = run(asked(data=raw))
    assert set(report.scores) == {"val_loss"}


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


def test_a_folder_that_is_not_free_is_told_before_anything_is_measured(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")

    def measured(*_args: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(settle, "choose", measured)
    with pytest.raises(RefusedError, match="not empty"):
        run(asked())
    with pytest.raises(RefusedError, match="holds no training run"):
        run(asked(overwrite=True))
    with pytest.raises(UsageError, match="no checkpoint"):
        run(asked(resume=True))
    assert (tmp_path / "run" / "letter.txt").is_file()


def test_a_warm_start_begins_where_the_other_ended(asked: Asked, tmp_path: Path) -> None:
    run(asked(steps=10))
    one = tensors(tmp_path / "run", 10, "weights.safetensors")
    for start in (tmp_path / "run", checkpoints.folder_of(tmp_path / "run", 10)):
        still = {"steps": 1, "lr": 0.0, "matrix_lr": 0.0, "overwrite": True}
        run(asked(preset="", init_from=start, save_dir=tmp_path / "more", **still))
        other = tensors(tmp_path / "more", 1, "weights.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)


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
    assert app.run([*words, "--steps", "3", "--seed", "-1", "--overwrite"]) == 2


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
