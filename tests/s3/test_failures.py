"""Transfers in trouble: which file fails, what ends the whole run, and that nothing unfinished stays."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from slmx.s3.download import Request, download
from slmx.s3.objects import Remote
from slmx.s3.plan import upload_job, upload_jobs
from slmx.s3.problems import S3Error
from slmx.s3.transfer import GIVE_UP, Job, Moved, Options, download_all, upload_all
from slmx.signals import Stop
from tests.s3.proxy import Busy, Proxy
from tests.s3.servers import Server, free_port
from tests.s3.tools import MIB, command, get, keys, left_behind, lines, open_uploads, put, store_of, through


def test_failed_files_are_named_and_the_rest_is_done(rclone: Server, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(rclone, f"x/{name}")
    (tmp_path / "out" / "b").mkdir(parents=True)
    done = command(rclone, "download", "--prefix", "x/", "--data-dir", "out", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert [row["name"] for row in lines(done.stdout) if row["action"] == "failed"] == ["b"]
    assert "is a folder" in done.stderr
    assert (tmp_path / "out" / "a").is_file()
    assert (tmp_path / "out" / "c").is_file()


def test_a_full_disk_is_refused_before_and_told_while_and_leaves_nothing(
    rclone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(rclone, "x/a", b"12345")
    words = ["download", "--prefix", "x/", "--data-dir", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4))
        before = command(rclone, *words, cwd=tmp_path)
    assert before.returncode == 4
    assert "free" in before.stderr

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("slmx.files.os.fsync", full)
        during = command(rclone, *words, cwd=tmp_path)
    assert during.returncode == 4
    assert "is full" in during.stderr
    assert not left_behind(tmp_path)
    assert not (tmp_path / "out" / "a").exists()


def test_a_file_that_vanishes_before_its_turn_fails_alone(rclone: Server, tmp_path: Path) -> None:
    found = [(name, tmp_path / name) for name in ("stays", "goes", "went", "went-but-is-there")]
    put(rclone, "went-but-is-there", b"theirs")
    for _, path in found[:2]:
        path.write_bytes(b"x")
    store = store_of(rclone)
    jobs = upload_jobs(found, store, rclone.bucket, "")
    (tmp_path / "goes").unlink()
    rows = {row.name: row for row in upload_all(store, jobs, Options())}
    assert rows.pop("stays").action == "new"
    assert {row.action for row in rows.values()} == {"failed"}
    assert all("not there any more" in row.error for row in rows.values())
    assert keys(rclone) == ["stays", "went-but-is-there"]
    assert get(rclone, "went-but-is-there") == b"theirs"


def test_what_has_grown_since_it_was_listed_is_moved_by_a_single_thread_too(rclone: Server, tmp_path: Path) -> None:
    store, content, stop = store_of(rclone, concurrency=1), os.urandom(9 * MIB), Stop()
    guard = threading.Timer(120, lambda: setattr(stop, "signal", 2))  # instead of waiting for ever
    guard.daemon = True
    guard.start()
    (tmp_path / "up").write_bytes(b"small")
    jobs = [upload_job("up", tmp_path / "up", rclone.bucket, "up", None)]
    (tmp_path / "up").write_bytes(content)
    rows = list(upload_all(store, jobs, Options(stop=stop)))
    assert (rows[0].action, rows[0].error) == ("new", "")
    assert get(rclone, "up") == content
    put(rclone, "down", b"small")
    listed = store.look(rclone.bucket, "down")
    assert listed is not None
    put(rclone, "down", content)
    rows = list(download_all(store, [Job("down", tmp_path / "down", listed, exists=False)], Options(stop=stop)))
    assert (rows[0].action, rows[0].error) == ("new", "")
    assert (tmp_path / "down").read_bytes() == content
    guard.cancel()


def test_a_file_that_changes_while_it_is_read_is_no_upload(
    rclone: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(os.urandom(9 * MIB))
    monkeypatch.setattr("slmx.s3.send.hash_file", lambda _: "0" * 64)
    rows = list(upload_all(store_of(rclone), [upload_job("f", tmp_path / "f", rclone.bucket, "f", None)], Options()))
    assert "changed while it was read" in rows[0].error
    assert not keys(rclone)
    assert not open_uploads(rclone)


def test_a_busy_server_fails_every_file_and_ends_no_run(rclone: Server, tmp_path: Path) -> None:
    for number in range(20):
        put(rclone, f"x/{number}")
    with Proxy(rclone.endpoint) as proxy:
        proxy.faults.append(Busy("down", lambda sent: "/x/" in sent.target, times=10**6))
        store = store_of(through(rclone, proxy.endpoint), retries=0)
        rows = list(download(store, Request("custom", tmp_path / "out", prefix="x/"), Options()))
    assert {row.action for row in rows} == {"failed"}
    assert "overloaded" in rows[0].error
    assert not left_behind(tmp_path)


def test_a_server_that_is_gone_ends_the_run_instead_of_every_file(tmp_path: Path) -> None:
    store = store_of(Server("gone", f"http://127.0.0.1:{free_port()}", "access", "the-secret"), retries=0)
    jobs = [Job(str(n), tmp_path / str(n), Remote("bucket", str(n), 1, ""), exists=False) for n in range(20)]
    rows: list[Moved] = []
    with pytest.raises(S3Error, match="cannot be reached"):
        for row in download_all(store, jobs, Options()):
            rows.append(row)  # noqa: PERF402  # extend would lose what came before the error
    assert [row.action for row in rows] == ["failed"] * (GIVE_UP - 1)
    assert not list(tmp_path.iterdir())
