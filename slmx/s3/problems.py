"""What can go wrong with a bucket, told apart: one error for each cause, with what to look at next.

boto3, obstore and the network say the same thing in many ways; `explain` makes one SlmxError of them. Their own
messages are never quoted: they may hold what nobody should read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from slmx.errors import FAILED, REFUSED, WRONG_USAGE, SlmxError

Kind = Literal[
    "credentials",
    "denied",
    "no-bucket",
    "no-key",
    "tls",
    "timeout",
    "unreachable",
    "clock",
    "precondition",
    "length-required",
    "busy",
    "damaged",
    "unsupported",
    "other",
]


class S3Error(SlmxError):
    """A failure of the store, with its cause as one word (`kind`) for those who decide by it."""

    def __init__(self, what: str, *, kind: Kind, hint: str = "") -> None:
        code = {"credentials": WRONG_USAGE, "precondition": REFUSED}.get(kind, FAILED)
        super().__init__(what, hint=hint, code=code)
        self.kind = kind


@dataclass(frozen=True)
class Target:
    """What a request was about, for the message."""

    endpoint: str
    bucket: str = ""
    key: str = ""

    def __str__(self) -> str:
        place = f"s3://{self.bucket}/{self.key}" if self.bucket else (self.endpoint or "AWS S3")
        return place.rstrip("/") if not self.key else place


CODES: dict[str, Kind] = {  # of S3, of HTTP, and obstore's names for them
    "AccessDenied": "denied",
    "AllAccessDisabled": "denied",
    "403": "denied",
    "InvalidAccessKeyId": "credentials",
    "SignatureDoesNotMatch": "credentials",
    "InvalidToken": "credentials",
    "ExpiredToken": "credentials",
    "401": "credentials",
    "NoSuchBucket": "no-bucket",
    "NoSuchKey": "no-key",
    "404": "no-key",
    "RequestTimeTooSkewed": "clock",
    "RequestExpired": "clock",
    "PreconditionFailed": "precondition",
    "ConditionalRequestConflict": "precondition",
    "412": "precondition",
    "MissingContentLength": "length-required",
    "411": "length-required",
    "SlowDown": "busy",
    "ServiceUnavailable": "busy",
    "InternalError": "busy",
    "500": "busy",
    "502": "busy",
    "503": "busy",
    "504": "busy",
    "BadDigest": "damaged",
    "InvalidDigest": "damaged",
    "XAmzContentSHA256Mismatch": "damaged",
    "NotImplemented": "unsupported",
    "501": "unsupported",
    "NotFoundError": "no-key",
    "PermissionDeniedError": "denied",
    "UnauthenticatedError": "credentials",
    "PreconditionError": "precondition",
}

SAYS: dict[Kind, tuple[str, str]] = {
    "credentials": (
        "{target}: the server does not accept the keys.",
        "Check CLEARML_S3_ACCESS_KEY and CLEARML_S3_SECRET_KEY; `slmx config show` tells where each comes from.",
    ),
    "denied": ("{target}: denied. The keys are valid for the server, but not for this.", "Ask the bucket's owner."),
    "no-bucket": (
        'There is no bucket "{bucket}" on {endpoint}.',
        "Check --bucket, SLMX_S3_DATA_BUCKET and CLEARML_S3_BUCKET; `slmx s3 test` lists the buckets.",
    ),
    "no-key": ("There is no object {target}.", "`slmx s3 browse` shows what there is."),
    "tls": (
        "{endpoint}: its certificate is not trusted ({detail}).",
        "Name the authority's certificate: CLEARML_S3_VERIFY_SSL=/path/to/ca.pem. Only as a last resort: =false.",
    ),
    "timeout": ("{target}: no answer in time.", "Is the server busy? SLMX_S3__READ_TIMEOUT gives it more seconds."),
    "unreachable": (
        "{endpoint} cannot be reached ({detail}).",
        "Check CLEARML_S3_ENDPOINT; `slmx s3 test` looks closer.",
    ),
    "clock": (
        "{target}: this machine's clock differs from the server's.",
        "Set the clock; requests are signed by time.",
    ),
    "precondition": (
        "{target} changed or came into being meanwhile.",
        "Run the command again to see what is there now.",
    ),
    "length-required": (
        "{target}: the server wants a Content-Length (411) and does not take trailing checksums.",
        "Set SLMX_S3__CHECKSUM_MODE=when_required.",
    ),
    "busy": (
        "{target}: the server is overloaded or failing ({detail}).",
        "Try again later, or with a lower --concurrency.",
    ),
    "damaged": ("{target}: the bytes were damaged on the way (the server said {detail}).", "Run the command again."),
    "unsupported": (
        "{target}: the server cannot do this ({detail}).",
        "`slmx s3 test --test-operations` looks closer.",
    ),
    "other": ("{target}: {detail}.", "`slmx s3 test` looks closer."),
}


def explain(error: BaseException, target: Target) -> S3Error:
    """The S3Error for whatever boto3, obstore or the network raised; an S3Error stays what it is."""
    if isinstance(error, S3Error):
        return error
    kind, detail = _kind(error)
    if kind == "no-key" and not target.key:
        kind = "no-bucket" if target.bucket else "other"
    what, hint = SAYS[kind]
    endpoint = target.endpoint or "AWS S3"
    return S3Error(
        what.format(target=target, bucket=target.bucket, endpoint=endpoint, detail=detail), kind=kind, hint=hint
    )


@contextmanager
def told_apart(target: Target) -> Iterator[None]:
    """Turn what boto3 or obstore raise inside the block into an S3Error. Files' own errors pass."""
    try:
        yield
    except SlmxError:
        raise
    except Exception as error:
        if not is_theirs(error):
            raise
        raise explain(error, target) from None


