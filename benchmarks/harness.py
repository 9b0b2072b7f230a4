"""What the benchmarks share: two ways in turn, medians and ratios, peak memory of a child, and the result's file.

A result is a JSON object: title, what (a sentence), rows (figure, value, target), notes, machine, date.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from slmx.files import write_json
from slmx.models.device import cpu_features

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("SLMX_TEST_DATA", ROOT.parent / "shared" / "data"))
PACKAGES = ("torch", "transformers", "sentence-transformers", "bm25s", "msgspec", "typer", "huggingface-hub")


@dataclass(frozen=True)
class Run:
    """One run of a child process: wall and processor seconds, peak resident memory in MiB."""

    wall: float
    cpu: float
    peak_mib: float


def child(command: Sequence[str], **environment: str) -> Run:
    """Run a command to its end; its output goes nowhere, and a failure stops the benchmark."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode(errors='replace')}")
    wall = time.perf_counter() - begin
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int) -> dict[str, Any]:
    """Measure A B A B …; both give seconds. Returns the medians and the ratio theirs / ours, median over the pairs."""
    pairs = []
    for number in range(rounds):
        pair = (ours(), theirs())
        pairs.append(pair)
        print(f"  round {number + 1}: ours {pair[0]:.3f} s, theirs {pair[1]:.3f} s", file=sys.stderr)
    ratios = sorted(b / a for a, b in pairs)
    return {
        "ours_s": statistics.median(a for a, _ in pairs),
        "theirs_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "rounds": rounds,
    }


def ratio_row(figure: str, measured: dict[str, Any], target: str) -> dict[str, str]:
    """A row of the result's table for a ratio with its range over the rounds."""
    value = f"{measured['ratio']:.2f}× ({measured['ratio_low']:.2f}–{measured['ratio_high']:.2f})"
    return {"figure": figure, "value": value, "target": target}


def machine() -> dict[str, str]:
    """The machine and the versions that the figures belong to."""
    found = {
        "processor": _processor(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "bf16": ", ".join(sorted(cpu_features() & {"amx_bf16", "avx512_bf16"})) or "none",
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def arguments(doc: str | None, name: str) -> argparse.Namespace:
    """The options that all benchmarks take: --to FILE and --rounds N."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RESULTS / f"{name}.json", help="where the result is written")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
    return parser.parse_args()


def save(
    to: Path, *, title: str, what: str, rows: list[dict[str, str]], notes: Sequence[str] = (), **figures: Any
) -> None:
    """Write the result; `figures` are kept as they are for whoever wants to compute with them."""
    result = {
        "title": title,
        "what": what,
        "rows": rows,
        "notes": list(notes),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "figures": figures,
    }
    write_json(to, result)
    for row in rows:
        print(f"{row['figure']}: {row['value']}" + (f" (target {row['target']})" if row.get("target") else ""))
