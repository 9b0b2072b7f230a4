"""Small drawings in SVG: bars, intervals, scatter, lines. They need no script, scale with the page and print well.

Places along the width are percentages, so that a drawing fills whatever room it has while its letters keep their size.
Colours are classes of page.css, which knows light, dark and print. Every mark carries a <title> with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from slmx.eval.page.parts import Svg, clean

BAR = 22  # the height of a bar in pixels
_WRITABLE = 0.09  # the smallest share of a bar's width that holds its own number


@dataclass(frozen=True)
class Part:
    """A piece of a stacked bar: the class of its colour, its share of the whole (0 to 1), and what it is."""

    colour: str
    share: float
    words: str


@dataclass(frozen=True)
class Point:
    """A run in the scatter: `key` is written beside it. `low` and `high` are the interval of y, 0 to 1."""

    key: str
    words: str
    x: float
    y: float
    low: float
    high: float
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A line over time: pairs (x, y) in order of x."""

    colour: str
    words: str
    points: Sequence[tuple[float, float]]


def _text(value: str) -> str:
    return escape(clean(value), quote=True)


def _pc(share: float) -> str:
    """A share of the width as a percentage."""
    return f"{100 * share:.2f}%"


def _rect(colour: str, start: float, width: float, top: float, height: float, words: str) -> str:
    box = f'x="{_pc(start)}" y="{top:g}" width="{_pc(max(width, 0.0))}" height="{height:g}"'
    return f'<rect class="{colour}" {box}><title>{_text(words)}</title></rect>'


def _svg(label: str, height: int, body: Sequence[str], kind: str) -> Svg:
    head = f'<svg class="{kind}" role="img" aria-label="{_text(label)}" width="100%" height="{height}">'
    return Svg(head + "".join(body) + "</svg>")


def stacked(label: str, parts: Sequence[Part], *, mark: float | None = None, mark_words: str = "") -> Svg:
    """One bar whose parts make up the whole; `mark` is a line across it at a share of its width."""
    body, start = [], 0.0
    for part in parts:
        if part.share <= 0:
            continue
        words = f"{part.words}: {100 * part.share:.1f} %"
        body.append(_rect(part.colour, start, part.share, 0, BAR, words))
        if part.share >= _WRITABLE:
            place = f'x="{_pc(start + part.share / 2)}" y="{BAR / 2 + 4:g}"'
            body.append(f'<text class="on-{part.colour}" {place} text-anchor="middle">{100 * part.share:.0f}</text>')
        start += part.share
    if mark is not None:
        body.append(
            f'<g class="mark"><title>{_text(mark_words)}</title>'
            f'<line x1="{_pc(mark)}" x2="{_pc(mark)}" y1="-3" y2="{BAR + 3}"/></g>'
        )
    return _svg(label, BAR, body, "bar")


def level(label: str, value: float, low: float, high: float, colour: str = "c-right") -> Svg:
    """A bar from 0 to `value` with its interval as a whisker; all are shares of 1."""
    middle = BAR / 2
    body = [
        f'<rect class="track" x="0" y="4" width="100%" height="{BAR - 8}"/>',
        _rect(colour, 0, value, 4, BAR - 8, label),
        *_whisker(low, high, middle),
    ]
    return _svg(label, BAR, body, "bar")


def _whisker(low: float, high: float, middle: float) -> list[str]:
    ends = (
        f'<line class="whisker" x1="{_pc(x)}" x2="{_pc(x)}" y1="{middle - 4:g}" y2="{middle + 4:g}"/>'
        for x in (low, high)
    )
    line = f'<line class="whisker" x1="{_pc(low)}" x2="{_pc(high)}" y1="{middle:g}" y2="{middle:g}"/>'
    return [line, *ends]


def difference(label: str, value: float, low: float, high: float, reach: float, *, real: bool) -> Svg:
    """A difference and its interval around a line at zero; `reach` is the largest size that is drawn."""

    def place(x: float) -> float:
        return 0.5 + 0.48 * max(-1.0, min(1.0, x / reach)) if reach else 0.5

    middle = BAR / 2
    colour = "c-none" if not real else "c-helped" if value > 0 else "c-hurt"
    body = [
        f'<line class="zero" x1="50%" x2="50%" y1="0" y2="{BAR}"/>',
        *_whisker(place(low), place(high), middle),
        f'<circle class="{colour}" cx="{_pc(place(value))}" cy="{middle:g}" r="5">',
        f"<title>{_text(label)}</title></circle>",
    ]
    return _svg(label, BAR, body, "bar")


