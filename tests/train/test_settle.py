"""What `slmx train lm` foretells, measures and settles before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slmx import app
from slmx.errors import SlmxError, UsageError
from slmx.events import nobody
from slmx.train import lm, settle
from slmx.train.lm_plan import plan_lm
from slmx.train.ranks import Ranks
from tests.train.lm_files import ALONE, Asked, asked_in, run, tensors


@pytest.fixture
def asked(empty_folder: Path) -> Asked:
    """Options for a quick run of the thin preset, in an empty folder with small token files."""
    return asked_in(empty_folder)


def test_dry_run_tells_the_cost_and_writes_nothing(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    asked()
    words = ["train", "lm", "--preset", "thin", "--data", "tokens", "--save-dir", "new", "--steps", "50", "--dry-run"]
    assert app.run([*words, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["parameters"] == 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 8 + 2 * 32 * 48 + 64) + 32
    assert found["seconds_per_step"] > 0 and found["peak_memory_bytes"] > 0
    assert not Path("new").exists()
    assert app.run([*words, "--device", "cpu"]) == 0
    assert "Nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_memory_of_the_plan_is_what_weights_gradients_and_moments_take(asked: Asked, optimizer: str) -> None:
    planned = plan_lm(asked(optimizer=optimizer))
    run(asked(optimizer=optimizer, steps=1))
    moments = tensors(planned.options.save_dir, 1, "optimizer.safetensors")
    held = sum(one.numel() for one in moments.values() if one.numel() > 1)
    assert planned.plan.memory_bytes == 4 * (2 * planned.plan.parameters + held)


def test_flex_attention_cannot_train_on_a_processor(asked: Asked) -> None:
    with pytest.raises(UsageError, match="no backward on cpu"):
        run(asked(attention="flex"))


@pytest.mark.slow
def test_compiled_layers_learn_the_same(asked: Asked, tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        run(asked(save_dir=tmp_path / name, steps=3, compile=compiled, dtype="float32", optimizer="adamw"))
    one, other = (tensors(tmp_path / name, 3, "weights.safetensors") for name in ("plain", "compiled"))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    kept = settle.remembered(tmp_path / "compiled")
    assert kept is not None and kept.compiled
    run(asked(save_dir=tmp_path / "compiled", steps=3, compile=True, dtype="float32", optimizer="adamw", resume=True))


def test_what_was_settled_at_the_beginning_holds_when_it_goes_on(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(attention="sdpa"), stop_at=2)
    kept = settle.remembered(tmp_path / "run")
    assert kept is not None and kept.attention == "sdpa"
    run(asked(resume=True))  # says nothing of attention, and goes on with sdpa


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attention": "blocked"}, "--attention blocked (it has sdpa)"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16 (it has float32)"),
        ({"micro_tokens": 64}, "--micro-tokens 64 (it has 32)"),
        ({"compile": True}, "--compile (it has not compiled)"),
    ],
)
def test_what_was_settled_cannot_be_changed_when_it_goes_on(asked: Asked, more: dict[str, Any], said: str) -> None:
    begun = {"attention": "sdpa", "dtype": "fp32", "micro_tokens": 32, "compile": False}
    with pytest.raises(SlmxError, match="Stopped after 2"):
        run(asked(**begun), stop_at=2)
    with pytest.raises(UsageError) as caught:
        run(asked(**{**begun, **more}, resume=True))
    assert said in str(caught.value)
    run(asked(**begun, resume=True))


def test_flex_attention_stays_chosen_only_where_it_is_compiled(asked: Asked) -> None:
    """On a card it is best where layers are compiled; where they are not, it is no kernel."""
    for attention, kept in (("auto", "blocked"), ("flex", "flex")):
        planned = plan_lm(asked(attention=attention, compile=None))
        chosen = settle.Settled(dtype="float32", attention="flex", micro=2, compiled=False, rate=1e12)
        task = lm.LmTask(planned, chosen, ALONE)
        assert settle.compile_if_it_pays(task, chosen, 4, ALONE, nobody).attention == kept


class OneOfTwo(Ranks):
    """The first of two processes, that never hears of the other."""

    def highest(self, number: int) -> int:
        return number

    def once(self, work: Callable[[], Any]) -> Any:
        return work()


def test_a_dry_run_shares_its_speed_among_the_chips(asked: Asked) -> None:
    found = lm.estimate_lm(plan_lm(asked()), ranks=OneOfTwo(torch.device("cpu"), 0, 2), steps=1)
    speed = found.plan.flops_per_token * found.tokens_per_second
    assert found.mfu == pytest.approx(speed / found.settled.rate / 2)
