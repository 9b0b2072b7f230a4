"""What `slmx train retriever` is asked, and how the values of its options are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from slmx.errors import UsageError


@dataclass(frozen=True)
class TrainOptions:
    """What the command line asks for; the defaults are those of the command.

    `steps` and `epochs` are two ways to say how long; neither: one epoch. `warmup` below 1 is a share of the steps.
    `scale` None: 20 for cosine similarity, 1 for dot product. `mini_batch_tokens` None: what fits the device.
    `val_check_interval` None: a tenth of the steps, at least 10. `average` and `start_share`: see
    `slmx.train.update.Update`.
    Without `data_dirs`, the part for training of `dataset` serves, cut into passages by `words` and `overlap`.
    `hold_out` is the share of the validation split's questions that judge and are kept out of training; 0: all of them
    judge, and none is kept out.
    """

    data_dirs: tuple[Path, ...]
    save_dir: Path
    data_dir: Path
    cache_dir: Path
    model: str = "dense"
    forms: tuple[str, ...] = ()
    dataset: str = "nq"
    words: int = 100
    overlap: int = 0
    crop: str = "spans"
    crop_min_words: int = 10
    crop_max_words: int = 0
    weights: tuple[float, ...] = ()
    sampling: str = "mixed"
    loss: str = "mnrl"
    scale: float | None = None
    pooling: str = ""
    batch_size: int = 64
    mini_batch_tokens: int | None = None
    negatives: int = 4
    steps: int | None = None
    epochs: float | None = None
    lr: float = 2e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_query_length: int | None = None
    max_passage_length: int | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    bf16: bool | None = None
    fp16: bool = False
    guide: str = ""
    matryoshka_dims: tuple[int, ...] = ()
    average: float = 0.0
    start_share: float = 0.0
    num_workers: int = 1
    device: str = "auto"
    val_check_interval: int | None = None
    val_datasets: tuple[str, ...] = ()
    val_split: str = "test"
    hold_out: float = 0.0
    checkpoint_path: Path | None = None
    keep: int = 2
    push_to_hub: str = ""
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    command: str = ""


def parse_weights(text: str) -> tuple[float, ...]:
    """The value of --weights ("33,33,34"); UsageError names what is no number."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        raise UsageError(f"--weights takes numbers, not {text!r}.", hint="--weights 33,33,34") from None


def parse_dims(text: str) -> tuple[int, ...]:
    """The value of --matryoshka-dims ("384,192"); UsageError names what is no number."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--matryoshka-dims takes whole numbers, not {text!r}.", hint="--matryoshka-dims 384,192,96")
    return tuple(map(int, parts))


def parse_prompts(values: Sequence[str]) -> dict[str, str]:
    """The values of --prompts: `query=…` and `passage=…` (also document=…), each or both in one, or a JSON object.

    Raises:
        UsageError: something else.
    """
    told: dict[str, str] = {}
    for value in values:
        found = _mapping(value) if value.lstrip().startswith("{") else _assignments(value)
        if found is None:
            raise UsageError(
                f"--prompts takes query=… and passage=…, not {value!r}.",
                hint="""--prompts 'query=query: ' 'passage=passage: ', or '{"query": "query: "}'""",
            )
        told |= {"passage" if role == "document" else role: prompt for role, prompt in found.items()}
    return {"query": told.get("query", ""), "passage": told.get("passage", "")}


def _assignments(value: str) -> dict[str, str] | None:
    parts = re.split(r"(?:^|,)(query|passage|document)=", value)
    return dict(zip(parts[1::2], parts[2::2], strict=True)) if len(parts) > 1 and not parts[0].strip() else None


def _mapping(value: str) -> dict[str, str] | None:
    try:
        found = msgspec.json.decode(value, type=dict[str, str])
    except msgspec.DecodeError:
        return None
    return found if found.keys() <= {"query", "passage", "document"} else None
