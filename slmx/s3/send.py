"""One file into one object: MD5 with every request, ETags compared or the object read back, its SHA-256 kept."""

from __future__ import annotations

import uuid
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from hashlib import md5, sha256
from pathlib import Path
from typing import Any, Literal

from slmx.errors import SlmxError
from slmx.files import hash_file
from slmx.pool import TICK, Pool, Stopped, settle
from slmx.s3 import client as clients
from slmx.s3.fetch import SMALL, WINDOW
from slmx.s3.objects import Remote
from slmx.s3.problems import Kind, S3Error, told_apart
from slmx.s3.retries import PASSING, again
from slmx.s3.store import Store
from slmx.s3.verify import MIB, PIECE, file_etag, is_md5, multipart_etag, remote_sha256
from slmx.signals import Stop

MOST_PARTS = 10_000
TRIES = 3  # of a whole object that arrives damaged
RESENT: frozenset[Kind] = PASSING | {"damaged"}  # failures after which the same request is sent again
IN_MEMORY = WINDOW * PIECE
PROBE = b"Written by slmx to see whether the server keeps conditions. It may be deleted.\n"

Atomic = Literal["yes", "no", "unknown", ""]


@dataclass(frozen=True)
class Sent:
    """What was written: its SHA-256, how it was compared, and whether the server's answer to the condition is known."""

    sha256: str
    verified: Literal["etag", "read back"]
    atomic: Atomic


@dataclass(frozen=True)
class Upload:
    """One upload: from where to where, under which condition, and who is told.

    `pool` has threads for the parts. It is None where a thread of a pool calls: to wait there for others of the same
    pool could be for ever, so should the file prove to be large, its parts get a pool of their own.
    """

    store: Store
    path: Path
    bucket: str
    key: str
    overwrite: bool
    pool: Pool | None
    stop: Stop
    moved: Callable[[int], None]

    def ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        """One request of boto3 about this object."""
        with told_apart(clients.target(self.store.s3, self.bucket, self.key)):
            answer: dict[str, Any] = getattr(self.store.client, operation)(Bucket=self.bucket, Key=self.key, **fields)
        return answer


def send(upload: Upload) -> Sent:
    """Upload one file; without `overwrite` on condition that there is no such object (`If-None-Match: *`).

    Raises:
        S3Error: kind "precondition" when the object came into being meanwhile, "damaged" when what the server has
            differs from what was sent even after several tries (it is taken away again), ….
        SlmxError: the file changed while it was read.
        Stopped: somebody asked to stop. Whatever is raised, no multipart upload stays open.
    """
    one = _send_small if upload.path.stat().st_size <= SMALL else _send_large
    written: Remote | None = None
    for _ in range(TRIES):
        try:
            # A second try replaces our own damaged object; one that the server refused has left nothing to replace.
            digest, written, verified, atomic = one(upload, upload.overwrite or written is not None)
        except S3Error as problem:
            if problem.kind != "damaged":
                raise
            continue
        if verified:
            return Sent(digest, "etag", atomic)
        if remote_sha256(upload.store, written, upload.stop) == digest:
            return Sent(digest, "read back", atomic)
        upload.moved(-written.size)
    if written is not None:
        _take_away(upload, written)
    raise S3Error(
        f"s3://{upload.bucket}/{upload.key} arrived damaged {TRIES} times, and nothing of it was kept.",
        kind="damaged",
        hint="Something on the way or on the server changes bytes; try another line or endpoint.",
    )


def keeps_conditions(upload: Upload) -> Literal["yes", "no"]:
    """Does the server refuse a second write under If-None-Match? Asked with an object of its own beside the upload's.

    On the uploaded object the question would be a write that nobody verifies, over what others may have put there.

    Raises:
        S3Error: it could not be found out, or what was written for it could not be taken away.
    """
    beside = replace(upload, key=f"{upload.key[: upload.key.rfind('/') + 1]}.slmx-test-{uuid.uuid4().hex}")
    try:
        beside.ask("put_object", Body=PROBE)
        beside.ask("put_object", Body=PROBE, IfNoneMatch="*")
    except S3Error as problem:
        if problem.kind not in ("precondition", "unsupported"):
            raise
        return "yes" if problem.kind == "precondition" else "no"
    finally:
        beside.ask("delete_object")
    return "no"


def _send_small(upload: Upload, overwrite: bool) -> tuple[str, Remote, bool, Atomic]:
    content = upload.path.read_bytes()
    digest, sum_ = sha256(content).hexdigest(), md5(content, usedforsecurity=False)
    if upload.stop.asked:
        raise Stopped
    fields = {
        "Body": content,
        "ContentMD5": b64encode(sum_.digest()).decode(),
        "Metadata": {clients.SHA256_KEY: digest},
    }
    answer, atomic = _conditionally(upload, overwrite, digest, "put_object", fields)
    upload.moved(len(content))
    etag = str(answer.get("ETag", "")).strip('"')
    return digest, Remote(upload.bucket, upload.key, len(content), etag), etag == sum_.hexdigest(), atomic


