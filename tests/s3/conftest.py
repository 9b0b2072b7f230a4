"""Servers for the tests: `swift`, `swift_tls`, `rclone`, `rclone_tls`, `moto`, `ceph`, each with a fresh bucket.

A session fixture `…_server` holds a server for as long as this process tests; servers.py tells how it is shared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3 import servers
from tests.s3.servers import Server


@pytest.fixture(scope="session")
def servers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all test processes of this run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "servers"


@contextmanager
def _running(kind: str, folder: Path, *, tls: bool = False) -> Iterator[Server]:
    try:
        with servers.running(kind, folder, tls=tls) as server:
            yield server
    except servers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def swift_server(servers_folder: Path) -> Iterator[Server]:
    with _running("swift", servers_folder) as server:
        yield server


@pytest.fixture(scope="session")
def swift_tls_server(servers_folder: Path) -> Iterator[Server]:
    with _running("swift", servers_folder, tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(servers_folder: Path) -> Iterator[Server]:
    with _running("rclone", servers_folder) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_tls_server(servers_folder: Path) -> Iterator[Server]:
    with _running("rclone", servers_folder, tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(servers_folder: Path) -> Iterator[Server]:
    with _running("moto", servers_folder) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(servers_folder: Path) -> Iterator[Server]:
    with _running("ceph", servers_folder) as server:
        yield server


@pytest.fixture
def swift(swift_server: Server) -> Server:
    """OpenStack Swift's S3 API: strict about signatures, Content-MD5 and part sizes."""
    return swift_server.with_bucket()


@pytest.fixture
def swift_tls(swift_tls_server: Server) -> Server:
    """The same over HTTPS with a self-signed certificate (`ca_bundle`)."""
    return swift_tls_server.with_bucket()


@pytest.fixture
def rclone(rclone_server: Server) -> Server:
    """`rclone serve s3`: fast; its secret holds the characters that shells and URLs trip over."""
    return rclone_server.with_bucket()


@pytest.fixture
def rclone_tls(rclone_tls_server: Server) -> Server:
    """The same over HTTPS with a self-signed certificate (`ca_bundle`)."""
    return rclone_tls_server.with_bucket()


@pytest.fixture
def moto(moto_server: Server) -> Server:
    """moto: checks neither keys nor checksums."""
    return moto_server.with_bucket()


@pytest.fixture
def ceph(ceph_server: Server) -> Server:
    """Ceph's RADOS gateway, where Debian's package is installed."""
    return ceph_server.with_bucket()


@pytest.fixture(params=["swift", "rclone", "moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of them in turn."""
    value: Server = request.getfixturevalue(request.param)
    return value
