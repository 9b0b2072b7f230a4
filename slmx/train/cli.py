"""The signatures of `slmx train …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.group import Group
from slmx.train import cli_lm

if TYPE_CHECKING:
    from slmx.track.trackers import TrackOptions
    from slmx.train.ranks import Ranks
    from slmx.train.retriever_options import TrainOptions

app = Group("train", "Pairs in, weights out.")


@app.callback()
def group() -> None:
    """Pairs in, weights out."""


@app.command("retriever")
def retriever(
    save_dir: Annotated[Path, typer.Option("--save-dir", help="The folder of the trained model and its checkpoints.")],
    data_dirs: Annotated[
        list[Path] | None,
        typer.Option(
            "--data-dirs",
            help="Training folders, one a dataset; their form is told apart.",
            show_default="questions and gold passages of the dataset in the settings",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A dense preset, a folder or a Hub id.",
            autocompletion=options.preset_names("retrievers"),
        ),
    ] = "dense",
    forms: Annotated[
        list[str] | None,
        typer.Option("--forms", help="Forms, one a folder: auto, ms-marco, unarxive-query-doc, beir, crops, pairs …"),
    ] = None,
    crop: options.CropStyle = "spans",
    crop_min_words: options.CropMinWords = 10,
    crop_max_words: options.CropMaxWords = 0,
    weights: Annotated[str, typer.Option("--weights", help="One a folder: 33,33,34. Without: equal shares.")] = "",
    sampling: Annotated[
        str, typer.Option("--sampling", help="mixed (by item), alternate (batches in turn), weighted-alternate.")
    ] = "mixed",
    loss: Annotated[
        str, typer.Option("--loss", help="mnrl, cached-mnrl, symmetric-mnrl, gist, triplet, margin-mse.")
    ] = "mnrl",
    guide: Annotated[str, typer.Option("--guide", help="The model that filters false negatives in gist.")] = "",
    matryoshka_dims: Annotated[
        str, typer.Option("--matryoshka-dims", help="Train vectors cut to these sizes as well: 384,192,96.")
    ] = "",
    scale: Annotated[
        float | None, typer.Option("--scale", help="Times the similarity.", show_default="20; dot product: 1")
    ] = None,
    pooling: Annotated[str, typer.Option("--pooling", help="mean, cls, max.", show_default="the model's")] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs a step.")] = 64,
    mini_batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--mini-batch-tokens", min=1, help="Tokens that are encoded at a time.", show_default="by the device"
        ),
    ] = None,
    negatives: Annotated[int, typer.Option("--negatives", min=0, help="Hard negatives a pair, at most.")] = 4,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="How long.", show_default="1 epoch")] = None,
    epochs: options.Epochs = None,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="The highest learning rate.")] = 2e-5,
    warmup: options.Warmup = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of AdamW, on matrices.")] = 0.01,
    max_query_length: Annotated[
        int | None,
        typer.Option("--max-query-length", min=3, help="Tokens that are read in training.", show_default="the model's"),
    ] = None,
    max_passage_length: Annotated[
        int | None,
        typer.Option(
            "--max-passage-length",
            min=3,
            help="Tokens that are read in training.",
            show_default="the model's",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", help="Put before the texts and kept in the model: 'query=query: ' 'passage=…'."),
    ] = None,
    average: Annotated[
        float, typer.Option("--average", min=0.0, help="Save a moving average of the weights; 0.99 of it stays a step.")
    ] = 0.0,
    start_share: Annotated[
        float, typer.Option("--start-share", min=0.0, help="The share of the weights before training in the result.")
    ] = 0.0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--no-bf16", help="Multiply in bf16.", show_default="where the chip has it")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Multiply in fp16, with scaled gradients; on a GPU.")] = False,
    gpus: options.Gpus = "",
    num_gpus: options.NumGpus = None,
    num_workers: Annotated[int, typer.Option("--num-workers", min=0, help="Batches that are made ahead.")] = 1,
    val_datasets: Annotated[
        list[str] | None, typer.Option("--val-datasets", help="BEIR names or folders; nDCG@10 chooses the checkpoint.")
    ] = None,
    val_split: Annotated[str, typer.Option("--val-split", help="Which relevance marks judge.")] = "test",
    hold_out: Annotated[
        float, typer.Option("--hold-out", help="Only this share of the split judges, and is kept out of training.")
    ] = 0.0,
    val_check_interval: Annotated[
        int | None,
        typer.Option("--val-check-interval", min=1, help="Steps a checkpoint.", show_default="a tenth of all"),
    ] = None,
    checkpoint_path: Annotated[
        Path | None, typer.Option("--checkpoint-path", help="Begin with the weights of this folder.")
    ] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Checkpoints kept beside the best.")] = 2,
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", help="At the end, put the model on the Hub under this id.", metavar="ID")
    ] = "",
    resume: options.Resume = False,
    clearml: options.ClearML = None,
    tensorboard: options.TensorBoard = None,
    seed: options.Seed = None,
    device: options.Device = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a dense retriever on weighted datasets; the result is a sentence-transformers folder.

    Example: `slmx train retriever --data-dirs scifact pairs --weights 1,2 --steps 200 --save-dir mine`
    """
    from slmx import console, settings
    from slmx.train.retriever_options import TrainOptions, parse_dims, parse_prompts, parse_weights

    known = settings.load_with_hub_token()
    before = parse_prompts(prompts or [])
    asked = TrainOptions(
        data_dirs=tuple(data_dirs or ()),
        dataset=known.eval.dataset,
        words=known.passages.words,
        overlap=known.passages.overlap,
        save_dir=save_dir,
        data_dir=data_dir or known.data_dir,
        cache_dir=cache_dir or known.cache_dir,
        model=model,
        forms=tuple(forms or ()),
        crop=crop,
        crop_min_words=crop_min_words,
        crop_max_words=crop_max_words,
        weights=parse_weights(weights),
        sampling=sampling,
        loss=loss,
        guide=guide,
        matryoshka_dims=parse_dims(matryoshka_dims),
        scale=scale,
        pooling=pooling,
        batch_size=batch_size,
        mini_batch_tokens=mini_batch_tokens,
        negatives=negatives,
        steps=steps,
        epochs=epochs,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        max_query_length=max_query_length,
        max_passage_length=max_passage_length,
        query_prompt=before["query"],
        passage_prompt=before["passage"],
        average=average,
        start_share=start_share,
        bf16=bf16,
        fp16=fp16,
        num_workers=num_workers,
        device=device or known.device,
        val_check_interval=val_check_interval,
        val_datasets=tuple(val_datasets or ()),
        val_split=val_split,
        hold_out=hold_out,
        checkpoint_path=checkpoint_path,
        keep=keep,
        push_to_hub=push_to_hub,
        resume=resume,
        overwrite=overwrite,
        seed=known.seed if seed is None else seed,
        command=console.typed(),
    )
    if dry_run:
        _show_plan(asked)
        return
    from slmx.track.trackers import chosen_trackers
    from slmx.train import ranks

    track = chosen_trackers(known, clearml=clearml, tensorboard=tensorboard, default_tensorboard=True)
    devices = ranks.devices(asked.device, gpus, num_gpus)
    ranks.spread(devices, lambda: _show_plan(asked, on_the_way=True), lambda joined: _train(asked, joined, track))


