"""Drawings are well-formed, carry their numbers as words, and stay inside their frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies as st

from slmx.eval.page import charts
from slmx.eval.page.cost import frontier

SHARES = st.floats(0, 1)
HOSTILE = "<b>\"&'\x00</svg>"


def parse(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def percents(drawing: str) -> list[float]:
    return [float(value) for value in re.findall(r'(?:x|x1|x2|cx|width)="([-\d.]+)%"', drawing)]


@given(st.lists(SHARES, min_size=1, max_size=4), SHARES)
def test_stacked_parts_fill_no_more_than_the_whole(sizes: list[float], mark: float) -> None:
    total = sum(sizes) or 1.0
    parts = [charts.Part("c-right", size / total, HOSTILE) for size in sizes]
    drawing = charts.stacked(HOSTILE, parts, mark=mark, mark_words=HOSTILE)
    svg = parse(drawing)
    assert svg.get("aria-label") == HOSTILE.replace("\x00", "\ufffd")
    rects = list(svg.iter("rect"))
    assert sum(float(rect.get("width", "").rstrip("%")) for rect in rects) <= 100.5
    assert all(-0.01 <= value <= 100.01 for value in percents(drawing))


@given(SHARES, SHARES, SHARES)
def test_levels_and_their_whiskers_stay_inside(value: float, low: float, high: float) -> None:
    drawing = charts.level("x", value, low, high)
    parse(drawing)
    assert all(0 <= place <= 100 for place in percents(drawing))


@given(st.floats(-1, 1), st.floats(0, 1))
def test_differences_stand_left_or_right_of_zero(value: float, reach: float) -> None:
    drawing = charts.difference("x", value, value - 0.1, value + 0.1, reach, real=True)
    parse(drawing)
    found = re.search(r'class="([\w-]+)" cx="([\d.]+)%"', drawing)
    assert found is not None
    middle = float(found[2])
    assert (middle > 50) == (value > 0 and reach > 0 and middle != 50)
    assert found[1] == ("c-helped" if value > 0 else "c-hurt")
    assert all(0 <= place <= 100 for place in percents(drawing))


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), SHARES), max_size=6))
def test_scatter_points_stay_inside(points: list[tuple[float, float]]) -> None:
    made = [charts.Point(HOSTILE, HOSTILE, x, y, y, y, best=True) for x, y in points]
    drawing = charts.scatter("x", made, x_title="ms", y_title="%")
    parse(drawing)
    assert all(-0.01 <= place <= 100.01 for place in percents(drawing))


def test_lines_reach_from_the_start_to_the_largest_value() -> None:
    drawing = charts.lines("x", [charts.Line("c-right", "a", [(0, 0), (5, 10), (10, 5)])], x_title="s", y_title="MiB")
    line = next(parse(drawing).iter("polyline"))
    assert line.get("points") == "0.0,1000.0 500.0,0.0 1000.0,500.0"


def test_empty_drawings_are_drawn() -> None:
    parse(charts.lines("x", [], x_title="s", y_title="MiB"))
    parse(charts.histogram("x", [0, 0], ["0", "1"], 0))
    parse(charts.scatter("x", [], x_title="ms", y_title="%"))


@pytest.mark.parametrize(
    ("runs", "best"),
    [
        ([(1, 0.1), (2, 0.5), (3, 0.4)], [True, True, False]),
        ([(1, 0.5), (1, 0.5)], [True, True]),
        ([(1, 0.5), (1, 0.6), (2, 0.6)], [False, True, False]),
        ([], []),
    ],
)
def test_the_frontier_holds_what_nobody_beats(runs: list[tuple[float, float]], best: list[bool]) -> None:
    assert frontier(runs) == best
