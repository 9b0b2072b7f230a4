"""`slmx train retriever`: pairs in, a sentence-transformers folder out.

    planned = plan_training(TrainOptions(...))        # everything that can be wrong is said here
    with stopping() as stop:
        report = train(planned, stop=stop)            # may be stopped at any step and resumed

A step depends on (seed, step) and the weights alone, so 40 steps give the same weights as 20, a stop, and 20 more.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import write_json
from slmx.models.device import dtype_name
from slmx.models.encoders import Encoder, content
from slmx.records import Record
from slmx.signals import Stop
from slmx.track.trackers import NO_TRACKERS, TrackedRun, Trackers
from slmx.train import checkpoints, folder
from slmx.train.batches import Batches, Ready
from slmx.train.card import write_model
from slmx.train.gradients import add_gradients
from slmx.train.history import History
from slmx.train.losses import Batch, Vectors, loss_of
from slmx.train.plan import Planned
from slmx.train.precision import pick_precision
from slmx.train.push import push
from slmx.train.ranks import Ranks, joined
from slmx.train.tokens import TokenFile, open_tokens, path_of
from slmx.train.towers import Tower, warm_start
from slmx.train.update import Update, learning_rate
from slmx.train.validation import forget, validate

if TYPE_CHECKING:
    from rich.console import RenderableType

LOG_EVERY = 10  # steps a row of metrics.csv
PIECE_TOKENS = {"cpu": 1024, "cuda": 32_768, "mps": 8192}


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


def train(
    planned: Planned,
    *,
    stop: Stop,
    listen: Listener = nobody,
    ranks: Ranks | None = None,
    trackers: Trackers = NO_TRACKERS,
) -> TrainReport:
    """Train what was planned, or go on with it.

    Args:
        trackers: where the numbers go beside metrics.csv.
        ranks: this process among several (`slmx.train.ranks.joined`); None: it is alone. Only rank 0 listens, validates
            and writes.

    Raises:
        RefusedError: the save folder holds something and neither `resume` nor `overwrite` was asked for.
        SlmxError: the loss is not a number (the last checkpoint stays); with exit code 130 or 143 after a clean stop.
    """
    if ranks is None:
        with joined([planned.options.device]) as alone:
            return train(planned, stop=stop, listen=listen, ranks=alone, trackers=trackers)
    started = time.perf_counter()
    own = trackers if ranks.main else NO_TRACKERS
    run = _Run(planned, ranks, listen if ranks.main else nobody, own)
    tracked = TrackedRun(planned.options.save_dir.name, planned.options.save_dir, "training", run.identity, run.step)
    with own.run(tracked), run.batches:
        run.steps(stop)
        return ranks.once(lambda: run.finish(started))


class _Run:
    """The state of a run in this process: weights, optimizer, batches, and what was best so far."""

    def __init__(self, planned: Planned, ranks: Ranks, listen: Listener, trackers: Trackers) -> None:
        options = planned.options
        self.planned, self.ranks, self.listen, self.trackers = planned, ranks, listen, trackers
        self.interval = options.val_check_interval or max(10, planned.plan.steps // 10)
        dtype = ranks.together(lambda: pick_precision(ranks.device, bf16=options.bf16, fp16=options.fp16))
        self.piece_tokens = options.mini_batch_tokens or PIECE_TOKENS[ranks.device.type]
        self.identity = folder.identity(
            planned, device=ranks.device.type, dtype=dtype_name(dtype), piece_tokens=self.piece_tokens
        )
        self.tower, self.guide = ranks.together(lambda: self._open(dtype))
        # Not before the model is open: what cannot run must not cost an old run.
        resumed = ranks.once(lambda: folder.prepare(options, planned.sources))
        self.update = Update(
            self.tower,
            lr=options.lr,
            weight_decay=options.weight_decay,
            average=options.average,
            start_share=options.start_share,
        )
        self.scale = options.scale if options.scale is not None else 20.0 if self.tower.similarity == "cosine" else 1.0
        self.step, self.best_step, self.best_score = 0, 0, -1.0
        self.history = History(options.save_dir / "metrics.csv", planned.plan.val_sets, trackers)
        self._cached: dict[int, list[Path]] = {}
        files = self._tokens()
        if resumed is not None:
            ranks.together(lambda: self._go_on(resumed))
        else:
            ranks.once(self._write_head)
        self.batches = Batches(
            planned.sampler,
            planned.sets,
            files,
            planned.known,
            self.tower,
            negatives=options.negatives,
            piece_tokens=self.piece_tokens,
            workers=options.num_workers,
            last=planned.plan.steps,
            seed=options.seed,
        )

    def _open(self, dtype: torch.dtype) -> tuple[Tower, Encoder | None]:
        """The model with the weights to begin with, and the guide."""
        planned, options = self.planned, self.planned.options
        tower = Tower(
            planned.folder,
            device=self.ranks.device,
            dtype=dtype,
            pooling=options.pooling,
            query_prompt=planned.prompts[0],
            passage_prompt=planned.prompts[1],
            query_length=options.max_query_length,
            passage_length=options.max_passage_length,
        )
        _check_dims(options.matryoshka_dims, tower.dimension)
        if (start := options.checkpoint_path) is not None:
            warm_start(tower.model, start / "model" if (start / "model").is_dir() else start)
        return tower, Encoder(planned.guide, device=str(self.ranks.device)) if planned.guide else None

    def _tokens(self) -> list[TokenFile | None]:
        """The sets' tokens: from files where each text is read once at least, or where the files are there."""
        options, tokenizer = self.planned.options, content(self.planned.folder)["tokenizer"]
        own: dict[str, Any] = {"negatives": options.negatives, "cache_dir": options.cache_dir}
        wanted = [
            expected.expected >= len(one) or path_of(one, self.tower, tokenizer, **own).is_file()
            for one, expected in zip(self.planned.sets, self.planned.plan.sets, strict=True)
        ]

        def files() -> list[TokenFile | None]:
            return [
                open_tokens(one, self.tower, tokenizer, listen=self.listen, **own) if chosen else None
                for one, chosen in zip(self.planned.sets, wanted, strict=True)
            ]

        self.ranks.once(lambda: files() and None)  # rank 0 writes what is missing, then each opens it
        return files()

    def _write_head(self) -> None:
        options = self.planned.options
        write_json(options.save_dir / folder.RUN_FILE, {"identity": self.identity, "plan": self.planned.plan})
        if self.planned.leaks:
            write_json(options.save_dir / "leaks.json", self.planned.leaks)
        self.history.begin(0)

    def _go_on(self, path: Path) -> None:
        state = checkpoints.read(path)
        folder.check_same(state.identity, self.identity, path)
        checkpoints.restore(path, state, self.tower, self.update)
        self.planned.sampler.restore(state.sampler)
        self.step = state.step
        best = checkpoints.folder_of(self.planned.options.save_dir, state.best_step)
        if (best / checkpoints.MANIFEST).is_file():
            self.best_step, self.best_score = state.best_step, state.best_score
        elif state.best_step:
            self.listen(Notice(f"{best}, the best checkpoint so far, is gone: the best is looked for anew.", "warning"))
        if self.ranks.main:
            self.history.begin(self.step)
        self.listen(Notice(f"Going on after step {self.step} of {self.planned.plan.steps}."))

    def steps(self, stop: Stop) -> None:
        """Every step that is left; a stop that any process was asked for ends all after the same step."""
        steps, ranks = self.planned.plan.steps, self.ranks
        if self.step == 0:
            ranks.once(self.validate)
        while self.step < steps:
            if signal := ranks.highest(stop.signal):
                stop.signal = signal
                path = ranks.once(self.checkpoint)
                said = f"Stopped after {self.step} of {steps} steps; {path} is saved."
                raise ranks.shared(stop.error(said, hint="The same command with --resume goes on from there."))
            self.one_step()
            if self.step % self.interval == 0 or self.step == steps:
                ranks.once(self.validate)
                ranks.once(self.checkpoint)

    def one_step(self) -> None:
        """Take a batch, add up its gradients, move the weights."""
        options, steps, began = self.planned.options, self.planned.plan.steps, time.perf_counter()
        ready = self._next_batch()
        batch, guide = ready.batch, self._guide(ready.batch)
        self.update.forget_gradients()
        loss = add_gradients(
            self.tower,
            ready.pieces,
            lambda queries, passages: loss_of(
                options.loss,
                queries,
                passages,
                batch,
                scale=self.scale,
                similarity=self.tower.similarity,
                guide=guide,
                dims=options.matryoshka_dims,
            ),
            queries=len(batch.queries),
            seed=options.seed,
            step=self.step,
            cached=options.loss == "cached-mnrl",
            scale=self.update.scale,
            ranks=self.ranks,
        )
        lr = learning_rate(self.step, steps, options.lr, options.warmup)
        if not math.isfinite(loss) or not self.update.apply(lr, self.step):
            raise self.ranks.shared(self._not_a_number())
        self.step += 1
        self.history.loss(loss, len(batch.queries), time.perf_counter() - began)
        if self.ranks.main and (self.step % LOG_EVERY == 0 or self.step == steps):
            self.history.row(self.step, lr)
        note = f"loss {loss:.4f}, {self.history.pairs_per_second:.0f} pairs/s"
        self.listen(Progress("train", self.step, steps, "steps", note))

    def _next_batch(self) -> Ready:
        """The batch of this step; where the data cannot fill it, what was learned so far is saved first."""
        try:
            return self.batches.next()
        except UsageError as error:  # every process draws the same
            saved = f" {self.ranks.once(self.checkpoint)} is saved." if self.step else ""
            raise self.ranks.shared(UsageError(f"Step {self.step + 1}: {error.what}{saved}", hint=error.hint)) from None

    def _guide(self, batch: Batch) -> Vectors | None:
        """The guide's vectors of a batch; each process encodes its share."""
        if self.guide is None:
            return None
        rank, world = self.ranks.rank, self.ranks.world
        found = []
        for texts, role in ((batch.queries, "query"), (batch.passages, "passage")):
            own = texts[rank::world]
            made = torch.from_numpy(self.guide.encode_all(own or texts[:1], role))  # type: ignore[arg-type]
            vectors = torch.zeros(len(texts), made.shape[1], device=self.ranks.device)
            vectors[rank::world] = made[: len(own)].to(vectors.device)
            found.append(self.ranks.add(vectors))
        return found[0], found[1]

    def _not_a_number(self) -> SlmxError:
        last = checkpoints.latest(self.planned.options.save_dir)
        kept = f"{last} is the last good checkpoint." if last else "No checkpoint was written yet."
        return SlmxError(
            f"The loss is not a number at step {self.step + 1}; nothing of that step was kept. {kept}",
            hint="Lower --lr or --scale, or use --no-bf16; then start again, or warm-start by --checkpoint-path.",
        )

    def _scores(self) -> dict[str, float]:
        """nDCG@10 of the model as it stands, by validation set; dropout is off meanwhile."""
        options = self.planned.options
        self.tower.model.eval()
        with self.update.shown():
            scores, self._cached[self.step] = validate(
                self.tower,
                self.planned.val_sets,
                beside=options.save_dir,
                cache_dir=options.cache_dir,
                device=str(self.ranks.device),
                listen=self.listen,
            )
        self.tower.model.train()
        return scores

    def validate(self) -> None:
        """Score the model, tell it, and remember the step when it is the best so far."""
        scores: dict[str, float] = {}
        best = False
        if self.planned.val_sets:
            scores = self._scores()
            self.history.scores(self.step, scores)
            mean = sum(scores.values()) / len(scores)
            best = self.step > 0 and mean > self.best_score
            if best:
                self.best_step, self.best_score = self.step, mean
            for step in set(self._cached) - {0, self.best_step}:  # those of the start serve the next run as well
                forget(self._cached.pop(step))
        if scores or self.step:
            for line in self.history.lines(self.step, scores, best=best):
                self.listen(Notice(line))

    def checkpoint(self) -> Path:
        """Save everything at this step, unless that was done, and remove what is not to be kept."""
        options = self.planned.options
        path = checkpoints.folder_of(options.save_dir, self.step)
        if not path.exists():
            state = checkpoints.RunState(
                step=self.step,
                identity=self.identity,
                sampler=self.batches.state,
                best_step=self.best_step,
                best_score=self.best_score,
                numbers=self.update.numbers(),
            )
            checkpoints.save(options.save_dir, state, self.tower, self.update)
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
        self.trackers.singles({"best step": best, **{f"best ndcg@10 {name}": score for name, score in scores.items()}})
        self.trackers.artifact("model card", options.save_dir / "README.md")
        self.trackers.artifact("metrics", self.history.path)
        if options.push_to_hub:
            push(options.save_dir, options.push_to_hub, self.listen)
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


def _check_dims(dims: tuple[int, ...], dimension: int) -> None:
    if dims and not 1 <= min(dims) <= max(dims) <= dimension:
        said = ",".join(map(str, dims))
        raise UsageError(
            f"The model's vectors have {dimension} numbers; --matryoshka-dims {said} do not fit.",
            hint=f"--matryoshka-dims {dimension},{max(1, dimension // 2)},{max(1, dimension // 4)}",
        )


def render_report(report: TrainReport) -> RenderableType:
    """What came out, and what to type next."""
    scores = "".join(f"  nDCG@10 on {name}: {100 * score:.2f}\n" for name, score in report.scores.items())
    return (
        f"{report.model}, step {report.best_step} of {report.steps}, is in {report.folder} ({report.seconds:.0f} s).\n"
        f"{scores}  loss {report.first_loss:.4f} → {report.last_loss:.4f} (metrics.csv)\n"
        f"Evaluate it: slmx eval retrieval --models {report.folder} --datasets scifact"
    )
