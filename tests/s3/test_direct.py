"""Our own reader: botocore is the referee of its signatures and listings, and takes over whatever is unclear."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr

from slmx.s3.direct import DirectReader, Unclear, _Signer, speaks
from slmx.s3.listing import pages
from slmx.s3.objects import Piece, Remote
from slmx.settings import S3Settings
from tests.s3.proxy import Busy, Proxy
from tests.s3.servers import Server
from tests.s3.tools import settings_of, store_of, through

ODD_KEYS = (
    "plain",
    "a b/c+d%41&e=f",
    "ü/日本.txt",
    "tilde~(x)!*'",
    "x//y",
    "./dot",
    "up/../down",
    "/first",
    "folder/x/",
)
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nETag: "e"\r\n\r\nabc'
OBJECT = Remote("b", "k", 3, "e")


@pytest.mark.parametrize("token", ["", "session/token+="])
@pytest.mark.parametrize("key", ["", *ODD_KEYS])
def test_requests_are_signed_as_botocore_signs_them(key: str, token: str) -> None:
    from urllib.parse import quote

    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    s3 = S3Settings(
        endpoint="http://h:9000",
        region="eu-1",
        access_key=SecretStr("AK"),
        secret_key=SecretStr("s&cr$t+~^"),
        session_token=SecretStr(token) if token else None,
    )
    path = "/bucket" + (f"/{quote(key)}" if key else "")
    query = "" if key else "continuation-token=a%2Bb%3D%3D&list-type=2&prefix=x%20y%2F"
    head = _Signer(s3).request("GET", path, query, {"Range": "bytes=0-1"}).decode()
    headers = dict(line.split(":", 1) for line in head.split("\r\n")[1:-2])
    request = AWSRequest("GET", f"http://h:9000{path}{'?' + query if query else ''}")
    signed = ("x-amz-date", "x-amz-content-sha256", *(["x-amz-security-token"] if token else []))
    for name in signed:
        request.headers[name] = headers[name]
    request.context["timestamp"] = headers["x-amz-date"]
    referee = S3SigV4Auth(Credentials("AK", "s&cr$t+~^", token or None), "s3", "eu-1")
    signature = referee.signature(referee.string_to_sign(request, referee.canonical_request(request)), request)
    found = re.search(r"Signature=([0-9a-f]{64})$", headers["authorization"])
    assert found and found[1] == signature
    assert headers["Range"] == "bytes=0-1"


def test_a_line_break_in_a_header_is_never_sent() -> None:
    s3 = S3Settings(endpoint="http://h", access_key=SecretStr("a"), secret_key=SecretStr("s"))
    with pytest.raises(Unclear):
        _Signer(s3).request("GET", "/b/k", "", {"If-Match": '"x"\nevil: 1'})


@pytest.mark.parametrize("name", ["swift", "rclone", "moto", "swift_tls", "rclone_tls"])
def test_objects_ranges_and_listings_are_botocores(name: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    client, store = server.client(), store_of(server)
    for number, key in enumerate(ODD_KEYS):
        if name.startswith("rclone") and key in ("x//y", "./dot", "up/../down", "/first", "folder/x/"):
            continue  # its objects are files
        client.put_object(
            Bucket=server.bucket, Key=key, Body=f"{number}: {key}".encode() * 100, Metadata={"Other": "x"}
        )
    theirs = [
        Remote(server.bucket, e.key, e.size, e.etag)
        for page in pages(client, server.bucket, recursive=True)
        for e in page
    ]
    direct = store.quick
    assert isinstance(direct, DirectReader)
    ours, token = direct.page(server.bucket, "", "")
    assert ours == theirs and not token and len(ours) >= 4
    for remote in ours:
        content = client.get_object(Bucket=server.bucket, Key=remote.key)["Body"].read()
        assert bytes(direct.read(remote).content) == content
        into = memoryview(bytearray(50))
        assert direct.read_span(remote, 7, into).etag == remote.etag
        assert bytes(into) == content[7:57]
        assert store.look(server.bucket, remote.key) == Remote(remote.bucket, remote.key, remote.size, remote.etag)
    assert "client" not in vars(store)


def test_botocore_goes_on_where_a_listing_breaks_off(moto: Server) -> None:
    client = moto.client()
    for number in range(1005):
        client.put_object(Bucket=moto.bucket, Key=f"k{number:04}", Body=b"x")
    with Proxy(moto.endpoint) as proxy:
        proxy.faults.append(Busy("down", lambda sent: "continuation-token" in sent.target))
        store = store_of(through(moto, proxy.endpoint))
        assert [remote.key for remote in store.list(moto.bucket)] == [f"k{number:04}" for number in range(1005)]
        assert proxy.faults[0].happened == 1
        assert len(proxy.requests) == 3  # a page, one that failed, and that one again


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[S3Settings, list[bytes]]]:
    """A server that sends these bytes, one a request, whatever is asked; b"" closes the connection instead."""
    listener, asked, left = socket.create_server(("127.0.0.1", 0)), [], list(answers)

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                while left and (request := line.recv(65536)):
                    asked.append(request)
                    if not (answer := left.pop(0)):
                        break
                    line.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield S3Settings(endpoint=endpoint, access_key=SecretStr("a"), secret_key=SecretStr("s"), read_timeout=5), asked
    finally:
        listener.close()


class Other:
    """Who is asked what is unclear."""

    def read(self, remote: Remote) -> Piece:
        return Piece(b"botocore's", remote)

    def read_span(self, remote: Remote, first: int, into: memoryview) -> Remote:
        into[:] = b"o" * len(into)
        return remote


def test_a_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    with answering(OK, b"", OK) as (s3, asked):
        reader = DirectReader(s3, Other())
        assert [bytes(reader.read(OBJECT).content) for _ in range(2)] == [b"abc", b"abc"]
    assert len(asked) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere/\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: e\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000,
        b"no HTTP at all\r\n\r\n",
    ],
)
def test_of_unclear_answers_nothing_is_concluded(answer: bytes) -> None:
    with answering(answer) as (s3, asked):
        assert DirectReader(s3, Other()).read(OBJECT).content == b"botocore's"
    assert len(asked) == 1


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Length: 3\r\nETag: "e"\r\n',  # no range at all
        b'Content-Length: 3\r\nETag: "e"\r\nContent-Range: bytes 1-3/9\r\n',  # another one
        b'Content-Length: 3\r\nETag: "f"\r\nContent-Range: bytes 2-4/9\r\n',  # of another version
        b'Content-Length: 4\r\nETag: "e"\r\nContent-Range: bytes 2-4/9\r\n',  # more than was asked for
    ],
)
def test_a_range_that_is_not_the_one_asked_for_is_not_taken(head: bytes) -> None:
    into = memoryview(bytearray(3))
    with answering(b"HTTP/1.1 206 Partial Content\r\n" + head + b"\r\nabcd") as (s3, _):
        DirectReader(s3, Other()).read_span(Remote("b", "k", 9, "e"), 2, into)
    assert bytes(into) == b"ooo"


@pytest.mark.parametrize("body", [b"<Error/>", b"no xml", b"<ListBucketResult><Contents/></ListBucketResult>", b""])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_listing_that_is_none_is_unclear(body: bytes, chunked: bool) -> None:
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    with answering(b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n\r\n" + sent) as (s3, _), pytest.raises(Unclear):
        DirectReader(s3, Other()).page("b", "", "")


def test_behind_a_proxy_and_on_aws_others_read(monkeypatch: pytest.MonkeyPatch, rclone: Server) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    s3 = settings_of(rclone)
    assert speaks(s3)
    assert not speaks(s3.model_copy(update={"endpoint": ""}))
    assert not speaks(s3.model_copy(update={"path_style": False}))
    assert not speaks(s3.model_copy(update={"endpoint": s3.endpoint + "/base"}))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert not speaks(s3)


@pytest.mark.parametrize("backend", ["direct", "obstore", "boto3"])
def test_every_back_end_reads_the_same(rclone: Server, backend: str) -> None:
    rclone.client().put_object(Bucket=rclone.bucket, Key="k", Body=b"0123456789")
    store = store_of(rclone, backend=backend)
    (remote,) = store.list(rclone.bucket)
    into = memoryview(bytearray(4))
    store.quick.read_span(remote, 3, into)
    assert (bytes(store.quick.read(remote).content), bytes(into)) == (b"0123456789", b"3456")
