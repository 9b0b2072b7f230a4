"""The transformer as a folder that transformers loads (Llama, or Qwen3 with QK norm), and back; old checkpoints too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from slmx.errors import SlmxError, UsageError
from slmx.files import read_json, write_json
from slmx.models.tokenizers import Tokenizer
from slmx.train.transformer import Shape

LAYER = {
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
OUTSIDE = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
HEAD = {"head.weight": "lm_head.weight"}


def save_model(
    to: Path, shape: Shape, weights: Mapping[str, Tensor], *, end_of_text: int | None, tokenizer: Tokenizer | None
) -> None:
    """Write config, weights and tokenizer.

    relu(up)² is a gated layer whose gate is `up` and whose activation is relu: relu(x) · x = relu(x)².
    """
    from safetensors.torch import save_file

    to.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.copy_to(to)
    write_json(to / "config.json", config_of(shape, end_of_text))
    ends = {} if end_of_text is None else {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    write_json(to / "generation_config.json", {"_from_model_config": True, **ends})
    save_file(to_transformers(shape, weights), to / "model.safetensors", metadata={"format": "pt"})


def config_of(shape: Shape, end_of_text: int | None) -> dict[str, Any]:
    """The config.json of a shape."""
    return {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.hidden,
        "hidden_act": "silu" if shape.activation == "swiglu" else "relu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def to_transformers(shape: Shape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by transformers' names."""
    made = {theirs: weights[ours] for ours, theirs in OUTSIDE.items()}
    if not shape.tied:
        made |= {theirs: weights[ours] for ours, theirs in HEAD.items()}
    for layer in range(shape.layers):
        for ours, theirs in LAYER.items():
            name = f"blocks.{layer}.{ours}"
            if shape.activation == "relu2" and ours == "mlp.gate.weight":
                made[f"model.layers.{layer}.{theirs}"] = weights[f"blocks.{layer}.mlp.up.weight"].clone()
            elif name in weights:
                made[f"model.layers.{layer}.{theirs}"] = weights[name]
    return {name: weight.detach().contiguous() for name, weight in made.items()}


def load_model(path: Path) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and weights of what a training left, of a Llama or Qwen3 of transformers, or of an old .pt file.

    Raises:
        SlmxError: it is none of these, or its architecture has what ours lacks.
    """
    if path.suffix in (".pt", ".pth"):
        return load_old(path)
    from safetensors.torch import load_file

    from slmx.models.catalogue import require_weight_files
    from slmx.train.checkpoints import STATE, WEIGHTS, check

    if (path / WEIGHTS).is_file():  # a checkpoint of a run
        check(path)
        shape = read_json(path / STATE)["identity"].get("shape")
        if shape is None:
            raise SlmxError(
                f"{path} is a checkpoint of `slmx train sft`, which holds no shape.",
                hint=f"Take the finished model, {path.parent.parent}; the same command with --resume finishes it.",
            )
        return msgspec.convert(shape, Shape), load_file(path / WEIGHTS)

    config = read_json(path / "config.json") if path.is_dir() else {}
    if config.get("model_type") not in ("llama", "qwen3"):
        raise SlmxError(
            f"{path} holds no Llama or Qwen3 model.",
            hint="Name the --save-dir of a `slmx train lm`, a checkpoint in it, or an old step_N.pt.",
        )
    theirs: dict[str, Tensor] = {}
    for file in require_weight_files(path):
        theirs |= load_file(file)
    names = {their: our for our, their in {**OUTSIDE, **HEAD}.items()}
    weights: dict[str, Tensor] = {}
    for name, weight in theirs.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        ours = {their: our for our, their in LAYER.items()}.get(match[2]) if match else names.get(name)
        if ours is None:
            raise SlmxError(f"{path} has the weight {name}, which `slmx train lm` does not know.")
        weights[f"blocks.{match[1]}.{ours}" if match else ours] = weight.float()
    try:
        return _shape_of(config, weights, path), weights
    except KeyError as missing:
        raise SlmxError(f"{path} is no whole model: {missing} is missing.", hint="Copy it again.") from None


def _shape_of(config: Mapping[str, Any], weights: dict[str, Tensor], path: Path) -> Shape:
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    # Since transformers 5 in rope_parameters; before, in rope_scaling, with rope_theta beside it.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    act = config.get("hidden_act") or "silu"
    relu = act == "relu"
    other = [
        (f"heads of {config.get('head_dim')}", (config.get("head_dim") or dim // heads) * heads != dim),
        ("scaled positions", rope.get("rope_type", rope.get("type", "default")) != "default"),
        ("positions in a part of each head", _partial(config, rope)),
        ("attention in a sliding window", _sliding(config)),
        (f"the activation {act}", act not in ("silu", "relu")),
    ]
    for what, found in other:
        if found:
            raise SlmxError(f"{path} has {what}, which `slmx train lm` does not know.")
    if relu:
        for layer in range(config["num_hidden_layers"]):
            gate = weights.pop(f"blocks.{layer}.mlp.gate.weight")
            if not gate.equal(weights[f"blocks.{layer}.mlp.up.weight"]):
                raise SlmxError(f"{path} has a relu-gated MLP, which `slmx train lm` does not know.")
    tied = bool(config.get("tie_word_embeddings", False))
    if tied:
        weights.pop("head.weight", None)
    return Shape(
        vocab_size=config["vocab_size"],
        dim=dim,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        hidden=config["intermediate_size"],
        context=config["max_position_embeddings"],
        activation="relu2" if relu else "swiglu",
        qk_norm=config["model_type"] == "qwen3",
        tied=tied,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _partial(config: Mapping[str, Any], rope: Mapping[str, Any]) -> bool:
    said = (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor"))
    return any(share not in (None, 1.0) for share in said)


def _sliding(config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types") or []
    return bool(config.get("use_sliding_window")) or any(kind != "full_attention" for kind in kinds)


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model of their shape; UsageError names the first that does not fit."""
    for name, weight in model.named_parameters():
        if name not in weights or weights[name].shape != weight.shape:
            raise UsageError(f"The weights to begin with have no {name} of shape {tuple(weight.shape)}.")
        weight.copy_(weights[name])


