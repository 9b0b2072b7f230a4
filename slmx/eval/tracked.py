"""What a cell tells the trackers beside its log: its speed while it runs, and its results at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmx.eval.journal import read_predictions
from slmx.records import Prediction
from slmx.track.memory import CURVES
from slmx.track.trackers import TrackedRun, Trackers

SAMPLES = 100  # predictions that are shown one by one
ARTIFACTS = {"results": "results.json", "predictions": "predictions.json", "memory": "memory_usage.json"}


def run_of(folder: Path, options: Mapping[str, Any], configuration: Mapping[str, Any]) -> TrackedRun:
    """A cell as trackers know it. A cell that goes on after a stop is a run of its own there."""
    told = {"options": options, "content": configuration}
    return TrackedRun(name=folder.name, folder=folder, kind="evaluation", configuration=told)


def speed(questions: int, tokens: int, seconds: float) -> dict[str, float]:
    """Curves of how fast this session answers."""
    return {"speed/questions_per_second": questions / seconds, "speed/tokens_per_second": tokens / seconds}


def report(tracker: Trackers, folder: Path, results: Mapping[str, Any], memory: Mapping[str, Any]) -> None:
    """The results of a finished cell: single values, a table of metrics, memory in time, predictions, files."""
    tracker.singles({name: float(value) for name, value in results.items() if isinstance(value, (int, float))})
    intervals = results["intervals_95"]
    rows = [
        [name, results[name], *intervals[name], results["n"][name]]
        for name in results["n"]
        if name in intervals and results.get(name) is not None
    ]
    tracker.table("metrics", ["metric", "mean", "low", "high", "n"], rows)
    tracker.figure("memory", _curves(memory["samples"]))
    predictions = list(read_predictions(folder).values())[:SAMPLES]
    tracker.samples("predictions", [_sample(prediction) for prediction in predictions])
    for name, file in ARTIFACTS.items():
        tracker.artifact(name, folder / file)


def _sample(prediction: Prediction) -> dict[str, Any]:
    return {
        "question": prediction.question,
        "answer": prediction.predicted_answer,
        "gold": " | ".join(prediction.ground_truth),
        "prompt": prediction.prompt,
        "id": prediction.question_id,
    }


def _curves(samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """Everything that was sampled and is not always 0, each as one line."""
    lines = [
        {"type": "scatter", "mode": "lines", "name": key, "x": samples["seconds"], "y": samples[key]}
        for key in CURVES
        if any(samples[key])
    ]
    return {"data": lines, "layout": {"title": {"text": "memory, power and utilisation"}, "xaxis": {"title": "s"}}}
