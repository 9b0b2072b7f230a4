"""A small tokenizer, models and examples, for the tests of `slmx train sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slmx.data.prepare_sft import SftJob, prepare_sft
from slmx.models.tokenizers import load_tokenizer
from slmx.signals import Stop
from slmx.train import export
from slmx.train.ranks import joined
from slmx.train.sft import SftOptions, plan_sft, train_sft
from slmx.train.transformer import Shape, Transformer


def make_folders(root: Path) -> dict[str, Path]:
    """A tokenizer trained here, models of ours and of transformers with random weights, and examples, by name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from slmx.train.tokenizer import TokenizerOptions, train_tokenizer

    text = "Which number comes after 4? The number after 4 is 5. One two three four five six seven.\n" * 40
    (root / "corpus.txt").write_text(text, encoding="utf-8")
    train_tokenizer(TokenizerOptions([root / "corpus.txt"], root / "tokenizer", vocab_size=300))
    tokenizer = load_tokenizer(root / "tokenizer")
    size = tokenizer.vocab_size
    for name, more in (("ours", {}), ("qk", {"qk_norm": True, "kv_heads": 2, "activation": "relu2", "tied": False})):
        shape = Shape(
            **{
                "vocab_size": size,
                "dim": 32,
                "layers": 2,
                "heads": 4,
                "kv_heads": 4,
                "hidden": 64,
                "context": 256,
                **more,
            }
        )
        model = Transformer(shape)
        model.initialise(1)
        with torch.no_grad():
            for weight in model.parameters():  # no layer begins as the identity, so that a leak would show
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
        export.save_model(root / name, shape, dict(model.named_parameters()), end_of_text=0, tokenizer=tokenizer)
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=size, n_positions=256, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    tokenizer.copy_to(root / "gpt2")
    rows = [f'{{"question": "Which number comes after {n}?", "answer": "The number {n + 1}."}}' for n in range(60)]
    (root / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    prepare_sft(SftJob([str(root / "rows.jsonl")], tokenizer, root / "data", val_share=0.2))
    return {path.name: path for path in root.iterdir()}


def options(folders: dict[str, Path], tmp_path: Path, **more: Any) -> SftOptions:
    given = {"model": str(folders["ours"]), "data": folders["data"], "save_dir": tmp_path / "run", "steps": 6}
    fixed = {"batch_size": 4, "dtype": "float32", "device": "cpu", "lr": 3e-3, "sample_interval": 3, "val_interval": 3}
    return SftOptions(**{**given, **fixed, **more})


def train(asked: SftOptions, stop: Stop | None = None) -> Any:
    with joined(["cpu"]) as ranks:
        return train_sft(plan_sft(asked), ranks=ranks, stop=stop or Stop())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded
