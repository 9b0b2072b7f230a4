"""A tiny causal model with random weights and a byte-level tokenizer; and the real one, where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)


@pytest.fixture(scope="session")
def shared(test_data: Path) -> Callable[[str], Path]:
    """Gives a path of the real data, or skips the test where it is not."""

    def path(name: str) -> Path:
        found = test_data / name
        if not found.exists():
            pytest.skip(f"{found} is not here")
        return found

    return path


@pytest.fixture(scope="session")
def stories(shared: Callable[[str], Path]) -> Path:
    """The real 260K-parameter story model."""
    return shared("models/stories260K-hf")


@pytest.fixture(scope="session")
def chatml() -> str:
    """A ChatML template with Qwen3's switch for thinking."""
    return CHATML


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Makes a tokenizer."""
    return make_tokenizer


def make_tokenizer():
    """256 bytes, three special tokens and two that are added but not special, as Qwen3 has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False), "  "])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama with random weights: for what does not depend on sense."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture
def another_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Makes more of them: another name, seed, chat template or settings."""
    return lambda name="tiny-random", **how: make_tiny(tmp_path / name, **how)


def make_tiny(folder: Path, *, seed: int = 0, template: str = "", **generation: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    if template:
        tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