def _send_large(upload: Upload, overwrite: bool) -> tuple[str, Remote, bool, Atomic]:
    size = upload.path.stat().st_size
    digest = hash_file(upload.path)
    opened = str(upload.ask("create_multipart_upload", Metadata={clients.SHA256_KEY: digest})["UploadId"])
    try:
        digests, compared = _send_parts(upload, opened, size, digest)
        parts = [{"PartNumber": number, "ETag": etag} for number, (_, etag) in enumerate(digests, 1)]
        fields = {"UploadId": opened, "MultipartUpload": {"Parts": parts}}
        answer, atomic = _conditionally(upload, overwrite, digest, "complete_multipart_upload", fields)
    except BaseException:
        _abort(upload, opened)
        raise
    etag = str(answer.get("ETag", "")).strip('"')
    if not etag and (there := upload.store.look(upload.bucket, upload.key)):  # Ceph 16 answers with an empty one
        etag = there.etag
    whole = etag == multipart_etag([sum_ for sum_, _ in digests]) or (is_md5(etag) and file_etag(upload.path) == etag)
    return digest, Remote(upload.bucket, upload.key, size, etag), compared and whole, atomic


def _send_parts(upload: Upload, opened: str, size: int, digest: str) -> tuple[list[tuple[bytes, str]], bool]:
    """MD5 and ETag of every part, in order, and whether all ETags were MD5s that could be compared."""
    part = max(PIECE, -(-size // MOST_PARTS // MIB) * MIB)
    at_most = max(1, min(IN_MEMORY // part, upload.store.s3.concurrency))
    waiting: deque[tuple[int, Future[tuple[bytes, str, bool]]]] = deque()
    done: list[tuple[bytes, str]] = []
    compared, read, number = True, sha256(), 0
    pool = upload.pool or Pool(at_most)
    try:
        with upload.path.open("rb") as stream:
            while True:
                while len(waiting) < at_most and (content := stream.read(part)):
                    number += 1
                    read.update(content)
                    job = _part_job(upload, opened, number, content)
                    waiting.append((len(content), pool.submit(job)))
                    del content, job  # the queue alone holds the bytes
                if not waiting:
                    break
                while not wait([waiting[0][1]], timeout=TICK).done:
                    if upload.stop.asked:
                        raise Stopped
                if upload.stop.asked:
                    raise Stopped
                length, future = waiting.popleft()
                sum_, etag, equal = future.result()
                done.append((sum_, etag))
                compared = compared and equal
                upload.moved(length)
    finally:
        settle([future for _, future in waiting])  # a part that lands after the abort would stay
        if pool is not upload.pool:
            pool.close()
    if read.hexdigest() != digest:
        raise SlmxError(f"{upload.path} changed while it was read.", hint="Run the command again when it is finished.")
    return done, compared


def _part_job(upload: Upload, opened: str, number: int, content: bytes) -> Callable[[], tuple[bytes, str, bool]]:
    def once() -> tuple[bytes, str, bool]:
        sum_ = md5(content, usedforsecurity=False)
        answer = upload.ask(
            "upload_part",
            UploadId=opened,
            PartNumber=number,
            Body=content,
            ContentMD5=b64encode(sum_.digest()).decode(),
        )
        etag = str(answer.get("ETag", "")).strip('"')
        return sum_.digest(), etag, etag == sum_.hexdigest()

    def job() -> tuple[bytes, str, bool]:
        tries = upload.store.s3.retries
        try:
            return again(once, tries=tries, stop=upload.stop)
        except S3Error as problem:
            if problem.kind != "damaged":
                raise
            first = problem
        try:
            return again(once, tries=tries, stop=upload.stop)
        except S3Error:  # not every server takes a part a second time: then the whole object is sent again
            raise first from None

    return job


def _conditionally(
    upload: Upload, overwrite: bool, digest: str, operation: str, fields: dict[str, Any]
) -> tuple[dict[str, Any], Atomic]:
    """The request that makes the object appear, on condition that there is none, where the server knows conditions."""
    tries = upload.store.s3.retries

    def once(**condition: str) -> dict[str, Any]:
        return again(lambda: upload.ask(operation, **fields, **condition), tries=tries, stop=upload.stop, kinds=RESENT)

    if overwrite:
        return once(), ""
    try:
        return once(IfNoneMatch="*"), "unknown"
    except S3Error as problem:
        if problem.kind == "unsupported":
            return once(), "no"
        if problem.kind not in ("precondition", "no-key"):
            raise
        # A request whose answer was lost is sent again, and then our own object stands in its way.
        there = upload.store.look(upload.bucket, upload.key)
        if there is None or there.sha256 != digest:
            raise
        return {"ETag": there.etag}, "yes"


def _abort(upload: Upload, opened: str) -> None:
    try:
        upload.ask("abort_multipart_upload", UploadId=opened)
    except S3Error:  # the first error is the one to tell; `slmx s3 cleanup` finds what stays
        return


def _take_away(upload: Upload, written: Remote) -> None:
    there = upload.store.look(upload.bucket, upload.key)
    if there is not None and there.etag == written.etag:
        upload.ask("delete_object")
