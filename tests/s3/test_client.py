"""Clients from settings: what is sent where, and what is said when something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from slmx import settings
from slmx.errors import UsageError
from slmx.s3.client import checksum_mode, connect, data_bucket, path_style, verification
from slmx.s3.problems import S3Error, Target, explain
from slmx.settings import S3Settings

KEYS = {"access_key": SecretStr("AKIAEXAMPLEKEY"), "secret_key": SecretStr("s3cr$et@&+~^#x")}


def with_keys(**more: object) -> S3Settings:
    return S3Settings(**{**KEYS, **more})  # type: ignore[arg-type]


def test_a_secret_in_dotenv_is_read_letter_by_letter(empty_folder: Path) -> None:
    Path(".env").write_text("CLEARML_S3_SECRET_KEY=a$b${HOME}@&+~^%d\nCLEARML_S3_ACCESS_KEY='k$1'\n")
    s3 = settings.load().s3
    assert s3.secret_key is not None
    assert s3.access_key is not None
    assert s3.secret_key.get_secret_value() == "a$b${HOME}@&+~^%d"
    assert s3.access_key.get_secret_value() == "k$1"
    assert "b$" not in repr(s3) + str(s3)


def test_aws_names_are_fallbacks_one_by_one_but_keys_only_as_a_pair(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://aws",
        "AWS_DEFAULT_REGION": "eu-1",
        "AWS_ACCESS_KEY_ID": "aws-key",
        "AWS_SECRET_ACCESS_KEY": "aws-secret",
        "AWS_SESSION_TOKEN": "aws-token",
    }.items():
        monkeypatch.setenv(name, value)
    s3 = settings.load().s3
    assert (s3.endpoint, s3.region) == ("http://aws", "eu-1")
    assert s3.session_token is not None
    Path(".env").write_text("CLEARML_S3_ACCESS_KEY=mine\nCLEARML_S3_REGION=eu-2\n")
    s3 = settings.load().s3
    assert (s3.endpoint, s3.region) == ("http://aws", "eu-2")
    assert s3.access_key is not None
    assert s3.access_key.get_secret_value() == "mine"
    assert s3.secret_key is None
    assert s3.session_token is None


def test_data_lives_in_its_own_bucket_where_one_is_set(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_S3_BUCKET", "artifacts")
    assert data_bucket(settings.load().s3) == "artifacts"
    monkeypatch.setenv("SLMX_S3_DATA_BUCKET", "data")
    assert data_bucket(settings.load().s3) == "data"
    assert data_bucket(settings.load().s3, "asked") == "asked"
    with pytest.raises(UsageError, match="No bucket"):
        data_bucket(S3Settings())


def test_the_choices_that_depend_on_the_server() -> None:
    ours, aws = with_keys(endpoint="https://minio.lan:9000"), with_keys()
    assert (checksum_mode(ours), path_style(ours)) == ("when_required", True)
    assert (checksum_mode(aws), path_style(aws)) == ("when_supported", False)
    assert checksum_mode(with_keys(checksum_mode="when_required")) == "when_required"
    config = connect(ours).meta.config
    assert config.request_checksum_calculation == "when_required"
    assert config.s3["addressing_style"] == "path"


def test_verification_is_on_off_or_a_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert verification(with_keys()) is True
    assert verification(with_keys(verify_ssl="false", ca_bundle=bundle)) is False
    assert verification(with_keys(verify_ssl=str(bundle))) == bundle
    assert verification(with_keys(ca_bundle=bundle)) == bundle
    with pytest.raises(UsageError, match="no CA bundle"):
        verification(with_keys(verify_ssl=str(tmp_path / "absent.pem")))


@pytest.mark.parametrize("value", ["your-access-key-here", "YOUR_ACCESS_KEY", "<key>", "changeme", "xxxx", "  "])
def test_a_placeholder_is_not_sent(value: str) -> None:
    with pytest.raises(S3Error, match="CLEARML_S3_ACCESS_KEY") as error:
        connect(with_keys(access_key=SecretStr(value)))
    assert (error.value.kind, error.value.code) == ("credentials", 2)


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://x", "https://", "https://user:pass-word@host"])
def test_an_endpoint_that_is_none_is_refused_without_its_password(endpoint: str) -> None:
    with pytest.raises(UsageError, match="CLEARML_S3_ENDPOINT") as error:
        connect(with_keys(endpoint=endpoint))
    assert "pass-word" not in str(error.value)


def test_the_repr_of_a_client_and_an_unknown_error_tell_no_secret() -> None:
    client = connect(with_keys(endpoint="http://127.0.0.1:9"))
    assert "s3cr$et" not in repr(client) + repr(client.meta.config)
    said = explain(RuntimeError("s3cr$et@&+~^#x"), Target("http://h", "b", "k"))
    assert "s3cr$et" not in str(said)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, "denied"),
        ("InvalidAccessKeyId", 403, "credentials"),
        ("SignatureDoesNotMatch", 403, "credentials"),
        ("NoSuchBucket", 404, "no-bucket"),
        ("NoSuchKey", 404, "no-key"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("PreconditionFailed", 412, "precondition"),
        ("MissingContentLength", 411, "length-required"),
        ("SlowDown", 503, "busy"),
        ("NotImplemented", 501, "unsupported"),
        ("BadDigest", 400, "damaged"),
        ("Whatever", 418, "other"),
    ],
)
def test_answers_of_the_server_are_told_apart(code: str, status: int, kind: str) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    problem = explain(ClientError(answer, "GetObject"), Target("http://h", "b", "k"))  # type: ignore[arg-type]
    assert problem.kind == kind
    assert problem.hint
