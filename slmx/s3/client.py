"""A client from the settings: keys checked before the first request, classic boto3 alone, nothing read from elsewhere.

A client is botocore's own, which boto3 would only wrap (and take a tenth of a second to import). It would read `AWS_*`
names, profiles and files by itself; here everything is passed, so that `slmx config show` tells all. The CRT
client of boto3 ignores a custom endpoint and cannot be chosen: slmx calls the plain operations (get_object, put_object,
upload_part), not boto3's transfer manager.
"""

from __future__ import annotations

import os
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from slmx.errors import UsageError
from slmx.s3.problems import S3Error, Target
from slmx.settings import S3Settings, source_of

PLACEHOLDER = re.compile(
    r"^(your[-_ ].*|<.*>|change[-_ ]?me|replace[-_ ]?me|x{3,}|\.{3,}|\*{3,}|example|placeholder|todo|none|null)$", re.I
)
_making = threading.Lock()  # a session makes one client at a time
SHA256_KEY = "sha256"  # metadata of an object: the SHA-256 of its content, written at upload, verified at download
KEYS = (
    ("access_key", "CLEARML_S3_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ("secret_key", "CLEARML_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
)


def is_aws(s3: S3Settings) -> bool:
    """Is it Amazon's own service? No endpoint means AWS."""
    host = urlsplit(s3.endpoint).hostname or ""
    return not s3.endpoint or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def path_style(s3: S3Settings) -> bool:
    """host/bucket/key instead of bucket.host/key: what every server but AWS's can do."""
    return not is_aws(s3) if s3.path_style is None else s3.path_style


def verification(s3: S3Settings) -> bool | Path:
    """True, False, or the CA bundle that the server's certificate is checked against; UsageError where it is absent."""
    verify = s3.ca_bundle if s3.verify_ssl is True and s3.ca_bundle else s3.verify_ssl
    if isinstance(verify, Path) and not verify.is_file():
        raise UsageError(
            f"There is no CA bundle {verify}.",
            hint="Set CLEARML_S3_VERIFY_SSL to true, false or the path of a PEM file.",
        )
    return verify


def checksum_mode(s3: S3Settings) -> str:
    """boto3's default (trailing checksums) fails with 411 on many servers, so `auto` keeps it for AWS alone.

    Nothing is lost: slmx sends Content-MD5 with every upload and verifies a SHA-256 of its own.
    """
    if s3.checksum_mode != "auto":
        return s3.checksum_mode
    return "when_supported" if is_aws(s3) else "when_required"


def credentials(s3: S3Settings) -> tuple[SecretStr, SecretStr]:
    """Access and secret key; S3Error ("credentials") names the one that is missing or still a placeholder."""
    for name, own, fallback in KEYS:
        value = getattr(s3, name)
        if value is None or not value.get_secret_value().strip():
            raise S3Error(
                f"{own} is not set.",
                kind="credentials",
                hint=f"Looked for {own}, then {fallback}, in the environment and in .env of this folder. "
                "`slmx config init` writes a .env to fill in.",
            )
        if PLACEHOLDER.match(value.get_secret_value().strip()):
            raise S3Error(
                f"{own} still holds a placeholder (read from {source_of(f's3.{name}')}).",
                kind="credentials",
                hint=f"Put the real key there, or unset it to use {fallback}.",
            )
    assert s3.access_key is not None and s3.secret_key is not None
    return s3.access_key, s3.secret_key


def check_endpoint(s3: S3Settings) -> None:
    """UsageError where the endpoint is not an address of the form http(s)://host[:port]."""
    if not s3.endpoint:
        return
    parts = urlsplit(s3.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"CLEARML_S3_ENDPOINT is {s3.endpoint.rpartition('@')[2]!r}, no address such as https://host:9000.",
            hint="`slmx config show` tells where it comes from.",
        )
    if parts.username or parts.password:
        raise UsageError(
            "CLEARML_S3_ENDPOINT holds a name or password.", hint="Put keys into CLEARML_S3_ACCESS_KEY and _SECRET_KEY."
        )


def check(s3: S3Settings) -> None:
    """What of the settings can be found wrong without a request; raises as `connect` does."""
    check_endpoint(s3)
    credentials(s3)
    verification(s3)


def connect(s3: S3Settings, *, retries: int | None = None) -> Any:
    """A boto3 S3 client. It may be shared by threads. No request is made here.

    Args:
        s3: the settings.
        retries: another number than the settings', for a diagnosis that wants the first answer.

    Raises:
        S3Error: keys are missing or placeholders.
        UsageError: the endpoint or the CA bundle is wrong.
    """
    check_endpoint(s3)
    access, secret = credentials(s3)
    verify = verification(s3)
    if verify is False:  # whoever switched it off knows; a warning a request tells nobody anything (`s3 test` says it)
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    from botocore.config import Config

    config = Config(
        region_name=s3.region,
        signature_version="s3v4",
        s3={"addressing_style": "path" if path_style(s3) else "virtual"},
        retries={"mode": "standard", "total_max_attempts": 1 + (s3.retries if retries is None else retries)},
        connect_timeout=s3.connect_timeout,
        read_timeout=s3.read_timeout,
        max_pool_connections=s3.concurrency + 4,
        request_checksum_calculation=checksum_mode(s3),
        response_checksum_validation=checksum_mode(s3),
        user_agent_extra="slmx",
    )
    with _making:
        return _session().create_client(
            "s3",
            endpoint_url=s3.endpoint or None,
            aws_access_key_id=access.get_secret_value(),
            aws_secret_access_key=secret.get_secret_value(),
            aws_session_token=s3.session_token.get_secret_value() if s3.session_token else None,
            use_ssl=not s3.endpoint.startswith("http://"),
            verify=str(verify) if isinstance(verify, Path) else verify,
            config=config,
        )


@cache
def _session() -> Any:
    """One for all clients: the description of S3 that it holds takes a tenth of a second to read."""
    import botocore.session

    # A profile or a config file of the AWS tools that is broken or foreign must not change what the settings say.
    core = botocore.session.Session()
    core.set_config_variable("config_file", os.devnull)
    core.set_config_variable("credentials_file", os.devnull)
    core.set_config_variable("profile", "default")
    core.full_config["profiles"].setdefault("default", {})
    return core


def data_bucket(s3: S3Settings, asked: str = "") -> str:
    """The bucket of datasets: --bucket, else SLMX_S3_DATA_BUCKET, else CLEARML_S3_BUCKET; UsageError without any."""
    return _bucket(asked or s3.data_bucket or s3.bucket, "--bucket, SLMX_S3_DATA_BUCKET or CLEARML_S3_BUCKET")


def artifact_bucket(s3: S3Settings, asked: str = "") -> str:
    """The bucket of experiments: --bucket, else CLEARML_S3_BUCKET; UsageError without any."""
    return _bucket(asked or s3.bucket, "--bucket or CLEARML_S3_BUCKET")


def _bucket(name: str, where: str) -> str:
    if not name:
        raise UsageError("No bucket is named.", hint=f"Give {where}.")
    if PLACEHOLDER.match(name):
        raise UsageError(f"The bucket's name {name!r} is a placeholder.", hint=f"Give {where}.")
    return name


def target(s3: S3Settings, bucket: str = "", key: str = "") -> Target:
    """What a request is about, for `told_apart`."""
    return Target(s3.endpoint, bucket, key)
