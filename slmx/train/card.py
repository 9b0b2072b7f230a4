"""What a finished run leaves: the best model as a sentence-transformers folder, with a card and its training ids."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from slmx import __version__
from slmx.files import atomic_write, write_bytes, write_json
from slmx.retrieve.trained import TRAINING_IDS
from slmx.train import checkpoints
from slmx.train.pairs import TrainSet
from slmx.train.plan import Planned
from slmx.train.retriever_options import TrainOptions


def write_model(planned: Planned, checkpoint: Path, step: int, scores: Mapping[str, float]) -> None:
    """Put the model of a checkpoint and its card into the save folder.

    Weights come last: a folder that loads says what it was trained on.

    Args:
        checkpoint: the folder with `model/`.
        scores: nDCG@10 of each validation set at that step, 0 to 1.

    Raises:
        SlmxError: the checkpoint is not there, or damaged.
    """
    checkpoints.check(checkpoint)
    save_dir, made = planned.options.save_dir, checkpoint / checkpoints.MODEL
    files = [file for file in made.rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    _copy([file for file in files if file not in weights], made, save_dir)
    write_json(save_dir / TRAINING_IDS, {one.name: training_ids(one) for one in planned.sets})
    write_bytes(save_dir / "README.md", card(planned, step, scores).encode())
    _copy(weights, made, save_dir)


def _copy(files: Sequence[Path], source: Path, to: Path) -> None:
    for file in files:
        with file.open("rb") as stream, atomic_write(to / file.relative_to(source)) as out:
            shutil.copyfileobj(stream, out)


def training_ids(one: TrainSet) -> list[str]:
    """The ids of a set's queries, each once; none where the source has none, and for crops, which nobody asked."""
    return list(dict.fromkeys(example.query_id for example in one.examples() if example.query_id))


def _more(options: TrainOptions) -> list[str]:
    """What was asked for beyond the usual."""
    dims = ", ".join(map(str, options.matryoshka_dims))
    told = {
        f"False negatives were left out by the guide {Path(options.guide).name}.": options.guide,
        f"Vectors may be cut to their first {dims} numbers.": dims,
        f"The weights are a moving average ({options.average:g} of it stays at each step).": options.average,
        f"{100 * options.start_share:g} % of the weights are those from before training.": options.start_share,
    }
    return [line for line, asked in told.items() if asked]


def _public(command: str) -> str:
    """A command without the folders of this machine: of a whole path the name is left."""
    return shlex.join(re.sub(r"(^|=)[/~].*/(?=.)", r"\1", word) for word in shlex.split(command))


def card(planned: Planned, step: int, scores: Mapping[str, float]) -> str:
    """The model card: what it was made from and how, what it scored, and the command."""
    options, plan = planned.options, planned.plan
    rows = [
        f"| {one.name} | {one.form} | {one.pairs} | {100 * one.share:.1f} % | {opened.content[:16]} |"
        for one, opened in zip(plan.sets, planned.sets, strict=True)
    ]
    judged = [f"| {name} | {100 * score:.2f} |" for name, score in scores.items()]
    held = f", the {100 * options.hold_out:.0f} % held out of training" if options.hold_out else ""
    crops = [one.name for one in plan.sets if one.form == "crops"]
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, feature-extraction, dense-retrieval, slmx]",
        "---",
        f"# {plan.model}, trained with slmx {__version__}",
        "",
        f"Step {step} of {plan.steps}: `{plan.loss}`, {plan.sampling} batches of {plan.batch_size}, learning rate "
        f"{options.lr:g}, warm-up {options.warmup:g}, weight decay {options.weight_decay:g}, seed {options.seed}.",
        *_more(options),
        "",
        "| training data | form | pairs | share | content (SHA-256) |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"The ids of its training queries are in `{TRAINING_IDS}`: scores on those questions say nothing.",
        *([f"Documents of {', '.join(crops)} served for cropping."] if crops else []),
        *(["", f"| validation ({options.val_split}{held}) | nDCG@10 |", "|---|---|", *judged] if judged else []),
        *([f"{len(planned.leaks)} validation queries stood in the training data."] if planned.leaks else []),
        "",
        "```console",
        f"$ {_public(options.command) if options.push_to_hub else options.command}",
        "```",
    ]
    return "\n".join(lines) + "\n"
