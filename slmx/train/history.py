"""The numbers of a run by step: appended to a CSV file, cut back when a run goes on, and shown as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from slmx.files import write_bytes
from slmx.track.trackers import NO_TRACKERS, Trackers

COLUMNS = ("step", "loss", "lr", "pairs_per_second")


class Rows:
    """A CSV file of numbers by `step`, its first column; a number that a row lacks is empty."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = list(columns)

    def begin(self, step: int) -> None:
        """Start the file, or keep its rows up to a step: those behind it belong to work that is done again."""
        kept = [row for row in self.rows() if int(row["step"]) <= step] if step else []
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, self.columns)
        writer.writeheader()
        writer.writerows(kept)
        write_bytes(self.path, out.getvalue().encode())

    def rows(self) -> list[dict[str, str]]:
        """All rows as they are written."""
        with self.path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row."""
        with self.path.open("a", encoding="utf-8", newline="") as out:
            csv.DictWriter(out, self.columns).writerow(row)


class History(Rows):
    """metrics.csv of a retriever: `step, loss, lr, pairs_per_second`, and nDCG@10 (0 to 1) by validation set.

    The loss is the mean of the steps since the row before; a row has a loss or scores, and what it lacks is empty. The
    file is cut back when a run goes on.
    """

    def __init__(self, path: Path, val_sets: Sequence[str], trackers: Trackers = NO_TRACKERS) -> None:
        super().__init__(path, [*COLUMNS, *(f"ndcg@10 {name}" for name in val_sets)])
        self._sets, self._trackers = list(val_sets), trackers
        self._losses: list[float] = []
        self._since_line: list[float] = []
        self._pairs, self._seconds, self._rate = 0, 0.0, 0.0
        self._headed = False

    def loss(self, loss: float, pairs: int, seconds: float) -> None:
        """Take the loss of one step into the next row."""
        self._losses.append(loss)
        self._since_line.append(loss)
        self._pairs += pairs
        self._seconds += seconds
        self._rate = self._pairs / self._seconds if self._seconds else 0.0

    @property
    def pairs_per_second(self) -> float:
        """Since the last row."""
        return self._rate

    def row(self, step: int, lr: float) -> None:
        """Write the losses since the row before as one row."""
        mean = sum(self._losses) / len(self._losses)
        self.append({"step": step, "loss": mean, "lr": lr, "pairs_per_second": round(self._rate, 2)})
        self._trackers.scalars(step, {"loss/train": mean, "lr": lr, "pairs_per_second": self._rate})
        self._losses, self._pairs, self._seconds = [], 0, 0.0

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores of a step as one row."""
        self.append({"step": step, **{f"ndcg@10 {name}": score for name, score in scores.items()}})
        self._trackers.scalars(step, {f"ndcg@10/{name}": score for name, score in scores.items()})

    def lines(self, step: int, scores: Mapping[str, float], *, best: bool) -> list[str]:
        """The next row of the table that a person sees, under its heads the first time; nDCG@10 times 100."""
        widths = [max(8, len(name)) for name in self._sets]
        heads = [
            "   step",
            "    loss",
            " pairs/s",
            *(f"{name:>{w}}" for name, w in zip(self._sets, widths, strict=True)),
        ]
        loss = f"{sum(self._since_line) / len(self._since_line):8.4f}" if self._since_line else f"{'–':>8}"
        rate = f"{self._rate:8.1f}" if self._since_line else f"{'–':>8}"
        shown = [f"{100 * scores[name]:{w}.2f}" for name, w in zip(self._sets, widths, strict=True)]
        row = "  ".join([f"{step:7}", loss, rate, *shown]) + (" ← best" if best else "")
        told = [row] if self._headed else ["  ".join(heads) + ("  (nDCG@10)" if self._sets else ""), row]
        self._headed, self._since_line = True, []
        return told

    def scores_at(self, step: int) -> dict[str, float]:
        """The scores that were written for a step; empty where there are none."""
        names = [name for name in self.columns if name not in COLUMNS]
        rows = [row for row in self.rows() if int(row["step"]) == step and any(row[name] for name in names)]
        return {name.removeprefix("ndcg@10 "): float(rows[-1][name]) for name in names} if rows else {}

    def losses(self) -> list[float]:
        """The losses of all rows."""
        return [float(row["loss"]) for row in self.rows() if row["loss"]]
