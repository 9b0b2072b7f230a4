"""`slmx s3 test`: each thing that can be wrong is told apart, with something to do about it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slmx.app import run
from slmx.s3 import known, reach
from slmx.s3.test import Diagnosis, diagnose
from slmx.settings import load
from tests.s3.servers import Server, free_port, make_certificate

Use = Callable[[Server], None]


@pytest.fixture
def use(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Makes a server the one of the settings."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def set_all(server: Server) -> None:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)

    return set_all


def outcomes(found: Diagnosis) -> dict[str, str]:
    return {line.check: line.outcome for line in found.lines}


def last(found: Diagnosis) -> reach.Line:
    return found.lines[-1]


def see(server: Server, use: Use, **asked: object) -> Diagnosis:
    use(server)
    return diagnose(load().s3, bucket=server.bucket, **asked)  # type: ignore[arg-type]


@contextmanager
def fake(
    *, date: float | None = None, status: int = 200, puts: int = 200, certificate: tuple[Path, Path] | None = None
) -> Iterator[Server]:
    """A server that knows just enough: its clock, and what it says to a PUT with a trailing checksum."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() if date is None else date, usegmt=True)

        def answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer(status)

        def do_GET(self) -> None:
            self.answer(status, b"<ListBucketResult></ListBucketResult>")

        def do_PUT(self) -> None:
            trailing = "x-amz-trailer" in self.headers or "x-amz-checksum-crc32" in self.headers
            self.close_connection = True
            self.answer(puts if trailing else 200)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Server("fake", f"{scheme}://127.0.0.1:{httpd.server_port}", "key", "top-$ecret", bucket="b")
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join(5)


def test_a_good_server_passes_and_nothing_is_left(server: Server, use: Use) -> None:
    found = see(server, use, test_operations=True)
    assert found.passed, found
    told = outcomes(found)
    for check in ("DNS", "TCP", "clock", "credentials", "bucket", "put", "get", "range", "delete", "multipart"):
        assert told[check] == "ok", check
    assert told["condition"] == ("warn" if server.name == "rclone" else "ok")
    assert told["damage"] == ("warn" if server.name == "moto" else "ok")
    client = server.client()
    assert not client.list_objects_v2(Bucket=server.bucket).get("Contents")
    assert not client.list_multipart_uploads(Bucket=server.bucket).get("Uploads")


@pytest.mark.parametrize("name", ["swift_tls", "rclone_tls"])
def test_a_self_signed_certificate_passes_with_its_bundle(request: pytest.FixtureRequest, name: str, use: Use) -> None:
    server: Server = request.getfixturevalue(name)
    found = see(server, use, test_operations=True)
    assert found.passed, found
    assert outcomes(found)["TLS"] == "ok"
    # rclone refuses botocore's default checksums over TLS, as older servers do.
    assert outcomes(found)["checksums"] == ("warn" if name == "rclone_tls" else "ok")


def test_without_the_bundle_it_is_suggested_before_switching_off(rclone_tls: Server, use: Use) -> None:
    found = see(replace(rclone_tls, ca_bundle=""), use)
    line = last(found)
    assert (line.check, line.outcome, found.passed) == ("TLS", "fail", False)
    assert 0 < line.hint.index("CLEARML_S3_VERIFY_SSL=/path/to/ca.pem") < line.hint.index("CLEARML_S3_VERIFY_SSL=false")


def test_switched_off_verification_is_a_warning(rclone_tls: Server, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rclone_tls)
    monkeypatch.setenv("CLEARML_S3_VERIFY_SSL", "false")
    found = diagnose(load().s3, bucket=rclone_tls.bucket)
    assert found.passed
    assert outcomes(found)["TLS"] == "warn"


def test_an_expired_certificate_and_one_about_to_expire(tmp_path: Path, use: Use) -> None:
    for days, outcome in ((-1, "fail"), (3, "warn")):
        certificate = make_certificate(tmp_path, days=days)
        with fake(certificate=certificate) as server:
            found = see(replace(server, ca_bundle=str(certificate[0])), use)
        assert outcomes(found)["TLS"] == outcome


