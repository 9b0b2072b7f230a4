"""Run all benchmarks, one after the other, then write docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Each benchmark is a script of its own, so that none shares a process with another."""
    scripts = sorted(p for p in HERE.glob("*.py") if p.name not in ("run.py", "harness.py"))
    for script in scripts:
        print(f"== {script.stem}", file=sys.stderr)
        subprocess.run([sys.executable, str(script)], check=True)
    subprocess.run([sys.executable, str(HERE.parent / "docs" / "make.py")], check=True)


if __name__ == "__main__":
    main()
