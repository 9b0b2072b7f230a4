"""`slmx train retriever`: pairs in, a sentence-transformers folder out.

    planned = plan_training(TrainOptions(...))        # everything that can be wrong is said here
    with stopping() as stop:
        report = train(planned, stop=stop)            # may be stopped at any step and resumed

A step depends on (seed, step) and the weights alone, so 40 steps give the same weights as 20, a stop, and 20 more.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import write_json
from slmx.models.device import has_bf16, pick_device
from slmx.models.encoders import content
from slmx.records import Record
from slmx.signals import Stop
from slmx.train import checkpoints, history
from slmx.train.card import write_model
from slmx.train.losses import loss_of, make_batch
from slmx.train.plan import Planned, TrainOptions
from slmx.train.towers import Tower, warm_start
from slmx.train.validation import validate

if TYPE_CHECKING:
    from rich.console import RenderableType

RUN_FILE = "training.json"
LOG_EVERY = 10  # steps a row of metrics.csv
MAX_NORM = 1.0  # of the gradient
# What may differ between a run and its resumption: none of it changes a weight.
NOT_IDENTITY = ("save_dir", "data_dir", "cache_dir", "data_dirs", "model", "keep", "resume", "overwrite", "command")


class TrainReport(Record, frozen=True, omit_defaults=False):
    """A finished run.

    `scores` are nDCG@10 (0 to 1) by validation set at `best_step`; `first_loss` and `last_loss` are those of the first
    and the last row of metrics.csv.
    """

    folder: str
    model: str
    steps: int
    best_step: int
    scores: dict[str, float]
    first_loss: float
    last_loss: float
    seconds: float


def train(planned: Planned, *, stop: Stop, listen: Listener = nobody) -> TrainReport:
    """Train what was planned, or go on with it.

    Raises:
        RefusedError: the save folder holds something and neither `resume` nor `overwrite` was asked for.
        SlmxError: the loss is not a number (the last checkpoint stays); with exit code 130 or 143 after a clean stop.
    """
    started = time.perf_counter()
    run = _Run(planned, listen)
    while run.step < planned.plan.steps:
        if stop.asked:
            path = run.checkpoint()
            raise stop.error(
                f"Stopped after {run.step} of {planned.plan.steps} steps; {path} is saved.",
                hint="The same command with --resume goes on from there.",
            )
        run.one_step()
        if run.step % run.interval == 0 or run.step == planned.plan.steps:
            run.validate()
            run.checkpoint()
    return run.finish(started)


class _Run:
    """The state of a run in this process: weights, optimizer, sampler, and what was best so far."""

    def __init__(self, planned: Planned, listen: Listener) -> None:
        options = planned.options
        self.planned, self.listen = planned, listen
        self.interval = options.val_check_interval or max(10, planned.plan.steps // 10)
        device = pick_device(options.device)
        bf16 = has_bf16(device) if options.bf16 is None else options.bf16
        self.identity = _identity(planned, bf16)
        self.tower = Tower(
            planned.folder,
            device=device,
            bf16=bf16,
            pooling=options.pooling,
            query_prompt=planned.prompts[0],
            passage_prompt=planned.prompts[1],
            query_length=options.max_query_length,
            passage_length=options.max_passage_length,
            piece_tokens=options.mini_batch_tokens,
        )
        if options.checkpoint_path is not None:
            folder = options.checkpoint_path
            warm_start(self.tower.model, folder / "model" if (folder / "model").is_dir() else folder)
        resumed = _prepare_folder(options)  # not before the model is open: what cannot run must not cost an old run
        self.optimizer = _adamw(self.tower, options)
        self.scale = options.scale if options.scale is not None else 20.0 if self.tower.similarity == "cosine" else 1.0
        self.step, self.best_step, self.best_score = 0, 0, -1.0
        self.history = history.History(options.save_dir / "metrics.csv", planned.plan.val_sets)
        self._begin(resumed)

    def _begin(self, resumed: Path | None) -> None:
        options = self.planned.options
        if resumed is None:
            write_json(options.save_dir / RUN_FILE, {"identity": self.identity, "plan": self.planned.plan})
            if self.planned.leaks:
                write_json(options.save_dir / "leaks.json", self.planned.leaks)
            self.history.begin(0)
            if self.planned.val_sets:
                self.history.scores(0, self._scores())
            return
        state = checkpoints.read(resumed)
        _check_same(state.identity, self.identity, resumed)
        checkpoints.restore(resumed, self.tower, self.optimizer)
        self.planned.sampler.restore(state.sampler)
        self.step, self.best_step, self.best_score = state.step, state.best_step, state.best_score
        self.history.begin(self.step)
        self.listen(Notice(f"Going on after step {self.step} of {self.planned.plan.steps}."))

    def one_step(self) -> None:
        """Draw a batch, add up its gradients, move the weights."""
        planned, options, began = self.planned, self.planned.options, time.perf_counter()
        drawn = planned.sampler.next()
        pairs = [planned.sets[item.dataset].pair(item.row, item.passed, options.seed) for item in drawn]
        batch = make_batch(pairs, planned.known, options.negatives)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.tower.backward(
            batch.queries,
            batch.passages,
            lambda queries, passages: loss_of(
                options.loss, queries, passages, batch, scale=self.scale, similarity=self.tower.similarity
            ),
            seed=options.seed,
            step=self.step,
            cached=options.loss == "cached-mnrl",
        )
        norm = torch.nn.utils.clip_grad_norm_([weight for _, weight in self.tower.named_weights()], MAX_NORM)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            raise self._not_a_number()
        lr = learning_rate(self.step, planned.plan.steps, options.lr, options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.history.loss(loss, len(pairs), time.perf_counter() - began)
        if self.step % LOG_EVERY == 0 or self.step == planned.plan.steps:
            self.history.row(self.step, lr)
        note = f"loss {loss:.4f}, {self.history.pairs_per_second:.0f} pairs/s"
        self.listen(Progress("train", self.step, planned.plan.steps, "steps", note))

    def _not_a_number(self) -> SlmxError:
        last = checkpoints.latest(self.planned.options.save_dir)
        kept = f"{last} is the last good checkpoint." if last else "No checkpoint was written yet."
        return SlmxError(
            f"The loss is not a number at step {self.step + 1}; nothing of that step was kept. {kept}",
            hint="Lower --lr or --scale, or use --no-bf16; then start again, or warm-start by --checkpoint-path.",
        )

    def _scores(self) -> Mapping[str, float]:
        """nDCG@10 of the model as it stands, by validation set; dropout is off meanwhile."""
        self.tower.model.eval()
        options = self.planned.options
        scores = validate(
            self.tower, self.planned.val_sets, beside=options.save_dir, device=options.device, listen=self.listen
        )
        self.tower.model.train()
        return scores

    def validate(self) -> None:
        """Score the model, and remember the step when it is the best so far."""
        if not self.planned.val_sets:
            return
        scores = self._scores()
        self.history.scores(self.step, scores)
        mean = sum(scores.values()) / len(scores)
        told = ", ".join(f"{name} {100 * score:.2f}" for name, score in scores.items())
        self.listen(Notice(f"step {self.step}: nDCG@10 {told}"))
        if mean > self.best_score:
            self.best_step, self.best_score = self.step, mean

    def checkpoint(self) -> Path:
        """Save everything at this step, unless that was done, and remove what is not to be kept."""
        options = self.planned.options
        path = checkpoints.folder_of(options.save_dir, self.step)
        if not path.exists():
            state = checkpoints.RunState(
                step=self.step,
                identity=self.identity,
                sampler=self.planned.sampler.state,
                best_step=self.best_step,
                best_score=self.best_score,
            )
            checkpoints.save(options.save_dir, state, self.tower, self.optimizer)
            checkpoints.prune(options.save_dir, options.keep, [self.best_step])
        return path

    def finish(self, started: float) -> TrainReport:
        """Put the best checkpoint (without validation the last) into the save folder."""
        options, plan = self.planned.options, self.planned.plan
        best = self.best_step or self.step
        scores = self.history.scores_at(best)
        before = self.history.scores_at(0)
        if scores and sum(scores.values()) <= sum(before.values()):
            self.listen(Notice("No checkpoint is better than the model was before training.", "warning"))
        write_model(self.planned, checkpoints.folder_of(options.save_dir, best), best, scores)
        losses = self.history.losses()
        return TrainReport(
            folder=str(options.save_dir),
            model=plan.model,
            steps=plan.steps,
            best_step=best,
            scores=scores,
            first_loss=losses[0],
            last_loss=losses[-1],
            seconds=time.perf_counter() - started,
        )


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Up in a line over the warm-up (a share of the steps below 1, else steps), then down in a line to 0 at the end."""
    up = warmup * steps if warmup < 1 else warmup
    if step < up:
        return peak * (step + 1) / (math.ceil(up) + 1)
    return peak * (steps - step) / max(1.0, steps - up)


