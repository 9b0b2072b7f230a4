"""Numbers as a report and a comparison show them: percent with one decimal, intervals, p values, counts, sizes."""

from __future__ import annotations

from slmx.eval.compare import Estimate, Test
from slmx.eval.page.parts import Measured

NONE = "–"
REAL = 0.05  # a difference counts as real where Holm's adjusted p is below


def percent(value: float | None) -> str:
    """0.3815 as "38.2", with a true minus, and none before 0.0; "–" for None."""
    text = NONE if value is None else f"{100 * value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "\N{MINUS SIGN}")


def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """ "38.2 (36.3–40.0)"."""
    return percent(value) if value is None or ends is None else f"{percent(value)} ({span(*ends)})"


def measured(value: float | None, ends: tuple[float, float] | None) -> Measured | str:
    """The same as the cell of a table."""
    return percent(value) if value is None or ends is None else Measured(percent(value), span(*ends))


def estimated(made: Estimate | None) -> Measured | str:
    """An estimate as the cell of a table."""
    if made is None or made.low is None or made.high is None:
        return NONE
    return measured(made.mean, (made.low, made.high))


def estimate(made: Estimate | None) -> str:
    """An estimate with its interval; "–" where there is none."""
    if made is None or made.mean is None or made.low is None or made.high is None:
        return NONE
    return with_interval(made.mean, (made.low, made.high))


def span(low: float, high: float) -> str:
    """ "36.3–40.0", and with words between where a sign would stand against the dash."""
    between = " to " if low < 0 or high < 0 else "–"
    return f"{percent(low)}{between}{percent(high)}"


def points(value: float) -> str:
    """A difference in points with its sign: "+4.8", "−0.3"."""
    text = percent(value)
    return text if text.startswith("\N{MINUS SIGN}") or text == "0.0" else f"+{text}"


def p_value(p: float) -> str:
    """ "< 0.001", else three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def is_real(test: Test) -> bool:
    """Is a difference shown at 5 %, over the whole family of tests?"""
    return test.p_holm < REAL


def count(value: float | None) -> str:
    """A whole number with commas."""
    return NONE if value is None else f"{value:,.0f}"


def quantity(value: float | None, decimals: int = 1) -> str:
    """A number with commas and a few decimals; "–" for None and 0, which stands for "not measured"."""
    return NONE if not value else f"{value:,.{decimals}f}"
