"""What a finished run leaves: the best model as a sentence-transformers folder, with a card and its training ids."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from slmx import __version__
from slmx.files import write_bytes, write_json
from slmx.retrieve.trained import TRAINING_IDS
from slmx.train.pairs import TrainSet
from slmx.train.plan import Planned


def write_model(planned: Planned, checkpoint: Path, step: int, scores: Mapping[str, float]) -> None:
    """Put the model of a checkpoint and its card into the save folder; weights come last: it loads, or is absent.

    Args:
        checkpoint: the folder with `model/`.
        scores: nDCG@10 of each validation set at that step, 0 to 1.
    """
    save_dir, made = planned.options.save_dir, checkpoint / "model"
    files = sorted((file for file in made.rglob("*") if file.is_file()), key=lambda file: file.suffix == ".safetensors")
    for file in files:
        target = save_dir / file.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        shutil.copyfile(file, temporary)
        temporary.replace(target)
    write_json(save_dir / TRAINING_IDS, {one.name: training_ids(one) for one in planned.sets})
    write_bytes(save_dir / "README.md", card(planned, step, scores).encode())


def training_ids(one: TrainSet) -> list[str]:
    """The ids of a set's queries, each once; for crops those of the documents. Nothing where the source has no ids."""
    ids = (example.query_id or ("" if example.query else example.positive_id) for example in one.examples())
    return list(dict.fromkeys(own for own in ids if own))


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
        f"$ {options.command}",
        "```",
    ]
    return "\n".join(lines) + "\n"
