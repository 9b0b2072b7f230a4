"""`slmx s3 test`: what is wrong with this bucket, line by line, from the host's name to the known files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from slmx.errors import SlmxError
from slmx.events import Listener, Progress, nobody
from slmx.records import Record
from slmx.registry import nearest
from slmx.s3 import known
from slmx.s3.client import connect, verification
from slmx.s3.download import SHARED_BUCKET, find
from slmx.s3.probes import code, operations, status, told
from slmx.s3.reach import Line, reach
from slmx.s3.store import Store
from slmx.s3.verify import is_md5
from slmx.settings import S3Settings

if TYPE_CHECKING:
    from rich.text import Text

BAD_KEYS = {
    "InvalidAccessKeyId": "The server does not know this access key (CLEARML_S3_ACCESS_KEY).",
    "SignatureDoesNotMatch": "CLEARML_S3_ACCESS_KEY and CLEARML_S3_SECRET_KEY do not fit each other. In a shell a "
    "secret with $, & or # needs single quotes; look for a blank at its end.",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to these keys.",
    "ExpiredToken": "The session has ended: fetch new keys.",
    "RequestTimeTooSkewed": "This machine's clock is wrong: `timedatectl set-ntp true`.",
    "AuthorizationHeaderMalformed": "Most often a wrong region (CLEARML_S3_REGION).",
}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


class Diagnosis(Record, frozen=True):
    """What `slmx s3 test` found. `passed`: all that was asked for holds (a warning does not break it)."""

    endpoint: str
    bucket: str
    prefix: str
    passed: bool
    lines: list[Line]


def diagnose(
    s3: S3Settings,
    *,
    bucket: str,
    prefix: str = "",
    test_operations: bool = False,
    check_datasets: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    listen: Listener = nobody,
) -> Diagnosis:
    """Look at everything in turn; what cannot be looked at after a failure is said to be skipped.

    Args:
        s3: where and who; retries and waits are cut short, since a diagnosis should not take minutes.
        bucket: the bucket to look at.
        prefix: the part of it that matters.
        test_operations: write, read and delete under a fresh name.
        check_datasets: look for the known files, here and in the bucket that is shared by convention.
        stopped: becomes true when somebody wants to stop; what was written is cleaned up first.
        listen: told of each line.
    """
    quick = s3.model_copy(update={"retries": min(s3.retries, 1), "read_timeout": min(s3.read_timeout, 20.0)})
    lines: list[Line] = []

    def take(found: Iterator[Line]) -> None:
        for line in found:
            lines.append(line)
            listen(Progress("s3 test", len(lines), None, "checks", line.check))

    take(_server(quick, bucket, prefix))
    usable = not any(line.outcome == "fail" for line in lines)
    for name, asked, found in (  # generators: nothing happens before one is taken from
        ("operations", test_operations, operations(quick, bucket, prefix, stopped)),
        ("datasets", check_datasets, _datasets(quick, bucket, prefix)),
    ):
        if asked and usable and not stopped():
            take(found)
        elif asked:
            lines.append(Line(check=name, outcome="skip", said="not looked at, because of what is said above"))
    passed = all(line.outcome in ("ok", "warn") for line in lines)
    endpoint = s3.endpoint.rpartition("@")[2] or "AWS"  # a name or password in it is an error of the first line
    return Diagnosis(endpoint=endpoint, bucket=bucket, prefix=prefix, passed=passed, lines=lines)


def problem(found: Diagnosis) -> SlmxError:
    """The error that ends the command when something does not hold: it names what, and the first thing to do."""
    wrong = [line for line in found.lines if line.outcome == "fail"]
    names = ", ".join(line.check for line in wrong)
    return SlmxError(f"{len(wrong)} of {len(found.lines)} checks failed: {names}.", hint=wrong[0].hint if wrong else "")


def render(found: Diagnosis) -> Text:
    """The lines as a person reads them."""
    from rich.text import Text

    page = Text(f"{found.endpoint}  bucket {found.bucket or '-'}  prefix {found.prefix or '-'}\n")
    wide = max((len(line.check) for line in found.lines), default=0)
    for line in found.lines:
        page.append(f"{line.outcome:<5}", style=STYLES[line.outcome]).append(f"{line.check:<{wide}}  {line.said}\n")
        if line.hint:
            page.append(f"     {'':<{wide}}  → {line.hint}\n", style="dim")
    page.rstrip()
    return page


def _server(s3: S3Settings, bucket: str, prefix: str) -> Iterator[Line]:
    try:
        client = connect(s3)
    except SlmxError as error:
        yield Line(check="settings", outcome="fail", said=error.what, hint=error.hint)
        return
    with closing(client):
        for line in _reached(client.meta.endpoint_url, s3):
            yield line
            if line.outcome == "fail":
                return
        names: list[str] = []
        for line in _keys(client, names):
            yield line
            if line.outcome == "fail":
                return
        line = _bucket(client, bucket, names)
        yield line
        if line.outcome != "fail":
            yield _prefix(client, bucket, prefix)


def _reached(url: str, s3: S3Settings) -> Iterator[Line]:
    from botocore.utils import get_environ_proxies

    if get_environ_proxies(url):
        # The proxy looks up the name and opens the connection: what we see from here says nothing.
        hint = "Add the host to NO_PROXY if it can be reached directly."
        yield Line(check="proxy", outcome="warn", said="requests go through the proxy of the environment", hint=hint)
    else:
        yield from reach(url, verification(s3), s3.connect_timeout)


def _keys(client: Any, names: list[str]) -> Iterator[Line]:
    """Credentials and the list of buckets, which one request tells; the buckets' names are added to `names`."""
    try:
        names += [entry["Name"] for entry in client.list_buckets().get("Buckets", [])]
    except Exception as error:
        if code(error) in BAD_KEYS or status(error) == 401:
            yield Line(check="credentials", outcome="fail", said=told(error), hint=BAD_KEYS.get(code(error), ""))
        elif status(error) == 403:
            yield Line(check="credentials", outcome="ok", said="the server takes the signature")
            said = "denied: these keys may not list buckets, and need not"
            yield Line(check="list buckets", outcome="warn", said=said)
        elif status(error):
            yield Line(check="list buckets", outcome="warn", said=f"not possible here: {told(error)}")
        else:
            hint = "The port answers, but not as an S3 server does: is it the console's port?"
            yield Line(check="credentials", outcome="fail", said=told(error), hint=hint)
        return
    yield Line(check="credentials", outcome="ok", said="the server takes the signature")
    yield Line(check="list buckets", outcome="ok", said=f"{len(names)} bucket{'s' if len(names) != 1 else ''}")