def _adamw(tower: Tower, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW; biases and norms (one dimension) do not decay."""
    weights = [weight for _, weight in tower.named_weights()]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr)


def _identity(planned: Planned, bf16: bool) -> dict[str, Any]:
    """All that the weights depend on, by content."""
    options = planned.options
    asked = {name: getattr(options, name) for name in TrainOptions.__dataclass_fields__ if name not in NOT_IDENTITY}
    start = options.checkpoint_path
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    return {
        **plain,
        "steps": planned.plan.steps,
        "epochs": None,
        "bf16": bf16,
        "prompts": list(planned.prompts),
        "checkpoint_path": None if start is None else str(start),
        "device": pick_device(options.device).type,
        "model_content": content(planned.folder),
        "data_content": [[one.form, one.content] for one in planned.sets],
    }


def _check_same(known: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    differing = [name for name in dict.fromkeys([*known, *wanted]) if known.get(name) != wanted.get(name)]
    if differing:
        raise UsageError(
            f"{path} belongs to another run: {', '.join(differing)} differ.",
            hint="Resume with the options it was started with, or begin anew in another --save-dir.",
        )


def _prepare_folder(options: TrainOptions) -> Path | None:
    """Make the save folder; the checkpoint to go on from, or None for a new run."""
    folder = options.save_dir
    filled = folder.is_dir() and any(folder.iterdir())
    if options.resume:
        found = checkpoints.latest(folder)
        if found is None:
            raise UsageError(f"There is no checkpoint in {folder}.", hint="Leave out --resume to begin.")
        return found
    if filled and not options.overwrite:
        raise RefusedError(f"{folder} is not empty.", hint="--resume goes on with it, --overwrite begins anew.")
    if filled:
        if not (folder / RUN_FILE).is_file():
            raise RefusedError(f"{folder} holds no training run; it is not replaced.", hint="Give another --save-dir.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return None


def render_report(report: TrainReport) -> RenderableType:
    """What came out, and what to type next."""
    scores = "".join(f"  nDCG@10 on {name}: {100 * score:.2f}\n" for name, score in report.scores.items())
    return (
        f"{report.model}, step {report.best_step} of {report.steps}, is in {report.folder} ({report.seconds:.0f} s).\n"
        f"{scores}  loss {report.first_loss:.4f} → {report.last_loss:.4f} (metrics.csv)\n"
        f"Evaluate it: slmx eval retrieval --models {report.folder} --datasets scifact"
    )
