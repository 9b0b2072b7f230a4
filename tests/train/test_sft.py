from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slmx.data.prepare_sft import SftJob, prepare_sft
from slmx.data.sft_files import EmptyMask, open_sft
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.models.tokenizers import load_tokenizer
from slmx.signals import Stop
from slmx.train import export
from slmx.train.folder import RUN_FILE
from slmx.train.ranks import joined
from slmx.train.sft import SftTask, plan_sft, train_sft
from tests.train.sft_files import make_folders, options, train, weights_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer trained here, models of ours and of transformers with random weights, and examples."""
    return make_folders(tmp_path_factory.mktemp("sft"))


@pytest.mark.parametrize(
    ("name", "more"), [("ours", {}), ("gpt2", {}), ("gpt2", {"lora_rank": 4, "lora_dropout": 0.1})]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    folders: dict[str, Path], tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    common = {"model": str(folders[name]), "steps": 8, **more}
    report = train(options(folders, tmp_path, save_dir=tmp_path / "whole", **common))
    assert report.last_loss < report.first_loss or report.steps == 8

    class After(Stop):
        """Asks to stop when the third step is done."""

        looks = 0

        @property
        def asked(self) -> bool:
            return self.signal != 0

    stop = After()
    begun = options(folders, tmp_path, save_dir=tmp_path / "parts", **common)
    with joined(["cpu"]) as ranks:
        planned = plan_sft(begun)
        make = planned.train.batch
        seen: list[int] = []

        def batch(step: int, rank: int = 0, world: int = 1) -> Any:
            seen.append(step)
            if step == 2:
                stop.signal = signal.SIGTERM
            return make(step, rank, world)

        planned.train.batch = batch  # type: ignore[method-assign]
        with pytest.raises(SlmxError, match="Stopped after 3 of 8 steps") as caught:
            train_sft(planned, ranks=ranks, stop=stop)
    assert caught.value.code == 143
    train(options(folders, tmp_path, save_dir=tmp_path / "parts", resume=True, **common))
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    with (tmp_path / "parts" / "sft_metrics.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[:3] == ["step", "loss", "lr"]
    assert rows[-1]["val_loss"]


def test_it_learns_and_the_folder_answers_in_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = train(options(folders, tmp_path, steps=60, lr=1e-2))
    assert report.last_loss < 0.5 * report.first_loss
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.generation_config.eos_token_id == [0, 3]
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which number comes after 7?"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = asked["input_ids"] if hasattr(asked, "keys") else asked
    told = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(told).startswith("The number ")
    assert int(told[-1]) in (0, 3)
    log = (tmp_path / "run" / "sft_training.log").read_text(encoding="utf-8")
    assert "→ The number" in log


def test_validation_draws_its_rows_and_does_not_take_the_longest_examples(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    numbers = [f'{{"question": "Which is {n}?", "answer": "{" five" * (1 + n % 40)}"}}' for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(numbers), encoding="utf-8")
    prepare_sft(SftJob([str(tmp_path / "rows.jsonl")], load_tokenizer(folders["tokenizer"]), tmp_path / "data"))
    (tmp_path / "data" / "val.bin").unlink()
    for path in (tmp_path / "data").glob("train.*"):  # the same examples to validate on: there are many of them
        shutil.copyfile(path, path.with_name(path.name.replace("train", "val")))
    planned = plan_sft(options(folders, tmp_path, data=tmp_path / "data", context=128, val_rows=20))
    assert planned.val is not None and len(planned.val) > 60
    seen: list[int] = []
    make = planned.val.make

    def kept(rows: Any) -> Any:
        seen.extend(len(planned.val.examples.example(one)[0]) for row in rows for one in row)  # type: ignore[union-attr]
        return make(rows)

    planned.val.make = kept  # type: ignore[method-assign]
    with joined(["cpu"]) as ranks:
        task = SftTask(planned, ranks)
        assert task.validate() == task.validate()
    every = planned.val.examples.lengths
    assert np.mean(seen) < 1.25 * np.mean(every)


def test_a_checkpoint_is_not_taken_for_a_model(folders: dict[str, Path], tmp_path: Path) -> None:
    train(options(folders, tmp_path, steps=1))
    with pytest.raises(SlmxError, match="checkpoint of `slmx train sft`") as caught:
        export.load_model(tmp_path / "run" / "checkpoints" / "step_1")
    assert str(tmp_path / "run") in caught.value.hint


def test_the_hint_at_bad_numbers_names_options_that_the_command_has(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="no number for 5 steps in a row") as caught:
        train(options(folders, tmp_path, steps=20, lr=1e30, clip=0.0))
    assert "--init-from" not in caught.value.hint and "another --save-dir" in caught.value.hint


def test_lora_changes_nothing_but_its_own_weights_and_is_put_into_the_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    train(options(folders, tmp_path, model=str(folders["gpt2"]), lora_rank=4, steps=10))
    before, after = weights_of(folders["gpt2"]), weights_of(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("attn" in name or "mlp" in name for name in changed)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    saved = weights_of_checkpoint(tmp_path / "run")
    assert saved and all("lora_" in name for name in saved)


def weights_of_checkpoint(run: Path) -> list[str]:
    from safetensors import safe_open

    from slmx.train import checkpoints

    newest = checkpoints.latest(run)
    assert newest is not None
    with safe_open(newest / checkpoints.WEIGHTS, "pt") as file:
        return list(file.keys())


def test_what_does_not_fit_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a context of 256 tokens"):
        plan_sft(options(folders, tmp_path, context=300))
    with pytest.raises(SlmxError, match="examples are longer than the context of 8 tokens"):
        plan_sft(options(folders, tmp_path, context=8))
    with pytest.raises(UsageError, match="both say how long"):
        plan_sft(options(folders, tmp_path, epochs=2))
    other = tmp_path / "other"
    load_tokenizer(folders["tokenizer"]).copy_to(other)
    content = (other / "tokenizer.json").read_text(encoding="utf-8").replace("<|pad|>", "<|gap|>")
    (other / "tokenizer.json").write_text(content, encoding="utf-8")
    prepare_sft(SftJob([str(folders["rows.jsonl"])], load_tokenizer(other), tmp_path / "made"))
    with pytest.raises(SlmxError, match="made with another tokenizer"):
        plan_sft(options(folders, tmp_path, data=tmp_path / "made"))
    train(options(folders, tmp_path, steps=1))
    with pytest.raises(RefusedError, match="is not empty"):
        train(options(folders, tmp_path, steps=1))
    with pytest.raises(UsageError, match="belongs to another run: lr"):
        train(options(folders, tmp_path, steps=1, lr=1e-5, resume=True))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"optimizer": "adam"}, "adamw"),
        ({"schedule": "linear"}, "cosine"),
        ({"attention": "spda"}, "sdpa"),
        ({"attention": "flex"}, "no backward on cpu"),
    ],
)
def test_wrong_options_are_told_before_a_run_that_is_there_is_replaced(
    folders: dict[str, Path], tmp_path: Path, wrong: dict[str, Any], hint: str
) -> None:
    train(options(folders, tmp_path, steps=1))
    before = weights_of(tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        plan_sft(options(folders, tmp_path, steps=1, overwrite=True, **wrong))
    assert hint in str(caught.value)
    after = weights_of(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def sft_command(folders: dict[str, Path], *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "slmx", "train", "sft", "--model", str(folders["ours"]), "--data"]
    line += [str(folders["data"]), "--steps", "4", "--lr", "1e-2", "--dtype", "float32", "--device", "cpu"]
    return subprocess.run([*line, "--no-tensorboard", *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folders: dict[str, Path], empty_folder: Path) -> None:
    one = sft_command(folders, "--save-dir", "one", "--batch-size", "4")
    two = sft_command(folders, "--save-dir", "two", "--batch-size", "4", "--num-gpus", "2")
    assert one.returncode == 0 and two.returncode == 0, two.stderr
    whole, shared = (weights_of(empty_folder / name) for name in ("one", "two"))
    assert all(torch.allclose(whole[name], shared[name], atol=2e-3) for name in whole)
    odd = sft_command(folders, "--save-dir", "two", "--batch-size", "3", "--num-gpus", "2", "--overwrite")
    assert odd.returncode == 2
    assert odd.stderr.count("3 rows a step cannot be shared by 2 processes") == 1 and "--batch-size 2" in odd.stderr
    assert weights_of(empty_folder / "two").keys() == shared.keys()
    more = sft_command(folders, "--save-dir", "two", "--batch-size", "4", "--num-gpus", "2", "--resume")
    assert more.returncode == 0, more.stderr


def write_packed(folder: Path) -> Path:
    samples = np.zeros((6, 2, 512), dtype="<i4")
    samples[:, 1] = -100
    samples[:, 0, :8] = np.arange(40, 48)
    samples[:, 1, 5:8] = np.arange(45, 48)
    samples.tofile(folder / "train_sft_packed.bin")
    return folder / "train_sft_packed.bin"


def test_the_older_packed_file_trains(folders: dict[str, Path], tmp_path: Path) -> None:
    report = train(options(folders, tmp_path, data=write_packed(tmp_path), steps=20, lr=1e-2))
    assert report.last_loss < report.first_loss


@pytest.mark.parametrize(("name", "more"), [("gpt2", {}), ("gpt2", {"lora_rank": 4}), ("ours", {})])
def test_without_a_tokenizer_of_the_data_the_tuned_weights_are_saved_and_nothing_else_of_the_model_is_copied(
    folders: dict[str, Path], tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(folders[name], base)
    (base / "notes.txt").write_text("of the training of the base model")
    task: list[SftTask] = []

    class Kept(SftTask):
        def save_model(self, to: Path, weights: Any) -> None:
            task.append(self)
            super().save_model(to, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmx.train.sft.SftTask", Kept)
        train(options(folders, tmp_path, model=str(base), data=write_packed(tmp_path), lr=1e-2, **more))
    before, after = weights_of(base), weights_of(tmp_path / "run")
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokens = torch.arange(40, 48)[None]
    with torch.no_grad():
        logits = saved(input_ids=tokens).logits[0, -1]
    assert torch.allclose(logits, task[0].tuned.next_logits(tokens), atol=1e-4)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "run").encode("The number")
        == load_tokenizer(folders["tokenizer"]).backend.encode("The number").ids
    )
    assert not (tmp_path / "run" / "notes.txt").exists()


def test_the_command(folders: dict[str, Path], empty_folder: Path) -> None:
    command = [sys.executable, "-m", "slmx", "train", "sft", "--model", str(folders["ours"])]
    command += ["--dtype", "float32", "--device", "cpu", "--no-tensorboard"]
    plan = subprocess.run(
        [*command, "--data", str(folders["data"]), "--save-dir", "run", "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert plan.returncode == 0, plan.stderr
    assert "examples to train on" in plan.stdout and not (empty_folder / "run").exists()
    deaf = empty_folder / "deaf"
    prepare_sft(SftJob([str(folders["rows.jsonl"])], load_tokenizer(folders["tokenizer"]), deaf, val_share=0))
    mask = deaf / "train.mask.bin"
    mask.write_bytes(bytes(mask.stat().st_size))
    with pytest.raises(EmptyMask):
        open_sft(deaf)
    said = subprocess.run(
        [*command, "--data", "deaf", "--save-dir", "run"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert "In the loss:" in said.stderr and "Which number" in said.stderr and "masks are all zero" in said.stderr


def test_the_model_that_is_tuned_is_not_removed(folders: dict[str, Path], tmp_path: Path) -> None:
    mine = shutil.copytree(folders["ours"], tmp_path / "run")
    (mine / RUN_FILE).write_text('{"plan": {}}')
    asked = options(folders, tmp_path, model=str(mine), overwrite=True)
    with joined(["cpu"]) as ranks, pytest.raises(RefusedError, match="which this run is made from"):
        train_sft(plan_sft(asked), ranks=ranks, stop=Stop())
    assert (mine / "model.safetensors").is_file()
