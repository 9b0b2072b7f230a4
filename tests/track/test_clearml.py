"""ClearML through its own library: real offline sessions read back, a server that answers, refuses, stalls."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from slmx import settings
from slmx.events import Notice, Progress
from slmx.track.clearml import IMPORT, SPOOL
from slmx.track.clearml_sender import _bucket
from slmx.track.trackers import TrackedRun, Trackers, TrackOptions, chosen_trackers, open_trackers
from tests.s3.servers import running
from tests.track.clearml_server import Server

SECRET = 'a-s$cret"&'


class Heard:
    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def __call__(self, event: Progress | Notice) -> None:
        assert isinstance(event, Notice)
        self.notices.append(event)

    def warnings(self) -> list[str]:
        return [notice.text for notice in self.notices if notice.level == "warning"]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _elsewhere(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of whoever runs the tests reach the sender, and it leaves no temporary folder, however it ends."""
    temporary = empty_folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    until(lambda: not list(temporary.glob("slmx-clearml-*")))


def report(trackers: Trackers, folder: Path, *, step: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text('{"em": 0.5}')
    run = TrackedRun(folder.name, folder, "training", {"lr": 0.1, "nested": {"key": SECRET}}, step=step)
    with trackers.run(run):
        for place in (1, 2):
            trackers.scalars(place, {"loss/train": 1.0 / place, "lr": 0.5})
        trackers.scalars(3, {"loss/train": float("nan"), "numpy": np.float32(0.25)})
        trackers.singles({"em": 0.5, "undefined": float("nan")})
        trackers.table("metrics", ["metric", "mean"], [["em", 0.5]])
        trackers.figure("memory", {"data": [{"type": "scatter", "x": [1], "y": [2]}], "layout": {}})
        trackers.samples("predictions", [{"question": "<script>alert(1)</script>", "answer": "b"}] * 100)
        trackers.text(f"a line of the log with {SECRET}")
        trackers.artifact("results", folder / "results.json")


def test_an_offline_session_holds_everything_and_no_secret(tmp_path: Path) -> None:
    heard = Heard()
    with open_trackers(TrackOptions(("clearml",), project="p", offline=True, secrets=[SECRET]), heard) as trackers:
        report(trackers, tmp_path / "one")
        report(trackers, tmp_path / "two")
    for name in ("one", "two"):
        (session,) = (tmp_path / name / "logs").glob("clearml-*.zip")
        assert f"ClearML session kept; send it later: {IMPORT} {session}" in [notice.text for notice in heard.notices]
        assert not (tmp_path / name / SPOOL).exists()
        with zipfile.ZipFile(session) as zipped:
            files = {file: zipped.read(file) for file in zipped.namelist()}
        task = json.loads(files["task.json"])
        assert (task["name"], task["project_name"], task["type"]) == (name, "p", "training")
        assert task["hyperparams"]["slmx"]["lr"]["value"] == "0.1"
        assert [artifact["key"] for artifact in task["execution"]["artifacts"]] == ["results"]
        assert not task["script"]["diff"]
        events = [event for line in files["metrics.jsonl"].splitlines() for event in json.loads(line)]
        curves = [(e["metric"], e["variant"], e["iter"], e["value"]) for e in events if "scalar" in e["type"]]
        assert ("loss", "train", 2, 0.5) in curves and ("lr", "lr", 1, 0.5) in curves
        assert ("numpy", "numpy", 3, 0.25) in curves and not any(name == "undefined" for _, name, *_ in curves)
        assert any(curve[:2] == ("Summary", "em") for curve in curves)
        assert {e["metric"] for e in events if e["type"] == "plot"} == {"metrics", "memory"}
        pages = [content for file, content in files.items() if file.endswith(".html")]
        assert len(pages) == 100 and b"&lt;script&gt;" in pages[0] and b"<script>" not in pages[0]
        assert b'{"em": 0.5}' in files.values()
        assert b"a line of the log" in files["log.jsonl"]
        assert not any(b"s$cret" in content for content in files.values())


def test_a_server_gets_everything(tmp_path: Path) -> None:
    heard = Heard()
    with Server() as server:
        options = TrackOptions(("clearml",), environment=server.environment(), secrets=[SECRET])
        with open_trackers(options, heard) as trackers:
            report(trackers, tmp_path / "one")
            report(trackers, tmp_path / "two")
        (one, two) = server.tasks.values()
        assert (one["name"], one["status"], two["status"]) == ("one", "completed", "completed")
        assert [artifact["key"] for artifact in two["execution"]["artifacts"]] == ["results"]
        assert {"training_stats_scalar", "plot", "log", "training_debug_image"} == {e["type"] for e in server.events}
        assert sum(b"&lt;script&gt;" in file for file in server.files) == 200
        assert b"s$cret" not in server.bytes
        page = json.loads((tmp_path / "one" / "logs" / "clearml.json").read_text())["page"]
    assert heard.warnings() == [] and f"ClearML: {page}" in [notice.text for notice in heard.notices]
    assert not list(tmp_path.rglob("*.zip")) and not (tmp_path / "one" / SPOOL).exists()


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_task(tmp_path: Path) -> None:
    with Server() as server:
        for step in (0, 2):
            with open_trackers(TrackOptions(("clearml",), environment=server.environment())) as trackers:
                report(trackers, tmp_path / "one", step=step)
        assert len(server.tasks) == 1


def until_the_sender_ended() -> None:
    """What it said is here then, and not heard yet."""
    until(lambda: not any(thread.name == "clearml" for thread in threading.enumerate()))


def alive(process: int) -> bool:
    """Or a zombie, that nobody has waited for."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def other_library(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender gets this instead of ClearML's library."""
    (folder / "path" / "clearml").mkdir(parents=True)
    (folder / "path" / "clearml" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "path"))


