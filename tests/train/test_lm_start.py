"""`slmx train lm --init-from`: which models and data go together, and what is saved with the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from slmx.data.prepare import Job, prepare
from slmx.errors import SlmxError, UsageError
from slmx.files import read_json
from slmx.models.tokenizers import load_tokenizer
from slmx.signals import Stop
from slmx.train import export
from slmx.train.lm import train_lm
from slmx.train.lm_plan import LmOptions, plan_lm
from slmx.train.ranks import Ranks
from slmx.train.tokenizer import TokenizerOptions, train_tokenizer
from slmx.train.transformer import Transformer
from tests.train.lm_files import thin

TEXTS = {
    "numbers": "The number after four is five, and after seven comes eight. ",
    "ships": "A ship with three masts left the harbour before the storm. ",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenizers of one size, data made with each, and a model with the first one, as it is and padded."""
    root = tmp_path_factory.mktemp("start")
    for name, text in TEXTS.items():
        (root / f"{name}.txt").write_text("".join(f"{n} {text}\n" for n in range(300)), encoding="utf-8")
        train_tokenizer(TokenizerOptions([root / f"{name}.txt"], root / f"{name}-tokenizer", vocab_size=280))
        tokenizer = load_tokenizer(root / f"{name}-tokenizer")
        prepare(Job([root / f"{name}.txt"], tokenizer, root / name, processes=1))
    tokenizer = load_tokenizer(root / "numbers-tokenizer")
    for name, more in (("model", 0), ("padded", 24), ("small", -10)):
        shape = thin(vocab_size=tokenizer.vocab_size + more)
        model = Transformer(shape)
        model.initialise(1)
        own = tokenizer if more >= 0 else None
        export.save_model(root / name, shape, dict(model.named_parameters()), end_of_text=0, tokenizer=own)
    return root


def options(made: Path, save_dir: Path, **more: Any) -> LmOptions:
    plain = {"data": made / "numbers", "init_from": made / "model", "save_dir": save_dir, "steps": 2, "device": "cpu"}
    return LmOptions(**{**plain, "compile": False, "batch_tokens": 64, "lr": 1e-3, **more})


def run(asked: LmOptions) -> None:
    train_lm(plan_lm(asked), ranks=Ranks(torch.device("cpu")), stop=Stop())


def test_data_of_another_tokenizer_of_the_same_size_is_refused(made: Path, tmp_path: Path) -> None:
    first, other = (load_tokenizer(made / f"{name}-tokenizer") for name in TEXTS)
    assert first.vocab_size == other.vocab_size and first.hash != other.hash
    with pytest.raises(SlmxError, match="made with another tokenizer"):
        plan_lm(options(made, tmp_path / "run", data=made / "ships"))
    with pytest.raises(UsageError, match=r"token types and .*small"):
        plan_lm(options(made, tmp_path / "run", init_from=made / "small"))


def test_a_model_with_more_rows_than_token_types_goes_on(made: Path, tmp_path: Path) -> None:
    run(options(made, tmp_path / "run", init_from=made / "padded"))
    assert (
        export.load_model(tmp_path / "run")[0].vocab_size == load_tokenizer(made / "numbers-tokenizer").vocab_size + 24
    )


def test_raw_ids_keep_the_tokenizer_of_the_model(made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "raw").mkdir()
    shutil.copyfile(made / "numbers" / "train.bin", tmp_path / "raw" / "train.bin")
    run(options(made, tmp_path / "run", data=tmp_path / "raw"))
    tokenizer = load_tokenizer(made / "numbers-tokenizer")
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved.encode(TEXTS["numbers"]) == tokenizer.backend.encode(TEXTS["numbers"]).ids
    assert read_json(tmp_path / "run" / "generation_config.json")["eos_token_id"] == tokenizer.end_of_text