def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, address="127.0.0.9")
    with fake(certificate=certificate) as server:
        line = list(reach.reach(server.endpoint, certificate[0], 5))[-1]
    assert (line.check, line.outcome) == ("TLS", "fail")
    assert "another name" in line.said


def test_http_where_https_is_spoken_and_the_other_way_round(rclone_tls: Server, rclone: Server, use: Use) -> None:
    found = see(replace(rclone, endpoint=rclone.endpoint.replace("http:", "https:")), use)
    assert (last(found).check, last(found).outcome) == ("TLS", "fail")
    assert rclone.endpoint in last(found).hint
    found = see(replace(rclone_tls, endpoint=rclone_tls.endpoint.replace("https:", "http:")), use)
    assert not found.passed


def test_an_unknown_host(use: Use) -> None:
    found = see(Server("none", "https://host.invalid:9000", "k", "s", bucket="b"), use)
    assert (last(found).check, last(found).outcome) == ("DNS", "fail")
    assert "CLEARML_S3_ENDPOINT" in last(found).hint


def test_a_closed_port(use: Use) -> None:
    found = see(Server("none", f"http://127.0.0.1:{free_port()}", "k", "s", bucket="b"), use)
    assert (last(found).check, last(found).outcome) == ("TCP", "fail")
    assert "closed" in last(found).said