def histogram(label: str, counts: Sequence[int], edges: Sequence[str], top: int, colour: str = "c-right") -> Svg:
    """Counts as bars side by side; `edges` names each, `top` is the count that fills the height."""
    height, step = 40, 1 / max(len(counts), 1)
    body = []
    for place, (count, edge) in enumerate(zip(counts, edges, strict=True)):
        tall = max(height * count / top, 1.0) if count and top else 0.0
        words = f"{edge} words: {count}"
        body.append(_rect(colour, place * step + 0.1 * step, 0.8 * step, height - tall, tall, words))
        body.append(_text_at((place + 0.5) * step, height + 12, edge, "tick", "middle"))
    body.append(f'<line class="axis" x1="0" x2="100%" y1="{height}" y2="{height}"/>')
    return _svg(label, height + 16, body, "bar")


def scatter(label: str, points: Sequence[Point], *, x_title: str, y_title: str) -> Svg:
    """Quality (shares of 1, upwards) against a cost or speed (logarithmic, to the right), intervals as whiskers.

    Points that are `best` (nobody is better on both axes) are joined by a line.
    """
    height = 300
    xs = [point.x for point in points]
    left, right = _log_reach(xs)
    top = min(1.0, max([point.high for point in points], default=1.0) * 1.08 or 1.0)

    def across(x: float) -> float:
        return (math.log10(x) - left) / (right - left)

    def up(y: float) -> float:
        return height * (1 - y / top)

    body = [_text_at(0, -14, y_title, "title", "start"), _text_at(1, height + 36, x_title, "title", "end")]
    for tick in _ticks(top):
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        body.append(f'<text class="tick" x="0" dx="-8" y="{up(tick) + 4:.1f}" text-anchor="end">{100 * tick:g}</text>')
    for power in _decades(left, right):
        place = across(10**power)
        body.append(f'<line class="grid" x1="{_pc(place)}" x2="{_pc(place)}" y1="0" y2="{height}"/>')
        body.append(_text_at(place, height + 18, _power(power), "tick", "middle"))
    best = sorted((point for point in points if point.best), key=lambda point: point.x)
    for a, b in pairwise(best):
        ends = f'x1="{_pc(across(a.x))}" y1="{up(a.y):.1f}" x2="{_pc(across(b.x))}" y2="{up(b.y):.1f}"'
        body.append(f'<line class="frontier" {ends}/>')
    for point in points:
        x, y = _pc(across(point.x)), up(point.y)
        colour = "c-helped" if point.best else "c-none"
        body.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>')
        body.append(
            f'<circle class="{colour}" cx="{x}" cy="{y:.1f}" r="6"><title>{_text(point.words)}</title></circle>'
        )
        body.append(f'<text class="key" x="{x}" dx="10" y="{y + 4:.1f}">{_text(point.key)}</text>')
    return _svg(label, height, body, "plot")


def _log_reach(values: Sequence[float]) -> tuple[float, float]:
    """The logarithms between which all values lie, with a little room on both sides."""
    logs = [math.log10(value) for value in values] or [0.0]
    low, high = min(logs), max(logs)
    room = max(0.08 * (high - low), 0.15)
    return low - room, high + room


def _decades(left: float, right: float) -> list[float]:
    """Where lines stand on a logarithmic axis: powers of ten, or 1, 2 and 5 of them where there are few."""
    whole = [float(power) for power in range(math.ceil(left), math.floor(right) + 1)]
    if len(whole) > 1:
        return whole
    fine = [power + math.log10(step) for power in range(math.floor(left), math.ceil(right) + 1) for step in (1, 2, 5)]
    return [place for place in fine if left <= place <= right]


def _power(power: float) -> str:
    value = 10**power
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _ticks(top: float) -> list[float]:
    """A few round values from 0 to `top`."""
    step = next(size for size in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if top / size <= 6 or size == 0.2)
    return [step * number for number in range(int(top / step + 1e-9) + 1)]


def _text_at(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{_pc(x)}" y="{y:g}" text-anchor="{anchor}">{_text(words)}</text>'


def lines(label: str, drawn: Sequence[Line], *, x_title: str, y_title: str) -> Svg:
    """Lines over time from 0; the largest value of all fills the height."""
    height = 180
    right = max((x for line in drawn for x, _ in line.points), default=0.0) or 1.0
    top = max((y for line in drawn for _, y in line.points), default=0.0) or 1.0
    body = [_text_at(0, -14, y_title, "title", "start"), _text_at(1, height + 36, x_title, "title", "end")]
    for share in (0.0, 0.5, 1.0):
        y = height * (1 - share)
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>')
        body.append(f'<text class="tick" x="0" dx="-8" y="{y + 4:g}" text-anchor="end">{top * share:,.0f}</text>')
        body.append(_text_at(share, height + 18, f"{right * share:,.3g}", "tick", "middle"))
    body.append('<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none">')
    for line in drawn:
        places = " ".join(f"{1000 * x / right:.1f},{1000 * (1 - y / top):.1f}" for x, y in line.points)
        body.append(
            f'<polyline class="line {line.colour}" points="{places}"><title>{_text(line.words)}</title></polyline>'
        )
    body.append("</svg>")
    return _svg(label, height, body, "plot")
