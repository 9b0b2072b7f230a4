"""The signatures of `slmx train tokenizer`, `lm`, `sft` …: those of causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmx import options
from slmx.group import Group

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