# ---------------------------------------------------------------------------------------------------- old checkpoints

# What parts of a name mean, in the order they are looked for; names of common small transformers.
OLD_OUTSIDE = (
    (r"(tok(en)?_?emb(edding)?s?|embed(ding)?s?|embed_tokens|wte)\.weight", "embedding.weight"),
    (r"(norm|norm_f|ln_f|final_norm|ln_final|rms_final)\.(weight|scale)", "norm.weight"),
    (r"(lm_head|head|output|out_head)\.weight", "head.weight"),
)
OLD_LAYER = (
    (r"(self_attn|attention|attn)\.(q_proj|wq|q|query)\.weight", "attention.q.weight"),
    (r"(self_attn|attention|attn)\.(k_proj|wk|k|key)\.weight", "attention.k.weight"),
    (r"(self_attn|attention|attn)\.(v_proj|wv|v|value)\.weight", "attention.v.weight"),
    (r"(self_attn|attention|attn)\.(o_proj|out_proj|wo|o|c_proj|proj)\.weight", "attention.o.weight"),
    (r"(self_attn|attention|attn)\.(qkv|qkv_proj|c_attn|wqkv)\.weight", "attention.qkv.weight"),
    (r"(input_layernorm|attn_norm|attention_norm|norm1|norm_1|ln1|ln_1)\.(weight|scale)", "attention_norm.weight"),
    (r"(post_attention_layernorm|mlp_norm|ffn_norm|norm2|norm_2|ln2|ln_2)\.(weight|scale)", "mlp_norm.weight"),
    (r"(mlp|ffn|feed_forward|ff)\.(gate_proj|gate|w1|w_gate)\.weight", "mlp.gate.weight"),
    (r"(mlp|ffn|feed_forward|ff)\.(up_proj|up|w3|w_up)\.weight", "mlp.up.weight"),
    (r"(mlp|ffn|feed_forward|ff)\.(down_proj|down|w2|w_down)\.weight", "mlp.down.weight"),
)
LEFT_OUT = r".*(rotary|rope|freqs|inv_freq|cos|sin|causal|mask|bias_mask).*"


def load_old(path: Path) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and weights of an old `step_*.pt` or `final_model.pt`: {model_state_dict, config, tokens_processed}.

    Read with weights_only, so nothing in it is run. Its rotary embedding is taken to turn the pairs (i, i + D/2), as
    ours does.

    Raises:
        SlmxError: it is no such file, or holds weights of a name or shape that is not understood.
    """
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SlmxError(f"There is no file {path}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        said = str(error).partition("\n")[0][:200]
        raise SlmxError(
            f"{path} cannot be read without running what is in it, and slmx does not do that ({said}).",
            hint="Where it was made, save {'model_state_dict': …, 'config': plain dict} again.",
        ) from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise SlmxError(f"{path} has no model_state_dict.", hint="It is none of the old step_N.pt or final_model.pt.")
    weights = _renamed(state, path)
    return _old_shape(content.get("config"), weights, path), weights


def _renamed(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, weight in state.items():
        plain = re.sub(r"^(_orig_mod\.|module\.|model\.|transformer\.)+", "", str(name))
        match = re.fullmatch(r"(?:layers|blocks|h)\.(\d+)\.(.+)", plain)
        known = OLD_LAYER if match else OLD_OUTSIDE
        ours = next((our for form, our in known if re.fullmatch(form, match[2] if match else plain)), None)
        if ours is None:
            if re.fullmatch(LEFT_OUT, plain):
                continue
            raise SlmxError(f"{path} has the weight {name}, whose part in the model is not known.")
        prefix = f"blocks.{match[1]}." if match else ""
        if ours == "attention.qkv.weight":
            for part, piece in zip("qkv", weight.float().chunk(3), strict=True):
                weights[f"{prefix}attention.{part}.weight"] = piece.contiguous()
        else:
            weights[prefix + ours] = weight.float().contiguous()
    return weights


def _old_shape(config: Any, weights: dict[str, Tensor], path: Path) -> Shape:
    """Most of a shape stands in the weights themselves; heads, context and constants in the old config."""
    said: Mapping[str, Any] = config if isinstance(config, dict) else {}

    def ask(default: Any, *names: str) -> Any:
        return next((said[name] for name in names if name in said), default)

    try:
        vocab_size, dim = weights["embedding.weight"].shape
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        hidden = weights["blocks.0.mlp.up.weight"].shape[0]
        kv = weights["blocks.0.attention.k.weight"].shape[0]
    except (KeyError, ValueError):
        raise SlmxError(f"{path} lacks weights of a transformer: {', '.join(list(weights)[:5])} …") from None
    heads = int(ask(max(1, dim // 64), "n_heads", "num_heads", "n_head", "heads"))
    head = weights.get("head.weight")
    tied = head is None or head.equal(weights["embedding.weight"])
    if tied:
        weights.pop("head.weight", None)
    return Shape(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv * heads // dim,
        hidden=hidden,
        context=int(ask(512, "max_seq_len", "context_length", "block_size", "seq_len", "context", "max_len")),
        activation="swiglu" if "blocks.0.mlp.gate.weight" in weights else "relu2",
        tied=tied,
        rope_theta=float(ask(10_000.0, "rope_theta", "rope_base")),
        norm_eps=float(ask(1e-6, "norm_eps", "rms_norm_eps", "eps")),
    )
