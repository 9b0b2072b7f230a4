"""What a bucket really does when it is written to: the second part of `slmx s3 test`, run with --test-operations.

Everything is written under one fresh name and taken away again, whatever happens.
"""

from __future__ import annotations

import os
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import md5, sha256
from typing import Any

from slmx.s3.client import SHA256_KEY, connect
from slmx.s3.problems import Target, explain
from slmx.s3.reach import Line
from slmx.settings import S3Settings

SIZE = 64 * 1024
LENGTH_REQUIRED = 411


class Scratch:
    """A fresh name in a bucket, and all that was written under it."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client, self.bucket = client, bucket
        self.folder = f"{prefix}.slmx-test-{uuid.uuid4().hex}/"
        self._keys: list[str] = []
        self._uploads: list[tuple[str, str]] = []

    def key(self, name: str) -> str:
        """A key under the fresh name; remembered before it is written."""
        self._keys.append(self.folder + name)
        return self._keys[-1]

    def upload(self, key: str) -> str:
        """Open a multipart upload and remember it."""
        opened = str(self.client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"])
        self._uploads.append((key, opened))
        return opened

    def clear(self) -> Line:
        """Take everything away; the line says what could not be."""
        left = []
        for key, upload in self._uploads:
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
            except Exception as error:
                if status(error) != 404:  # aborted by its own probe
                    left.append(f"the upload {upload} of {key}")
        for key in self._keys:
            try:
                self.client.delete_object(Bucket=self.bucket, Key=key)
            except Exception:
                left.append(key)
        if left:
            hint = "`slmx s3 cleanup` ends open uploads; delete the keys by hand."
            return Line(check="clean-up", outcome="fail", said=f"left behind: {', '.join(left)}", hint=hint)
        return Line(check="clean-up", outcome="ok", said="nothing is left behind")


def operations(s3: S3Settings, bucket: str, prefix: str, stopped: Callable[[], bool]) -> Iterator[Line]:
    """Put, get, range, delete; checksum modes; conditional write; multipart. The last line is the clean-up's."""
    with closing(connect(s3)) as client:
        scratch = Scratch(client, bucket, prefix)
        content = os.urandom(SIZE)
        probes: tuple[Callable[[], Iterator[Line]], ...] = (
            lambda: _put(scratch, content),
            lambda: _get(scratch, content),
            lambda: _damaged(scratch),
            lambda: _checksums(scratch, s3),
            lambda: _conditional(scratch),
            lambda: _multipart(scratch),
            lambda: _delete(scratch),
        )
        try:
            for probe in probes:
                lines = list(probe())
                yield from lines
                if stopped() or (lines[0].check == "put" and lines[0].outcome == "fail"):
                    break  # what cannot be written cannot be read back either
        finally:
            cleared = scratch.clear()
        yield cleared


def _put(scratch: Scratch, content: bytes) -> Iterator[Line]:
    metadata = {SHA256_KEY: sha256(content).hexdigest()}
    try:
        put = scratch.client.put_object(
            Bucket=scratch.bucket, Key=scratch.key("object"), Body=content, Metadata=metadata
        )
    except Exception as error:
        yield failed("put", error)
        return
    yield Line(check="put", outcome="ok", said=f"{SIZE >> 10} KiB written")
    if str(put.get("ETag", "")).strip('"') == md5(content, usedforsecurity=False).hexdigest():
        yield Line(check="ETag", outcome="ok", said="the MD5 of the content: uploads are compared by it")
    else:
        yield Line(check="ETag", outcome="warn", said="no MD5 of the content", hint="Uploads are read back to compare.")


