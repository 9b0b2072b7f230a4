"""The loop against transformers' own `generate`, one prompt at a time, on tiny models with random weights."""

import random

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen3Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from slmx.errors import SlmxError
from slmx.models.decoding import Decoder, Drawn

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 96,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=16),
    "gpt2": GPT2Config(
        vocab_size=97, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, eos_token_id=96
    ),
}


def never(_row: int, _ids: list[int]) -> bool:
    return False


def make(name: str):
    torch.manual_seed(0)
    config = CONFIGS[name]
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


def alone(model, prompt: list[int], limit: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(1, 96) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk_tokens", [10_000, 60])
def test_trap_7_a_row_has_the_ids_that_it_has_alone(name: str, chunk_tokens: int) -> None:
    model = make(name)
    prompts = prompts_of([60, 58, 31, 30, 29, 12, 5, 1])
    new = Decoder(model, pad=0, chunk_tokens=chunk_tokens).run(prompts, 12, never)
    assert new == [alone(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_are_done_leave_and_the_others_do_not_notice(name: str) -> None:
    model = make(name)
    prompts, limits = prompts_of([40, 39, 38, 20, 19, 3]), [1, 9, 2, 12, 3, 5]
    new = Decoder(model, pad=0, chunk_tokens=10_000).run(prompts, 12, lambda row, ids: len(ids) == limits[row])
    expected = [alone(model, prompt, 12)[:limit] for prompt, limit in zip(prompts, limits, strict=True)]
    assert new == expected


def test_prompts_in_any_order() -> None:
    model = make("llama")
    prompts = prompts_of([3, 60, 12, 58, 1])
    new = Decoder(model, pad=0, chunk_tokens=64).run(prompts, 6, never)
    assert new == [alone(model, prompt, 6) for prompt in prompts]


def test_what_is_read_at_once_is_bounded_and_little_of_it_is_padding() -> None:
    decoder = Decoder(make("llama"), pad=0, chunk_tokens=64)
    chunks = [[len(prompt) for prompt in chunk] for chunk in decoder._chunks(prompts_of([90, 33, 31, 30, 12, 11, 2]))]
    assert chunks == [[90], [33], [31, 30], [12, 11], [2]]


def test_drawn_ids_do_not_depend_on_the_neighbours() -> None:
    model = make("llama")
    decoder, prompts = Decoder(model, pad=0, chunk_tokens=10_000), prompts_of([20, 19, 4])
    together = decoder.run(prompts, 8, never, Drawn(1.5, [1, 2, 3]))
    apart = [decoder.run([p], 8, never, Drawn(1.5, [seed]))[0] for p, seed in zip(prompts, [1, 2, 3], strict=True)]
    assert together == apart
    assert together != decoder.run(prompts, 8, never, Drawn(1.5, [4, 5, 6]))


def test_a_model_without_a_key_value_cache_is_refused_by_name() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(SlmxError, match="MambaForCausalLM"):
        Decoder(MambaForCausalLM(config), pad=0, chunk_tokens=64)
