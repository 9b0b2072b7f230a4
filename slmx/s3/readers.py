"""Reading through the two libraries: botocore, which knows all of S3, and obstore, which is faster with small objects.

obstore refuses a 200 with Content-Range, keys with empty or dotted segments, and a self-signed certificate that is its
own authority: those it hands to botocore, and ranges too, which cost it as much.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from slmx.files import BLOCK
from slmx.s3 import client as clients
from slmx.s3.objects import Piece, Reader, Remote, cut, kept_hash
from slmx.s3.problems import S3Error, explain, told_apart
from slmx.settings import S3Settings

PLAIN = re.compile(r"[^/\x00-\x1f\x7f]+(/[^/\x00-\x1f\x7f]+)*")


class BotoReader:
    """Plain get_object requests of classic boto3; botocore's own retries are off."""

    def __init__(self, s3: S3Settings) -> None:
        self._s3 = s3

    @cached_property
    def _client(self) -> Any:
        return clients.connect(self._s3, retries=0)  # made when it is needed: it takes a while

    def read(self, remote: Remote) -> Piece:
        """As the protocol says."""
        with told_apart(clients.target(self._s3, remote.bucket, remote.key)):
            answer = self._client.get_object(Bucket=remote.bucket, Key=remote.key)
            content = answer["Body"].read()  # counts: less than was announced is an error
        return Piece(content, described(remote.bucket, remote.key, answer))

    def read_span(self, remote: Remote, first: int, into: memoryview) -> Remote:
        """As the protocol says."""
        last, where = first + len(into) - 1, clients.target(self._s3, remote.bucket, remote.key)
        with told_apart(where):
            answer = self._client.get_object(
                Bucket=remote.bucket, Key=remote.key, Range=f"bytes={first}-{last}", IfMatch=f'"{remote.etag}"'
            )
            found = described(remote.bucket, remote.key, answer)
            if found.etag != remote.etag:
                answer["Body"].close()
                raise S3Error(
                    f"{remote.url} changed while it was read.", kind="precondition", hint="Run the command again."
                )
            if not str(answer.get("ContentRange", "")).startswith(f"bytes {first}-{last}/"):
                answer["Body"].close()
                raise S3Error(
                    f"{remote.url}: the server does not serve ranges.",
                    kind="other",
                    hint="`slmx s3 test` looks closer.",
                )
            try:
                done = _fill(answer["Body"], into)
            except (OSError, HTTPException) as error:  # of the socket itself, which neither library wrapped
                answer["Body"].close()
                raise (explain(error, where) if isinstance(error, TimeoutError) else cut(remote)) from None
            if done < len(into):
                raise cut(remote)
        return found


class ObstoreReader:
    """Whole objects through obstore, and what obstore cannot do through the other reader."""

    def __init__(self, s3: S3Settings, other: Reader) -> None:
        self._s3, self._other = s3, other
        self._stores: dict[str, Any] = {}
        self._refused = False

    def read(self, remote: Remote) -> Piece:
        """As the protocol says."""
        if self._refused or not PLAIN.fullmatch(remote.key) or {".", ".."} & set(remote.key.split("/")):
            return self._other.read(remote)
        import obstore

        try:
            with told_apart(clients.target(self._s3, remote.bucket, remote.key)):
                got = obstore.get(self._store(remote.bucket), remote.key)
                meta, attributes = got.meta, got.attributes
                content = memoryview(got.bytes())
        except FileNotFoundError:  # obstore's word for a missing key or bucket; boto3 tells which
            return self._other.read(remote)
        except S3Error as problem:
            # rustls takes no self-signed certificate that is its own authority, OpenSSL does: boto3 decides.
            if problem.kind != "tls":
                raise
            self._refused = True
            return self._other.read(remote)
        etag = str(meta["e_tag"] or "").strip('"')
        found = Remote(remote.bucket, remote.key, meta["size"], etag, kept_hash(attributes))
        if len(content) != found.size:
            raise cut(remote)
        return Piece(content, found)

    def read_span(self, remote: Remote, first: int, into: memoryview) -> Remote:
        """As the protocol says."""
        return self._other.read_span(remote, first, into)

    def _store(self, bucket: str) -> Any:
        if bucket not in self._stores:
            self._stores[bucket] = _obstore(self._s3, bucket)
        return self._stores[bucket]


def _obstore(s3: S3Settings, bucket: str) -> Any:
    from obstore.store import S3Store

    access, secret = clients.credentials(s3)
    verify = clients.verification(s3)
    keys = {
        "access_key_id": access.get_secret_value(),
        "secret_access_key": secret.get_secret_value(),
        "token": s3.session_token.get_secret_value() if s3.session_token else None,
        "expires_at": None,
    }
    client_options: dict[str, Any] = {
        "allow_http": s3.endpoint.startswith("http://"),
        "allow_invalid_certificates": verify is False,
        "connect_timeout": timedelta(seconds=s3.connect_timeout),
        "read_timeout": timedelta(seconds=s3.read_timeout),
        "timeout": timedelta(hours=1),  # of a whole answer: a slow line is no failure, silence is (read_timeout)
    }
    if isinstance(verify, Path):
        client_options["root_certificate"] = verify.read_bytes()
    options: dict[str, Any] = {
        "region": s3.region,
        "virtual_hosted_style_request": not clients.path_style(s3),
        "client_options": client_options,
        "retry_config": {"max_retries": 0},
        # obstore reads AWS_* by itself: what could lead it elsewhere is passed, so that the settings alone decide.
        "skip_signature": False,
        "credential_provider": lambda: keys,
    }
    if s3.endpoint:
        options |= {"endpoint": s3.endpoint, "aws_endpoint_url_s3": s3.endpoint}
    return S3Store(bucket, **options)


def described(bucket: str, key: str, answer: Mapping[str, Any]) -> Remote:
    """The Remote of boto3's answer to HEAD or GET."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    size = int(total) if total.isdigit() else int(answer["ContentLength"])
    etag = str(answer.get("ETag", "")).strip('"')
    return Remote(bucket, key, size, etag, kept_hash(answer.get("Metadata", {})))


def _fill(body: Any, into: memoryview) -> int:
    """Read into a buffer until it is full or nothing comes any more; returns how much came.

    botocore and urllib3 would hold every byte three times; the response of http.client below them fills the buffer
    straight from the socket. Where it is not found (another version of theirs), they are asked after all.
    """
    stream = getattr(body, "_raw_stream", None)
    below = getattr(stream, "_fp", None)
    done = 0
    if isinstance(below, HTTPResponse) and stream is not None:
        while done < len(into) and (count := below.readinto(into[done:])):
            done += count
        if done == len(into) and not below.length:
            stream.release_conn()
        else:
            body.close()
        return done
    while done < len(into) and (chunk := body.read(min(BLOCK, len(into) - done))):
        into[done : done + len(chunk)] = chunk
        done += len(chunk)
    return done