@pytest.fixture
def stalling() -> Iterator[str]:
    """A port that accepts and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def kept(heard: Heard, folder: Path, why: str) -> None:
    (warning,) = heard.warnings()
    assert why in warning
    assert len(list((folder / "logs").glob("clearml-offline-*.zip"))) == 1


def test_a_server_that_refuses_costs_one_warning_and_the_session_is_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    heard = Heard()
    options = TrackOptions(("clearml",), environment={"CLEARML_API_HOST": f"http://me:pass-w@rd@127.0.0.1:{port}"})
    with open_trackers(options, heard) as trackers:
        report(trackers, tmp_path / "one")
    kept(heard, tmp_path / "one", "does not answer")
    (warning,) = heard.warnings()
    assert f"http://me:********@127.0.0.1:{port} does not answer" in warning
    assert "pass-w" not in warning and "rd@" not in warning


def test_a_refusal_that_is_heard_as_a_run_closes_does_not_stop_the_next_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    heard = Heard()
    options = TrackOptions(("clearml",), environment={"CLEARML_API_HOST": url})
    with open_trackers(options, heard) as trackers:
        trackers.start(TrackedRun("one", tmp_path / "one", "training", {}))
        until_the_sender_ended()
        trackers.close("done")
        assert len(heard.warnings()) == 1
        report(trackers, tmp_path / "two")
    for name in ("one", "two"):
        kept(heard, tmp_path / name, "does not answer")


def test_where_no_session_can_be_written_either_the_run_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    broken = f"open({str(started)!r}, 'a').write('x')\nraise RuntimeError('broken library')\n"
    other_library(tmp_path, broken, monkeypatch)
    heard = Heard()
    options = TrackOptions(("clearml",), environment={"CLEARML_API_HOST": "http://127.0.0.1:9"})
    with open_trackers(options, heard) as trackers:
        trackers.start(TrackedRun("one", tmp_path / "one", "training", {}))
        for step in range(4):
            until_the_sender_ended()
            trackers.scalars(step, {"loss": 0.5})
        trackers.close("done")
        report(trackers, tmp_path / "two")
    assert started.read_text() == "xx"  # once for the server, once for an offline session
    offline, given_up = heard.warnings()
    assert "broken library" in offline and "broken library" in given_up and str(SPOOL) in given_up
    for name in ("one", "two"):
        assert '"report":"close"' in (tmp_path / name / SPOOL).read_text()


def test_what_the_library_started_ends_with_the_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmx.track.clearml.STALLED_SECONDS", 4.0)
    started = tmp_path / "started"
    forks = f"""
import os, time
child = os.fork()
if not child:
    time.sleep(600)
