"""Is it the same content? SHA-256 where one is kept with the object, ETags where they are MD5, bytes otherwise.

A single-request object's ETag is the MD5 of its content on most servers. A multipart object's is the MD5 of its parts'
MD5s, `-` and their number: it can be recomputed when the size of the parts is known or guessed. Where neither fits,
nothing is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import md5, sha256
from pathlib import Path
from typing import Literal

from slmx.files import BLOCK, hash_file
from slmx.s3.objects import Remote
from slmx.s3.pool import again
from slmx.s3.store import Store
from slmx.signals import Stop

Verified = Literal["sha256", "etag", "unverified"]
MIB = 1 << 20
PART_SIZES = (8, 5, 16, 10, 15, 25, 32, 50, 64, 100, 128, 256, 512)  # MiB, of the usual tools
PIECE = 8 * MIB
MANY = 16  # pieces, from which on they are twice as large


def is_md5(etag: str) -> bool:
    """Does it look like the MD5 of a content? (It need not be one.)"""
    return re.fullmatch(r"[0-9a-f]{32}", etag) is not None


def parts_of(etag: str) -> int:
    """The number of parts that a multipart ETag names, else 0."""
    found = re.fullmatch(r"[0-9a-f]{32}-(\d+)", etag)
    return int(found[1]) if found else 0


def part_sizes(size: int, parts: int) -> Iterator[int]:
    """Sizes of parts, in bytes, that make this number of parts: those of the usual tools, then the smallest of all."""
    if not parts:
        return
    least = -(-size // parts)
    candidates = [part * MIB for part in PART_SIZES] + [-(-least // MIB) * MIB, least]
    yield from dict.fromkeys(part for part in candidates if part and -(-size // part) == parts)


def multipart_etag(digests: list[bytes]) -> str:
    """The ETag of a multipart object from the MD5s of its parts."""
    return f"{md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def file_etag(path: Path, part: int = 0) -> str:
    """What the ETag of a file would be: in one request, or in parts of this many bytes."""
    digests = []
    with path.open("rb") as stream:
        while True:
            digest, left = md5(usedforsecurity=False), part or -1
            while left and (block := stream.read(BLOCK if left < 0 else min(BLOCK, left))):
                digest.update(block)
                left -= len(block) if part else 0
            if part and left == part:  # nothing more to read
                break
            digests.append(digest.digest())
            if not part:
                break
    return multipart_etag(digests) if part else digests[0].hex()


def matches_etag(path: Path, store: Store, remote: Remote) -> bool | None:
    """Has the file's content this object's ETag? None where that cannot be told: parts of unknown size."""
    if is_md5(remote.etag):
        return file_etag(path) == remote.etag
    parts = parts_of(remote.etag)
    if not parts:
        return None
    if told := store.first_part(remote):
        return file_etag(path, told) == remote.etag
    return any(file_etag(path, size) == remote.etag for size in part_sizes(remote.size, parts)) or None


def same_content(path: Path, store: Store, remote: Remote, stop: Stop, *, read: bool = False) -> bool:
    """Have the file and the object the same content? Reads the object where nothing else can tell, or always (`read`).

    Raises:
        S3Error: the object cannot be looked at or read.
    """
    if path.stat().st_size != remote.size:
        return False
    if not read:
        if is_md5(remote.etag) and file_etag(path) == remote.etag:
            return True
        seen = remote if remote.sha256 else store.look(remote.bucket, remote.key)
        if seen is None:
            return False
        if seen.sha256:
            return hash_file(path) == seen.sha256
        if not is_md5(remote.etag) and matches_etag(path, store, remote):
            return True
    return hash_file(path) == remote_sha256(store, remote, stop)


def remote_sha256(store: Store, remote: Remote, stop: Stop) -> str:
    """SHA-256 of what the server sends for an object: the bytes themselves, not what is written about them."""
    digest, buffer = sha256(), memoryview(bytearray(min(2 * PIECE, remote.size)))
    for first, last in spans(remote.size):
        view = buffer[: last - first]
        again(
            lambda first=first, view=view: store.quick.read_span(remote, first, view),  # type: ignore[misc]
            tries=store.s3.retries,
            stop=stop,
        )
        digest.update(view)
    return digest.hexdigest()


def spans(size: int) -> Iterator[tuple[int, int]]:
    """Consecutive pieces of an object, first and behind-last byte; nothing for an empty one."""
    piece = PIECE if size < MANY * PIECE else 2 * PIECE  # fewer requests; more at once would cost memory
    for first in range(0, size, piece):
        yield first, min(first + piece, size)
