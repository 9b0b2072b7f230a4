"""Transfers that are stopped: by the user, in good order; by kill -9, without a wrong file at its final name."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.s3.proxy import Busy, Proxy, Stall
from tests.s3.servers import Server
from tests.s3.tools import MIB, environment, left_behind, open_uploads, through

MOMENTS = 50


def start(server: Server, *words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "slmx", "s3", *map(str, words)],
        cwd=cwd,
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def appears(path: Path) -> float:
    """Wait until there is such a file or folder; returns when that was."""
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert path.exists()
    return time.monotonic()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_signal_aborts_open_uploads_and_leaves_no_unfinished_file(
    swift: Server, tmp_path: Path, way: str, number: int, code: int
) -> None:
    content = os.urandom(24 * MIB)
    (tmp_path / "in").mkdir()
    if way == "up":
        (tmp_path / "in" / "large").write_bytes(content)
    else:
        swift.client().put_object(Bucket=swift.bucket, Key="large", Body=content)
    with Proxy(swift.endpoint) as proxy:
        # The second piece hangs, so the signal certainly comes in the middle.
        stall = Stall(
            "up" if way == "up" else "down",
            lambda sent: sent.part == 2 or sent.range_start == 8 * MIB,
            1000,
            seconds=60.0,
        )
        proxy.faults.append(stall)
        ends = ["in", f"s3://{swift.bucket}"] if way == "up" else [f"s3://{swift.bucket}", "out"]
        child = start(through(swift, proxy.endpoint), "sync", *ends, cwd=tmp_path)
        deadline = time.monotonic() + 30
        while not stall.happened and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stall.happened
        if way == "up":
            assert open_uploads(swift)
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    assert child.returncode == code, said
    assert "The same command goes on" in said
    assert not open_uploads(swift)
    assert not left_behind(tmp_path)
    assert not (tmp_path / "out" / "large").exists()


def test_a_failure_that_ends_the_run_leaves_no_unfinished_file(rclone: Server, tmp_path: Path) -> None:
    for number in range(8):
        rclone.client().put_object(Bucket=rclone.bucket, Key=f"x/{number}", Body=b"content")
    with Proxy(rclone.endpoint) as proxy:
        # Once the keys are refused for one file, others have their last try still far before them.
        busy = Busy("down", lambda sent: "/x/" in sent.target and not sent.target.endswith("/x/4"), times=10**6)
        refused = Busy("down", lambda sent: sent.target.endswith("/x/4"), times=10**6, status="401 Unauthorized")
        proxy.faults += [busy, refused]
        env = environment(through(rclone, proxy.endpoint), {"SLMX_S3__RETRIES": "20", "SLMX_S3__CONCURRENCY": "8"})
        words = [sys.executable, "-m", "slmx", "s3", "sync", f"s3://{rclone.bucket}", "out"]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "does not accept the keys" in done.stderr
    assert (tmp_path / "out").is_dir()
    assert not left_behind(tmp_path)


@pytest.mark.slow
def test_kill_9_at_any_moment_never_leaves_a_wrong_file_at_its_final_name(rclone: Server, tmp_path: Path) -> None:
    contents = {f"small{n}": os.urandom(200_000) for n in range(20)} | {"large": os.urandom(40 * MIB)}
    for key, content in contents.items():
        rclone.client().put_object(Bucket=rclone.bucket, Key=key, Body=content)
    child = start(rclone, "sync", f"s3://{rclone.bucket}", "whole", cwd=tmp_path)
    begun = appears(tmp_path / "whole")
    assert child.wait(60) == 0
    takes = time.monotonic() - begun
    rng, partly = random.Random(0), 0
    for moment in range(MOMENTS):
        out = tmp_path / f"out{moment}"
        child = start(rclone, "sync", f"s3://{rclone.bucket}", out, cwd=tmp_path)
        appears(out)
        time.sleep(rng.uniform(0, takes))
        child.kill()
        child.communicate(timeout=30)
        found = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".part"] if out.exists() else []
        for path in found:
            assert path.read_bytes() == contents[path.name], f"kill {moment}"
        partly += 0 < len(found) < len(contents) or bool(left_behind(out))
    assert partly > MOMENTS // 10  # the moments did fall into the transfer
    resumed = start(rclone, "sync", f"s3://{rclone.bucket}", tmp_path / "out0", cwd=tmp_path)
    assert resumed.wait(60) == 0
    assert {p.name for p in (tmp_path / "out0").iterdir() if p.suffix != ".part"} == set(contents)


@pytest.mark.slow
def test_kill_9_while_uploading_never_leaves_a_wrong_object(rclone: Server, tmp_path: Path) -> None:
    contents = {f"small{n}": os.urandom(200_000) for n in range(20)} | {"large": os.urandom(40 * MIB)}
    (tmp_path / "in").mkdir()
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    begin = time.monotonic()
    assert start(rclone, "sync", "in", f"s3://{rclone.bucket}/whole", cwd=tmp_path).wait(60) == 0
    whole = time.monotonic() - begin
    rng, client = random.Random(1), rclone.client()
    for moment in range(10):
        child = start(rclone, "sync", "in", f"s3://{rclone.bucket}/{moment}", cwd=tmp_path)
        time.sleep(rng.uniform(0.4, 1.0) * whole)
        child.kill()
        child.communicate(timeout=30)
        for item in client.list_objects_v2(Bucket=rclone.bucket, Prefix=f"{moment}/").get("Contents", []):
            name = item["Key"].partition("/")[2]
            if not name.startswith(".slmx-test-"):  # what shows whether the server keeps conditions
                content = client.get_object(Bucket=rclone.bucket, Key=item["Key"])["Body"].read()
                assert content == contents[name], f"kill {moment}"