def _get(scratch: Scratch, content: bytes) -> Iterator[Line]:
    key = scratch.folder + "object"
    try:
        got = scratch.client.get_object(Bucket=scratch.bucket, Key=key)
        body = got["Body"].read()
        kept = {name.lower(): value for name, value in got.get("Metadata", {}).items()}
        yield _compared("get", body, content)
        if kept.get(SHA256_KEY) == sha256(content).hexdigest():
            yield Line(check="metadata", outcome="ok", said="the SHA-256 stored with an object comes back")
        else:
            hint = "Downloads from here are checked by ETag where that is an MD5, else they are unverified."
            yield Line(check="metadata", outcome="warn", said="the SHA-256 stored with an object is lost", hint=hint)
        first, last = SIZE // 3, 2 * SIZE // 3
        part = scratch.client.get_object(Bucket=scratch.bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()
        yield _compared("range", part, content[first : last + 1])
    except Exception as error:
        yield failed("get", error)


def _compared(check: str, got: bytes, sent: bytes) -> Line:
    if got == sent:
        return Line(check=check, outcome="ok", said=f"{len(got):,} bytes, the same as written")
    place = next((i for i, (a, b) in enumerate(zip(got, sent, strict=False)) if a != b), min(len(got), len(sent)))
    said = f"{len(got):,} bytes came back for {len(sent):,}; the first difference is at byte {place:,}"
    hint = "Something on the way changes content (a proxy, a broken disk): trust nothing from here."
    return Line(check=check, outcome="fail", said=said, hint=hint)


def _damaged(scratch: Scratch) -> Iterator[Line]:
    """A body that does not fit its Content-MD5 has to be refused."""
    wrong = b64encode(md5(b"another body", usedforsecurity=False).digest()).decode()
    key = scratch.key("damaged")
    try:
        scratch.client.put_object(Bucket=scratch.bucket, Key=key, Body=b"a body", ContentMD5=wrong)
    except Exception as error:
        if status(error) in (400, 422):
            yield Line(check="damage", outcome="ok", said="a damaged upload is refused (Content-MD5)")
        else:
            yield failed("damage", error)
        return
    hint = "slmx compares the ETag after an upload; other tools may not notice damage."
    yield Line(check="damage", outcome="warn", said="a damaged upload is taken: Content-MD5 is not checked", hint=hint)


def _checksums(scratch: Scratch, s3: S3Settings) -> Iterator[Line]:
    """botocore's default sends a checksum behind the body, which older servers do not take."""
    mode = s3.model_copy(update={"checksum_mode": "when_supported"})
    with closing(connect(mode)) as client:
        try:
            client.put_object(Bucket=scratch.bucket, Key=scratch.key("checksum"), Body=b"with a checksum")
        except Exception as error:
            yield _no_checksums(error, s3)
            return
    yield Line(check="checksums", outcome="ok", said="when_supported works: checksums behind the body are taken")


def _no_checksums(error: Exception, s3: S3Settings) -> Line:
    chosen = s3.checksum_mode
    if status(error) == LENGTH_REQUIRED:
        said = "411 Length Required: an older server that does not take checksums behind the body (aws-chunked)"
    else:
        said = f"when_supported fails: {told(error)}"
    if chosen == "when_supported":
        hint = "Set SLMX_S3__CHECKSUM_MODE=auto or when_required; other boto3 programs need "
        hint += "AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
        return Line(check="checksums", outcome="fail", said=said, hint=hint)
    hint = f"slmx is set to {chosen} and does not send them; other boto3 programs need "
    hint += "AWS_REQUEST_CHECKSUM_CALCULATION=when_required."
    return Line(check="checksums", outcome="warn", said=said, hint=hint)


def _conditional(scratch: Scratch) -> Iterator[Line]:
    """`If-None-Match: *` is the only way to be sure that nobody else's file is overwritten."""
    key = scratch.key("condition")
    hint = "Without --overwrite slmx looks before it writes, but another writer may come in between."
    try:
        scratch.client.put_object(Bucket=scratch.bucket, Key=key, Body=b"first", IfNoneMatch="*")
    except Exception as error:
        said = f"If-None-Match is refused: {told(error)}"
        yield Line(check="condition", outcome="warn", said=said, hint=hint)
        return
    try:
        scratch.client.put_object(Bucket=scratch.bucket, Key=key, Body=b"second", IfNoneMatch="*")
    except Exception as error:
        if status(error) in (409, 412):
            yield Line(check="condition", outcome="ok", said="If-None-Match is honoured, one writer after another")
        else:
            yield failed("condition", error)
        return
    yield Line(check="condition", outcome="warn", said="If-None-Match is ignored", hint=hint)


def _multipart(scratch: Scratch) -> Iterator[Line]:
    key = scratch.key("multipart")
    try:
        upload = scratch.upload(key)
        where = {"Bucket": scratch.bucket, "Key": key, "UploadId": upload}
        scratch.client.upload_part(**where, PartNumber=1, Body=b"one part")
        scratch.client.abort_multipart_upload(**where)
    except Exception as error:
        yield failed("multipart", error)
        return
    try:
        scratch.client.list_parts(**where)
    except Exception as error:
        if status(error) == 404:
            yield Line(check="multipart", outcome="ok", said="opened, a part sent, and aborted without a trace")
        else:
            said = f"aborted, but whether it is gone cannot be seen: {told(error)}"
            yield Line(check="multipart", outcome="warn", said=said)
        return
    hint = "`slmx s3 cleanup` lists what is open and ends it."
    yield Line(check="multipart", outcome="fail", said="an aborted upload is still there", hint=hint)


def _delete(scratch: Scratch) -> Iterator[Line]:
    key = scratch.folder + "object"
    try:
        scratch.client.delete_object(Bucket=scratch.bucket, Key=key)
    except Exception as error:
        yield failed("delete", error)
        return
    try:
        scratch.client.head_object(Bucket=scratch.bucket, Key=key)
    except Exception as error:
        gone = status(error) == 404
        yield Line(check="delete", outcome="ok", said="deleted, and gone") if gone else failed("delete", error)
        return
    yield Line(check="delete", outcome="fail", said="a deleted object is still there", hint="Is there a cache between?")


def status(error: Exception) -> int:
    """The HTTP status of a failed request; 0 when none came."""
    answer = getattr(error, "response", None)
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(answer, dict) else 0


def code(error: Exception) -> str:
    """S3's word for a refusal ("AccessDenied"); "" when there was no answer."""
    answer = getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def told(error: Exception) -> str:
    """Status and code of a refusal, or what the network did. The server's own words are not repeated."""
    if status(error) or code(error):
        return " ".join(dict.fromkeys(filter(None, (str(status(error) or ""), code(error)))))
    return explain(error, Target("the server")).what.rstrip(".")


def failed(check: str, error: Exception) -> Line:
    """The line of a request that failed."""
    hints = {
        403: "Ask the bucket's owner for the right to do this.",
        404: "The bucket or the key went away while it was tested.",
        411: "411 Length Required: set SLMX_S3__CHECKSUM_MODE=when_required.",
        507: "The server's disk is full.",
    }
    return Line(check=check, outcome="fail", said=told(error), hint=hints.get(status(error), ""))
