"""The signatures of `slmx train tokenizer`, `lm`, `sft` …: those of causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmx import options
from slmx.group import Group

app = Group("train", "Tokens in, weights out.")  # its commands are joined to those of slmx.train.cli


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
