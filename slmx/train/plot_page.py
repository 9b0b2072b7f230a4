"""The page of `slmx train plot`: plotly's figure, a table and the forecasts in one file without network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import msgspec

from slmx.train.forecast import Forecast
from slmx.train.plot import Curves, PlotReport, sentence, smoothed

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A000")
WIDTH, ROW = 2, 300
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:1.5rem auto;padding:0 1rem;background:#fff;color:#222}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
"""


def page(
    curves: Sequence[Curves],
    found: Sequence[Forecast | None],
    panels: Sequence[tuple[str, Sequence[str]]],
    report: PlotReport,
) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    content = msgspec.json.encode(figure(curves, found, panels)).decode()
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    buttons = '[["toImage", "zoom2d", "pan2d", "resetScale2d"]]'
    options = f'{{"displaylogo": false, "responsive": true, "modeBarButtons": {buttons}}}'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Training: {html.escape(", ".join(run.name for run in report.runs))}</title><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><h1>Training</h1>
{_table(report)}
<div id="curves"></div>
<script>
const figure = {content};
if (innerWidth < 700) {{
  figure.layout.grid = {{rows: {len(panels)}, columns: 1, pattern: "independent", ygap: 0.3}};
  figure.layout.height = {ROW} * {len(panels)};
}}
Plotly.newPlot("curves", figure.data, figure.layout, {options});
</script></body></html>
"""


def figure(
    curves: Sequence[Curves], found: Sequence[Forecast | None], panels: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, Any]:
    """Plotly's figure: a panel for each kind of curve, a colour for each run."""
    rows = -(-len(panels) // WIDTH)
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": min(WIDTH, len(panels)), "pattern": "independent", "ygap": 0.25},
        "height": ROW * rows + 80,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "x unified",
        "template": {"layout": {"plot_bgcolor": "#fafafa"}},
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for place, (title, columns) in enumerate(panels):
        number = "" if place == 0 else str(place + 1)
        layout[f"xaxis{number}"] = {"title": {"text": "step", "standoff": 4}, "matches": "x" if place else None}
        layout[f"yaxis{number}"] = {"title": {"text": title}, "exponentformat": "SI"}
        for color, one, told in zip(_colors(len(curves)), curves, found, strict=True):
            for column in columns:
                data += _lines(one, column, color, number, first=place == 0, solid=column == columns[0])
            if title == "loss" and told is not None and told.curve:
                data += _ahead(one, told, color, number)
    if rows:
        layout["yaxis"]["type"] = "log" if panels[0][0] == "loss" else "linear"
    return {"data": data, "layout": layout}


def _colors(count: int) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(count)]


def _lines(one: Curves, column: str, color: str, number: str, *, first: bool, solid: bool) -> list[dict[str, Any]]:
    points = one.points(column)
    if not points:
        return []
    name = html.escape(one.name)  # plotly reads some HTML in names
    shared = {"xaxis": f"x{number}", "yaxis": f"y{number}", "legendgroup": name, "type": "scatter", "mode": "lines"}
    label = name if solid else f"{name}: {column}"
    even = smoothed(points) if column in ("loss", "grad_norm", "tokens_per_sec", "pairs_per_second") else points
    made = []
    if even != points:
        x, y = zip(*points, strict=True)
        line = {"color": color, "width": 1}
        made.append({**shared, "x": x, "y": y, "line": line, "opacity": 0.25, "showlegend": False, "hoverinfo": "skip"})
    x, y = zip(*even, strict=True)
    line = {"color": color, "width": 2, "dash": "solid" if solid else "dot"}
    mode = "lines+markers" if len(points) < 30 else "lines"
    made.append({**shared, "x": x, "y": y, "line": line, "name": label, "showlegend": first, "mode": mode})
    return made


def _ahead(one: Curves, told: Forecast, color: str, number: str) -> list[dict[str, Any]]:
    steps, low, expected, high = (list(column) for column in zip(*told.curve, strict=True))
    name = html.escape(one.name)
    shared = {"xaxis": f"x{number}", "yaxis": f"y{number}", "legendgroup": name, "type": "scatter", "mode": "lines"}
    band = {"x": [*steps, *reversed(steps)], "y": [*high, *reversed(low)], "fill": "toself", "fillcolor": color}
    return [
        {**shared, **band, "opacity": 0.15, "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"},
        {**shared, "x": steps, "y": expected, "line": {"color": color, "dash": "dash"}, "name": f"{name}: forecast"},
    ]


def _table(report: PlotReport) -> str:
    heads = '<tr><th>run</th><th class="n">last step</th><th class="n">last loss</th><th class="n">lowest</th></tr>'
    rows = "".join(
        f"<tr><td>{html.escape(run.name)}</td><td class=n>{run.last_step:,.0f}</td>"
        f"<td class=n>{_loss(run.last_loss)}</td><td class=n>{_loss(run.lowest_loss)}</td></tr>"
        for run in report.runs
    )
    told = "".join(
        f"<p><b>{html.escape(run.name)}</b>: {html.escape(sentence(run.forecast))}</p>"
        for run in report.runs
        if run.forecast is not None
    )
    return f"<table>{heads}{rows}</table>{told}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
