"""What a run ran on: versions of the libraries that shape its numbers, and the machine."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import psutil

PACKAGES = ("slmx", "torch", "transformers", "tokenizers", "sentence-transformers", "bm25s", "PyStemmer", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape numbers, without importing any of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str = "auto", dtype: str = "auto") -> dict[str, Any]:
    """The machine; with the device and number format in use where torch is loaded, which is not done for this."""
    if "torch" in sys.modules:
        from slmx.models.device import describe

        return dict(msgspec.to_builtins(describe(device, dtype)))
    return {
        "cpu": platform.processor() or platform.machine(),
        "cpu_count": psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }
