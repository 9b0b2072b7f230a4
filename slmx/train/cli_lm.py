"""The signatures of `slmx train tokenizer`, `lm`, `sft` …: those of causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.group import Group

if TYPE_CHECKING:
    from slmx.track.trackers import TrackOptions
    from slmx.train.lm_plan import LmOptions
    from slmx.train.ranks import Ranks
    from slmx.train.sft import SftOptions

app = Group("train", "Tokens in, weights out.")  # its commands are joined to those of slmx.train.cli


@app.command("tokenizer")
def tokenizer(
    texts: Annotated[list[Path], typer.Argument(help="Text, JSON rows, parquet, folders of them; .gz and .zst too.")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write; transformers loads it.")],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=1, help="All token types: bytes and special ones too.")
    ] = 8192,
    sample_mb: Annotated[
        float, typer.Option("--sample-mb", min=0.001, help="Millions of characters to learn from, at most about.")
    ] = 64.0,
    special: Annotated[
        list[str] | None, typer.Option("--special", help="A further special token; repeat for several.")
    ] = None,
    split_on: options.SplitOn = "end-of-text",
    encoding: options.Encoding = "utf-8",
    text_key: options.TextKey = "text",
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Learn a byte-level BPE vocabulary from a bounded, seeded sample of texts.

    Example: `slmx train tokenizer stories.txt --vocab-size 8192 --to my-tokenizer`
    """
    from slmx import console, settings
    from slmx.data.texts import Splitting
    from slmx.train.tokenizer import TokenizerOptions, render_report, train_tokenizer

    asked = TokenizerOptions(
        texts=texts,
        to=to,
        vocab_size=vocab_size,
        sample_mb=sample_mb,
        special=special or (),
        how=Splitting(split_on, encoding, text_key),
        seed=settings.load().seed if seed is None else seed,
        overwrite=overwrite,
    )
    with console.listening() as listen:
        report = train_tokenizer(asked, listen)
    console.result(report, render_report)


