"""Event files that TensorBoard's own reader reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slmx.track.trackers import TrackedRun, TrackOptions, open_trackers


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "runs"))
    events.Reload()
    return events


def text(events: Any, name: str) -> str:
    return str(events.Tensors(name)[0].tensor_proto.string_val[0].decode())


def test_curves_tables_and_the_log(tmp_path: Path) -> None:
    run = TrackedRun("r", tmp_path, "training", {"lr": 0.1, "key": "s$cret"})
    with open_trackers(TrackOptions(("tensorboard",), secrets=["s$cret"])) as trackers, trackers.run(run):
        for step in (1, 2):
            trackers.scalars(step, {"loss/train": 1 / step})
        trackers.table("metrics", ["name", "mean"], [["a|b", "<script>"]])
        trackers.samples("predictions", [{"question": "q", "answer": "a\nb"}])
        trackers.text("the first line")
        trackers.singles({"em": 0.5})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("summary/em")] == [(2, 0.5)]
    assert "0.1" in text(events, "configuration") and "s$cret" not in text(events, "configuration")
    assert "| a\\|b | &lt;script> |" in text(events, "metrics")
    assert "| q | a b |" in text(events, "predictions")
    assert "the first line" in text(events, "log")


@pytest.mark.parametrize("secret", ['a-s$cret"', "a-s$cret\\", "a-s$cret<&|"])
def test_no_secret_is_written_however_it_would_be_escaped(tmp_path: Path, secret: str) -> None:
    run = TrackedRun("r", tmp_path, "training", {"nested": {"key": f"key={secret}"}})
    with open_trackers(TrackOptions(("tensorboard",), secrets=[secret])) as trackers, trackers.run(run):
        trackers.table("metrics", ["name"], [[f"a {secret} b"]])
        trackers.samples("predictions", [{"answer": secret}])
        trackers.text(f"key {secret}")
        trackers.text(json.dumps({"key": secret}))
    events = read(tmp_path)
    for name in ("configuration", "metrics", "predictions", "log"):
        assert "********" in text(events, name) and "s$cret" not in text(events, name)


def test_a_resumed_run_takes_back_the_steps_that_are_done_again(tmp_path: Path) -> None:
    for begin, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0})):
        run = TrackedRun("r", tmp_path, "training", {}, step=begin)
        with open_trackers(TrackOptions(("tensorboard",))) as trackers, trackers.run(run):
            for step, value in values.items():
                trackers.scalars(step, {"loss": value})
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_torch_is_not_loaded_for_it(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = """
import sys
from pathlib import Path
from slmx.track.trackers import TrackedRun, TrackOptions, open_trackers
with open_trackers(TrackOptions(("tensorboard",))) as trackers, trackers.run(TrackedRun("r", Path(), "training", {})):
    trackers.scalars(1, {"loss": 1.0})
assert not {"torch", "tensorflow", "clearml"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
