"""The plan of `slmx train retriever`: everything that can be wrong is found here, before a weight moves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.data.crop import Cropping
from slmx.errors import UsageError
from slmx.events import Listener, Notice, nobody
from slmx.records import Record
from slmx.train.pairs import Leak, TrainSet, find_leaks, known_positives, open_sets
from slmx.train.retriever_options import TrainOptions
from slmx.train.sampling import Sampler

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.train.validation import ValSet

SAMPLE = 200  # pairs a dataset whose words are counted for the table
TRIED = 500  # batches that are drawn before training
BYTES_A_WEIGHT = 16  # fp32 weight and gradient, and AdamW's two moments


class SetPlan(Record, frozen=True):
    """One row of the plan: words are means over a sample, `expected` the pairs that the run will draw."""

    name: str
    form: str
    pairs: int
    with_negatives: int
    share: float
    expected: int
    query_words: float
    positive_words: float


class Plan(Record, frozen=True, omit_defaults=False):
    """What `--dry-run` shows. `memory_bytes`: weights, gradients and AdamW's moments, without activations."""

    model: str
    sets: list[SetPlan]
    sampling: str
    loss: str
    batch_size: int
    steps: int
    epochs: float
    weights: int
    memory_bytes: int
    val_sets: list[str]
    leaks: list[Leak]


@dataclass(frozen=True)
class Planned:
    """A plan with everything opened."""

    options: TrainOptions
    folder: Path
    prompts: tuple[str, str]
    sets: list[TrainSet]
    val_sets: list[ValSet]
    known: Any
    sampler: Sampler
    plan: Plan
    leaks: list[Leak] = field(default_factory=list)
    guide: Path | None = None

    @property
    def sources(self) -> list[Path]:
        """The folders that the run is made from and judged by."""
        judges = [one.dataset.folder for one in self.val_sets]
        models = [one for one in (self.folder, self.guide, self.options.checkpoint_path) if one is not None]
        return [*models, *self.options.data_dirs, *judges]


def plan_training(options: TrainOptions, listen: Listener = nobody) -> Planned:
    """Open model, data and validation sets, and check that they fit.

    Raises:
        UsageError: options that contradict each other or the data.
        SlmxError: a model or a file that cannot be read.
    """
    from slmx.models.encoders import resolve
    from slmx.retrieve.retrievers import find_preset
    from slmx.train.validation import open_val_sets

    _check(options)
    cropping = Cropping(options.crop, options.crop_min_words, options.crop_max_words)
    options, names = (options, ()) if options.data_dirs else with_gold_pairs(options, listen)
    sets = open_sets(
        options.data_dirs,
        cache_dir=options.cache_dir,
        forms=options.forms,
        names=names,
        cropping=cropping,
        listen=listen,
    )
    name, preset = find_preset(options.model)
    if preset.retriever != "dense":
        raise UsageError(f"{options.model} has no weights to train.", hint="Give a dense preset, a folder or a Hub id.")
    val_sets = open_val_sets(
        options.val_datasets,
        split=options.val_split,
        held_out=options.hold_out or 1.0,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        listen=listen,
    )
    sets = _hold_out(sets, val_sets, options, listen)
    _check_loss(options, sets)
    sampler = _sampler(options, sets)
    folder = resolve(preset.model, preset.package, listen=listen)
    leaks = find_leaks(sets, _judging(val_sets))
    _tell_leaks(leaks, listen)
    prompts = (options.query_prompt or preset.query_prompt, options.passage_prompt or preset.passage_prompt)
    shown = name if Path(options.model).expanduser().is_dir() else preset.model
    plan = _plan(options, shown, folder, sets, sampler.shares, val_sets, leaks)
    guide = _guide(options.guide, listen) if options.loss == "gist" else None
    _try_batches(options, sets, plan.steps)
    return Planned(options, folder, prompts, sets, val_sets, known_positives(sets), sampler, plan, leaks, guide)


def _guide(name: str, listen: Listener) -> Path:
    """The folder of a guide model, found as every dense model is."""
    from slmx.models.encoders import resolve
    from slmx.retrieve.retrievers import find_preset

    _, preset = find_preset(name)
    if preset.retriever != "dense":
        raise UsageError(f"{name} makes no vectors to guide by.", hint="Give a dense preset, a folder or a Hub id.")
    return resolve(preset.model, preset.package, listen=listen)


