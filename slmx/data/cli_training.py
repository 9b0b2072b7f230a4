"""The signatures of `slmx data crop`, `prepare`, `prepare-sft`: those that make training files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.group import Group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.data.prepare import Prepared
    from slmx.data.prepare_sft import SftPrepared

app = Group("data", "Training files.")  # its commands are joined to those of slmx.data.cli


@app.command("crop")
def crop(
    source: Annotated[str, typer.Argument(help="A dataset, a BEIR folder, or a folder with corpus_train.tsv.")],
    to: Annotated[Path, typer.Option("--to", help="The folder of pairs to write.")],
    style: options.CropStyle = "spans",
    min_words: options.CropMinWords = 10,
    max_words: options.CropMaxWords = 0,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Pairs a document.")] = 1,
    max_items: options.MaxItems = None,
    seed: options.Seed = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Cut training pairs out of documents: two random spans, a sentence and the rest, or the title and the text.

    The trainer does the same while it trains (`--forms crops`), with new pieces in each pass.

    Example: `slmx data crop scifact --crop sentence --passes 2 --to scifact-crops`
    """
    from slmx import console, settings
    from slmx.data.crop import Cropping, crop as work, render

    known = settings.load()
    with console.listening() as listen:
        cropped = work(
            source,
            to,
            data_dir=data_dir or known.data_dir,
            cache_dir=cache_dir or known.cache_dir,
            cropping=Cropping(style, min_words, max_words),
            passes=passes,
            seed=known.seed if seed is None else seed,
            max_items=max_items,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(cropped, render)


@app.command("prepare")
def prepare(
    texts: Annotated[list[Path], typer.Argument(help="Text, JSON rows, parquet, folders of them; .gz and .zst too.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="A folder with tokenizer.json, a model, a preset or a Hub id.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write: train.bin, val.bin, their sidecars.")],
    split_on: options.SplitOn = "end-of-text",
    encoding: options.Encoding = "utf-8",
    text_key: options.TextKey = "text",
    val_share: Annotated[
        float, typer.Option("--val-share", help="This share of the documents goes to val.bin, by hash; 0: none.")
    ] = 0.05,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="How many tokenise.", show_default="one a core")
    ] = None,
    seed: options.Seed = None,
    allow_errors: options.AllowErrors = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Texts to token files for `slmx train lm`: streamed, and resumed by the same command when it was stopped.

    Documents are separated by the end-of-text id. With fewer than 100 of them, blocks of 4 KiB are split off for
    validation instead of documents. Exit code 3: rows were left out.

    Example: `slmx data prepare stories.txt.gz --tokenizer my-tokenizer --to tokens`
    """
    from slmx import console, settings
    from slmx.data.prepare import Job, prepare as work
    from slmx.data.texts import Splitting
    from slmx.models.tokenizers import load_tokenizer
    from slmx.signals import stopping

    job = Job(
        texts=texts,
        tokenizer=load_tokenizer(tokenizer),
        to=to,
        how=Splitting(split_on, encoding, text_key),
        val_share=val_share,
        seed=settings.load().seed if seed is None else seed,
        processes=processes,
        allow_errors=allow_errors,
        overwrite=overwrite,
    )
    with stopping(console.note) as stop, console.listening() as listen:
        result = work(job, stop=stop, listen=listen)
    console.result(result, _render_prepared)
    result.check()


def _render_prepared(result: Prepared) -> RenderableType:
    from slmx import console

    rows = [
        ("sources", f"{result.sources:,}"),
        ("documents", f"{result.documents:,}"),
        ("train.bin", f"{result.train_tokens:,} tokens"),
        ("val.bin", f"{result.val_tokens:,} tokens ({result.split})" if result.val_tokens else "none"),
        ("token types", f"{result.vocab_size:,} ({result.dtype})"),
        ("bytes a token", f"{result.bytes_per_token:.2f}"),
        (
            "time",
            f"{result.seconds:.1f} s, {result.tokens_per_second:,} tokens/s" if result.seconds else "none: finished",
        ),
        ("folder", result.folder),
    ]
    rows += [("taken up from before", f"{result.resumed} shards")] if result.resumed else []
    rows += [("rows left out", str(result.left_out))] if result.left_out else []
    return console.table(f"Token files of {result.tokenizer}", ("", ""), rows)


@app.command("prepare-sft")
def prepare_sft(
    sources: Annotated[
        list[str],
        typer.Argument(help="JSON, JSON lines, parquet: question + answer, instruction + output, messages, …"),
    ],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="A folder with tokenizer.json, a model, a preset or a Hub id.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to write: ids, masks, offsets.")],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            help="chatml; chat (the tokenizer's own); alpaca (### Instruction:); plain; qa, qa-chat: the files are "
            "datasets of questions with passages, asked as `slmx eval run` asks them.",
        ),
    ] = "chatml",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=8, help="Leave longer conversations out.", show_default="none")
    ] = None,
    val_share: Annotated[
        float, typer.Option("--val-share", help="This share of the conversations goes to val.bin, by hash; 0: none.")
    ] = 0.05,
    show: Annotated[
        bool, typer.Option("--show/--no-show", help="Show the first example, what is learnt in green.")
    ] = True,
    seed: options.Seed = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    allow_errors: options.AllowErrors = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Instruction data to examples for `slmx train sft`, with the loss on the answers and their ends alone.

    The templates qa and qa-chat teach the three modes: answer alone, from the passages, or say that the passages do not
    hold the answer. Exit code 3: rows were left out.

    Example: `slmx data prepare-sft instructions.json --tokenizer runs/lm --to sft`
    """
    from slmx import console, settings
    from slmx.data.prepare_sft import SftJob, prepare_sft as work
    from slmx.data.sft_files import EmptyMask
    from slmx.models.tokenizers import load_tokenizer

    loaded = settings.load()
    job = SftJob(
        sources=sources,
        tokenizer=load_tokenizer(tokenizer),
        to=to,
        template=template,
        max_tokens=max_tokens,
        val_share=val_share,
        seed=loaded.seed if seed is None else seed,
        data_dir=data_dir or loaded.data_dir,
        cache_dir=cache_dir or loaded.cache_dir,
        allow_errors=allow_errors,
        overwrite=overwrite,
    )
    try:
        with console.listening() as listen:
            result = work(job, listen)
    except EmptyMask as empty:
        console.show(console.tokens(empty.view))
        raise
    if show:
        console.show(console.tokens(result.view))
    console.result(result, _render_sft)
    result.check()


def _render_sft(result: SftPrepared) -> RenderableType:
    from slmx import console

    share = 100 * result.learnt_tokens / max(1, result.tokens)
    rows = [
        ("examples", f"{result.train_examples:,} to train on, {result.val_examples:,} to validate"),
        *((f"… {kind}", f"{count:,}") for kind, count in result.kinds.items()),
        ("tokens", f"{result.tokens:,}, {share:.1f} % in the loss"),
        ("longest example", f"{result.longest:,} tokens"),
        ("folder", result.folder),
    ]
    rows += [("too long, left out", f"{result.too_long:,}")] if result.too_long else []
    rows += [("rows left out", f"{result.left_out:,}")] if result.left_out else []
    return console.table(f"Examples in the template {result.template}", ("", ""), rows)
