"""Small token files and a preset of two thin layers, for the tests of the transformer and its loop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from slmx.data.token_files import Sidecar, write_tokens
from slmx.events import Listener, Notice, Progress, nobody
from slmx.signals import Stop
from slmx.train import checkpoints
from slmx.train.lm import train_lm
from slmx.train.lm_plan import LmOptions, plan_lm
from slmx.train.loop import LoopReport
from slmx.train.ranks import Ranks
from slmx.train.transformer import Shape

Asked = Callable[..., LmOptions]
ALONE = Ranks(torch.device("cpu"))
METRICS = "training_metrics.csv"

END = 0  # the end-of-text id
PRESET = """
thin:
  {vocab_size: 64, dim: 32, layers: 2, heads: 4, kv_heads: 2, hidden: 48, context: 16, activation: relu2, qk_norm: true,
   batch_tokens: 64}
"""


def thin(**changes: Any) -> Shape:
    plain: dict[str, Any] = {
        "vocab_size": 64,
        "dim": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "hidden": 48,
        "context": 16,
    }
    return Shape(**{**plain, **changes})


def write_folder(folder: Path, *, tokens: int = 2000, vocab_size: int = 64, sidecar: bool = True) -> Path:
    """Documents of a cyclic language: each token is the one before plus the document's step, so it can be learnt."""
    random = np.random.default_rng(0)
    for split, count in (("train", tokens), ("val", max(200, tokens // 10))):
        pieces: list[Any] = []
        while sum(map(len, pieces)) < count:
            start, step, length = random.integers(1, 20), random.integers(1, 3), random.integers(5, 30)
            pieces.append(np.append((start + step * np.arange(length)) % (vocab_size - 1) + 1, END))
        about = Sidecar(
            format="slmx tokens 1",
            tokenizer="made up",
            tokenizer_hash="0" * 64,
            vocab_size=vocab_size,
            dtype="uint16",
            tokens=0,
            documents=len(pieces),
            text_bytes=3 * sum(map(len, pieces)),
            end_of_text=END,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_tokens(folder / f"{split}.bin", pieces, about)
        if not sidecar:
            (folder / f"{split}.json").unlink()
    return folder


def asked_in(folder: Path) -> Asked:
    """Makes options for a quick run of the thin preset, in a folder with small token files."""
    (folder / "presets").mkdir()
    (folder / "presets" / "transformers.yaml").write_text(PRESET)
    write_folder(folder / "tokens")

    def make(**settings: Any) -> LmOptions:
        plain: dict[str, Any] = {
            "data": folder / "tokens",
            "save_dir": folder / "run",
            "preset": "thin",
            "steps": 8,
            "lr": 1e-2,
            "device": "cpu",
            "compile": False,
            "log_interval": 1,
            "micro_tokens": 32,
        }
        return LmOptions(**{**plain, **settings})

    return make


def run(options: LmOptions, *, stop_at: int = 0, listen: Listener = nobody) -> LoopReport:
    """Train; at step `stop_at` somebody sends SIGTERM."""
    stop = Stop()

    def told(event: Progress | Notice) -> None:
        if isinstance(event, Progress) and event.task == "train" and event.done == stop_at:
            stop.signal = signal.SIGTERM
        listen(event)

    return train_lm(plan_lm(options), ranks=ALONE, stop=stop, listen=told)


def tensors(save_dir: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    """A file of a checkpoint."""
    found: dict[str, torch.Tensor] = load_file(checkpoints.folder_of(save_dir, step) / name)
    return found
