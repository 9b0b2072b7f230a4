"""The models that `slmx train sft` tunes, behind one face: ours where it fits, any other as transformers runs it.

    model = open_tuned(folder, ...)       # model.module, model.loss(module, batch), model.save(to, weights)

Both keep packed examples apart with a mask made of the batch's segments, whatever computes the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmx.errors import SlmxError, UsageError
from slmx.files import read_json, write_json
from slmx.models.catalogue import require_weight_files
from slmx.models.tokenizers import Tokenizer
from slmx.train import attention, export
from slmx.train.cross_entropy import IGNORED
from slmx.train.loop import Batch
from slmx.train.packing import positions_of
from slmx.train.transformer import Transformer

THEIR_BACKENDS = ("sdpa", "eager")


class Tuned(Protocol):
    """A model to tune. `module` holds its weights; those that do not learn have requires_grad False."""

    @property
    def module(self) -> nn.Module:
        """The weights."""

    @property
    def backend(self) -> str:
        """What computes the attention."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The summed loss in nats of what is learnt in a batch; `module` is the own one, or what spreads it."""

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits (V,) behind some tokens (1, T)."""

    def save(self, to: Path, weights: Mapping[str, Tensor], *, tokenizer: Tokenizer, ends: list[int]) -> None:
        """Write a folder that transformers loads. `ends` are the ids that end a text."""


@dataclass(frozen=True)
class Lora:
    """A low-rank change of the layers' matrices (Hu et al. 2021): rank 0 means none, all weights learn."""

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0


def open_tuned(
    folder: Path, *, lora: Lora, backend: str, device: torch.device, compute: torch.dtype, length: int
) -> Tuned:
    """Open a model: ours for a Llama or Qwen3 shape without LoRA, else by transformers.

    Raises:
        SlmxError: the folder holds no causal language model.
        UsageError: an attention back end that does not fit.
    """
    ours = not lora.rank and backend in ("auto", *attention.BACKENDS) and _is_ours(folder)
    if ours:
        chosen = attention.best_backend(device, length, compiled=False) if backend == "auto" else backend
        return OurModel(folder, backend=chosen, device=device, compute=compute)
    if backend not in ("auto", *THEIR_BACKENDS):
        raise UsageError(f"--attention {backend} is not for this model.", hint=f"auto, {', '.join(THEIR_BACKENDS)}.")
    return TheirModel(
        folder, lora=lora, backend="sdpa" if backend == "auto" else backend, device=device, compute=compute
    )


def _is_ours(folder: Path) -> bool:
    try:
        export.load_model(folder)
    except SlmxError:
        return False
    return True


class OurModel:
    """The transformer of `slmx train lm`, with its attention and its loss in pieces."""

    def __init__(self, folder: Path, *, backend: str, device: torch.device, compute: torch.dtype) -> None:
        self.shape, weights = export.load_model(folder)
        self.backend = backend
        self.module: Transformer = Transformer(self.shape, compute=compute)
        export.put(self.module, weights)
        self.module.to(device)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """As in Tuned."""
        mask = attention.masks(
            batch.segments,
            self.backend,
            length=batch.tokens.shape[1],
            device=batch.tokens.device,
            dtype=self.module.compute,
        )
        loss: Tensor = module(batch.tokens, targets=batch.targets, mask=mask)
        return loss

    @torch.no_grad()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As in Tuned."""
        logits: Tensor = self.module(tokens)[0, -1].float()
        return logits

    def save(self, to: Path, weights: Mapping[str, Tensor], *, tokenizer: Tokenizer, ends: list[int]) -> None:
        """As in Tuned."""
        export.save_model(to, self.shape, weights, end_of_text=ends[0] if ends else None, tokenizer=tokenizer)
        _write_ends(to, ends)


class TheirModel:
    """Any causal language model of transformers; with LoRA through peft, else all of its weights learn."""

    def __init__(self, folder: Path, *, lora: Lora, backend: str, device: torch.device, compute: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        from slmx.models.quiet import no_bars

        require_weight_files(folder)
        self.backend, self.compute, self.lora = backend, compute, lora
        try:
            with no_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    attn_implementation=backend,
                    use_safetensors=True,
                    local_files_only=True,
                )
        except (OSError, ValueError, KeyError) as error:
            said = str(error).strip().partition("\n")[0]
            raise SlmxError(f"{folder} is no causal language model that transformers can read: {said}") from error
        if lora.rank:
            model = _with_lora(model, lora)
        model.config.use_cache = False
        self.module: Any = model.to(device)
        self.module.train()

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """As in Tuned. Row by row, so that logits are made for what is learnt alone."""
        assert batch.segments is not None
        total = torch.zeros((), device=batch.tokens.device)
        for tokens, targets, segments in zip(batch.tokens, batch.targets, batch.segments, strict=True):
            learnt = torch.nonzero(targets != IGNORED)[:, 0]
            with torch.autocast(tokens.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
                logits = module(
                    input_ids=tokens[None],
                    attention_mask=self._mask(segments[None]),
                    position_ids=positions_of(segments[None]),
                    use_cache=False,
                    logits_to_keep=learnt,
                ).logits[0]
            total = total + F.cross_entropy(logits.float(), targets[learnt], reduction="sum")
        return total

    def _mask(self, segments: Tensor) -> Tensor:
        """(1, 1, T, T), added to the scores: 0 where a token may look, else the lowest number."""
        length = segments.shape[1]
        places = torch.arange(length, device=segments.device)
        allowed = (places[:, None] >= places[None]) & (segments[:, :, None] == segments[:, None])
        hidden = torch.finfo(self.compute).min
        mask = torch.zeros(allowed.shape, dtype=self.compute, device=segments.device)
        return mask.masked_fill(~allowed, hidden)[:, None]

    @torch.no_grad()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As in Tuned."""
        self.module.eval()
        logits: Tensor = self.module(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        self.module.train()
        return logits

    def save(self, to: Path, weights: Mapping[str, Tensor], *, tokenizer: Tokenizer, ends: list[int]) -> None:
        """As in Tuned; with LoRA the change is put into the weights, and stands in `adapter/` by itself as well."""
        tokenizer.copy_to(to)
        model = self.module
        if self.lora.rank:
            model.save_pretrained(to / "adapter")
            model = model.merge_and_unload()
        model.config.use_cache = True
        model.save_pretrained(to)
        _write_ends(to, ends)


def _with_lora(model: Any, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _write_ends(to: Path, ends: list[int]) -> None:
    """State every id that ends a text, so that transformers stops where the examples did."""
    path = to / "generation_config.json"
    said = read_json(path) if path.is_file() else {}
    write_json(path, {**said, "eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else said)
