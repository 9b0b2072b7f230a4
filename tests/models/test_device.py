"""The number type follows the chip: bf16 only where the chip multiplies it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from slmx.errors import UsageError
from slmx.models import device as devices


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch):
    def set_to(*names: str) -> None:
        monkeypatch.setattr(devices, "cpu_features", lambda: frozenset(names))

    return set_to


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    def with_bf16(real: bool) -> None:
        monkeypatch.setattr(devices, "has_bf16", lambda _device: real)

    return with_bf16


def test_auto_takes_bf16_on_a_cpu_that_has_it(features) -> None:
    for name in ("amx_bf16", "avx512_bf16"):
        features(name, "avx2")
        assert devices.pick_dtype("auto", "cpu") is torch.bfloat16


def test_auto_takes_fp32_on_a_cpu_without_bf16(features) -> None:
    features("avx2", "avx512_f", "avx512_vnni")
    assert devices.pick_dtype("auto", "cpu") is torch.float32


def test_auto_takes_fp16_on_a_gpu_that_only_emulates_bf16(gpu) -> None:
    gpu(False)
    assert devices.pick_dtype("auto", "cuda") is torch.float16
    with pytest.raises(UsageError, match="no bf16") as caught:
        devices.pick_dtype("bfloat16", "cuda")
    assert "--dtype float16" in caught.value.hint
    gpu(True)
    assert devices.pick_dtype("auto", "cuda") is torch.bfloat16


def test_emulated_bf16_of_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "device", lambda _device: torch.no_grad())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: asked.append(including_emulation)
    )
    assert devices.has_bf16("cuda:0") is False
    assert asked == [False]


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_a_named_type_is_taken_as_it_is(name: str, dtype: torch.dtype) -> None:
    assert devices.pick_dtype(name, "cpu") is dtype


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        devices.pick_dtype("bfloat", "cpu")
    assert "bfloat16" in caught.value.hint
    with pytest.raises(UsageError, match='no device "gpu"'):
        devices.pick_device("gpu")
    with pytest.raises(UsageError, match='no device "cpu:1"'):
        devices.pick_device("cpu:1")


def test_a_device_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device") as caught:
        devices.pick_device("cuda")
    assert "--device cpu" in caught.value.hint and "nvidia-smi" in caught.value.hint
    assert "slmx " not in caught.value.hint  # no command that does not exist
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="no device cuda:2"):
        devices.pick_device("cuda:2")


def test_features_come_from_the_kernel_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some Chip\nflags\t\t: avx2 avx512f amx_bf16 amx_tile sse\n")
    monkeypatch.setattr(devices, "CPUINFO", info)
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    devices.cpu_features.cache_clear()
    try:
        assert devices.cpu_features() == {"avx2", "avx512_f", "amx_bf16", "amx_tile"}
    finally:
        devices.cpu_features.cache_clear()


def test_the_description_is_json_and_repeats() -> None:
    first = devices.describe("cpu")
    assert first == devices.describe("cpu")
    assert first.threads >= 1
    assert first.dtype in ("bfloat16", "float32")
    assert msgspec.json.decode(msgspec.json.encode(first), type=devices.Machine) == first


# Prints the kernel's flags of the pages that one tensor lies on.
_FLAGS = """
import sys, torch
from slmx.train.ranks import joined
def flags(tensor):
    inside = False
    for line in open("/proc/self/smaps"):
        head, *rest = line.split()
        if "-" in head:
            start, end = (int(one, 16) for one in head.split("-"))
            inside = start <= tensor.data_ptr() + tensor.nbytes // 2 < end
        elif inside and head == "VmFlags:":
            return rest
if sys.argv[1] == "training":
    with joined(["cpu"]):
        print(*flags(torch.ones(1 << 24)))
else:
    print(*flags(torch.ones(1 << 24)))
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no transparent huge pages"
)
def test_a_training_asks_for_huge_pages_and_leaves_the_users_word_alone() -> None:
    """In processes of their own: torch reads the setting at its first tensor."""

    def asked(what: str, **environment: str) -> bool:
        clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        command = [sys.executable, "-c", _FLAGS, what]
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=clean | environment)
        return "hg" in told.stdout.split()  # proc(5): huge page advised

    assert asked("training")
    assert not asked("training", THP_MEM_ALLOC_ENABLE="0")
    assert not asked("nothing")
