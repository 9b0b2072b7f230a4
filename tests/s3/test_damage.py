"""The promise of the whole storey: no damaged byte passes unseen, on any server, either way, whatever the size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from slmx.s3.client import SHA256_KEY
from slmx.s3.download import Request, download
from slmx.s3.plan import EVERYTHING, Side
from slmx.s3.sync import sync
from slmx.s3.transfer import Job, Moved, Options, download_all
from slmx.s3.upload import upload
from slmx.s3.verify import PIECE
from tests.s3.proxy import Busy, Cut, Fault, Flip, Proxy, Request as Sent, Stall
from tests.s3.servers import Server
from tests.s3.tools import MIB, left_behind, open_uploads, store_of, through

SIZES = {"1 MiB": MIB, "24 MiB multipart": 24 * MIB}
FOREVER = 10**6


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.endpoint) as made:
        yield made


def body_of(part: str, size: int, way: str) -> tuple[Callable[[Sent], bool], int]:
    """Which request carries that part of the object, and an offset in its body."""
    number = {"first": 0, "middle": 1, "last": 2}[part]
    if size <= PIECE:
        return (lambda sent: sent.method == ("PUT" if way == "up" else "GET") and "object" in sent.target), [
            0,
            size // 2,
            size - 1,
        ][number]
    if way == "up":
        return (lambda sent: sent.part == number + 1), PIECE // 3
    return (lambda sent: sent.method == "GET" and "range" in sent.headers and sent.range_start == number * PIECE), 7


def run_up(store_server: Server, shape: str, file: Path) -> list[Moved]:
    store, options = store_of(store_server, retries=1), Options()
    if shape == "file":
        asked = Request("custom", file.parent, local=file, key="object")
        return list(upload(store, asked, options))
    return list(sync(store, Side(path=file.parent), Side(bucket=store_server.bucket), EVERYTHING, options))


def run_down(store_server: Server, shape: str, folder: Path) -> list[Moved]:
    store, options = store_of(store_server, retries=1), Options()
    if shape == "file":
        return list(download(store, Request("custom", folder, key="object"), options))
    return list(sync(store, Side(bucket=store_server.bucket), Side(path=folder), EVERYTHING, options))


def put(server: Server, content: bytes, *, kept: bool = True) -> None:
    """An object as slmx leaves it, or as others do."""
    metadata = {SHA256_KEY: sha256(content).hexdigest()} if kept else {}
    server.client().put_object(Bucket=server.bucket, Key="object", Body=content, Metadata=metadata)


# All of the matrix runs with the slow tests; without them one small corner of it on every server.
SIZE = [pytest.param("1 MiB", id="1MiB"), pytest.param("24 MiB multipart", id="24MiB", marks=pytest.mark.slow)]
PART = [pytest.param("first", marks=pytest.mark.slow), "middle", pytest.param("last", marks=pytest.mark.slow)]
SHAPE = ["file", pytest.param("sync", marks=pytest.mark.slow)]


@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "always"])
@pytest.mark.parametrize("shape", SHAPE)
@pytest.mark.parametrize("part", PART)
@pytest.mark.parametrize("size", SIZE)
def test_a_flipped_byte_up_never_ends_as_a_damaged_object(
    server: Server, proxy: Proxy, tmp_path: Path, size: str, part: str, shape: str, times: int
) -> None:
    content = os.urandom(SIZES[size])
    (tmp_path / "object").write_bytes(content)
    where, offset = body_of(part, len(content), "up")
    proxy.faults.append(Flip("up", where, offset, times))
    rows = run_up(through(server, proxy.endpoint), shape, tmp_path / "object")
    assert proxy.faults[0].happened
    there = server.client().list_objects_v2(Bucket=server.bucket).get("Contents", [])
    if rows[0].action == "failed":
        assert not there
    else:
        assert server.client().get_object(Bucket=server.bucket, Key="object")["Body"].read() == content
    if times == 1:
        assert rows[0].action == "new", rows[0].error  # recovered
    assert not open_uploads(server)


def test_no_write_that_comes_after_the_verified_one_can_damage_the_object(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "object").write_bytes(b"content")
    proxy.faults.append(Flip("up", lambda sent: sent.method == "PUT", skip=1))
    rows = run_up(through(server, proxy.endpoint), "file", tmp_path / "object")
    assert proxy.faults[0].happened
    assert rows[0].action == "new", rows[0].error
    assert server.client().get_object(Bucket=server.bucket, Key="object")["Body"].read() == b"content"
    assert [item["Key"] for item in server.client().list_objects_v2(Bucket=server.bucket)["Contents"]] == ["object"]


@pytest.mark.parametrize("kept", [True, False], ids=["with-hash", "without"])
@pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "always"])
@pytest.mark.parametrize("shape", SHAPE)
@pytest.mark.parametrize("part", PART)
@pytest.mark.parametrize("size", SIZE)
def test_a_flipped_byte_down_never_ends_as_a_file_that_counts_as_whole(
    server: Server, proxy: Proxy, tmp_path: Path, size: str, part: str, shape: str, times: int, kept: bool
) -> None:
    content = os.urandom(SIZES[size])
    put(server, content, kept=kept)
    where, offset = body_of(part, len(content), "down")
    proxy.faults.append(Flip("down", where, offset, times))
    rows = run_down(through(server, proxy.endpoint), shape, tmp_path)
    assert proxy.faults[0].happened
    if rows[0].action == "failed":
        assert not (tmp_path / "object").exists()
        assert "does not fit" in rows[0].error
    elif (tmp_path / "object").read_bytes() != content:
        assert rows[0].verified == "unverified"
        assert not kept
    if times == 1:
        assert rows[0].verified == ("sha256" if kept else "etag")  # recovered
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("size", SIZE)
@pytest.mark.parametrize("kind", [Cut, Stall, Busy])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cut_a_stall_and_a_503_are_got_over(
    server: Server, proxy: Proxy, tmp_path: Path, way: str, kind: type[Fault], size: str
) -> None:
    content = os.urandom(SIZES[size])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "object").write_bytes(content)
    where, offset = body_of("middle", len(content), way)
    proxy.faults.append(kind("up" if way == "up" else "down", where, offset, seconds=3.0 if kind is Stall else 0.0))
    store = store_of(through(server, proxy.endpoint), retries=3, read_timeout=1.0)
    if way == "up":
        rows = list(upload(store, Request("custom", tmp_path, local=tmp_path / "in", key=""), Options()))
        assert server.client().get_object(Bucket=server.bucket, Key="object")["Body"].read() == content
    else:
        put(server, content)
        rows = list(download(store, Request("custom", tmp_path / "out", key="object"), Options()))
        assert (tmp_path / "out" / "object").read_bytes() == content
    assert proxy.faults[0].happened
    assert rows[0].action == "new"
    assert not left_behind(tmp_path)
    assert not open_uploads(server)


@pytest.mark.parametrize("size", SIZE)
@pytest.mark.parametrize("kind", [Cut, Busy])
@pytest.mark.parametrize("way", ["up", "down"])
def test_what_never_heals_fails_clearly_and_leaves_nothing(
    server: Server, proxy: Proxy, tmp_path: Path, way: str, kind: type[Fault], size: str
) -> None:
    content = os.urandom(SIZES[size])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "object").write_bytes(content)
    if way == "down":
        put(server, content)
    where, offset = body_of("last", len(content), way)
    proxy.faults.append(kind("up" if way == "up" else "down", where, offset, FOREVER))
    run = run_up if way == "up" else run_down
    at = tmp_path / "in" / "object" if way == "up" else tmp_path / "out"
    rows = run(through(server, proxy.endpoint), "file", at)
    assert [row.action for row in rows] == ["failed"]
    assert any(word in rows[0].error for word in ("cannot be reached", "broke", "overloaded", "no answer"))
    assert not left_behind(tmp_path)
    assert not (tmp_path / "out" / "object").exists()
    assert not open_uploads(server)
    if way == "up":
        assert not server.client().list_objects_v2(Bucket=server.bucket).get("Contents")


def test_a_large_download_is_taken_up_where_it_broke(rclone: Server, tmp_path: Path) -> None:
    content = os.urandom(24 * MIB)
    put(rclone, content)
    with Proxy(rclone.endpoint) as proxy:
        proxy.faults.append(Cut("down", lambda sent: sent.range_start == PIECE, 1000))
        rows = run_down(through(rclone, proxy.endpoint), "file", tmp_path)
        starts = sorted(sent.range_start for sent in proxy.requests if "range" in sent.headers)
    assert rows[0].verified == "sha256"
    assert starts == [0, PIECE, PIECE, 2 * PIECE]


def test_an_object_that_changes_under_a_download_is_not_spliced(server: Server, tmp_path: Path) -> None:
    put(server, b"a" * (24 * MIB))
    store = store_of(server, retries=0)
    remote = store.look(server.bucket, "object")
    assert remote is not None
    put(server, b"b" * (24 * MIB))
    rows = list(download_all(store, [Job("object", tmp_path / "object", remote, exists=False)], Options()))
    assert rows[0].action == "failed"
    assert "changed" in rows[0].error
    assert not list(tmp_path.iterdir())
