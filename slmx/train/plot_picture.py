"""The picture of `slmx train plot`, drawn by matplotlib without a screen: plotly's own pictures need a browser."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from slmx.train.forecast import Forecast
from slmx.train.plot import Curves, smoothed
from slmx.train.plot_page import COLORS, WIDTH

DPI = 110


def picture(
    curves: Sequence[Curves], found: Sequence[Forecast | None], panels: Sequence[tuple[str, Sequence[str]]]
) -> bytes:
    """A PNG with the panels of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // WIDTH)
    figure = Figure(figsize=(12, 3.4 * rows + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, min(WIDTH, len(panels)), squeeze=False).flat)
    for axis, (title, columns) in zip(axes, panels, strict=False):
        for place, (one, told) in enumerate(zip(curves, found, strict=True)):
            color = COLORS[place % len(COLORS)]
            for column in columns:
                _line(axis, one, column, color, solid=column == columns[0])
            if title == "loss" and told is not None and told.curve:
                steps, low, expected, high = zip(*told.curve, strict=True)
                axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
                axis.plot(steps, expected, "--", color=color, label=f"{_plain(one.name)}: forecast")
        axis.set_xlabel("step")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
        if title == "loss":
            axis.set_yscale("log")
            _plain_numbers(axis)
            axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.remove()
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _line(axis: Any, one: Curves, column: str, color: str, *, solid: bool) -> None:
    points = one.points(column)
    if not points:
        return
    even = smoothed(points) if column in ("loss", "grad_norm", "tokens_per_sec", "pairs_per_second") else points
    if even != points:
        axis.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=0.7)
    label = _plain(one.name) if solid else f"{_plain(one.name)}: {column}"
    marker = "." if len(points) < 30 else ""
    axis.plot(*zip(*even, strict=True), "-" if solid else ":", marker=marker, color=color, label=label)


def _plain(name: str) -> str:
    """A name as it is: `$` would begin a formula, and a label that begins with `_` would not be shown."""
    return f"\u200b{name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$")


def _plain_numbers(axis: Any) -> None:
    """2, 3, 4 on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import ScalarFormatter

    for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        form = ScalarFormatter()
        form.set_scientific(False)
        which(form)
