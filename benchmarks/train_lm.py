"""Training a small transformer: slmx beside nanoGPT, and beside the older system's plain loop.

    python benchmarks/train_lm.py --part speed       # tokens/s, in turn, each side in a process of its own
    python benchmarks/train_lm.py --part loss        # validation loss after the same minutes, compiling included
    python benchmarks/train_lm.py --part old         # tiny-17m: fp32, one sample at a time, explicit softmax

nanoGPT's model is imported from NANOGPT (a folder with its model.py, MIT licence), and its rows are left out where
that is unset. Both models have 6 layers of 256, a vocabulary of 8,192, windows of 512, both are compiled, and both
multiply in bf16 where that is measured faster. Each part keeps the figures of the others in the result.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, RESULTS, save
from torch import nn
from torch.nn import functional as F

from slmx.data.token_files import Sidecar, open_folder, write_tokens
from slmx.models.device import ask_for_huge_pages
from slmx.train import attention, optim, rates
from slmx.train.transformer import RMSNorm, Shape, Transformer, count_parameters, flops_per_token, rotate
from slmx.train.windows import Windows, spread

CPU = torch.device("cpu")
KEPT_OUT = 150  # stories, for validation
SHAPE = Shape(
    vocab_size=8192, dim=256, layers=6, heads=4, kv_heads=4, hidden=1024, context=512, activation="relu2", qk_norm=True
)
TINY = Shape(vocab_size=50_257, dim=256, layers=4, heads=4, kv_heads=4, hidden=1024, context=512)
Step = Callable[[torch.Tensor, float], float]


def main() -> None:
    """Measure a part and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RESULTS / "train_lm.json")
    parser.add_argument("--part", choices=["speed", "loss", "old", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--side", choices=["both", "slmx", "nanogpt", "plain"], default="both", help="one side alone")
    parser.add_argument("--batch", type=int, default=8, help="windows a step of the speed part, and at a time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each side")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "old" and options.side != "both":
        told = one_side("old", options.side, lambda n: np.random.default_rng(n).integers(0, 50_257, (8, 513)))
        print(json.dumps(told))
        return
    text = DATA / "text" / "en" / "tinystories_sample_2MiB.txt"
    if not text.is_file():
        print(f"train_lm: needs {text}; left out", file=sys.stderr)
        return
    figures: dict[str, Any] = json.loads(options.to.read_text())["figures"] if options.to.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = open_folder(token_folder(stories_of(text), Path(folder) / "tokens", 8192))
        if options.part == "speed" and options.side != "both":
            windows = Windows(data.train, length=512, batch=options.batch, seed=0)
            print(json.dumps(one_side("speed", options.side, windows.batch)))
            return
        if options.part in ("speed", "all"):
            figures["speed"] = speed(options.rounds, options.batch)
        if options.part in ("loss", "all"):
            figures["loss"] = {**figures.get("loss", {}), **loss(data, options.seconds, options.side)}
        if options.part in ("old", "all"):
            figures["old"] = old(options.rounds)
    report(options.to, figures)


def stories_of(text: Path) -> list[str]:
    """The stories of the TinyStories file."""
    found = [one.strip() for one in text.read_text(encoding="utf-8", errors="replace").split("<|endoftext|>")]
    return [one for one in found if one]


def token_folder(stories: list[str], folder: Path, vocabulary: int) -> Path:
    """Token files with a byte-level BPE of that size; the last KEPT_OUT stories are the validation split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(stories[:-KEPT_OUT], trainer)
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    for split, part in (("train", stories[:-KEPT_OUT]), ("val", stories[-KEPT_OUT:])):
        about = Sidecar(
            format="slmx tokens 1",
            tokenizer="benchmark",
            tokenizer_hash="",
            vocab_size=vocabulary,
            dtype="uint16",
            tokens=0,
            documents=len(part),
            text_bytes=sum(len(one.encode()) for one in part),
            end_of_text=0,
        )
        write_tokens(folder / f"{split}.bin", [np.array([*one.ids, 0]) for one in tokenizer.encode_batch(part)], about)
    return folder


# ------------------------------------------------------------------------------------------------------- three trainers


def ours(dtype: torch.dtype, *, seed: int = 0, shape: Shape = SHAPE) -> tuple[nn.Module, Step]:
    """slmx's model and a step of it, as `slmx train lm` takes it; ids (windows, length + 1) and the rates' share in."""
    ask_for_huge_pages()
    model = Transformer(shape, compute=dtype)
    model.initialise(seed)
    model.compile_layers()
    optimizers = optim.optimizers_for(
        list(model.named_parameters()), kind="muon", lr=6e-3, matrix_lr=0.02, weight_decay=0.1, compute=dtype
    )

    def step(ids: torch.Tensor, share: float) -> float:
        total = 0.0
        for piece in torch.split(ids, 8):
            tokens = piece[:, :-1].contiguous()
            segments = attention.segments_of(tokens, 0)
            mask = attention.masks(segments, "blocked", length=tokens.shape[1], device=CPU, dtype=dtype)
            part = model(tokens, targets=piece[:, 1:].contiguous(), mask=mask) / ids[:, 1:].numel()
            part.backward()
            total += float(part.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.set_rates(optimizers, share)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return total

    return model, step


def nanogpt(dtype: torch.dtype, *, seed: int = 0) -> tuple[nn.Module, Step] | None:
    """nanoGPT's model, compiled, with its own optimizer; None where it is not at hand."""
    folder = os.environ.get("NANOGPT", "")
    path = Path(folder) / "model.py"
    if not folder or not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(seed)
    config = module.GPTConfig(block_size=512, vocab_size=8192, n_layer=6, n_head=4, n_embd=256, dropout=0.0, bias=False)
    model = module.GPT(config)
    # Its settings for small models (config/train_shakespeare_char.py): 1e-3, beta2 0.99, weight decay 0.1.
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    compiled: Any = torch.compile(model)

    def step(ids: torch.Tensor, share: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * share
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            _, loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return model, step


class Plain(nn.Module):
    """The older system's arithmetic: fp32, attention with an explicit softmax, whole logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.inner = Transformer(shape)
        self.inner.initialise(0)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of (1, T) tokens."""
        inner, length = self.inner, tokens.shape[1]
        cos, sin = inner.cos[:length], inner.sin[:length]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = inner.embedding(tokens)
        blocks: Any = inner.blocks
        for block in blocks:
            normed = block.attention_norm(x)
            own: Any = block.attention
            heads = [layer(normed).unflatten(-1, (own.heads, own.size)) for layer in (own.q, own.k, own.v)]
            q, k, v = (
                one.transpose(1, 2) for one in (rotate(heads[0], cos, sin), rotate(heads[1], cos, sin), heads[2])
            )
            scores = (q @ k.transpose(-2, -1) / math.sqrt(own.size)).masked_fill(hidden, float("-inf"))
            x = x + own.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            normed = block.mlp_norm(x)
            mlp: Any = block.mlp
            x = x + mlp.down(F.silu(mlp.gate(normed)) * mlp.up(normed))
        norm: RMSNorm = inner.norm
        logits = inner.head(norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain() -> tuple[nn.Module, Step]:
    """The older system's loop: the samples of a batch one after the other."""
    model = Plain(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def step(ids: torch.Tensor, share: float) -> float:
        total = 0.0
        for sample in ids:
            loss = model(sample[None, :-1], sample[None, 1:]) / len(ids)
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return model, step


# ----------------------------------------------------------------------------------------------------------- the parts


def speed(rounds: int, batch: int) -> dict[str, Any]:
    """Our step beside nanoGPT's, with the same windows of TinyStories; tokens/s of each and their ratio."""
    dtype = rates.fastest_dtype(CPU)
    names = ["slmx", "nanogpt"] if os.environ.get("NANOGPT") else ["slmx"]
    told = in_turn("speed", names, rounds, batch)
    rate = rates.matrix_rate(CPU, dtype)
    work = flops_per_token(SHAPE, 512) * batch * 512
    return {
        **speeds({name: [one["seconds"] for one in of_side] for name, of_side in told.items()}, batch * 512),
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
        "parameters": {name: int(of_side[0]["parameters"]) for name, of_side in told.items()},
        "mfu": work / statistics.median(one["seconds"] for one in told["slmx"]) / rate,
        "matrix_rate": rate,
    }


def old(rounds: int) -> dict[str, Any]:
    """tiny-17m: our step beside the plain one, with the same 8 windows of 512 ids of a vocabulary of 50,257."""
    told = in_turn("old", ["slmx", "plain"], rounds, 8)
    seconds = {name: [one["seconds"] for one in of_side] for name, of_side in told.items()}
    work = flops_per_token(TINY, 512) * 8 * 512
    dtypes = {"slmx": rates.fastest_dtype(CPU), "plain": torch.float32}
    return {
        **speeds(seconds, 8 * 512),
        "parameters": count_parameters(TINY),
        "threads": torch.get_num_threads(),
        "matrix_rate": {name: rates.matrix_rate(CPU, dtype) for name, dtype in dtypes.items()},
        "mfu": {n: work / statistics.median(seconds[n]) / rates.matrix_rate(CPU, d) for n, d in dtypes.items()},
    }


def in_turn(part: str, names: list[str], rounds: int, batch: int) -> dict[str, list[dict[str, float]]]:
    """What each side tells of its steps, round by round; each has a process of its own, as a user's training has."""
    told: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name, of_side in told.items():
            command = [sys.executable, __file__, "--part", part, "--side", name, "--batch", str(batch)]
            command += ["--threads", str(torch.get_num_threads())]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            of_side.append(json.loads(said.splitlines()[-1]))
        print(f"  round {number + 1}: { ({n: round(s[-1]['seconds'], 3) for n, s in told.items()}) }", file=sys.stderr)
    return told


def one_side(part: str, name: str, batches: Callable[[int], np.ndarray]) -> dict[str, float]:
    """Seconds of a step of one side, the median of six behind four that are not counted, and its parameters."""
    dtype = rates.fastest_dtype(CPU)
    makers: dict[str, Callable[[], tuple[nn.Module, Step] | None]] = {
        "slmx": lambda: ours(dtype, shape=TINY if part == "old" else SHAPE),
        "nanogpt": lambda: nanogpt(dtype),
        "plain": plain,
    }
    made = makers[name]()
    assert made is not None, "nanoGPT is not at hand"
    model, step = made
    taken = []
    for number in range(10):
        ids = torch.from_numpy(batches(number))
        at = time.perf_counter()
        step(ids, 0.1)
        taken.append(time.perf_counter() - at)
    return {"seconds": statistics.median(taken[4:]), "parameters": sum(p.numel() for p in model.parameters())}


def speeds(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Tokens a second of each side, and the ratios of the first to the second."""
    found: dict[str, Any] = {"tokens_per_second": {n: tokens / statistics.median(s) for n, s in seconds.items()}}
    if len(seconds) == 2:
        first, second = seconds.values()
        found["ratios"] = sorted(b / a for a, b in zip(first, second, strict=True))
    return {**found, "seconds": seconds}


def loss(data: Any, limit: float, side: str) -> dict[str, Any]:
    """Validation loss of each side when the time is over, compiling included; each plans its steps for that time."""
    found: dict[str, Any] = {"seconds": limit}
    dtype = rates.fastest_dtype(CPU)
    recipes: dict[str, tuple[Callable[[], tuple[nn.Module, Step] | None], int, Callable[[float], float]]] = {
        "slmx": (lambda: ours(dtype), 8, _wsd),
        "nanogpt": (lambda: nanogpt(dtype), 8, _cosine),
    }
    for name, (make, batch, schedule) in recipes.items():
        if side not in ("both", name):
            continue
        began = time.perf_counter()
        made = make()
        if made is None:
            continue
        model, step = made
        windows = Windows(data.train, length=512, batch=batch, seed=0)
        done = 0
        # The schedule follows the clock: what share of the time is over is what share of the steps is done.
        while (passed := (time.perf_counter() - began) / limit) < 1.0:
            last = step(torch.from_numpy(windows.batch(done)), schedule(passed))
            done += 1
            if done % 20 == 0:
                print(f"  {name}: step {done}, {100 * passed:.0f} %, loss {last:.3f}", file=sys.stderr)
        took = time.perf_counter() - began
        found[name] = {
            "val_loss": validate(name, model, data),
            "steps": done,
            "seconds": took,
            "tokens": done * batch * 512,
            "threads": torch.get_num_threads(),
        }
        print(f"  {name}: {found[name]}", file=sys.stderr)
    return found


def _wsd(passed: float) -> float:
    return min(1.0, max(0.05, (passed - 0.03) / 0.03)) * min(1.0, (1.0 - passed) / 0.5)


def _cosine(passed: float) -> float:
    """nanoGPT's: up, then half a cosine to a tenth."""
    return min(1.0, max(0.02, passed / 0.1)) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * passed)))


@torch.no_grad()
def validate(name: str, model: nn.Module, data: Any) -> float:
    """The mean loss in nats over the same windows for both, each seeing the whole window before a token."""
    total, counted = 0.0, 0
    with torch.compiler.set_stance("force_eager"):
        for ids in spread(data.val, length=512, tokens=10**9):
            tokens, targets = torch.from_numpy(ids[None, :-1].copy()), torch.from_numpy(ids[None, 1:].copy())
            if name == "slmx":
                segments = attention.segments_of(tokens, 0)
                mask = attention.masks(segments, "sdpa", length=512, device=CPU, dtype=torch.float32)
                as_ours: Any = model
                as_ours.compute = torch.float32
                total += float(model(tokens, targets=targets, mask=mask))
            else:
                total += float(model(tokens, targets)[1]) * targets.numel()
            counted += targets.numel()
    return total / counted


def report(to: Path, figures: dict[str, Any]) -> None:
    """Write what was measured so far."""
    rows: list[dict[str, str]] = []
    if "ratios" in figures.get("speed", {}):
        found = figures["speed"]
        rows.append({"figure": "tokens/s beside nanoGPT", "value": _ratio(found["ratios"]), "target": "at least 1.2×"})
    if "speed" in figures:
        for name, value in figures["speed"]["tokens_per_second"].items():
            count = figures["speed"]["parameters"][name] / 1e6
            rows.append({"figure": f"{name}, {count:.1f} million parameters", "value": f"{value:,.0f} tokens/s"})
        rows.append({"figure": "slmx, of the measured matrix rate", "value": f"{100 * figures['speed']['mfu']:.0f} %"})
    loss_of = figures.get("loss", {})
    if "slmx" in loss_of and "nanogpt" in loss_of:
        less = loss_of["nanogpt"]["val_loss"] - loss_of["slmx"]["val_loss"]
        minutes = f"after {loss_of['seconds'] / 60:.0f} minutes"
        figure = f"validation loss {minutes}, below nanoGPT's"
        rows.append({"figure": figure, "value": f"{less:.3f} nats", "target": "at least 0.15"})
        for name in ("slmx", "nanogpt"):
            one = loss_of[name]
            cores = "one core" if one["threads"] == 1 else f"{one['threads']} cores"
            value = f"{one['val_loss']:.3f} nats after {one['tokens']:,} tokens on {cores}"
            rows.append({"figure": f"{name}, {minutes}", "value": value})
    if "old" in figures:
        rows.append(
            {
                "figure": "tiny-17m beside a plain loop",
                "value": _ratio(figures["old"]["ratios"]),
                "target": "at least 4×",
            }
        )
    notes = [
        "Both multiply in bf16 (nanoGPT by autocast), and take 8 windows a step. The loss is that of the last 150 "
        "stories; slmx keeps documents apart, nanoGPT has no such mask. nanoGPT trains with its own settings for "
        "small models (AdamW 1e-3, beta2 0.99, cosine), slmx with its defaults (Muon, warm-up–stable–decay).",
    ]
    if "old" in figures:
        notes.append(_why(figures["old"]))
    save(
        to,
        title="Training a small transformer",
        what="slmx's model and step beside nanoGPT's: 6 layers × 256, vocabulary 8,192, windows of 512, both compiled, "
        "TinyStories. And tiny-17m beside the older system's plain loop (fp32, a sample at a time, explicit softmax).",
        rows=rows,
        notes=notes,
        **figures,
    )


def _why(old: dict[str, Any]) -> str:
    """What bounds tiny-17m's ratio: the products of a step at the rate that the chip multiplies."""
    mfu, rate = old["mfu"], old["matrix_rate"]
    bound = statistics.median(old["ratios"]) / mfu["slmx"]
    return (
        f"tiny-17m's work is products, most of them the head's. slmx reaches {100 * mfu['slmx']:.0f} % of the "
        f"{rate['slmx'] / 1e9:.0f} GFLOP/s measured in bf16, the plain loop {100 * mfu['plain']:.0f} % of the "
        f"{rate['plain'] / 1e9:.0f} in fp32: products alone, with nothing around them, would be {bound:.2f}×. "
        "Repeat it before trusting it: on a shared host the two rates do not move together, and the median of a run "
        "moves with them."
    )


def _ratio(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
