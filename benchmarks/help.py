"""How long `slmx --help` takes, beside `hf --help`, as whole processes."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import arguments, child, in_turn, ratio_row, save


def main() -> None:
    """Measure and write the result."""
    args = arguments(__doc__, "help")
    bin_folder = Path(sys.executable).parent
    for name in ("slmx", "hf"):
        child([str(bin_folder / name), "--help"])  # a first run reads the files into memory
    measured = in_turn(
        lambda: child([str(bin_folder / "slmx"), "--help"]).wall,
        lambda: child([str(bin_folder / "hf"), "--help"]).wall,
        rounds=max(args.rounds, 15),
    )
    share = measured["ours_s"] / measured["theirs_s"]
    rows = [
        {"figure": "`slmx --help` / `hf --help`", "value": f"{share:.2f}", "target": "at most 0.45"},
        {"figure": "`slmx --help`", "value": f"{measured['ours_s'] * 1000:.0f} ms", "target": ""},
        {"figure": "`hf --help`", "value": f"{measured['theirs_s'] * 1000:.0f} ms", "target": ""},
        ratio_row("faster than `hf --help`", measured, "at least 2.22×"),
    ]
    save(args.to, title="Help", what="Wall time of whole processes, median of alternating runs.", rows=rows, **measured)


if __name__ == "__main__":
    main()