def _bucket(client: Any, bucket: str, names: list[str]) -> Line:
    if not bucket:
        hint = f"Set CLEARML_S3_BUCKET or give --bucket. There are: {', '.join(names[:8]) or 'none to be seen'}."
        return Line(check="bucket", outcome="fail", said="no bucket is named", hint=hint)
    try:
        client.head_bucket(Bucket=bucket)
    except Exception as error:
        found = status(error)
        if found == 404:
            near = nearest(bucket, names)
            hint = f'Did you mean "{near}"?' if near else "Ask its owner to make it, or name another with --bucket."
            return Line(check="bucket", outcome="fail", said=f"404: there is no bucket {bucket}", hint=hint)
        if found == 403:
            hint = "It exists, or its name may not even be asked for: ask its owner for the right to use it."
            return Line(check="bucket", outcome="fail", said=f"403: access to {bucket} is denied", hint=hint)
        hint = "The bucket lies in another region: CLEARML_S3_REGION." if found in (301, 307, 400) else ""
        return Line(check="bucket", outcome="fail", said=told(error), hint=hint)
    return Line(check="bucket", outcome="ok", said=f"{bucket} is there")


def _prefix(client: Any, bucket: str, prefix: str) -> Line:
    try:
        page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except Exception as error:
        hint = "Without the right to list, folders cannot be fetched or compared: ask the bucket's owner."
        return Line(check="prefix", outcome="fail", said=f"listing fails: {told(error)}", hint=hint)
    where = prefix or bucket
    if page.get("Contents"):
        return Line(check="prefix", outcome="ok", said=f"{where} holds objects")
    if not prefix:
        return Line(check="prefix", outcome="ok", said=f"{bucket} is empty")
    hint = "Is it spelled right? Prefixes know upper and lower case, and most end with /."
    return Line(check="prefix", outcome="warn", said=f"nothing lies under {prefix}", hint=hint)


def _datasets(s3: S3Settings, bucket: str, prefix: str) -> Iterator[Line]:
    store = Store(s3)
    for file in known.FILES:
        yield _dataset(store, file, bucket, prefix)


def _dataset(store: Store, file: known.Known, bucket: str, prefix: str) -> Line:
    try:
        found = find(store, bucket, file.keys(prefix))
    except SlmxError as error:
        return Line(check=file.name, outcome="fail", said=error.what, hint=error.hint)
    if found is None:
        hint = f"`slmx data process --mode {file.mode}` makes it from the raw file."
        if file.kind == "raw":
            hint = f"`slmx s3 upload --mode {file.mode}` puts the files of data/{file.mode} there."
        return Line(check=file.name, outcome="fail", said=f"not in {bucket}, not in {SHARED_BUCKET}", hint=hint)
    if not found.size:
        return Line(check=file.name, outcome="fail", said=f"{found.url} is empty", hint="Upload it again.")
    size = f"{found.size:,} bytes"
    if found.sha256:
        return Line(check=file.name, outcome="ok", said=f"{size}, SHA-256 {found.sha256}, {found.url}")
    if is_md5(found.etag):
        return Line(check=file.name, outcome="ok", said=f"{size}, MD5 {found.etag}, {found.url}")
    hint = "`slmx s3 upload --overwrite` stores a SHA-256 with it."
    return Line(check=file.name, outcome="warn", said=f"{size}, no hash is stored, {found.url}", hint=hint)
