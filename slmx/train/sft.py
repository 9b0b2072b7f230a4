"""`slmx train sft`: a causal language model and examples in, a tuned model out, as a folder that transformers loads.

    planned = plan_sft(SftOptions(model=Path("runs/lm"), data=Path("sft"), save_dir=Path("runs/sft")))
    with joined(["cpu"]) as ranks, stopping() as stop:
        report = train_sft(planned, ranks=ranks, stop=stop)

The loop, its checkpoints and its resumption are those of `slmx train lm` (slmx.train.loop). Examples are packed into
rows and kept apart by a mask; the loss counts answers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slmx import presets
from slmx.data.sft_files import Examples, SftFolder, open_sft
from slmx.data.token_files import Sidecar
from slmx.errors import UsageError
from slmx.events import Listener, Notice, nobody
from slmx.files import hash_bytes, hash_value, read_json
from slmx.models.catalogue import fetch_weights, hash_weights
from slmx.models.device import dtype_name, pick_device, pick_dtype
from slmx.models.tokenizers import Tokenizer, load_tokenizer
from slmx.records import Record
from slmx.signals import Stop
from slmx.track.trackers import NO_TRACKERS, Trackers
from slmx.train import attention, folder, rates
from slmx.train.cross_entropy import IGNORED
from slmx.train.loop import Batch, LoopReport, run
from slmx.train.loop_options import CausalOptions, check, loop_options
from slmx.train.packing import Packed
from slmx.train.ranks import Ranks
from slmx.train.tuned import THEIR_BACKENDS, Lora, open_tuned

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS = "sft_metrics.csv"
LOG = "sft_training.log"
LR = {False: 1e-4, True: 2e-4}  # of all weights, and of LoRA's
MICRO_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 32_768}
WRITTEN = 64  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class SftOptions(CausalOptions):
    """What the command line asks for; the defaults are those of the command.

    `batch_size` counts rows of `context` tokens; `context` None: the model's, at most 1,024. `lora_rank` 0: all weights
    learn. `lr` None: 1e-4, with LoRA 2e-4.
    """

    model: str
    data: Path
    batch_size: int = 16
    context: int | None = None
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.05
    val_rows: int = 64


class SftPlan(Record, frozen=True, omit_defaults=False):
    """What will be trained. `filled`: the share of the rows' places that hold tokens of examples."""

    model: str
    context: int
    examples: int
    too_long: int
    rows: int
    filled: float
    val_examples: int
    batch_size: int
    steps: int
    epochs: float


@dataclass(frozen=True)
class Planned:
    """A plan with everything opened."""

    options: SftOptions
    plan: SftPlan
    folder: Path
    tokenizer: Tokenizer
    data: SftFolder
    train: Packed
    val: Packed | None


def plan_sft(options: SftOptions, listen: Listener = nobody) -> Planned:
    """Open model and data, and check that they fit.

    Raises:
        UsageError: options that contradict each other, or a context that the model does not have.
        SlmxError: data that was made with another tokenizer, is damaged, or too long for the context.
        EmptyMask: nothing would be learnt of an example.
    """
    if options.steps is not None and options.epochs is not None:
        raise UsageError("--steps and --epochs both say how long.", hint="Give one of them.")
    check(options, tuple(dict.fromkeys([*attention.BACKENDS, *THEIR_BACKENDS])))
    attention.check_backward(options.attention, pick_device(options.device))
    found = presets.find(presets.ModelPreset, options.model)
    folder = fetch_weights(found[1].id if found and found[1].id else options.model, listen)
    tokenizer = load_tokenizer(folder)
    data = open_sft(options.data, vocab_size=tokenizer.vocab_size, tokenizer_hash=tokenizer.hash)
    context = _context(options, folder)
    pad = tokenizer.end_of_text or 0
    train = Packed(data.train, length=context, batch=options.batch_size, seed=options.seed, pad=pad)
    val = Packed(data.val, length=context, batch=1, seed=0, pad=pad) if data.val and options.val_rows else None
    steps = options.steps or max(1, round((options.epochs or 2.0) * len(train) / train.batch_size))
    if train.too_long:
        listen(Notice(f"{train.too_long} examples are longer than {context} tokens, and left out.", "warning"))
    plan = SftPlan(
        model=options.model,
        context=context,
        examples=len(data.train) - train.too_long,
        too_long=train.too_long,
        rows=len(train),
        filled=round(train.filled, 4),
        val_examples=len(data.val) - val.too_long if data.val and val else 0,
        batch_size=train.batch_size,
        steps=steps,
        epochs=steps * train.batch_size / len(train),
    )
    return Planned(options, plan, folder, tokenizer, data, train, val)