def is_theirs(error: BaseException) -> bool:
    """Does this error come from boto3, obstore or the HTTP layer below them?"""
    return any(kind.__module__.partition(".")[0] in ("boto3", "botocore", "obstore", "urllib3", "s3transfer")
               for kind in type(error).__mro__)  # fmt: skip


def _kind(error: BaseException) -> tuple[Kind, str]:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        return _of_response(response)
    text = f"{type(error).__name__}: {error}"
    if type(error).__module__.startswith("obstore"):
        return _of_obstore(error, text)
    for cause in _causes(error):
        name = type(cause).__name__
        if "SSL" in name or "certificate" in str(cause).lower():
            return "tls", _tls_detail(str(cause))
    if "Timeout" in text:
        return ("unreachable", "no answer in time") if "Connect" in text else ("timeout", "")
    if "Connection" in text or "Protocol" in text or "IncompleteRead" in text or "ResponseStreaming" in text:
        return "unreachable", _network_detail(text)
    return "other", type(error).__name__


def _of_response(response: dict[str, Any]) -> tuple[Kind, str]:
    code = str(response.get("Error", {}).get("Code", ""))
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    kind = CODES.get(code) or CODES.get(status) or "other"
    return kind, " ".join(dict.fromkeys(filter(None, (status, code))))


def _of_obstore(error: BaseException, text: str) -> tuple[Kind, str]:
    """obstore quotes the server's answer in its message: the S3 code in it is looked for first, then the status."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    name = type(error).__name__
    status = re.search(r"status (?:code )?:?(\d{3})|\b([45]\d{2}) [A-Z][a-z]+", text)
    for said in (code and code[1], name, status and (status[1] or status[2])):
        if said and said in CODES:
            return CODES[said], said
    lower = text.lower()
    if "certificate" in lower or "unknownissuer" in lower:
        return "tls", _tls_detail(text)
    if "timed out" in lower or "timeout" in lower:
        return "timeout", ""
    if any(word in lower for word in ("connect", "dns", "sending request", "body", "incomplete", "end of file")):
        return "unreachable", _network_detail(text)
    return "other", name


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inner = getattr(error, "kwargs", {}).get("error") if hasattr(error, "kwargs") else None
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__


def _tls_detail(text: str) -> str:
    lower = text.lower()
    for words, said in (
        (("self-signed", "self signed", "unknownissuer", "local issuer"), "self-signed or of an unknown authority"),
        (("expired",), "expired"),
        (("hostname mismatch", "notvalidforname", "doesn't match"), "made for another host name"),
    ):
        if any(word in lower for word in words):
            return said
    return "TLS failed"


def _network_detail(text: str) -> str:
    lower = text.lower()
    for words, said in (
        (("refused",), "connection refused"),
        (("name or service", "resolve", "dns", "nodename"), "unknown host name"),
        (("reset", "closed", "aborted", "incomplete", "end of file", "body"), "the connection broke"),
    ):
        if any(word in lower for word in words):
            return said
    return "network failure"