open({str(started)!r}, "a").write(f"{{child}}\\n")
raise RuntimeError("broken library")
"""
    other_library(tmp_path, forks, monkeypatch)
    options = TrackOptions(("clearml",), environment={"CLEARML_API_HOST": "http://127.0.0.1:9"}, wait_seconds=0)
    with open_trackers(options) as trackers:
        report(trackers, tmp_path / "one")
        until(lambda: started.exists() and started.stat().st_size > 0)
    children = [int(line) for line in started.read_text().split()]
    assert len(children) == 2
    until(lambda: not any(map(alive, children)))


def test_a_server_that_accepts_and_stalls_does_not_slow_the_run(
    tmp_path: Path, stalling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmx.track.clearml.STALLED_SECONDS", 4.0)
    heard = Heard()
    options = TrackOptions(("clearml",), environment={"CLEARML_API_HOST": stalling})
    with open_trackers(options, heard) as trackers:
        report(trackers, tmp_path / "one")
        assert heard.notices == []  # the run is over before anybody knows
    (warning,) = heard.warnings()
    assert stalling in warning
    kept(heard, tmp_path / "one", stalling)


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_costs_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmx.track.clearml.STALLED_SECONDS", 6.0)
    heard = Heard()
    with Server() as server:
        server.stall_after = "tasks.started"
        with open_trackers(TrackOptions(("clearml",), environment=server.environment()), heard) as trackers:
            report(trackers, tmp_path / "one")
            while "tasks.started" not in server.calls:
                time.sleep(0.05)
        assert list(server.tasks)
    kept(heard, tmp_path / "one", "did not take everything in time")


def test_what_a_killed_run_reported_is_sent_all_the_same(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from slmx.track.trackers import TrackedRun, TrackOptions, open_trackers
with open_trackers(TrackOptions(("clearml",), offline=True)) as trackers:
    trackers.start(TrackedRun("killed", Path(sys.argv[1]), "training", {}))
    trackers.scalars(1, {"loss": 3.5})
    print("now", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while not (found := list(tmp_path.glob("logs/clearml-*.zip"))) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    with zipfile.ZipFile(found[0]) as session:
        assert b"3.5" in session.read("metrics.jsonl")


def test_the_bucket_is_reached_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bucket(**more: str) -> dict[str, Any]:
        said = {"CLEARML_S3_BUCKET": "b", "CLEARML_S3_ENDPOINT": "https://store:9000", **more}
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in said.items()))
        return _bucket(chosen_trackers(settings.load(), clearml=None, tensorboard=None).environment)

    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-aws-keys")
    aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CA_BUNDLE": "aws.pem"}
    found = bucket(**aws)
    assert (found["key"], found["token"], found["verify"]) == ("key", "of-the-aws-keys", "aws.pem")
    ours = {**aws, "CLEARML_S3_ACCESS_KEY": "ours", "CLEARML_S3_SECRET_KEY": "secret"}
    found = bucket(**ours, CLEARML_S3_VERIFY_SSL="ours.pem")
    assert (found["key"], found["token"], found["verify"]) == ("ours", "", "ours.pem")
    assert bucket(**ours, CLEARML_S3_VERIFY_SSL="0")["verify"] is False
    assert bucket()["verify"] is True


@pytest.mark.slow
@pytest.mark.parametrize("tls", ["", "CLEARML_S3_VERIFY_SSL", "AWS_CA_BUNDLE"])
def test_artifacts_go_to_the_bucket_of_the_settings_through_the_library(tmp_path: Path, tls: str) -> None:
    with running("rclone", tmp_path / "servers", tls=bool(tls)) as found, Server() as server:
        store = found.with_bucket()
        bundle = {"CLEARML_S3_VERIFY_SSL": "true", tls: store.ca_bundle} if tls else {}
        environment = {**server.environment(), **store.environment(), **bundle}
        (tmp_path / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in environment.items()))
        options = chosen_trackers(settings.load(), clearml=None, tensorboard=None)
        heard = Heard()
        with open_trackers(options, heard) as trackers:
            report(trackers, tmp_path / "one")
        assert heard.warnings() == []
        (task,) = server.tasks
        key = f"slmx/one.{task}/artifacts/results/results.json"
        assert store.client().get_object(Bucket=store.bucket, Key=key)["Body"].read() == b'{"em": 0.5}'
        assert server.tasks[task]["execution"]["artifacts"][0]["uri"].endswith(f"{store.bucket}/{key}")