def _context(options: SftOptions, folder: Path) -> int:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    stated = next((int(config[key]) for key in ("max_position_embeddings", "n_positions") if config.get(key)), None)
    if options.context and stated and options.context > stated:
        raise UsageError(
            f"{options.model} has a context of {stated:,} tokens.", hint=f"Give --context {stated} or less."
        )
    return options.context or min(stated or 1024, 1024)


class SftTask:
    """Answers of packed examples: what `slmx.train.loop` trains."""

    def __init__(self, planned: Planned, ranks: Ranks) -> None:
        options, device = planned.options, ranks.device
        self.planned, self.ranks = planned, ranks
        self.compute = rates.fastest_dtype(device) if options.dtype == "auto" else pick_dtype(options.dtype, device)
        # Before the model is loaded and a run that is there replaced: can so many processes share the rows of a step?
        ranks.together(lambda: planned.train.batch(0, ranks.rank, ranks.world))
        if self.compute == torch.float16:
            raise UsageError("float16 gradients need a scale that `slmx train sft` does not keep.", hint="Use float32.")
        torch.manual_seed(options.seed)  # LoRA's beginning
        self.tuned = open_tuned(
            planned.folder,
            lora=Lora(options.lora_rank, options.lora_alpha, options.lora_dropout),
            backend=options.attention,
            device=device,
            compute=self.compute,
            length=planned.plan.context,
        )
        self.model: nn.Module = self.tuned.module
        self.micro = max(1, MICRO_TOKENS[device.type] // planned.plan.context)

    def batches(self, step: int) -> list[Batch]:
        """This process's rows of a step, in pieces; dropout begins anew with each step, from (seed, step)."""
        torch.manual_seed(hash_seed(self.planned.options.seed, step, self.ranks.rank))
        whole = self.planned.train.batch(step, self.ranks.rank, self.ranks.world)
        return _pieces(whole, self.micro)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch."""
        return self.tuned.loss(model, batch)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Nats a learnt token on `val_rows` rows of val.bin, the same each time.

        They are drawn: as rows were packed, the first hold the longest examples.
        """
        val = self.planned.val
        if val is None:
            return {}
        self.model.eval()
        total, counted = 0.0, 0
        for place in range(min(self.planned.options.val_rows, len(val))):
            batch = val.batch(place).to(self.ranks.device)
            total += float(self.tuned.loss(self.model, batch))
            counted += int((batch.targets != IGNORED).sum())
        self.model.train()
        return {"val_loss": total / max(1, counted)}

    def sample(self, step: int) -> str:
        """What the model answers, greedily, to an example's prompt, from val.bin where there is one."""
        examples: Examples = self.planned.data.val or self.planned.data.train
        ids, learnt = examples.example((step // 10) % len(examples))
        prompt = ids[: int(learnt.argmax())].tolist()
        backend, ends = self.planned.tokenizer.backend, self._ends()
        tokens = list(prompt)
        for _ in range(min(WRITTEN, self.planned.plan.context - len(prompt))):
            logits = self.tuned.next_logits(torch.tensor([tokens], device=self.ranks.device))
            tokens.append(int(logits.argmax()))
            if tokens[-1] in ends:
                break
        asked, said = (backend.decode(part, skip_special_tokens=True) for part in (prompt, tokens[len(prompt) :]))
        return f"{asked.strip()}\n→ {said.strip()}"

    def _ends(self) -> list[int]:
        """The end of the text, and the mark that ends a turn where the examples have one."""
        examples = self.planned.data.train
        end = self.planned.tokenizer.end_of_text
        ids, learnt = examples.example(0)
        special = {i for i, t in self.planned.tokenizer.backend.get_added_tokens_decoder().items() if t.special}
        turn = [int(i) for i, keep in zip(ids, learnt, strict=True) if keep and int(i) in special and int(i) != end]
        return [*([end] if end is not None else []), *dict.fromkeys(turn)]

    def save_model(self, to: Path, weights: Mapping[str, Tensor]) -> None:
        """The folder that transformers loads, with the tokenizer and template of the examples."""
        own = self.planned.data.tokenizer
        tokenizer = load_tokenizer(own) if own else self.planned.tokenizer
        self.tuned.save(to, weights, tokenizer=tokenizer, ends=self._ends())


def _pieces(batch: Batch, rows: int) -> list[Batch]:
    assert batch.segments is not None
    places = [slice(start, start + rows) for start in range(0, len(batch.tokens), rows)]
    return [Batch(batch.tokens[part], batch.targets[part], batch.segments[part]) for part in places]


def hash_seed(*numbers: int) -> int:
    """A seed made of some numbers."""
    return int(hash_bytes(*(str(number) for number in numbers))[:15], 16)


def train_sft(
    planned: Planned, *, ranks: Ranks, stop: Stop, listen: Listener = nobody, trackers: Trackers = NO_TRACKERS
) -> LoopReport:
    """Tune what was planned, or go on with it; raises as slmx.train.loop.run."""
    options, plan = planned.options, planned.plan
    sources = (planned.folder, options.data)
    ranks.once(lambda: folder.look(options, sources))  # before the model is loaded
    task = SftTask(planned, ranks)
    learning = sum(one.numel() for one in task.model.parameters() if one.requires_grad)
    made = loop_options(
        options,
        steps=plan.steps,
        lr=options.lr if options.lr is not None else LR[bool(options.lora_rank)],
        identity=_identity(planned, task),
        compute=task.compute,
        metrics=METRICS,
        log=LOG,
        configuration={"command": options.command, "plan": plan, "learning": learning, "attention": task.tuned.backend},
        sources=sources,
    )
    return run(task, made, ranks=ranks, stop=stop, listen=listen, trackers=trackers)


def _identity(planned: Planned, task: SftTask) -> dict[str, Any]:
    """All that the weights depend on, by content."""
    options = planned.options
    asked = ("lora_rank", "lora_alpha", "lora_dropout", "optimizer", "lr", "weight_decay", "schedule", "warmup", "clip")
    return {
        **{name: getattr(options, name) for name in (*asked, "seed")},
        "steps": planned.plan.steps,
        "context": planned.plan.context,
        "batch_size": planned.plan.batch_size,
        "model": hash_weights(planned.folder),
        "data": _content(planned.data.train),
        "dtype": dtype_name(task.compute),
        "attention": task.tuned.backend,
        "micro": task.micro,
    }


def _content(examples: Examples) -> str:
    sidecar: Sidecar | None = examples.sidecar
    known = hash_value(sidecar) if sidecar else ""
    return hash_bytes(
        known, examples.offsets.tobytes(), bytes(examples.mask[: 1 << 20]), examples.ids[: 1 << 20].tobytes()
    )


def render_plan(plan: SftPlan) -> RenderableType:
    """What will be tuned, in three lines."""
    val = f"{plan.val_examples:,} to validate" if plan.val_examples else "none to validate"
    return (
        f"{plan.model}: context {plan.context}\n"
        f"data: {plan.examples:,} examples to train on in {plan.rows:,} rows ({100 * plan.filled:.1f} % full); {val}\n"
        f"length: {plan.steps:,} steps of {plan.batch_size} rows, {plan.epochs:.2f} epochs"
    )


def render_report(report: LoopReport) -> RenderableType:
    """What came out, and what to type next."""
    scores = "".join(f"  {name.replace('_', ' ')}: {value:.4f}\n" for name, value in report.scores.items())
    return (
        f"{report.folder} holds the tuned model after {report.steps:,} steps, {report.seconds:.0f} s "
        f"({report.tokens_per_second:,.0f} tokens/s).\n"
        f"  loss {report.first_loss:.4f} → {report.last_loss:.4f} ({METRICS})\n{scores}"
        f"Evaluate it: slmx eval run --model {report.folder} --dataset sample"
    )
