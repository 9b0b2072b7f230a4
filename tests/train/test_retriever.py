"""The command as a whole: what is trained, stopped, resumed and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slmx import app
from slmx.errors import TERMINATED, RefusedError, SlmxError, UsageError
from slmx.events import Notice
from slmx.signals import Stop
from slmx.train import checkpoints, retriever
from slmx.train.folder import RUN_FILE
from slmx.train.plan import plan_training
from slmx.train.retriever import train
from slmx.train.retriever_options import parse_prompts
from slmx.train.update import learning_rate
from tests.train.retriever_runs import Asked, run


@pytest.mark.parametrize(("loss", "sampling"), [("mnrl", "mixed"), ("cached-mnrl", "alternate")])
def test_forty_steps_equal_twenty_a_stop_and_twenty_more(
    asked: Asked, tmp_path: Path, pairs_folder: Path, crops_folder: Path, loss: str, sampling: str
) -> None:
    settings: dict[str, Any] = {"steps": 40, "loss": loss, "sampling": sampling, "mini_batch_tokens": 64}
    folders = (pairs_folder, crops_folder)
    run(asked(*folders, save_dir=tmp_path / "whole", **settings))
    with pytest.raises(SlmxError, match="Stopped after 20 of 40") as stopped:
        run(asked(*folders, save_dir=tmp_path / "parts", **settings), stop_at=20)
    assert stopped.value.code == TERMINATED
    run(asked(*folders, save_dir=tmp_path / "parts", resume=True, **settings))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    one, other = (
        load_file(checkpoints.folder_of(tmp_path / n, 40) / "optimizer.safetensors") for n in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_falls_from_random_weights(asked: Asked, pairs_folder: Path) -> None:
    report = run(asked(pairs_folder, steps=60))
    assert report.last_loss < 0.7 * report.first_loss


def test_the_result_is_a_model_folder_with_a_card(
    asked: Asked, tmp_path: Path, beir_folder: Path, synthetic_folder: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    heard: list[str] = []
    options = asked(
        beir_folder, synthetic_folder, steps=6, val_datasets=(str(beir_folder),), val_check_interval=2, keep=1
    )
    report = run(options, listen=lambda event: heard.append(event.text) if isinstance(event, Notice) else None)
    folder = tmp_path / "run"
    assert SentenceTransformer(str(folder), device="cpu").encode(["a lamp"]).shape == (1, 32)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| beir | beir | 7 | 50.0 % |" in card and "nDCG@10" in card
    assert json.loads((folder / "training_ids.json").read_text())["beir"] == [f"q{n}" for n in range(6)]
    assert any("12 validation queries stand in the training data" in text for text in heard)
    assert json.loads((folder / "leaks.json").read_text())
    best = max(report.scores.values())
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,loss,lr,pairs_per_second,ndcg@10 beir"
    assert max(float(row.split(",")[4]) for row in rows[2:] if row.split(",")[4]) == best
    kept = {path.name for path in checkpoints.all_of(folder)}
    assert kept == {"step_6", f"step_{report.best_step}"}
    assert not list(folder.glob(".validate-*"))


def test_held_out_questions_judge_and_are_not_trained_on(asked: Asked, beir_folder: Path) -> None:
    (beir_folder / "qrels" / "test.tsv").unlink()  # it judges the same questions
    planned = plan_training(
        asked(beir_folder, val_datasets=(str(beir_folder),), val_split="train", hold_out=0.4, batch_size=1)
    )
    (judging,) = planned.val_sets
    asking = {question.question for question in judging.questions()}
    trained = {example.query for example in planned.sets[0].examples()}
    assert asking and trained and not asking & trained
    assert set(judging.qrels("train")) == {question.question_id for question in judging.questions()}
    assert not planned.leaks


def test_not_a_number_stops_at_its_step_and_keeps_the_checkpoint(
    asked: Asked, pairs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def loss(*args: Any, **settings: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        plain = torch.Tensor(real(*args, **settings))
        return plain * float("nan") if calls == 4 else plain

    real = retriever.loss_of
    monkeypatch.setattr(retriever, "loss_of", loss)
    options = asked(pairs_folder, steps=6, val_check_interval=2)
    with pytest.raises(SlmxError, match="not a number at step 4") as caught:
        run(options)
    assert "step_2 is the last good checkpoint" in str(caught.value)
    assert [path.name for path in checkpoints.all_of(options.save_dir)] == ["step_2"]


def test_what_is_there_is_not_replaced_by_chance(asked: Asked, tmp_path: Path, pairs_folder: Path) -> None:
    run(asked(pairs_folder))
    with pytest.raises(RefusedError, match="not empty"):
        run(asked(pairs_folder))
    run(asked(pairs_folder, overwrite=True))
    with pytest.raises(UsageError, match="belongs to another run: lr differ"):
        run(asked(pairs_folder, resume=True, lr=0.5))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RefusedError, match="holds no training run"):
        run(asked(pairs_folder, save_dir=foreign, overwrite=True))
    (foreign / RUN_FILE).write_text('{"format": 2, "batches": []}')  # of an evaluation
    with pytest.raises(RefusedError, match="holds no training run"):
        run(asked(pairs_folder, save_dir=foreign, overwrite=True))
    assert (foreign / "thesis.txt").is_file()
    with pytest.raises(UsageError, match="no checkpoint"):
        run(asked(pairs_folder, save_dir=tmp_path / "new", resume=True))
    with pytest.raises(UsageError, match="--resume goes on with a run, --overwrite begins anew"):
        run(asked(pairs_folder, resume=True, overwrite=True))
    with pytest.raises(UsageError, match=r"thesis\.txt is a file"):
        run(asked(pairs_folder, save_dir=foreign / "thesis.txt"))
    with pytest.raises(UsageError, match=r"--max-query-length 999 is more than the \d+ tokens"):
        run(asked(pairs_folder, save_dir=tmp_path / "new", max_query_length=999))
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_named(asked: Asked, pairs_folder: Path) -> None:
    options = asked(pairs_folder)
    run(options)
    (checkpoints.folder_of(options.save_dir, 4) / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(SlmxError, match=r"damaged: optimizer\.safetensors"):
        run(asked(pairs_folder, resume=True))


def test_a_warm_start_takes_weights_of_the_same_architecture_alone(
    asked: Asked, tmp_path: Path, pairs_folder: Path, make_encoder: Callable[..., Path]
) -> None:
    from safetensors.torch import save_file

    other = make_encoder(seed=5)
    run(asked(pairs_folder, steps=1, lr=0.0, checkpoint_path=other))
    started, wanted = load_file(tmp_path / "run" / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(torch.equal(started[name], wanted[name]) for name in wanted)
    config = json.loads((other / "config.json").read_text())
    deeper = tmp_path / "deeper"
    shutil.copytree(other, deeper)
    (deeper / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    extra = {
        name.replace("layer.1.", "layer.2."): value.clone() for name, value in wanted.items() if "layer.1." in name
    }
    save_file({**wanted, **extra}, deeper / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SlmxError, match="another architecture"):
        run(asked(pairs_folder, save_dir=tmp_path / "b", checkpoint_path=deeper))


def test_losses_that_need_what_is_not_there(asked: Asked, pairs_folder: Path, synthetic_folder: Path) -> None:
    with pytest.raises(UsageError, match="needs a negative for every pair"):
        plan_training(asked(synthetic_folder, loss="triplet"))
    with pytest.raises(UsageError, match="needs a teacher's scores"):
        plan_training(asked(pairs_folder, loss="margin-mse"))
    for loss in ("triplet", "margin-mse"):
        with pytest.raises(UsageError, match="learns from hard negatives; --negatives 0 leaves none"):
            plan_training(asked(pairs_folder, loss=loss, negatives=0))
    with pytest.raises(UsageError) as caught:
        plan_training(asked(pairs_folder, loss="mnlr"))
    assert 'Did you mean "mnrl"' in str(caught.value)
    run(asked(pairs_folder, loss="triplet"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1.0}, "both say how long"),
        ({"weights": (1.0, 2.0)}, "2 weights for 1 data folders"),
        ({"model": "bm25"}, "no weights to train"),
        ({"hold_out": 0.2}, "needs questions"),
        ({"pooling": "sum"}, "pooling"),
        ({"loss": "gist"}, "guided by a model"),
        ({"guide": "dense"}, "guided by a model"),
        ({"loss": "gist", "guide": "bm25"}, "makes no vectors"),
        ({"loss": "triplet", "scale": 5.0}, "no scale"),
        ({"average": 1.0}, "--average is a share below 1"),
        ({"push_to_hub": "me/mine"}, "HF_HUB_OFFLINE"),
        ({"push_to_hub": "no such/id/at all"}, "no id of the Hub"),
    ],
)
def test_options_that_contradict(asked: Asked, pairs_folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_training(asked(pairs_folder, **settings))


def test_sizes_of_vectors_that_the_model_has_not(asked: Asked, pairs_folder: Path) -> None:
    with pytest.raises(UsageError, match="vectors have 32 numbers"):
        run(asked(pairs_folder, matryoshka_dims=(64, 32)))
    with pytest.raises(UsageError, match="--fp16 needs a CUDA device"):
        run(asked(pairs_folder, fp16=True))
    assert not asked(pairs_folder).save_dir.exists()


def test_guide_average_and_sizes_as_a_user_types_them(
    empty_folder: Path, encoder_folder: Path, make_encoder: Callable[..., Path], pairs_folder: Path
) -> None:
    words = ["train", "retriever", "--model", encoder_folder, "--data-dirs", pairs_folder, "--steps", 3]
    words += ["--batch-size", 4, "--device", "cpu", "--loss", "gist", "--guide", make_encoder(seed=4), "--average", 0.9]
    words += ["--start-share", 0.2, "--matryoshka-dims", "32,16", "--prompts", "query=the ", "passage=a ", "--no-bf16"]
    assert app.run([*map(str, words), "--save-dir", "out", "--tensorboard", "--num-workers", "2"]) == 0
    card = (empty_folder / "out" / "README.md").read_text()
    assert "cut to their first 32, 16 numbers" in card and "20 % of the weights" in card and "moving average" in card
    saved = json.loads((empty_folder / "out" / "config_sentence_transformers.json").read_text())
    assert saved["prompts"]["query"] == "the " and saved["prompts"]["document"] == "a "
    assert list((empty_folder / "out" / "logs" / "runs").iterdir())


def test_prompts_are_told_in_three_ways() -> None:
    wanted = {"query": "q, a: ", "passage": "p: "}
    assert parse_prompts(["query=q, a: ", "document=p: "]) == wanted
    assert parse_prompts(["query=q, a: ,passage=p: "]) == wanted
    assert parse_prompts(['{"query": "q, a: ", "passage": "p: "}']) == wanted
    assert parse_prompts([]) == {"query": "", "passage": ""}
    for wrong in ("q: ", "question=q: ", '{"query": 1}', '{"other": "a"}'):
        with pytest.raises(UsageError, match="--prompts takes"):
            parse_prompts([wrong])


def test_batches_made_ahead_are_those_made_when_asked_for(asked: Asked, tmp_path: Path, pairs_folder: Path) -> None:
    weights = []
    for workers in (0, 3):
        run(asked(pairs_folder, steps=9, num_workers=workers, save_dir=tmp_path / f"w{workers}"))
        weights.append(load_file(tmp_path / f"w{workers}" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_tokens_are_kept_and_are_those_of_the_texts(asked: Asked, tmp_path: Path, pairs_folder: Path) -> None:
    run(asked(pairs_folder, steps=1, save_dir=tmp_path / "short"))
    assert not list((tmp_path / "cache").glob("tokens/*"))  # a part of an epoch: not worth a file
    fresh = load_file(tmp_path / "short" / "model.safetensors")
    run(asked(pairs_folder, steps=9, save_dir=tmp_path / "long"))
    (kept,) = (tmp_path / "cache").glob("tokens/*.arrow")
    before = kept.stat().st_mtime_ns
    run(asked(pairs_folder, steps=1, save_dir=tmp_path / "again"))
    assert kept.stat().st_mtime_ns == before
    cached = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(fresh[name], cached[name]) for name in fresh)


def test_vectors_of_validation_are_cached_by_the_weights(
    asked: Asked, tmp_path: Path, beir_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"val_datasets": (str(beir_folder),), "val_check_interval": 1, "steps": 4}
    report = run(asked(beir_folder, **settings))
    cache = tmp_path / "cache"
    kept = sorted((cache / "vectors").iterdir())
    assert len(kept) == len(list((cache / "indexes").iterdir())) == 2  # of the start, and of the best
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    words = ["eval", "retrieval", "--models", report.folder, "--datasets", str(beir_folder), "--device", "cpu"]
    assert app.run([*words, "--cache-dir", str(cache), "--output-dir", str(tmp_path / "out")]) == 0
    run(asked(beir_folder, **{**settings, "seed": 7, "save_dir": tmp_path / "other"}))
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(list((cache / "vectors").iterdir())) == 3  # the start's serve both, and the best was found again


def test_a_table_grows_and_trackers_get_the_numbers(asked: Asked, tmp_path: Path, beir_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from slmx.track.trackers import TrackOptions, open_trackers

    heard: list[str] = []
    options = asked(beir_folder, steps=20, val_datasets=(str(beir_folder),), val_check_interval=10)
    with open_trackers(TrackOptions(names=("tensorboard",))) as trackers:
        report = train(
            plan_training(options),
            stop=Stop(),
            listen=lambda event: heard.append(event.text) if isinstance(event, Notice) else None,
            trackers=trackers,
        )
    table = [line for line in heard if line[:7].strip() in ("step", "0", "10", "20")]
    assert [line[:7].strip() for line in table] == ["step", "0", "10", "20"]
    assert "beir" in table[0] and table[report.best_step // 10 + 1].endswith("← best")
    (events,) = (tmp_path / "run" / "logs" / "runs").iterdir()
    board = EventAccumulator(str(events)).Reload()
    assert [point.step for point in board.Scalars("ndcg@10/beir")] == [0, 10, 20]
    assert [point.step for point in board.Scalars("loss/train")] == [10, 20]


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0 > rates[50] > rates[99] > 0
    assert learning_rate(3, 100, 1.0, 4) == pytest.approx(4 / 5)


def test_the_commands_of_the_seed_system(
    empty_folder: Path,
    encoder_folder: Path,
    pairs_folder: Path,
    beir_folder: Path,
    autorag_folder: Path,
    crops_folder: Path,
    synthetic_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slmx(*words: object) -> int:
        return app.run(["train", "retriever", "--model", str(encoder_folder), "--steps", "2", *map(str, words)])

    small = ("--batch-size", "3", "--device", "cpu")
    assert slmx("--data-dirs", autorag_folder, "--save-dir", "a", *small) == 0
    assert slmx("--data-dirs", synthetic_folder, "--checkpoint-path", "a", "--save-dir", "b", *small) == 0
    three = ("--data-dirs", beir_folder, crops_folder, synthetic_folder)
    assert slmx(*three, "--sampling", "mixed", "--weights", "33,33,34", "--save-dir", "c", *small) == 0
    four = ("--data-dirs", pairs_folder, beir_folder, crops_folder, synthetic_folder)
    assert slmx(*four, "--sampling", "alternate", "--save-dir", "d", *small) == 0
    assert app.run(["eval", "retrieval", "--models", "d", "--datasets", str(beir_folder), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert slmx(*three, "--weights", "1,1,2", "--save-dir", "e", "--dry-run", *small, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["share"] for one in plan["sets"]] == [0.25, 0.25, 0.5] and not Path("e").exists()
    assert slmx(*three, "--weights", "1,x", "--save-dir", "e") == 2
    assert "takes numbers" in capsys.readouterr().err