@app.command("lm")
def lm(
    data: Annotated[Path, typer.Option("--data", help="A folder with train.bin (and val.bin), or a token file.")],
    save_dir: Annotated[Path, typer.Option("--save-dir", help="The folder of the trained model and its checkpoints.")],
    preset: Annotated[
        str,
        typer.Option("--preset", help="The shape of a new model.", autocompletion=options.preset_names("transformers")),
    ] = "",
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Begin with this model: a --save-dir, or an old step_N.pt.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="How long.", show_default="1 epoch")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="How long, instead of --steps.")] = None,
    epochs: options.Epochs = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=1, help="Tokens a step, of all processes.", show_default="preset"),
    ] = None,
    micro_tokens: Annotated[
        int | None, typer.Option("--micro-tokens", min=1, help="Tokens at a time.", show_default="by the device")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Tokens a window.", show_default="preset")
    ] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="muon (matrices; AdamW the rest), adamw.")] = "muon",
    lr: Annotated[
        float | None, typer.Option("--lr", min=0.0, help="Highest rate of AdamW.", show_default="by the width")
    ] = None,
    matrix_lr: Annotated[float, typer.Option("--matrix-lr", min=0.0, help="Highest rate of Muon.")] = 0.02,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of the layers' matrices.")] = 0.1,
    schedule: Annotated[str, typer.Option("--schedule", help="wsd (up, level, down), cosine, constant.")] = "wsd",
    warmup: options.Warmup = 0.02,
    decay: Annotated[float, typer.Option("--decay", min=0.0, help="How long wsd goes down, as --warmup.")] = 0.4,
    min_lr: Annotated[
        float, typer.Option("--min-lr", min=0.0, max=1.0, help="The share of the rates at the end.")
    ] = 0.0,
    clip: options.Clip = 1.0,
    document_mask: Annotated[
        bool, typer.Option("--document-mask/--no-document-mask", help="Documents do not see each other.")
    ] = True,
    attention: Annotated[str, typer.Option("--attention", help="auto, blocked, sdpa, flex.")] = "auto",
    device: options.Device = None,
    dtype: options.MeasuredDtype = "auto",
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile.", show_default="where it pays")
    ] = None,
    gpus: options.Gpus = "",
    num_gpus: options.NumGpus = None,
    strategy: Annotated[str, typer.Option("--strategy", help="Several processes: ddp, fsdp.")] = "ddp",
    val_tokens: Annotated[int, typer.Option("--val-tokens", min=0, help="Validate on about so many.")] = 65_536,
    val_interval: options.ValInterval = None,
    save_interval: options.SaveInterval = None,
    sample_interval: options.SampleInterval = None,
    log_interval: options.LogInterval = 10,
    keep: options.Keep = 2,
    resume: options.Resume = False,
    clearml: options.ClearML = None,
    tensorboard: options.TensorBoard = None,
    seed: options.Seed = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and what a few real steps take, and stop.")
    ] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a small transformer from scratch, or go on with one; the result is a folder that transformers loads.

    Example: `slmx train lm --preset nano-6m --data tokens --steps 1000 --save-dir runs/lm`
    """
    from slmx import console, settings
    from slmx.track.trackers import chosen_trackers
    from slmx.train import ranks
    from slmx.train.lm_plan import LmOptions

    known = settings.load()
    asked = LmOptions(
        data=data,
        save_dir=save_dir,
        preset=preset,
        init_from=init_from,
        steps=steps,
        tokens=tokens,
        epochs=epochs,
        batch_tokens=batch_tokens,
        micro_tokens=micro_tokens,
        context=context,
        optimizer=optimizer,
        lr=lr,
        matrix_lr=matrix_lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        decay=decay,
        floor=min_lr,
        clip=clip,
        document_mask=document_mask,
        attention=attention,
        device=device or known.device,
        dtype=dtype,
        compile=compile_,
        strategy=strategy,
        val_tokens=val_tokens,
        val_interval=val_interval,
        save_interval=save_interval,
        sample_interval=sample_interval,
        log_interval=log_interval,
        keep=keep,
        resume=resume,
        overwrite=overwrite,
        seed=known.seed if seed is None else seed,
        command=console.typed(),
    )
    track = chosen_trackers(known, clearml=clearml, tensorboard=tensorboard, default_tensorboard=True)
    devices = ranks.devices(asked.device, gpus, num_gpus)
    ranks.spread(devices, lambda: _plan(asked), lambda joined: _train_lm(asked, joined, track, dry_run))


def _plan(asked: LmOptions) -> None:
    from slmx import console
    from slmx.train.lm_plan import plan_lm, render_plan

    with console.listening() as listen:
        planned = plan_lm(asked, listen)
    console.show(render_plan(planned.plan))


def _train_lm(asked: LmOptions, joined: Ranks, track: TrackOptions, dry_run: bool) -> None:
    """Plan and train in this process; rank 0 alone speaks."""
    from slmx import console
    from slmx.events import nobody
    from slmx.signals import stopping
    from slmx.track.trackers import TrackOptions, open_trackers
    from slmx.train import lm
    from slmx.train.lm_plan import plan_lm, render_plan

    own = track if joined.main else TrackOptions()
    with console.listening() as listen:
        planned = plan_lm(asked, listen if joined.main else nobody)
        if dry_run:
            estimate = lm.estimate_lm(planned, ranks=joined, listen=listen)
            if joined.main:
                console.result(estimate, lm.render_estimate)
            return
        if joined.world == 1:
            console.show(render_plan(planned.plan))
        with stopping(console.note) as stop, open_trackers(own, listen) as trackers:
            report = lm.train_lm(planned, ranks=joined, stop=stop, listen=listen, trackers=trackers)
    if joined.main:
        console.result(report, lm.render_report)


@app.command("plot")
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trainings, or metrics files; several are overlaid.")],
    to: Annotated[Path, typer.Option("--to", help="The page; the picture gets the same name with .png.")] = Path(
        "training.html"
    ),
    until: Annotated[
        float | None, typer.Option("--until", min=1, help="The step of the forecast.", show_default="twice as far")
    ] = None,
    forecast: Annotated[bool, typer.Option("--forecast/--no-forecast", help="Say where the loss is heading.")] = True,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Loss, learning rate, speed, time and gradient norm as an interactive page and a picture, with a loss forecast.

    Example: `slmx train plot runs/lm runs/lm-adamw --to curves.html`
    """
    from slmx import console, settings
    from slmx.train.plot import plot as draw, render_report

    chosen = settings.load().seed if seed is None else seed
    with console.listening() as listen:
        report = draw(runs, to=to, until=until, forecasting=forecast, overwrite=overwrite, seed=chosen, listen=listen)
    console.result(report, render_report)


