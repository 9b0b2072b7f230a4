"""The files that data commands expect by convention: their keys in a bucket, older keys, and where they lie locally."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from slmx.registry import unknown_name

Mode = Literal["nq", "simple_qa"]
Kind = Literal["raw", "full", "train", "eval"]


@dataclass(frozen=True)
class Known:
    """One file by convention.

    Attributes:
        mode: whose it is; also the name of its folder under the data folder.
        kind: raw (as published), full (converted), or one half of the converted rows.
        name: its file name, and its key below the prefix.
    """

    mode: Mode
    kind: Kind
    name: str

    def local(self, data_dir: Path) -> Path:
        """Where experiments look for it."""
        return data_dir / self.mode / self.name

    def keys(self, prefix: str = "") -> list[str]:
        """Its key as it is written now, and then the older ones that are still read."""
        older = f"datasets/{self.mode}"
        halves = [f"{older}/{self.kind}.json"] if self.kind in ("train", "eval") else []
        return [prefix + key for key in (self.name, f"{older}/{self.name}", *halves)]


FILES = (
    Known("nq", "raw", "NQ-open.dev.merged.jsonl"),
    Known("nq", "full", "nq_full_dataset.json"),
    Known("nq", "train", "nq_converted_train.json"),
    Known("nq", "eval", "nq_converted_eval.json"),
    Known("simple_qa", "raw", "simple_qa_test_set_with_documents.csv"),
    Known("simple_qa", "full", "simple_qa_converted.json"),
    Known("simple_qa", "train", "simple_qa_train.json"),
    Known("simple_qa", "eval", "simple_qa_eval.json"),
)


def files_of(mode: Mode) -> list[Known]:
    """The raw file of a mode, then its converted ones."""
    return [file for file in FILES if file.mode == mode]


def modes(name: str) -> list[Mode]:
    """The value of --mode, checked: nq, simple_qa (simple-qa too) or both."""
    known = get_args(Mode)
    if name == "both":
        return list(known)
    for mode in known:
        if name.replace("-", "_") == mode:
            return [mode]
    raise unknown_name("mode", name, [*known, "both"])
