"""What training all-MiniLM-L6-v2 for some minutes on a processor brings: nDCG@10 on SciFact, and on ArguAna beside it.

The commands are those of docs/train-retriever.md, for both ways of sampling and three seeds. Each run's checkpoint is
chosen on a fifth of SciFact's train queries, held out by a hash of their ids; the tests are read once, at the end.
`--folder` keeps the runs: what is there is not made again, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

from harness import DATA, RESULTS, ROOT, save

SAMPLING = {
    "mixed": "--sampling mixed --weights 50,20,30 --steps 60 --val-check-interval 40",
    "alternate": "--sampling alternate --steps 75 --val-check-interval 40",
}
SEEDS = (0, 1, 2)
STUDENT = 4.303  # the 97.5 % quantile of t with the 2 degrees of freedom of three seeds
MINE = "retrieve mine scifact --retriever hybrid --k 32 --skip 3 --negatives 8 --pick random --any-score --to mined"
TRAIN = (
    "train retriever --loss mnrl --data-dirs mined data/beir/msmarco_1k_pairs data/beir/scifact --forms pairs autorag"
    " crops {sampling} --batch-size 48 --negatives 1 --lr 5e-5 --max-query-length 64 --max-passage-length 160 --bf16"
    " --val-datasets scifact --val-split train --hold-out 0.2 --seed {seed} --save-dir {save_dir}"
)
TEST = "eval retrieval --models {models} --datasets scifact arguana"
START = "dense"  # the preset whose weights every run starts from
TARGETS = {"scifact": "at least +5 points", "arguana": "no more than 1 point less"}


def main() -> None:
    """Train what is not there yet, read the tests once, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RESULTS / "retriever_quality.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "retriever-quality")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if not (DATA / "beir" / "scifact" / "corpus.jsonl").is_file():
        print(f"retriever_quality: needs {DATA / 'beir'}; left out", file=sys.stderr)
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if not (folder / "data" / "beir").exists():
        (folder / "data" / "beir").symlink_to((DATA / "beir").resolve())
    if not (folder / "mined" / "mined.jsonl").is_file():
        slmx(folder, MINE)
    runs = {f"runs/{kind}_{seed}": (kind, seed) for kind, seed in product(SAMPLING, SEEDS)}
    for run, (kind, seed) in runs.items():
        if not (folder / run / "model.safetensors").is_file():
            resume = " --resume" if (folder / run / "run.json").is_file() else ""
            slmx(folder, TRAIN.format(sampling=SAMPLING[kind], seed=seed, save_dir=run) + resume)
    for model in (START, *runs):
        if not scores_file(folder, model, "arguana").is_file():
            slmx(folder, TEST.format(models=model))
    report(options.to, {model: scores(folder, model) for model in (START, *runs)}, runs)


def slmx(folder: Path, command: str) -> None:
    """Run a command of slmx in the folder; its progress is shown."""
    print(f"$ slmx {command}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "slmx", *command.split()], cwd=folder, check=True)


def scores_file(folder: Path, model: str, dataset: str) -> Path:
    """Where `slmx eval retrieval` leaves the metrics of a model on a dataset."""
    return folder / "outputs" / "retrieval" / f"{Path(model).name}_{dataset}" / "metrics.json"


def scores(folder: Path, model: str) -> dict[str, float]:
    """NDCG@10 in points on both datasets."""
    read = {dataset: json.loads(scores_file(folder, model, dataset).read_text(encoding="utf-8")) for dataset in TARGETS}
    return {dataset: 100 * metrics["metrics"]["ndcg@10"] for dataset, metrics in read.items()}


def report(to: Path, found: dict[str, dict[str, float]], runs: dict[str, tuple[str, int]]) -> None:
    """Write the table: each way of sampling as a mean over seeds with its interval, beside the start."""
    rows = []
    for dataset, target in TARGETS.items():
        start = found[START][dataset]
        rows.append({"figure": f"{dataset}, before training", "value": f"{start:.2f}"})
        for kind in SAMPLING:
            reached = [found[run][dataset] for run, (sampled, _) in runs.items() if sampled == kind]
            mean, half = statistics.mean(reached), STUDENT * statistics.stdev(reached) / len(reached) ** 0.5
            value = (
                f"{mean:.2f} ± {half:.2f} ({', '.join(f'{one:.2f}' for one in reached)}), so {mean - start:+.2f} points"
            )
            rows.append({"figure": f"{dataset}, --sampling {kind}", "value": value, "target": target})
    save(
        to,
        title="What training a retriever brings",
        what="all-MiniLM-L6-v2 trained on SciFact's train split with mined negatives, 1,000 questions of MS MARCO and "
        "crops of SciFact's documents: nDCG@10 on the tests, mean of seeds 0, 1 and 2 with its 95 % t interval.",
        rows=rows,
        notes=[
            "The checkpoint is chosen on a fifth of SciFact's train queries; the tests are read once. SciFact's corpus "
            "served for cropping: the texts that are searched in the test were seen, its questions were not.",
        ],
        **found,
    )


if __name__ == "__main__":
    main()