@app.command("sft")
def sft(
    model: Annotated[
        str, typer.Option("--model", help="The --save-dir of `slmx train lm`, a folder of transformers, or a Hub id.")
    ],
    data: Annotated[Path, typer.Option("--data", help="A folder of `slmx data prepare-sft`, or train_sft_packed.bin.")],
    save_dir: Annotated[Path, typer.Option("--save-dir", help="The folder of the tuned model and its checkpoints.")],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="How long.", show_default="2 epochs")] = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Packed rows a step.")] = 16,
    context: Annotated[
        int | None, typer.Option("--context", min=8, help="Tokens a row.", show_default="the model's, at most 1,024")
    ] = None,
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=0, help="LoRA of this rank; 0: all weights learn.")] = 0,
    lora_alpha: Annotated[float, typer.Option("--lora-alpha", min=0.0, help="LoRA's scale, times 1/rank.")] = 32.0,
    lora_dropout: Annotated[float, typer.Option("--lora-dropout", min=0.0, max=0.9, help="Of LoRA's input.")] = 0.0,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, muon.")] = "adamw",
    lr: Annotated[
        float | None, typer.Option("--lr", min=0.0, help="The highest rate.", show_default="1e-4; LoRA 2e-4")
    ] = None,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0.0, help="Of the layers' matrices.")] = 0.0,
    schedule: Annotated[str, typer.Option("--schedule", help="cosine, wsd, constant.")] = "cosine",
    warmup: options.Warmup = 0.05,
    clip: options.Clip = 1.0,
    attention: Annotated[
        str, typer.Option("--attention", help="auto; blocked, sdpa, flex; other architectures: sdpa, eager.")
    ] = "auto",
    device: options.Device = None,
    dtype: options.MeasuredDtype = "auto",
    gpus: options.Gpus = "",
    num_gpus: options.NumGpus = None,
    val_rows: Annotated[int, typer.Option("--val-rows", min=0, help="Validate on so many rows at most.")] = 64,
    val_interval: options.ValInterval = None,
    save_interval: options.SaveInterval = None,
    sample_interval: options.SampleInterval = None,
    log_interval: options.LogInterval = 10,
    keep: options.Keep = 2,
    resume: options.Resume = False,
    clearml: options.ClearML = None,
    tensorboard: options.TensorBoard = None,
    seed: options.Seed = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Fine-tune a causal language model on examples, with the loss on the answers alone.

    Example: `slmx train sft --model runs/lm --data sft --save-dir runs/sft`
    """
    from slmx import console, settings
    from slmx.data.sft_files import EmptyMask
    from slmx.track.trackers import chosen_trackers
    from slmx.train import ranks
    from slmx.train.sft import SftOptions

    known = settings.load_with_hub_token()
    asked = SftOptions(
        model=model,
        data=data,
        save_dir=save_dir,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        context=context,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        attention=attention,
        device=device or known.device,
        dtype=dtype,
        val_rows=val_rows,
        val_interval=val_interval,
        save_interval=save_interval,
        sample_interval=sample_interval,
        log_interval=log_interval,
        keep=keep,
        resume=resume,
        overwrite=overwrite,
        seed=known.seed if seed is None else seed,
        command=console.typed(),
    )
    track = chosen_trackers(known, clearml=clearml, tensorboard=tensorboard, default_tensorboard=True)
    devices = ranks.devices(asked.device, gpus, num_gpus)
    try:
        if dry_run:
            _plan_sft(asked, on_the_way=False)
            return
        ranks.spread(
            devices, lambda: _plan_sft(asked, on_the_way=True), lambda joined: _train_sft(asked, joined, track)
        )
    except EmptyMask as empty:
        console.show(console.tokens(empty.view))
        raise


def _plan_sft(asked: SftOptions, *, on_the_way: bool) -> None:
    from slmx import console
    from slmx.train.sft import plan_sft, render_plan

    with console.listening() as listen:
        planned = plan_sft(asked, listen)
    if on_the_way:
        console.show(render_plan(planned.plan))
    else:
        console.result(planned.plan, render_plan)


def _train_sft(asked: SftOptions, joined: Ranks, track: TrackOptions) -> None:
    """Plan and tune in this process; rank 0 alone speaks."""
    from slmx import console
    from slmx.events import nobody
    from slmx.signals import stopping
    from slmx.track.trackers import TrackOptions, open_trackers
    from slmx.train import sft as work

    own = track if joined.main else TrackOptions()
    with console.listening() as listen:
        planned = work.plan_sft(asked, listen if joined.main else nobody)
        if joined.world == 1:
            console.show(work.render_plan(planned.plan))
        with stopping(console.note) as stop, open_trackers(own, listen) as trackers:
            report = work.train_sft(planned, ranks=joined, stop=stop, listen=listen, trackers=trackers)
    if joined.main:
        console.result(report, work.render_report)
