"""What transfers need of a bucket: list it, look at one object, read bytes of one. Three back ends read.

Measured (benchmarks/s3.py): the reader of slmx.s3.direct costs the least and is the default wherever it can be used;
obstore reads small objects behind a proxy and on AWS itself; botocore reads what neither understands, and it alone
writes, since obstore cannot send Content-MD5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from slmx.s3 import client as clients
from slmx.s3.direct import DirectReader, Unclear, speaks
from slmx.s3.listing import pages
from slmx.s3.objects import Reader, Remote
from slmx.s3.problems import S3Error, explain, told_apart
from slmx.s3.readers import BotoReader, ObstoreReader, described
from slmx.settings import S3Settings


class Store:
    """One endpoint with its keys: listings, looks and reads. Safe to share between threads.

    Raises:
        S3Error: keys are missing or placeholders.
        UsageError: the endpoint or the CA bundle is wrong.
    """

    def __init__(self, s3: S3Settings) -> None:
        clients.check(s3)
        self.s3 = s3
        self.plain: Reader = BotoReader(s3)
        self._direct = DirectReader(s3, self.plain) if s3.backend in ("auto", "direct") and speaks(s3) else None
        others = self.plain if s3.backend == "boto3" else ObstoreReader(s3, self.plain)
        self.quick: Reader = self._direct or others

    @cached_property
    def client(self) -> Any:
        """botocore's client; made when something needs it, since that takes a quarter of a second."""
        return clients.connect(self.s3)

    def list(self, bucket: str, prefix: str = "") -> Iterator[Remote]:
        """Every object under a prefix in the server's order, page by page, without folder markers (`name/`, empty).

        Raises:
            S3Error: no such bucket, denied, …; an empty bucket simply gives nothing.
        """
        for page in self._pages(bucket, prefix):
            yield from (remote for remote in page if remote.size or not remote.key.endswith("/"))

    def _pages(self, bucket: str, prefix: str) -> Iterator[Sequence[Remote]]:
        token = ""
        try:
            while self._direct:
                page, token = self._direct.page(bucket, prefix, token)
                yield page
                if not token:
                    return
        except (Unclear, S3Error):  # botocore goes on, with its retries, and tells what is wrong
            pass
        for entries in pages(self.client, bucket, prefix, recursive=True, after=token):
            yield [Remote(bucket, entry.key, entry.size, entry.etag) for entry in entries]

    def look(self, bucket: str, key: str) -> Remote | None:
        """One object without its content; None when it is absent. A missing bucket is an error."""
        try:
            if self._direct:
                return self._direct.look(bucket, key)
        except (Unclear, S3Error):
            pass
        try:
            with told_apart(clients.target(self.s3, bucket, key)):
                return described(bucket, key, self.client.head_object(Bucket=bucket, Key=key))
        except S3Error as problem:
            if problem.kind != "no-key":
                raise
        with told_apart(clients.target(self.s3, bucket)):  # a HEAD has no body that would tell the two apart
            self.client.head_bucket(Bucket=bucket)
        return None

    def first_part(self, remote: Remote) -> int:
        """Bytes of the first part of a multipart object, 0 where the server does not tell."""
        try:
            answer = self.client.head_object(Bucket=remote.bucket, Key=remote.key, PartNumber=1)
        except Exception as error:
            if explain(error, clients.target(self.s3, remote.bucket, remote.key)).kind in ("timeout", "unreachable"):
                raise
            return 0
        size = int(answer["ContentLength"])
        return size if size < remote.size else 0
