"""What the tests of transfers share: a store for a server, a run of the command line, and what is left behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import SecretStr

from slmx.app import run
from slmx.s3.store import Store
from slmx.settings import S3Settings
from tests.s3.servers import Server

MIB = 1 << 20


def settings_of(server: Server, **more: Any) -> S3Settings:
    """The settings for a server, impatient."""
    values: dict[str, Any] = {
        "endpoint": server.endpoint,
        "access_key": SecretStr(server.access_key),
        "secret_key": SecretStr(server.secret_key),
        "region": server.region,
        "verify_ssl": Path(server.ca_bundle) if server.ca_bundle else True,
        "bucket": server.bucket,
        "retries": 3,
        "concurrency": 4,
    }
    return S3Settings(**values | more)


def store_of(server: Server, **more: Any) -> Store:
    """A store for a server."""
    return Store(settings_of(server, **more))


def through(server: Server, endpoint: str) -> Server:
    """The same server by another address."""
    return replace(server, endpoint=endpoint)


def command(
    server: Server, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `slmx s3 …` as a user would, in this process (starting one takes longer), and see that it tells no secret."""
    out, err = io.StringIO(), io.StringIO()
    args = ["s3", *map(str, words)]
    as_user = mock.patch.dict(os.environ, environment(server, env), clear=True)
    with chdir(cwd), as_user, redirect_stdout(out), redirect_stderr(err):
        code = run(args)
    assert server.secret_key not in out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def environment(server: Server, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that works on this server."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CLEARML_", "SLMX_"))}
    return {**clean, **server.environment(), "NO_COLOR": "1", **(more or {})}


def put(server: Server, key: str, content: bytes = b"content", **more: Any) -> None:
    """An object, as others write it."""
    server.client().put_object(Bucket=server.bucket, Key=key, Body=content, **more)


def get(server: Server, key: str) -> bytes:
    """An object's content."""
    content: bytes = server.client().get_object(Bucket=server.bucket, Key=key)["Body"].read()
    return content


def keys(server: Server) -> list[str]:
    """Keys of the server's bucket."""
    return [item["Key"] for item in server.client().list_objects_v2(Bucket=server.bucket).get("Contents", [])]


def lines(text: str) -> list[dict[str, Any]]:
    """What --json wrote, a row a line."""
    return [json.loads(line) for line in text.splitlines()]


def left_behind(folder: Path) -> list[str]:
    """Unfinished files below a folder."""
    return [str(path) for path in folder.rglob("*.part")]


def open_uploads(server: Server) -> list[str]:
    """Keys of multipart uploads that are open in the server's bucket."""
    client = server.client()
    try:
        found = client.list_multipart_uploads(Bucket=server.bucket)
    except client.exceptions.NoSuchUpload:  # rclone's word for none
        return []
    return [upload["Key"] for upload in found.get("Uploads", [])]
