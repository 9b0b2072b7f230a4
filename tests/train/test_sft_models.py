"""The models that `slmx train sft` tunes: ours and those of transformers, each example apart from the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from slmx.data.sft_files import open_sft
from slmx.errors import SlmxError
from slmx.files import read_json, write_json
from slmx.train import export
from slmx.train.cross_entropy import IGNORED
from slmx.train.packing import Packed
from slmx.train.tuned import Lora, OurModel, open_tuned
from tests.train.sft_files import make_folders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer trained here, models of ours and of transformers with random weights, and examples."""
    return make_folders(tmp_path_factory.mktemp("sft"))


BACKENDS = [("ours", "blocked"), ("ours", "sdpa"), ("ours", "flex"), ("qk", "blocked"), ("qk", "sdpa")]
BACKENDS += [("ours", "eager"), ("qk", "eager"), ("gpt2", "sdpa"), ("gpt2", "eager")]


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_packed_examples_do_not_see_each_other(folders: dict[str, Path], name: str, backend: str) -> None:
    """The loss of a row is the sum of the losses of its examples alone, and another neighbour changes nothing."""
    tuned = open_tuned(folders[name], lora=Lora(), backend=backend, device=CPU, compute=torch.float32, length=256)
    assert tuned.backend == backend
    tuned.module.eval()
    packed = Packed(open_sft(folders["data"]).train, length=256, batch=1, seed=0, pad=0)
    row = max(packed.rows, key=len)
    assert len(row) > 2
    with torch.no_grad():
        whole = float(tuned.loss(tuned.module, packed.make([row])))
        alone = sum(float(tuned.loss(tuned.module, packed.make([[one]]))) for one in row)
        assert whole == pytest.approx(alone, rel=1e-5)
        changed = packed.make([row])
        assert changed.segments is not None
        first = changed.segments == 1
        changed.tokens[first] = (changed.tokens[first] + 7) % 300
        changed.targets[first] = IGNORED
        rest = sum(float(tuned.loss(tuned.module, packed.make([[one]]))) for one in row[1:])
        assert float(tuned.loss(tuned.module, changed)) == pytest.approx(rest, rel=1e-5)


@pytest.mark.parametrize("name", ["ours", "qk"])
def test_our_model_and_transformers_agree_on_the_loss(folders: dict[str, Path], name: str) -> None:
    packed = Packed(open_sft(folders["data"]).train, length=256, batch=2, seed=0, pad=0)
    losses = []
    for backend in ("blocked", "eager"):
        tuned = open_tuned(folders[name], lora=Lora(), backend=backend, device=CPU, compute=torch.float32, length=256)
        tuned.module.eval()
        losses.append(float(tuned.loss(tuned.module, packed.batch(0)).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("name", "changes", "ours"),
    [
        ("ours", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, False),  # as stated before transformers 5
        ("ours", {"rope_scaling": {"type": "linear", "factor": 4.0}}, False),
        ("ours", {"hidden_act": "gelu"}, False),
        ("qk", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, False),
        ("ours", {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None}, True),
    ],
)
def test_a_model_of_other_mathematics_is_not_taken_for_ours(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], ours: bool
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(folders[name], folder)
    config = read_json(folder / "config.json")
    if "rope_scaling" in changes:
        del config["rope_parameters"]
    write_json(folder / "config.json", {**config, **changes})
    tuned = open_tuned(folder, lora=Lora(), backend="auto", device=CPU, compute=torch.float32, length=64)
    assert isinstance(tuned, OurModel) is ours
    tokens = torch.arange(200)[None]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=tokens).logits[0, -1]
    assert torch.allclose(tuned.next_logits(tokens), wanted, atol=1e-4)
    if not ours:
        with pytest.raises(SlmxError, match="does not know"):
            export.load_model(folder)
