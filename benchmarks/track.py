"""What measuring costs a run: the memory and energy sampler, and reporting to trackers.

The work is the extractive baseline over the bundled sample's passages, which holds Python's lock all the time, so that
a second thread in the process hurts it most; it runs in turn with the sampler and without. The sampler's own time is
measured apart, since what is left of it in wall time is smaller than the machine's noise. Trackers are real ones:
TensorBoard's event files, and ClearML in offline mode with its sender process.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import arguments, in_turn, save

from slmx.data.datasets import open_dataset
from slmx.eval.tracked import speed
from slmx.models.generators import open_generator
from slmx.records import Request
from slmx.track.memory import EVERY_SECONDS, MemoryLog
from slmx.track.trackers import TrackedRun, Trackers, TrackOptions, open_trackers

SECONDS = 4.0  # of work a measurement
CALLS = 2000


def main() -> None:
    """Measure and write the result."""
    args = arguments(__doc__, "track")
    work, times = prepared_work()

    def plain() -> float:
        begin = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - begin

    def sampled() -> float:
        with MemoryLog().sampling():
            return plain()

    plain()
    measured = in_turn(sampled, plain, rounds=args.rounds)
    one = sample_seconds()
    share = one / EVERY_SECONDS
    calls = {name: call_seconds(name) for name in ("tensorboard", "clearml")}
    rows = [
        {"figure": "the sampler's share of a run", "value": f"{share:.3%}", "target": "under 1 %"},
        {"figure": "one sample", "value": f"{one * 1e6:.0f} µs every {EVERY_SECONDS} s", "target": ""},
        {
            "figure": "wall time with the sampler / without",
            "value": f"{1 / measured['ratio']:.4f} ({1 / measured['ratio_high']:.4f}–{1 / measured['ratio_low']:.4f})",
            "target": "",
        },
        *(
            {"figure": f"a step's scalars to {name}, in the run's thread", "value": f"{s * 1e6:.0f} µs", "target": ""}
            for name, s in calls.items()
        ),
    ]
    what = f"{measured['rounds']} pairs of runs of {SECONDS:.0f} s of one-threaded Python work, in turn; medians."
    notes = [
        "The share is the time of a sample, measured by itself, over the time between two. Wall times with and without "
        "the sampler differ by less than they do between two rounds of the same kind: see their range.",
        "Without a GPU: NVML's part of a sample is not in these figures.",
    ]
    save(args.to, title="Measuring and tracking", what=what, rows=rows, notes=notes, sample_s=one, **measured)


def prepared_work() -> tuple[Callable[[], object], int]:
    """A piece of work, and how often it fits into SECONDS."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset("sample", data_dir=Path(folder), cache_dir=Path(folder))
        questions = dataset.questions()[:16]
        passages = [passage for _, passage in zip(range(5), dataset.passages(), strict=False)]
    generator = open_generator("extractive")
    from slmx.eval import prompts
    from slmx.eval.plan import mode_preset

    built = prompts.build_all(mode_preset("oracle")[1], [(q, passages) for q in questions], generator.window())
    requests = [Request(question=q, prompt=prompt) for q, prompt in zip(questions, built, strict=True)]
    begin, times = time.perf_counter(), 0
    while time.perf_counter() - begin < 1.0:
        generator.generate(requests)
        times += 1
    return lambda: generator.generate(requests), round(times * SECONDS)


def sample_seconds() -> float:
    """The median time of one sample; `mark` takes one, and formats its time beside."""
    log, taken = MemoryLog(), []
    for _ in range(200):
        begin = time.perf_counter()
        log.mark("system", "benchmark")
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def call_seconds(name: str) -> float:
    """The median time of one `scalars` call with a run's usual curves."""
    with tempfile.TemporaryDirectory() as folder:
        options = TrackOptions((name,), offline=True)
        with open_trackers(options) as trackers, trackers.run(TrackedRun("run", Path(folder), "evaluation", {})):
            curves = {"memory/cpu_ram_used_mb": 1.0}
            taken = [_timed(trackers, step, speed(step, step, 1.0) | curves) for step in range(CALLS)]
    return statistics.median(taken)


def _timed(trackers: Trackers, step: int, values: dict[str, float]) -> float:
    begin = time.perf_counter()
    trackers.scalars(step, values)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
