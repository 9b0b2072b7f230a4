"""An object in a bucket, and what every reader of objects can do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from slmx.s3 import client as clients
from slmx.s3.problems import S3Error


@dataclass(frozen=True)
class Remote:
    """An object in a bucket. `etag` has no quotes; `sha256` is the one kept with it, "" while it is not known."""

    bucket: str
    key: str
    size: int
    etag: str
    sha256: str = ""

    @property
    def url(self) -> str:
        """s3://bucket/key"""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class Piece:
    """The bytes of an object, and what the server said about it with them."""

    content: bytes | memoryview
    remote: Remote


class Reader(Protocol):
    """Reads whole small objects and pieces of large ones. One request, no retries: slmx.s3.pool.again does those.

    Example::

        class Zeros:
            def read(self, remote):
                return Piece(bytes(remote.size), remote)

            def read_span(self, remote, first, into):
                into[:] = bytes(len(into))
                return remote
    """

    def read(self, remote: Remote) -> Piece:
        """The object as it is now, which may be another version than `remote`; the piece says.

        Raises:
            S3Error: whatever went wrong.
        """
        ...

    def read_span(self, remote: Remote, first: int, into: memoryview) -> Remote:
        """Fill `into` with the bytes from `first` on of the version that `remote.etag` names.

        Raises:
            S3Error: whatever went wrong; kind "precondition" when the object is another one by now. Servers ignore
                headers, so what arrives is counted, and its version and range are compared.
        """
        ...


def kept_hash(metadata: Mapping[str, str]) -> str:
    """The SHA-256 kept with an object, "" without one. Servers change the case of names."""
    found = next((value for name, value in metadata.items() if name.lower() == clients.SHA256_KEY), "")
    return found.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", found) else ""


def cut(remote: Remote) -> S3Error:
    """The error for an answer that ends too early."""
    return S3Error(
        f"{remote.url}: the connection broke in the middle.",
        kind="unreachable",
        hint="Run the command again; `slmx s3 test` looks closer.",
    )
