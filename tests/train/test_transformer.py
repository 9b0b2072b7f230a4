"""The model: its sizes, that documents do not leak into each other, and that transformers computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slmx import presets
from slmx.errors import SlmxError, UsageError
from slmx.train import attention, export
from slmx.train.transformer import Shape, Transformer, count_parameters, flops_per_token
from tests.train.lm_files import thin

CPU = torch.device("cpu")


def shape_of(name: str) -> Shape:
    _, preset = presets.get(presets.TransformerPreset, name)
    said = preset.model_dump(exclude={"about", "aliases", "batch_tokens"})
    return Shape(**{**said, "kv_heads": preset.kv_heads or preset.heads})


def made(shape: Shape, seed: int = 0, **settings: Any) -> Transformer:
    """A model whose every weight is random, those that begin as zero or one too."""
    model = Transformer(shape, **settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3 + (1.0 if weight.ndim == 1 else 0.0))
    return model


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("tiny-17m", 17_062_400),
        ("tiny-59m", 59_294_720),
        ("nano-6m", 6_033_408),
        ("mini-30m", 29_369_856),
        ("gpt2-124m", 123_552_768),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
    ],
)
def test_presets_have_their_size(name: str, parameters: int) -> None:
    shape = shape_of(name)
    assert count_parameters(shape) == parameters
    with torch.device("meta"):
        model = Transformer(shape)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize(
    "changes", [{}, {"activation": "relu2", "qk_norm": True}, {"tied": False, "kv_heads": 4, "rope_theta": 1e5}]
)
def test_transformers_loads_what_is_saved_and_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    shape = thin(**changes)
    model = made(shape)
    export.save_model(tmp_path / "m", shape, dict(model.named_parameters()), end_of_text=0, tokenizer=None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    assert theirs.config.model_type == ("qwen3" if shape.qk_norm else "llama")
    tokens = torch.randint(64, (2, 16))
    with torch.no_grad():
        ours, others = model(tokens), theirs(tokens).logits
    assert (ours - others).abs().max() < 1e-4 * max(1.0, float(others.abs().max()))
    again, weights = export.load_model(tmp_path / "m")
    assert again == shape
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_documents_do_not_leak_into_each_other(backend: str, compute: torch.dtype) -> None:
    model = made(thin(qk_norm=True), compute=compute)
    tokens = torch.randint(1, 64, (2, 16))
    tokens[:, 5] = tokens[0, 11] = 0
    segments = attention.segments_of(tokens, 0)

    def logits(changed: torch.Tensor) -> torch.Tensor:
        mask = attention.masks(segments, backend, length=16, device=CPU, dtype=compute)
        with torch.no_grad():
            return torch.Tensor(model(changed, mask=mask))

    before = logits(tokens)
    other = tokens.clone()
    other[:, :5] = other[:, :5] % 63 + 1  # another first document
    after = logits(other)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])
    with torch.no_grad():  # the same document by itself: attention does not see how far positions are shifted
        mask = attention.masks(None, backend, length=6, device=CPU, dtype=compute)
        alone = model(tokens[:1, 5:11], mask=mask)
    atol = 1e-3 if compute == torch.float32 else 0.6
    assert torch.allclose(before[:1, 5:11].float(), alone.float(), atol=atol)


@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("length", [16, 300])
def test_back_ends_agree_with_the_definition_in_value_and_gradient(backend: str, length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    segments = (torch.rand(2, length) < 0.1).cumsum(1)
    wanted = torch.randn(2, length, 4, 8)
    mask = attention.masks(segments, backend, length=length, device=CPU, dtype=torch.float32)
    derives = backend != "flex"  # which has no backward on processors
    with torch.set_grad_enabled(derives):
        found = attention.attend(*((q, k, v) if derives else (q.detach(), k.detach(), v.detach())), mask)

    allowed = (segments[:, :, None] == segments[:, None, :]) & torch.ones(length, length).tril().bool()
    wide = [one.repeat_interleave(4 // one.shape[2], 2).transpose(1, 2) for one in (q, k, v)]
    scores = (wide[0] @ wide[1].transpose(2, 3) / 8**0.5).masked_fill(~allowed[:, None], float("-inf"))
    plain = (scores.softmax(-1) @ wide[2]).transpose(1, 2)
    assert torch.allclose(found, plain, atol=1e-5)
    if derives:
        ours, theirs = (torch.autograd.grad((one * wanted).sum(), (q, k, v)) for one in (found, plain))
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, theirs, strict=True))


def test_operations_a_token_are_those_of_the_products() -> None:
    shape = thin(tied=False)
    products = count_parameters(shape) - 64 * 32
    assert flops_per_token(shape, 16) == 6 * products + 6 * 2 * 16 * 32


def test_an_old_checkpoint_becomes_our_model(tmp_path: Path) -> None:
    shape = thin(kv_heads=4, hidden=128)
    model = made(shape)
    old = {"_orig_mod.tok_emb.weight": model.embedding.weight, "_orig_mod.norm.weight": model.norm.weight}
    old["_orig_mod.lm_head.weight"] = model.embedding.weight
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    for number, block in enumerate(model.blocks):
        prefix = f"_orig_mod.layers.{number}."
        for ours, theirs in names.items():
            old[f"{prefix}attn.{theirs}.weight"] = getattr(block.attention, ours).weight
        for ours, theirs in {"gate": "w1", "down": "w2", "up": "w3"}.items():
            old[f"{prefix}ffn.{theirs}.weight"] = getattr(block.mlp, ours).weight
        old |= {f"{prefix}norm1.weight": block.attention_norm.weight, f"{prefix}norm2.weight": block.mlp_norm.weight}
    config = {"n_heads": 4, "max_seq_len": 16}
    path = tmp_path / "final_model.pt"
    torch.save({"model_state_dict": old, "config": config, "tokens_processed": 5}, path)
    again, weights = export.load_model(path)
    assert again == shape
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    torch.save({"model_state_dict": {**old, "memory.weight": old["_orig_mod.norm.weight"]}, "config": config}, path)
    with pytest.raises(SlmxError, match=r"the weight memory\.weight, whose part"):
        export.load_model(path)


class Surprise:
    """What a checkpoint from a stranger may hold."""

    def __reduce__(self) -> Any:
        return exec, ("raise AssertionError('it was run')",)


def test_an_old_checkpoint_is_read_without_running_it(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {}, "config": Surprise()}, tmp_path / "step_5.pt")
    with pytest.raises(SlmxError, match="cannot be read without running"):
        export.load_model(tmp_path / "step_5.pt")
    with pytest.raises(SlmxError, match="There is no file"):
        export.load_model(tmp_path / "step_6.pt")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SlmxError, match="holds no Llama or Qwen3"):
        export.load_model(tmp_path)


def test_weights_of_another_shape_are_named() -> None:
    with pytest.raises(UsageError, match=r"no blocks\.0\.mlp\.gate\.weight of shape \(96, 32\)"):
        export.put(Transformer(thin(hidden=96)), dict(Transformer(thin()).named_parameters()))


def test_a_preset_whose_heads_do_not_fit_is_refused(empty_folder: Path) -> None:
    (empty_folder / "presets").mkdir()
    row = "odd: {vocab_size: 64, dim: 30, layers: 2, heads: 4, hidden: 48, context: 16}"
    (empty_folder / "presets" / "transformers.yaml").write_text(row)
    with pytest.raises(UsageError, match="each of 4 heads"):
        presets.load("transformers")
