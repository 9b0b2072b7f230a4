"""The section on cost: quality against time, speed, sizes, memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from slmx.eval.page import charts
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import count, estimate, percent, quantity
from slmx.eval.page.parts import Cell, Column, Figure, Key, Section, Table

_COLOURS = ("c-helped", "c-hurt", "c-right", "c-retrieval", "c-reading", "c-known")


def cost(material: Material) -> Section | None:
    """Quality against seconds a question as a scatter with its frontier, then the figures, then memory over time."""
    timed = [run for run in material.runs if seconds(run)]
    if not timed:
        return None
    return Section(
        "cost",
        "What it costs",
        "Further left is faster, further up is better; the dashed line joins the runs that no other run beats on both. "
        "The gold passage is no retriever, so oracle runs are not on the line. The time is that of these runs: where "
        "an index was not in the cache, building it is in there.",
        [_pareto(material, timed), _speed(material), _sizes(material), *_over_time(material)],
    )


def seconds(run: Shown) -> float | None:
    """Seconds a question, retrieving and answering together; None where it was not measured."""
    total, n, timed = run.mean("duration_seconds"), run.mean("num_examples"), _timed(run)
    if not (total and n and timed):
        return None
    retrieving = run.mean("retrieve_seconds") or 0.0
    return retrieving / n + (total - retrieving) / timed


def _timed(run: Shown) -> float | None:
    """How many questions the time of answering is of: all of them, unless the run was killed in between."""
    timed = run.mean("timed_questions")
    return run.mean("num_examples") if timed is None else timed


def frontier(runs: Sequence[tuple[float, float]]) -> list[bool]:
    """For pairs (cost, quality): is there no other pair that is as good on both and better on one?"""
    return [
        not any((c <= cost and q >= quality) and (c < cost or q > quality) for c, q in runs) for cost, quality in runs
    ]


def _pareto(material: Material, timed: Sequence[Shown]) -> Figure:
    measured = [(run, seconds(run) or 0.0, material.right(run)) for run in timed]
    rivals = [(run, spent, right) for run, spent, right in measured if run.context != "oracle"]
    best = frontier([(spent, right.mean or 0.0) for _, spent, right in rivals])
    on_line = {run.key for (run, *_), is_best in zip(rivals, best, strict=True) if is_best}
    points = [
        charts.Point(
            key=run.key,
            words=f"{run.named}: {estimate(right)} % right, {1000 * spent:.3g} ms a question",
            x=1000 * spent,
            y=right.mean or 0.0,
            low=right.low or 0.0,
            high=right.high or 0.0,
            best=run.key in on_line,
        )
        for run, spent, right in measured
    ]
    drawing = charts.scatter(
        "Right answers against milliseconds a question", points, x_title="ms a question", y_title="% right"
    )
    legend = [Key("c-helped" if run.key in on_line else "c-none", run.named) for run, *_ in measured]
    return Figure(drawing, "Quality against time", legend)


def _speed(material: Material) -> Table:
    rows: list[list[Cell]] = [
        [
            run.named,
            percent(material.right(run).mean),
            quantity(run.mean("questions_per_second")),
            quantity(_rate(run, "prompt_tokens"), 0),
            quantity(_rate(run, "new_tokens"), 0),
            quantity(run.mean("retrieve_seconds")),
            quantity(run.mean("generate_seconds")),
            quantity(run.mean("load_seconds")),
        ]
        for run in material.runs
    ]
    heads = ("right, %", "questions/s", "prompt tokens/s", "new tokens/s", "retrieve s", "generate s", "load s")
    note = (
        "Questions and tokens a second are those of answering. Retrieving takes the time that it took in this run: "
        "where no index was in the cache it includes building one. – stands for nothing measured."
    )
    for run in material.runs:
        timed, n = _timed(run), run.mean("num_examples")
        if timed is not None and n and timed < n:
            note += (
                f" {run.named} was killed in between: its time and energy are known of {count(timed)} of {count(n)} "
                "questions, and what is told a question is of these."
            )
    return Table("Speed", [Column("run", "words"), *map(Column, heads)], rows, note=note, wide=True)


def _rate(run: Shown, name: str) -> float | None:
    tokens, spent, n, timed = run.mean(name), run.mean("generate_seconds"), run.mean("num_examples"), _timed(run)
    return tokens / n * timed / spent if tokens and spent and n and timed else None


def _sizes(material: Material) -> Table:
    rows: list[list[Cell]] = [
        [
            run.named,
            quantity(run.mean("model_size_mb"), 0),
            quantity(run.mean("retriever_index_size_mb")),
            count(run.mean("cpu_ram_used_mb")),
            quantity(run.mean("gpu_ram_peak_mb"), 0),
            quantity(run.mean("gpu_power_draw_w"), 0),
            quantity(run.mean("energy_joules_per_question"), 2),
            _machine(run),
        ]
        for run in material.runs
    ]
    heads = ("model MiB", "index MiB", "peak RAM MiB", "peak GPU MiB", "peak W", "J a question")
    columns = [Column("run", "words"), *map(Column, heads), Column("machine", "words")]
    return Table("Sizes, memory and power", columns, rows, note="– stands for nothing, or nothing measured.", wide=True)


def _machine(run: Shown) -> str:
    facts: Mapping[str, Any] = run.run.run_file.machine if run.run.run_file else {}
    return " ".join(str(facts[name]) for name in ("device", "chip", "dtype") if facts.get(name))


def _over_time(material: Material) -> list[Figure]:
    """Speed and memory over time, as far as the runs' run.log and memory_usage.json tell of them."""
    return [
        figure
        for figure in (
            _curves("Speed over time", "questions/s", [(run, _speeds(run.progress)) for run in material.runs]),
            _curves(
                "GPU memory over time", "MiB", [(run, _series(run.memory, "gpu_ram_used_mb")) for run in material.runs]
            ),
            _curves(
                "Resident memory over time",
                "MiB",
                [(run, _series(run.memory, "cpu_ram_used_mb")) for run in material.runs],
            ),
        )
        if figure
    ]


def _curves(title: str, unit: str, curves: Sequence[tuple[Shown, Sequence[tuple[float, float]]]]) -> Figure | None:
    """One line a run; None where no run has two points and one that is not 0."""
    told = [(run, points) for run, points in curves if len(points) > 1 and any(y for _, y in points)]
    if not told:
        return None
    drawn = [charts.Line(_COLOURS[at % len(_COLOURS)], run.named, points) for at, (run, points) in enumerate(told)]
    drawing = charts.lines(title, drawn, x_title="seconds since the start", y_title=unit)
    return Figure(drawing, title, [Key(line.colour, line.words) for line in drawn])


def _speeds(progress: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Questions a second between two lines of the log, at the time of the second."""
    return [(t, (done - before) / (t - s)) for (s, before), (t, done) in pairwise(progress) if t > s and done > before]


def _series(memory: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """A curve of the memory log: of its samples, or of its marks where there are none."""
    samples = memory.get("samples", {})
    if samples.get(name):
        return list(zip(samples["seconds"], samples[name], strict=True))
    marks = [line for line in memory.get("detailed_log", []) if "timestamp" in line]
    times = [datetime.fromisoformat(str(line["timestamp"])) for line in marks]
    return [((time - times[0]).total_seconds(), float(m.get(name, 0))) for time, m in zip(times, marks, strict=True)]
