"""`slmx train plot`: the curves of training runs as an interactive page and a picture, and where their losses head.

Reads the metrics of any training of slmx (training_metrics.csv, sft_metrics.csv, metrics.csv) and files of earlier
systems with the same columns. The page holds plotly's script itself and asks nothing of the network.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.events import Listener, Notice, nobody
from slmx.files import write_bytes
from slmx.records import Record
from slmx.train.forecast import Forecast, forecast

if TYPE_CHECKING:
    from rich.console import RenderableType

FILES = ("training_metrics.csv", "sft_metrics.csv", "metrics.csv")
# A panel: its title, and the columns that are drawn in it, the first of which is solid.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "val_loss")),
    ("learning rate", ("lr",)),
    ("tokens a second", ("tokens_per_sec",)),
    ("pairs a second", ("pairs_per_second",)),
    ("hours since the start", ("elapsed_hours",)),
    ("gradient norm", ("grad_norm",)),
)


class Curves(Record, frozen=True):
    """The metrics of one run: column by column, None where a row has no value."""

    name: str
    file: str
    columns: dict[str, list[float | None]]

    @property
    def steps(self) -> list[float]:
        """The steps, ascending."""
        return [step for step in self.columns["step"] if step is not None]

    def points(self, column: str) -> list[tuple[float, float]]:
        """(step, value) where there is a value."""
        values = self.columns.get(column, [])
        return [(s, v) for s, v in zip(self.steps, values, strict=False) if v is not None]


class Plotted(Record, frozen=True, omit_defaults=False):
    """One run of the report."""

    name: str
    file: str
    rows: int
    first_step: float
    last_step: float
    last_loss: float | None
    lowest_loss: float | None
    forecast: Forecast | None


class PlotReport(Record, frozen=True, omit_defaults=False):
    """What was drawn, and into which files."""

    runs: list[Plotted]
    page: str
    picture: str


def plot(
    runs: Sequence[Path],
    *,
    to: Path,
    until: float | None = None,
    forecasting: bool = True,
    overwrite: bool = False,
    seed: int = 0,
    listen: Listener = nobody,
) -> PlotReport:
    """Draw the runs into `to` (a page) and the file of the same name with `.png`.

    Raises:
        UsageError: no metrics where they should be, or a file that is none.
        RefusedError: a file is there already.
    """
    if to.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{to} is no name of a page.", hint="--to NAME.html; the picture gets NAME.png.")
    curves = _with_own_names([read_curves(run) for run in runs])
    picture = to.with_suffix(".png")
    for file in (to, picture):  # both, before one is written
        if file.exists() and not overwrite:
            raise RefusedError(f"{file} exists.", hint="Give --overwrite to replace it, or another name.")
    found = [_forecast(one, until, seed) if forecasting else None for one in curves]
    for one, told in zip(curves, found, strict=True):
        if told is not None and told.reason:
            listen(Notice(f"{one.name}: no forecast: {told.reason}."))
    report = PlotReport(
        runs=[_summary(one, told) for one, told in zip(curves, found, strict=True)],
        page=str(to),
        picture=str(picture),
    )
    from slmx.train import plot_page, plot_picture

    panels = panels_of(curves)
    write_bytes(to, plot_page.page(curves, found, panels, report).encode(), overwrite=overwrite)
    write_bytes(picture, plot_picture.picture(curves, found, panels), overwrite=overwrite)
    return report


def panels_of(curves: Sequence[Curves]) -> list[tuple[str, tuple[str, ...]]]:
    """What there is to draw: the known panels, and nDCG@10 of a retriever on each set that it was validated on."""
    validated = dict.fromkeys(name for one in curves for name in one.columns if name.startswith("ndcg@10 "))
    panels = [PANELS[0], ("nDCG@10", tuple(validated)), *PANELS[1:]]
    return [panel for panel in panels if any(one.points(column) for one in curves for column in panel[1])]


def read_curves(run: Path) -> Curves:
    """The metrics of a run's folder, or of a file. A step that was done twice counts as it was the last time.

    Raises:
        UsageError: there are none, or the file has no column `step` or no numbers.
    """
    path = next((run / name for name in FILES if (run / name).is_file()), run)
    if not path.is_file():
        hint = f"A training's --save-dir holds one of {', '.join(FILES)}; any of them may be named itself."
        raise UsageError(f"{run} holds no training metrics." if run.exists() else f"There is no {run}.", hint=hint)
    rows: dict[float, dict[str, float | None]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or [] if name]
            reader.fieldnames = names
            if "step" not in names:
                told = ", ".join(names[:8]) or "none"
                raise UsageError(f"{path} has no column `step`.", hint=f"Its columns: {told}.")
            for row in reader:
                step = _number(row.get("step"))
                if step is not None and None not in row.values():  # a kill may cut a row, and a number in it, short
                    known = {name: _number(row.get(name)) for name in names}
                    rows[step] = rows.get(step, {}) | {n: v for n, v in known.items() if v is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise SlmxError(f"{path} is no CSV file: {error}.") from None
    if not rows:
        raise UsageError(f"{path} holds no step yet.", hint="Look again once the training has reported something.")
    columns = {name: [rows[step].get(name) for step in sorted(rows)] for name in names}
    folder = path.absolute().parent
    return Curves(name=folder.name if path.name in FILES else path.stem, file=str(path), columns=columns)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _with_own_names(curves: Sequence[Curves]) -> list[Curves]:
    """Runs whose folders have the same name are told apart by their paths."""
    import msgspec

    names = [one.name for one in curves]
    return [
        msgspec.structs.replace(one, name=one.file) if names.count(one.name) > 1 else one  # the path is the name
        for one in curves
    ]


def _forecast(curves: Curves, until: float | None, seed: int) -> Forecast:
    points = dict(curves.points("loss"))
    rates = dict(curves.points("lr"))
    steps = list(points)
    return forecast(steps, list(points.values()), [rates.get(step) for step in steps], until=until, seed=seed)


def _summary(curves: Curves, told: Forecast | None) -> Plotted:
    losses = [value for _, value in curves.points("loss")]
    return Plotted(
        name=curves.name,
        file=curves.file,
        rows=len(curves.steps),
        first_step=curves.steps[0],
        last_step=curves.steps[-1],
        last_loss=losses[-1] if losses else None,
        lowest_loss=min(losses, default=None),
        forecast=told,
    )


def smoothed(points: Sequence[tuple[float, float]], *, share: float = 0.02) -> list[tuple[float, float]]:
    """The curve with each value averaged over its neighbours, `share` of all of them; short curves stay as they are."""
    width = int(len(points) * share)
    if width < 2:
        return list(points)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    half = width // 2
    made = []
    for place, (step, _) in enumerate(points):
        low, high = max(0, place - half), min(len(points), place + half + 1)
        made.append((step, (sums[high] - sums[low]) / (high - low)))
    return made


def sentence(told: Forecast) -> str:
    """A forecast in words."""
    if told.reason:
        return f"No forecast: {told.reason}."
    assert told.law is not None
    law = f"{told.law.a:.3g} · step^(-{told.law.b:.3g}) + {told.law.c:.3g}"
    text = (
        f"loss {told.expected:.4f} at step {told.until:,.0f} (90 % interval {told.low:.4f} to {told.high:.4f}), "
        f"by {law}; on the last fifth, held out, it is off by {told.held_out_error:.4f} "
        f"(no change: {told.flat_error:.4f})"
    )
    worse = told.held_out_error > told.flat_error
    return (
        text
        + (". A law that misses by more than no change does says little" if worse else "")
        + (f". Note: {told.note}." if told.note else ".")
    )


def render_report(report: PlotReport) -> RenderableType:
    """The runs as a table, their forecasts, and the files."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    rows = [
        [run.name, f"{run.rows}", f"{run.last_step:,.0f}", _told(run.last_loss), _told(run.lowest_loss)]
        for run in report.runs
    ]
    lines = [f"{run.name}: {sentence(run.forecast)}" for run in report.runs if run.forecast is not None]
    files = f"Written: {report.page}, {report.picture}"
    return Group(
        table("Training", ["run", "rows", "last step", "last loss", "lowest"], rows), Text("\n".join([*lines, files]))
    )


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
