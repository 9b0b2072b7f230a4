"""The servers that the other tests stand on: they are what they are said to be."""

from __future__ import annotations

import base64
import hashlib

import pytest
from botocore.exceptions import ClientError

from tests.s3.servers import Server


def test_each_server_takes_and_gives_an_object(server: Server) -> None:
    client = server.client()
    client.put_object(Bucket=server.bucket, Key="a/b c+&.txt", Body=b"hello", Metadata={"sha256": "x"})
    answer = client.get_object(Bucket=server.bucket, Key="a/b c+&.txt")
    assert answer["Body"].read() == b"hello"
    assert {name.lower(): value for name, value in answer["Metadata"].items()} == {"sha256": "x"}


@pytest.mark.parametrize("name", ["swift_tls", "rclone_tls"])
def test_tls_needs_the_bundle(request: pytest.FixtureRequest, name: str) -> None:
    server: Server = request.getfixturevalue(name)
    assert server.endpoint.startswith("https://")
    server.client().put_object(Bucket=server.bucket, Key="k", Body=b"x")
    import boto3
    from botocore.exceptions import SSLError

    stranger = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    )
    with pytest.raises(SSLError):
        stranger.list_buckets()


def test_swift_checks_what_it_receives(swift: Server) -> None:
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    with pytest.raises(ClientError, match="BadDigest"):
        swift.client().put_object(Bucket=swift.bucket, Key="k", Body=b"x", ContentMD5=wrong)


def test_a_bucket_is_fresh(rclone_server: Server) -> None:
    one, two = rclone_server.with_bucket(), rclone_server.with_bucket()
    assert one.bucket != two.bucket
    assert not one.client().list_objects_v2(Bucket=one.bucket).get("Contents")