def test_a_port_where_nobody_speaks(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMX_S3__CONNECT_TIMEOUT", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = see(Server("none", f"http://127.0.0.1:{silent.getsockname()[1]}", "k", "s", bucket="b"), use)
    assert (last(found).check, last(found).outcome) == ("clock", "fail")


@pytest.mark.parametrize("minutes", [-20, 20])
def test_a_clock_that_is_off(minutes: int, use: Use) -> None:
    with fake(date=time.time() + 60 * minutes) as server:
        line = last(see(server, use))
    assert (line.check, line.outcome) == ("clock", "fail")
    assert ("ahead" if minutes < 0 else "behind") in line.said


def test_a_clock_that_is_a_little_off_is_a_warning(use: Use) -> None:
    with fake(date=time.time() - 300) as server:
        assert outcomes(see(server, use))["clock"] == "warn"


@pytest.mark.parametrize("name", ["swift", "rclone"])
@pytest.mark.parametrize("wrong", [{"access_key": "nobody"}, {"secret_key": "not-the-secret"}])
def test_wrong_keys(request: pytest.FixtureRequest, name: str, wrong: dict[str, str], use: Use) -> None:
    server: Server = request.getfixturevalue(name)
    found = see(replace(server, **wrong), use)
    assert (last(found).check, last(found).outcome) == ("credentials", "fail")
    assert "CLEARML_S3_" in last(found).hint


def test_missing_and_placeholder_keys(use: Use) -> None:
    found = see(Server("none", "http://127.0.0.1:1", "", "", bucket="b"), use)
    assert (last(found).check, last(found).outcome) == ("settings", "fail")
    found = see(Server("none", "http://127.0.0.1:1", "k", "your-secret-key-here", bucket="b"), use)
    assert "placeholder" in last(found).said


@pytest.mark.parametrize("name", ["swift", "rclone", "moto"])
def test_a_wrong_bucket_is_404_and_the_nearest_is_named(request: pytest.FixtureRequest, name: str, use: Use) -> None:
    server: Server = request.getfixturevalue(name)
    found = see(replace(server, bucket=server.bucket[:-1]), use)
    assert (last(found).check, last(found).outcome) == ("bucket", "fail")
    assert "404" in last(found).said
    assert "Did you mean" in last(found).hint


def test_denied_is_403_and_a_denied_list_of_buckets_is_not_fatal(swift: Server, use: Use) -> None:
    found = see(replace(swift, access_key="test:guest", secret_key="guesting"), use)
    told = outcomes(found)
    assert (told["credentials"], told["list buckets"], told["bucket"]) == ("ok", "warn", "fail")
    assert "403" in last(found).said


def test_no_bucket_named(rclone: Server, use: Use) -> None:
    found = see(replace(rclone, bucket=""), use)
    assert (last(found).check, last(found).outcome) == ("bucket", "fail")


def test_an_empty_prefix_is_a_warning(rclone: Server, use: Use) -> None:
    rclone.client().put_object(Bucket=rclone.bucket, Key="here/a", Body=b"x")
    assert outcomes(see(rclone, use, prefix="here/"))["prefix"] == "ok"
    found = see(rclone, use, prefix="There/")
    assert outcomes(found)["prefix"] == "warn"
    assert found.passed


def test_411_is_diagnosed_by_name(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake(puts=411) as server:
        lines = {line.check: line for line in see(server, use, test_operations=True).lines}
        assert lines["checksums"].outcome == "warn"
        assert "411 Length Required" in lines["checksums"].said
        monkeypatch.setenv("SLMX_S3__CHECKSUM_MODE", "when_supported")
        lines = {line.check: line for line in see(server, use, test_operations=True).lines}
    assert lines["put"].outcome == "fail"
    assert "411 Length Required" in lines["put"].hint


def test_content_that_comes_back_changed_is_found(moto: Server, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    from slmx.s3 import probes

    real = probes.connect

    def flipping(s3: object) -> object:
        client = real(s3)  # type: ignore[arg-type]
        get = client.get_object

        def get_object(**asked: object) -> object:
            answer = get(**asked)
            body = bytearray(answer["Body"].read())
            body[len(body) // 2] ^= 1
            import io

            return {**answer, "Body": io.BytesIO(bytes(body))}

        client.get_object = get_object
        return client

    monkeypatch.setattr(probes, "connect", flipping)
    told = outcomes(see(moto, use, test_operations=True))
    assert (told["get"], told["range"], told["clean-up"]) == ("fail", "fail", "ok")


def test_it_is_cleaned_up_after_a_failure_in_the_middle(
    rclone: Server, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmx.s3 import probes

    def explode(*_: object) -> Iterator[reach.Line]:
        raise KeyboardInterrupt

    monkeypatch.setattr(probes, "_multipart", explode)
    with pytest.raises(KeyboardInterrupt):
        see(rclone, use, test_operations=True)
    assert not rclone.client().list_objects_v2(Bucket=rclone.bucket).get("Contents")


def test_the_known_files_with_size_and_hash(rclone: Server, use: Use) -> None:
    client = rclone.client()
    for file in known.FILES:
        key = file.keys("p/")[-1 if file.kind in ("train", "eval") else 0]  # the older layout is found as well
        client.put_object(Bucket=rclone.bucket, Key=key, Body=b"content", Metadata={"sha256": "ab" * 32})
    found = see(rclone, use, prefix="p/", check_datasets=True)
    assert found.passed, found
    lines = {line.check: line.said for line in found.lines}
    assert "7 bytes" in lines["nq_full_dataset.json"]
    assert "ab" * 32 in lines["nq_full_dataset.json"]
    client.delete_object(Bucket=rclone.bucket, Key="p/simple_qa_converted.json")
    client.put_object(Bucket=rclone.bucket, Key="p/nq_full_dataset.json", Body=b"")
    found = see(rclone, use, prefix="p/", check_datasets=True)
    assert {line.check for line in found.lines if line.outcome == "fail"} == {
        "simple_qa_converted.json",
        "nq_full_dataset.json",
    }


def test_the_command_ends_with_1_and_shows_no_secret(
    swift: Server, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(replace(swift, secret_key="top-$ecret&+~^"))
    assert run(["s3", "test", "--json", "--verbose"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert not found["passed"]
    assert found["lines"][-1]["check"] == "credentials"
    assert "top-" not in said.out + said.err
    use(swift)
    assert run(["s3", "test", "--test-operations"]) == 0
    said = capsys.readouterr()
    assert "nothing is left behind" in said.out
    assert "testing" not in said.out + said.err
