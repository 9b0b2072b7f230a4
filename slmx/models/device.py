"""Which device and which number type a model runs in, and what the machine is (for run.json).

bf16 pays only where the chip multiplies it: on a CPU with neither AMX nor AVX512-BF16 it is several times slower than
fp32, and on a GPU older than Ampere torch emulates it. "auto" never picks it there.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmx.errors import UsageError
from slmx.records import Record
from slmx.registry import unknown_name

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
}
CPUINFO = Path("/proc/cpuinfo")


class Machine(Record, frozen=True):
    """What a run ran on. `bf16` tells whether the device multiplies bf16 itself; memory is in bytes."""

    device: str
    chip: str
    dtype: str
    bf16: bool
    cpu: str
    cpu_features: tuple[str, ...] = ()
    cpu_count: int = 0
    threads: int = 0
    memory_bytes: int = 0
    system: str = ""
    python: str = ""
    torch: str = ""
    cuda: str = ""


def ask_for_huge_pages() -> None:
    """Let torch ask the kernel for huge pages behind each tensor of over 2 MiB; call it before the first tensor.

    A training frees and takes hundreds of megabytes a step, and each new page of 4 KiB is a fault: on a processor up to
    a quarter of a step. A huge page is one fault for 512 of them. Does nothing where the kernel has none, or the user
    has set THP_MEM_ALLOC_ENABLE (of torch's CPU allocator).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of a name: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps.

    Raises:
        UsageError: an unknown name, or a device that this machine does not have.
    """
    import torch

    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and (kind != "cuda" or not index.isdigit())):
        raise unknown_name("device", name, [*DEVICES, "cuda:0"])
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        _check_cuda(int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("This machine has no MPS device.", hint="Use --device cpu, or leave --device out.")
    return torch.device(f"{kind}:{index}" if index else kind)


def _check_cuda(index: int) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "torch sees no CUDA device here.",
            hint="Use --device cpu. What the driver sees: nvidia-smi. What torch was built for: "
            'python -c "import torch; print(torch.version.cuda)".',
        )
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"There is no device cuda:{index}.", hint=f"torch sees {count}: cuda:0 to cuda:{count - 1}.")


def pick_dtype(name: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """The number type of a name (auto, bfloat16, float16, float32 or bf16, fp16, fp32) on a device.

    auto: bf16 where the chip has it (CPU: AMX or AVX512-BF16; CUDA: not emulated), else fp32 on CPUs and fp16 on GPUs.

    Raises:
        UsageError: an unknown name, or bf16 on a GPU that would only emulate it.
    """
    import torch

    on = torch.device(device)
    if name == "auto":
        if has_bf16(on):
            return torch.bfloat16
        return torch.float32 if on.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise unknown_name("number type", name, ["auto", *DTYPES])
    if DTYPES[name] == "bfloat16" and on.type == "cuda" and not has_bf16(on):
        raise UsageError("This GPU has no bf16.", hint="Use --dtype float16, or leave --dtype out.")
    picked: torch.dtype = getattr(torch, DTYPES[name])
    return picked


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Does the device multiply bf16 itself, so that bf16 is faster than fp32 and not slower?"""
    import torch

    on = torch.device(device)
    if on.type == "cpu":
        return bool({"amx_bf16", "avx512_bf16"} & cpu_features())
    if on.type == "cuda":
        with torch.cuda.device(on):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """The CPU's features that matter to us, as torch sees them; where it cannot tell, as the kernel lists them."""
    wanted = ("amx_bf16", "amx_tile", "amx_fp16", "avx512_bf16", "avx512_vnni", "avx512_f", "avx2", "neon", "bf16")
    try:
        from torch.cpu import get_capabilities  # older versions of torch have none
    except ImportError:
        return frozenset(wanted) & {_plain(flag) for flag in _cpuinfo("flags", "Features").split()}
    found = get_capabilities()
    return frozenset(name for name in wanted if found.get(name) is True)


def _plain(flag: str) -> str:
    return "avx512_f" if flag == "avx512f" else flag


def _cpuinfo(*keys: str) -> str:
    """The first line of /proc/cpuinfo that has one of the keys; empty where there is no such file."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def describe(device: torch.device | str = "auto", dtype: torch.dtype | str = "auto") -> Machine:
    """The machine as a record, for run.json: the same for the same machine, torch and options."""
    import psutil
    import torch

    on = pick_device(device) if isinstance(device, str) else device
    number = pick_dtype(dtype, on) if isinstance(dtype, str) else dtype
    cpu = _cpuinfo("model name") or platform.processor() or platform.machine()
    return Machine(
        device=str(on),
        chip=torch.cuda.get_device_name(on) if on.type == "cuda" else cpu,
        dtype=dtype_name(number),
        bf16=has_bf16(on),
        cpu=cpu,
        cpu_features=tuple(sorted(cpu_features())),
        cpu_count=psutil.cpu_count() or 0,
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=_cuda_version(),
    )


def dtype_name(dtype: Any) -> str:
    """`torch.bfloat16` as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _cuda_version() -> str:
    import torch

    return str(torch.version.cuda or "")
