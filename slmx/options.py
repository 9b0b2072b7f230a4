"""Every option that two commands share, defined once. `None` as default means: from the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from slmx.records import GoldLevel

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where datasets live.", show_default="data")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Passages, indexes and vectors, by content.", show_default=".cache")
]
OutputDir = Annotated[Path | None, typer.Option("--output-dir", help="Where runs are written.", show_default="outputs")]
Bucket = Annotated[str, typer.Option("--bucket", help="The bucket.", show_default="from the settings")]
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        help="A folder in the bucket: only what lies in it; runs is the same as runs/.",
        callback=lambda prefix: prefix if not prefix or prefix.endswith("/") else f"{prefix}/",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]
AllowErrors = Annotated[bool, typer.Option("--allow-errors", help="Go on when more than 5 % of the rows are bad.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of samples, splits and intervals.", show_default="0")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", show_default="auto")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, bfloat16, float16, float32.", show_default="auto"),
]
Gpus = Annotated[str, typer.Option("--gpus", help="Ids of cards, a process each: 0,1.")]
NumGpus = Annotated[
    int | None,
    typer.Option("--num-gpus", min=1, help="A count of cards, a process each; with --device cpu of processes."),
]
Epochs = Annotated[float | None, typer.Option("--epochs", min=0.001, help="How long, instead of --steps.")]
Warmup = Annotated[float, typer.Option("--warmup", min=0.0, help="A share of the steps, or from 1 on steps.")]
Clip = Annotated[float, typer.Option("--clip", min=0.0, help="Cut the gradient's norm to this; 0: never.")]
MeasuredDtype = Annotated[str, typer.Option("--dtype", help="auto (what is measured faster), bfloat16, float32.")]
ValInterval = Annotated[
    int | None, typer.Option("--val-interval", min=0, help="Steps; 0: at the end.", show_default="a tenth")
]
SaveInterval = Annotated[
    int | None, typer.Option("--save-interval", min=0, help="Steps; 0: at the end.", show_default="a tenth")
]
SampleInterval = Annotated[
    int | None, typer.Option("--sample-interval", min=0, help="Steps; 0: none.", show_default="a tenth")
]
LogInterval = Annotated[int, typer.Option("--log-interval", min=1, help="Steps a row of the metrics.")]
Keep = Annotated[int, typer.Option("--keep", min=1, help="Checkpoints kept.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --save-dir.")]
MaxItems = Annotated[int | None, typer.Option("--max-items", min=1, help="Only the first N rows.")]
Words = Annotated[int | None, typer.Option("--words", min=10, help="Words a passage, about.", show_default="100")]
Overlap = Annotated[
    int | None, typer.Option("--overlap", min=0, help="Words that neighbouring passages share.", show_default="0")
]
CropStyle = Annotated[
    str,
    typer.Option("--crop", help="Documents as pairs: spans (two of each), sentence (and the rest), title (and text)."),
]
CropMinWords = Annotated[int, typer.Option("--crop-min-words", min=1, help="Words a span, at least.")]
CropMaxWords = Annotated[int, typer.Option("--crop-max-words", min=0, help="Words a span, at most; 0: no limit.")]
SplitOn = Annotated[
    str, typer.Option("--split-on", help="What separates documents: end-of-text (literally), line, blank or a REGEX.")
]
Encoding = Annotated[
    str, typer.Option("--encoding", help="Of texts and JSON rows; auto takes each for what it looks like.")
]
TextKey = Annotated[str, typer.Option("--text-key", help="The field or column that holds the text.")]
Language = Annotated[str, typer.Option("--language", help="Analyser of BM25: auto, english, russian, none.")]
Reranker = Annotated[
    str | None, typer.Option("--reranker", help="A cross-encoder (folder or id) that reorders what was found.")
]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template.", show_default="preset")
]
ClearML = Annotated[
    bool | None, typer.Option("--clearml/--no-clearml", help="Send to ClearML.", show_default="if it is configured")
]
TensorBoard = Annotated[
    bool | None,
    typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard files.", show_default="as in the settings"),
]
MetricsPreset = Annotated[
    str, typer.Option("--metrics-preset", help="default, squad, flashrag, bergen, lm-eval, lighteval, seed-v1/v3.")
]
Vocabulary = Annotated[Path | None, typer.Option("--vocabulary", help="BERT's vocab.txt, for token_recall@bert alone.")]


def run_folders(incomplete: str) -> list[str]:
    """Shell completion from the runs under the output folder."""
    from slmx import settings

    found = settings.load().output_dir.glob("**/run.json")
    return sorted(str(path.parent) for path in found if str(path.parent).startswith(incomplete))


Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="Run folders, or folders above them.", autocompletion=run_folders),
]
RightBy = Annotated[str, typer.Option("--right-by", help="What makes an answer right: match, em, judge.")]


def preset_names(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion from the presets of a kind ("models", "retrievers", … of slmx.presets.KINDS)."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from slmx import presets

        return [(name, preset.about) for name, preset in presets.load(kind).items() if name.startswith(incomplete)]

    return complete


def gold_level(name: str) -> GoldLevel:
    """The value of --oracle, checked."""
    from slmx.registry import unknown_name

    if name not in get_args(GoldLevel):
        raise unknown_name("level of gold passages", name, get_args(GoldLevel))
    return cast(GoldLevel, name)
