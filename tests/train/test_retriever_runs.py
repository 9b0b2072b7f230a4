"""What a run of `slmx train retriever` goes on from, what it leaves behind, and what it tells."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slmx import app
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.events import Notice, Progress
from slmx.files import hash_file
from slmx.train import checkpoints, plan, retriever
from slmx.train.card import card
from slmx.train.folder import RUN_FILE
from slmx.train.plan import plan_training
from slmx.train.validation import Validated
from tests.train.retriever_runs import Asked, run


def test_what_a_run_is_made_from_is_not_removed(
    asked: Asked, tmp_path: Path, pairs_folder: Path, encoder_folder: Path
) -> None:
    mine = shutil.copytree(encoder_folder, tmp_path / "run")
    (mine / RUN_FILE).write_text('{"plan": {}}')
    inside = shutil.copytree(pairs_folder, mine / "pairs")
    other = tmp_path / "link"
    other.symlink_to(mine)
    for folder, settings in (
        (pairs_folder, {"model": str(mine)}),
        (pairs_folder, {"checkpoint_path": other}),
        (pairs_folder, {"loss": "gist", "guide": str(mine)}),
        (inside, {}),
    ):
        with pytest.raises(RefusedError, match=r"--overwrite would remove .*, which this run is made from"):
            run(asked(folder, overwrite=True, **settings))
    assert (mine / "model.safetensors").is_file() and (inside / "train.jsonl").is_file()


def test_a_best_checkpoint_that_is_gone_is_looked_for_anew(
    asked: Asked, beir_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.5, 0.2, 0.9, 0.2])
    monkeypatch.setattr(retriever, "validate", lambda *_, **__: Validated({"beir": next(scores)}, []))
    settings: dict[str, Any] = {"steps": 6, "val_datasets": (str(beir_folder),), "val_check_interval": 2}
    with pytest.raises(SlmxError, match="Stopped after 4"):
        run(asked(beir_folder, **settings), stop_at=4)
    best = checkpoints.folder_of(asked().save_dir, 2)
    shutil.rmtree(best)
    heard: list[str] = []
    report = run(asked(beir_folder, resume=True, **settings), listen=lambda event: heard.append(str(event)))
    assert report.best_step == 6 and any(f"{best}, the best checkpoint so far, is gone" in text for text in heard)

    def remove(event: Progress | Notice) -> None:
        if isinstance(event, Progress) and event.done == 5:
            shutil.rmtree(best)

    shutil.rmtree(asked().save_dir)
    scores = iter([0.1, 0.9, 0.5, 0.2])
    with pytest.raises(SlmxError, match="step_2"):
        run(asked(beir_folder, **settings), listen=remove)
    assert not (asked().save_dir / "model.safetensors").exists()


def test_weights_come_after_what_tells_of_them(asked: Asked, pairs_folder: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(pairs_folder), stop_at=2)
    folder = asked().save_dir
    (folder / "training_ids.json").mkdir()  # it cannot be written
    with pytest.raises(OSError):
        run(asked(pairs_folder, resume=True))
    assert not (folder / "model.safetensors").exists()
    (folder / "training_ids.json").rmdir()
    run(asked(pairs_folder, resume=True))
    assert (folder / "model.safetensors").is_file()


def test_what_changed_meanwhile_is_not_gone_on_with(
    asked: Asked, tmp_path: Path, pairs_folder: Path, crops_folder: Path, beir_folder: Path
) -> None:
    settings: dict[str, Any] = {"val_datasets": (str(beir_folder),), "val_split": "train"}
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(pairs_folder, crops_folder, **settings), stop_at=2)
    asked = partial(asked, resume=True, words=50, **settings)  # no option of the settings counts beside data folders
    with pytest.raises(UsageError, match="another run: names_of_cropped_folders differ"):
        run(asked(pairs_folder, shutil.copytree(crops_folder, tmp_path / "renamed")))
    renamed = shutil.copytree(pairs_folder, tmp_path / "other")
    (renamed / "README.md").write_text("Pairs.")
    marks = beir_folder / "qrels" / "train.tsv"
    plain = marks.read_text()
    marks.write_text(plain + "q1\td4\t1\n")
    with pytest.raises(UsageError, match="another run: val_content differ"):
        run(asked(renamed, crops_folder))
    marks.write_text(plain)
    run(asked(renamed, crops_folder))
    assert json.loads((tmp_path / "run" / "training_ids.json").read_text())["crops"] == []


def test_a_run_in_its_data_folder_goes_on(asked: Asked, pairs_folder: Path) -> None:
    inside = pairs_folder / "run"
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(pairs_folder, save_dir=inside), stop_at=2)
    assert run(asked(pairs_folder, save_dir=inside, resume=True)).steps == 4


def test_what_a_killed_run_left_is_cleared_away(asked: Asked, pairs_folder: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(pairs_folder), stop_at=2)
    folder = asked().save_dir
    half, shown = folder / "checkpoints" / ".step_4.ab12.part", folder / ".validate-ab12"
    for left in (half, shown):
        left.mkdir()
        (left / "model.safetensors").write_text("half")
    shutil.copytree(checkpoints.folder_of(folder, 2), folder / "checkpoints" / "step_2_copy")
    assert run(asked(pairs_folder, resume=True)).steps == 4
    assert not half.exists() and not shown.exists()
    state = checkpoints.folder_of(folder, 4) / "state.json"
    state.write_text('{"format": 9}')
    manifest = state.with_name("manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state.json": hash_file(state)}))
    with pytest.raises(SlmxError, match=r"state\.json is of another version of slmx"):
        run(asked(pairs_folder, resume=True))


def test_a_batch_that_cannot_be_filled_is_said_before_training_or_costs_no_step(
    asked: Asked, rows_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": f"q{n}", "positive": "p0"} for n in range(6)] + [
        {"query": "q0", "positive": f"p{n}"} for n in range(6)
    ]
    folder = rows_folder("star", *rows)  # six queries and six passages, and no three pairs without a common one
    with pytest.raises(UsageError, match="A batch of 3 needs as many different"):
        plan_training(asked(folder, batch_size=3))
    monkeypatch.setattr(plan, "TRIED", 0)
    four = rows_folder("four", *({"query": f"a{n}", "positive": f"b{n}"} for n in range(4)))
    options = asked(four, folder, batch_size=3, sampling="alternate", steps=4)
    with pytest.raises(UsageError, match=r"Step 2: A batch of 3 .*step_1 is saved"):
        run(options)
    assert checkpoints.latest(options.save_dir) == checkpoints.folder_of(options.save_dir, 1)


def test_a_model_with_a_default_prompt_can_be_loaded_again(
    asked: Asked, tmp_path: Path, pairs_folder: Path, make_encoder: Callable[..., Path]
) -> None:
    from sentence_transformers import SentenceTransformer

    model = make_encoder(prompts={"text": "a "})
    config = model / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "default_prompt_name": "text"}))
    run(asked(pairs_folder, steps=1, model=str(model)))
    trained = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    assert trained.prompts == {"query": "a ", "document": "a "} and trained.default_prompt_name is None


def test_the_card_shows_a_command_to_paste_and_on_the_hub_no_paths(
    asked: Asked, empty_folder: Path, pairs_folder: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "retriever", "--model", str(encoder_folder), "--data-dirs", str(pairs_folder), "--steps", "1"]
    words += ["--batch-size", "4", "--device", "cpu", "--prompts", "query=the 'q' ", "--save-dir=out"]
    monkeypatch.setattr(sys, "argv", ["slmx", *words])
    assert app.run(words) == 0
    (line,) = [line for line in (empty_folder / "out" / "README.md").read_text().splitlines() if line.startswith("$")]
    assert shlex.split(line) == ["$", "slmx", *words]
    planned = plan_training(asked(pairs_folder))
    pushed = replace(planned.options, push_to_hub="me/mine", command=line[2:])
    told = card(replace(planned, options=pushed), 1, {})
    assert "--data-dirs pairs" in told and str(empty_folder) not in told and "'query=the '" in told


def test_ctrl_c_is_answered_at_once(pairs_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    words = ["train", "retriever", "--model", encoder_folder, "--data-dirs", pairs_folder, "--steps", 1_000_000]
    command = [sys.executable, "-m", "slmx", *map(str, words), "--batch-size", "4", "--device", "cpu"]
    command += ["--save-dir", str(tmp_path / "out"), "--val-check-interval", "1000000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        rows = tmp_path / "out" / "metrics.csv"
        while process.poll() is None and not (rows.is_file() and len(rows.read_text().splitlines()) > 1):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130, told
    assert "Stopping at the next safe place" in told and "--resume goes on from there" in told