def _show_plan(asked: TrainOptions, *, on_the_way: bool = False) -> None:
    from slmx import console
    from slmx.train.plan import plan_training, render_plan

    with console.listening() as listen:
        planned = plan_training(asked, listen)
    if on_the_way:
        console.show(render_plan(planned.plan))
    else:
        console.result(planned.plan, render_plan)


def _train(asked: TrainOptions, joined: Ranks, track: TrackOptions) -> None:
    """Plan and train in this process; rank 0 alone speaks, and not of a plan that its parent has shown."""
    from slmx import console
    from slmx.events import nobody
    from slmx.signals import stopping
    from slmx.track.trackers import TrackOptions, open_trackers
    from slmx.train import ranks
    from slmx.train.plan import plan_training, render_plan
    from slmx.train.retriever import render_report, train

    told = joined.main and not ranks.launched()
    with console.listening() as listen:
        planned = joined.together(lambda: plan_training(asked, listen if told else nobody))
    if told:
        console.show(render_plan(planned.plan))
    with (
        stopping(console.note) if joined.main else stopping() as stop,
        console.listening() as listen,
        open_trackers(track if joined.main else TrackOptions(), listen) as trackers,
    ):
        report = train(planned, stop=stop, listen=listen, ranks=joined, trackers=trackers)
    if joined.main:
        console.result(report, render_report)


app.registered_commands += cli_lm.app.registered_commands