def with_gold_pairs(options: TrainOptions, listen: Listener) -> tuple[TrainOptions, tuple[str, ...]]:
    """The options with the question → gold passage pairs of the dataset in the settings, and what they are called.

    Raises:
        UsageError: the dataset has no part for training, or it is not here; says what makes it.
    """
    from slmx.data.datasets import locate, open_dataset
    from slmx.presets import DatasetPreset, find

    found = find(DatasetPreset, options.dataset)
    if found is None:  # a BEIR folder, whose train marks say what answers what
        folder = locate(options.dataset, options.data_dir)[1]
        if not (folder / "qrels" / "train.tsv").is_file():
            hint = "Name training data: --data-dirs …"
            raise UsageError(f"{folder}, the dataset in the settings, has no marks for training.", hint=hint)
        return replace(options, data_dirs=(folder,)), ()
    own, preset = found
    if not preset.train:
        raise UsageError(
            f"The dataset {own} has no part for training.", hint="Name training data: --data-dirs FOLDER …"
        )
    path = options.data_dir / preset.train
    if not path.is_file():
        hint = f"`slmx data process --mode {Path(preset.train).parent.name}` makes it; or name folders: --data-dirs …"
        raise UsageError(f"Without --data-dirs {path} serves, and it is not here.", hint=hint)
    opened = open_dataset(
        str(path),
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        words=options.words,
        overlap=options.overlap,
        listen=listen,
    )
    if not opened.has_passages:
        raise UsageError(f"{path} has no documents, so no gold passages.", hint="Name training data: --data-dirs …")
    return replace(options, data_dirs=(opened.folder,), forms=("gold",)), (opened.name,)


def _check(options: TrainOptions) -> None:
    from slmx.registry import unknown_name
    from slmx.train.losses import LOSSES
    from slmx.train.push import check_push
    from slmx.train.towers import POOLINGS

    if options.loss not in LOSSES:
        raise unknown_name("loss", options.loss, LOSSES)
    if options.pooling and options.pooling not in POOLINGS:
        raise unknown_name("pooling", options.pooling, POOLINGS)
    if options.steps is not None and options.epochs is not None:
        raise UsageError("--steps and --epochs both say how long.", hint="Give one of them.")
    if (options.loss == "gist") != bool(options.guide):
        raise UsageError(
            "--loss gist is guided by a model, and no other loss is.", hint="--loss gist --guide MODEL, or neither."
        )
    if options.loss == "triplet" and options.scale is not None:
        raise UsageError("--loss triplet has a margin and no scale.", hint="Leave out --scale.")
    for name, share in (("--average", options.average), ("--start-share", options.start_share)):
        if not 0 <= share < 1:
            raise UsageError(f"{name} is a share below 1, not {share:g}.", hint=f"{name} 0.5")
    if options.push_to_hub:
        check_push(options.push_to_hub)
    if options.hold_out and not options.val_datasets:
        raise UsageError(
            "--hold-out needs questions to hold out.", hint="Name them: --val-datasets … --val-split train"
        )
    if not 0 <= options.hold_out < 1:
        raise UsageError(f"--hold-out is a share below 1, not {options.hold_out}.", hint="--hold-out 0.2")


def _hold_out(sets: list[TrainSet], val_sets: list[ValSet], options: TrainOptions, listen: Listener) -> list[TrainSet]:
    """The sets without the pairs of held-out questions."""
    from slmx.files import key_of

    if not options.hold_out:
        return sets
    held = {key_of(question.question) for one in val_sets for question in one.questions()}
    kept = [one.without(held) for one in sets]
    out = sum(map(len, sets)) - sum(map(len, kept))
    listen(Notice(f"{len(held)} questions judge; their {out} pairs are kept out of training."))
    for one in kept:
        if not len(one):
            raise UsageError(f"{one.name} has no pair left beside the held-out ones.", hint="Give a lower --hold-out.")
    return kept


def _check_loss(options: TrainOptions, sets: list[TrainSet]) -> None:
    from slmx.train.losses import NEED_NEGATIVES

    loss = options.loss
    if loss in NEED_NEGATIVES and not options.negatives:
        raise UsageError(
            f"--loss {loss} learns from hard negatives; --negatives 0 leaves none.",
            hint="Give --negatives 1 or more, or use --loss mnrl.",
        )
    for one in sets:
        if loss in NEED_NEGATIVES and one.negatives < len(one):
            raise UsageError(
                f"--loss {loss} needs a negative for every pair; {len(one) - one.negatives} of {len(one)} pairs of "
                f"{one.name} have none.",
                hint="Use --loss mnrl, whose negatives are the batch's other passages, or give data with negatives.",
            )
        if loss == "margin-mse" and one.scored < len(one):
            raise UsageError(
                f"--loss margin-mse needs a teacher's scores; {len(one) - one.scored} pairs of {one.name} have none.",
                hint="Give rows with `scores` (positive first) or pos_scores and neg_scores, or use --loss triplet.",
            )


def _sampler(options: TrainOptions, sets: list[TrainSet]) -> Sampler:
    import numpy as np

    return Sampler(
        [np.stack([one.query_keys, one.positive_keys], axis=1) for one in sets],
        batch_size=options.batch_size,
        sampling=options.sampling,
        weights=options.weights,
        seed=options.seed,
    )


def _try_batches(options: TrainOptions, sets: list[TrainSet], steps: int) -> None:
    """Draw the first batches by their keys alone: that texts are enough for each is certain only then."""
    sampler = _sampler(options, sets)
    for _ in range(min(steps, TRIED)):
        sampler.next()


def _judging(val_sets: list[ValSet]) -> dict[str, str]:
    """The questions that must not stand in the training data, by dataset and id: those that judge, and all of `test`.

    Where held-out train questions choose the checkpoint, the test questions are to be asked later.
    """
    found = {f"{one.name} {q.question_id}": q.question for one in val_sets for q in one.questions()}
    for one in val_sets:
        marks = one.dataset.qrels("test") if "test" in one.dataset.splits() else {}
        found |= {f"{one.name} {q.question_id}": q.question for q in one.dataset.questions() if q.question_id in marks}
    return found


def _tell_leaks(leaks: list[Leak], listen: Listener) -> None:
    if leaks:
        first = "; ".join(f"{leak.query_id} in {leak.dataset}: {leak.text[:60]}" for leak in leaks[:3])
        said = f"{len(leaks)} validation queries stand in the training data, and their scores mean little ({first})."
        listen(Notice(f"{said} All of them: leaks.json in the save folder.", "warning"))


def _plan(
    options: TrainOptions,
    name: str,
    folder: Path,
    sets: list[TrainSet],
    shares: list[float],
    val_sets: list[ValSet],
    leaks: list[Leak],
) -> Plan:
    total = sum(map(len, sets))
    steps = options.steps or math.ceil((options.epochs or 1.0) * total / options.batch_size)
    drawn = steps * options.batch_size
    weights = _count_weights(folder)
    return Plan(
        model=name,
        sets=[_set_plan(one, share, drawn) for one, share in zip(sets, shares, strict=True)],
        sampling=options.sampling,
        loss=options.loss,
        batch_size=options.batch_size,
        steps=steps,
        epochs=drawn / total,
        weights=weights,
        memory_bytes=weights * BYTES_A_WEIGHT,
        val_sets=[one.name for one in val_sets],
        leaks=leaks,
    )


def _set_plan(one: TrainSet, share: float, drawn: int) -> SetPlan:
    rows = range(0, len(one), max(1, len(one) // SAMPLE))
    examples = [one.pair(row, 0, 0).example for row in rows]
    return SetPlan(
        name=one.name,
        form=one.form,
        pairs=len(one),
        with_negatives=one.negatives,
        share=share,
        expected=round(share * drawn),
        query_words=sum(len(example.query.split()) for example in examples) / len(examples),
        positive_words=sum(len(example.positive.split()) for example in examples) / len(examples),
    )


def _count_weights(folder: Path) -> int:
    """Numbers in a model's weight files, read from their heads alone."""
    from safetensors import safe_open

    from slmx.models.catalogue import require_weight_files

    count = 0
    for file in require_weight_files(folder):
        with safe_open(file, framework="np") as weights:
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def render_plan(plan: Plan) -> RenderableType:
    """A table of the datasets, and two lines of what is done with them."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    heads = ["dataset", "form", "pairs", "with negatives", "share", "drawn", "words a query", "a positive"]
    rows = [
        [
            one.name,
            one.form,
            f"{one.pairs:,}",
            f"{one.with_negatives:,}",
            f"{100 * one.share:.1f} %",
            f"{one.expected:,}",
            f"{one.query_words:.0f}",
            f"{one.positive_words:.0f}",
        ]
        for one in plan.sets
    ]
    length = f"{plan.steps:,} steps of {plan.batch_size} pairs, {plan.epochs:.2f} epochs"
    memory = f"{plan.weights / 1e6:.1f} million weights, {plan.memory_bytes / (1 << 20):,.0f} MiB with AdamW"
    judges = (
        f"validated on {', '.join(plan.val_sets)}" if plan.val_sets else "no validation set: the last checkpoint wins"
    )
    told = f"{plan.model}: {plan.loss}, {plan.sampling}, {length}.\n{memory} and without activations; {judges}."
    return Group(table("", heads, rows, left=2), Text(told))
