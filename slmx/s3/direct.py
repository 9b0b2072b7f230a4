"""Reading over HTTP/1.1 of our own: signed GETs on connections that stay open, bytes straight into their buffer.

Of 2,000 objects of 64 KiB, read one after the other, each costs botocore 2 ms of processor time, obstore 0.25 ms, this
0.13 ms; and a command that only reads need not import botocore, which takes a quarter of a second.

Only plain answers are understood: 200 and 206 with a Content-Length and nothing unusual. Of whatever else comes
(a redirect, a refusal, an unknown certificate, an object of another size) nothing is concluded here: botocore asks
again, and it knows all of S3 and tells what is wrong. Signatures: AWS Signature Version 4,
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hmac
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote_plus, urlsplit

from slmx.s3 import client as clients
from slmx.s3.objects import Piece, Reader, Remote, cut, kept_hash
from slmx.s3.problems import explain
from slmx.settings import S3Settings, proxied

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

R = TypeVar("R")
HEAD = 32 << 10  # bytes that the head of an answer may have
LISTING = 8 << 20  # bytes that a page of a listing may have: 1,000 keys of 1 KiB, all of them escaped
NOTHING = sha256(b"").hexdigest()
KEPT = f"x-amz-meta-{clients.SHA256_KEY}"
HEADERS = re.compile(  # those that count, of the twenty of an answer
    rf"\r\n(content-length|content-range|transfer-encoding|connection|etag|{KEPT}):[ \t]*([^\r\n]*)", re.I
)


class Unclear(Exception):
    """An answer that only botocore understands."""


def speaks(s3: S3Settings) -> bool:
    """Can this be asked here: an endpoint of its own, the bucket in the path, no proxy between?"""
    return bool(s3.endpoint) and clients.path_style(s3) and not urlsplit(s3.endpoint).path.strip("/") and not proxied()


class DirectReader:
    """Objects, ranges, looks and pages of listings by plain GETs and HEADs; what is unclear is asked of `other`."""

    def __init__(self, s3: S3Settings, other: Reader) -> None:
        self._idle: list[_Line] = []
        self._s3, self._other = s3, other
        self._sign = _Signer(s3)
        self._refused = False

    def read(self, remote: Remote) -> Piece:
        """As the protocol says."""

        def read(line: _Line, answer: _Answer) -> Piece:
            if answer.length != remote.size:
                raise Unclear  # another version by now
            content = memoryview(bytearray(remote.size))
            line.fill(content)
            return Piece(content, answer.describes(remote, answer.length))

        try:
            return self._get(remote, {}, read)
        except Unclear:
            return self._other.read(remote)

    def read_span(self, remote: Remote, first: int, into: memoryview) -> Remote:
        """As the protocol says."""
        wanted = f"{first}-{first + len(into) - 1}"

        def read(line: _Line, answer: _Answer) -> Remote:
            # Servers ignore headers: `rclone serve s3` answers 200 and the range all the same, others send everything.
            found = answer.describes(remote, remote.size)
            ranged = answer.headers.get("content-range") == f"bytes {wanted}/{remote.size}"
            if not ranged or answer.length != len(into) or found.etag != remote.etag:
                raise Unclear
            line.fill(into)
            return found

        try:
            return self._get(remote, {"Range": f"bytes={wanted}", "If-Match": f'"{remote.etag}"'}, read)
        except Unclear:
            return self._other.read_span(remote, first, into)

    def look(self, bucket: str, key: str) -> Remote:
        """What a HEAD says of an object.

        Raises:
            Unclear: ask botocore.
            S3Error: the connection broke, or no answer came in time.
        """
        remote = Remote(bucket, key, 0, "")
        return self._get(remote, {}, lambda _line, answer: answer.describes(remote, answer.length), method="HEAD")

    def page(self, bucket: str, prefix: str, after: str) -> tuple[list[Remote], str]:
        """Up to 1,000 objects below a prefix, and the token of the next page, "" for the last one.

        Args:
            after: the token that came with the page before.

        Raises:
            as `look` does.
        """
        from xml.etree.ElementTree import ParseError, fromstring

        asked = {"continuation-token": after, "encoding-type": "url", "list-type": "2", "prefix": prefix}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items() if value)
        remote = Remote(bucket, "", 0, "")
        try:
            content = self._get(remote, {}, lambda line, answer: line.rest(answer), query=query)
            return _listed(fromstring(content), bucket)
        except (ParseError, ValueError):
            raise Unclear from None

    def _get(
        self,
        remote: Remote,
        headers: Mapping[str, str],
        read: Callable[[_Line, _Answer], R],
        *,
        method: str = "GET",
        query: str = "",
    ) -> R:
        """Send one request and let `read` take the body of its answer."""
        path = "/" + quote(remote.bucket) + (f"/{quote(remote.key)}" if remote.key else "")
        request = self._sign.request(method, path, query, headers)
        try:
            line, answer = self._ask(request)
            try:
                taken = read(line, answer)
            except BaseException:
                line.close()  # with whatever is still to come
                raise
        except TimeoutError as error:
            raise explain(error, clients.target(self._s3, remote.bucket, remote.key)) from None
        except OSError:
            raise cut(remote) from None
        if line.holds_more or answer.headers.get("connection", "").lower() == "close":
            line.close()
        else:
            self._idle.append(line)
        return taken

    def _ask(self, request: bytes) -> tuple[_Line, _Answer]:
        """The head of a good answer and the connection that its body comes from."""
        while True:
            line, fresh = self._line()
            try:
                return line, line.ask(request)
            except TimeoutError:
                line.close()
                raise
            except OSError:
                line.close()
                if fresh:
                    raise
                # The server has closed an idle connection, as it may.
            except BaseException:
                line.close()
                raise

    def _line(self) -> tuple[_Line, bool]:
        """An idle connection or a fresh one, and whether it is fresh."""
        try:
            return self._idle.pop(), False
        except IndexError:
            pass
        if self._refused:
            raise Unclear
        try:
            return _Line(_connect(self._s3)), True
        except OSError as error:
            self._refused = type(error).__module__ == "ssl"  # a certificate is no better the next time
            raise Unclear from None

    def __del__(self) -> None:
        for line in self._idle:
            line.close()


@dataclass(frozen=True)
class _Answer:
    """The head of an answer with status 200 or 206. `length` is -1 where the body comes in chunks."""

    headers: dict[str, str]
    length: int

    def describes(self, remote: Remote, size: int) -> Remote:
        """The object that the answer is about."""
        if size < 0:
            raise Unclear
        kept = {clients.SHA256_KEY: self.headers.get(KEPT, "")}
        return Remote(remote.bucket, remote.key, size, self.headers.get("etag", "").strip('"'), kept_hash(kept))


class _Line:
    """One connection, and what it has received beyond what was asked of it."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = bytearray(HEAD)
        self._begin = self._end = 0  # of what lies in the buffer and was not taken yet

    def ask(self, request: bytes) -> _Answer:
        """Send a request and read the head of its answer.

        Raises:
            OSError: the connection broke.
            Unclear: it is not a plain good answer.
        """
        self._stream.sendall(request)
        view, self._end = memoryview(self._buffer), 0
        while (end := self._buffer.find(b"\r\n\r\n", 0, self._end)) < 0:
            if self._end == HEAD:
                raise Unclear
            self._end += self._receive(view[self._end :])
        self._begin = end + 4
        head = self._buffer[: end + 2].decode("latin-1")
        if not head.startswith(("HTTP/1.1 200", "HTTP/1.1 206")):
            raise Unclear
        headers = {name.lower(): value.rstrip() for name, value in HEADERS.findall(head)}
        length, coding = headers.get("content-length", ""), headers.get("transfer-encoding", "").lower()
        if (length and coding) or not (length.isdecimal() or coding == "chunked"):
            raise Unclear
        return _Answer(headers, int(length) if length else -1)

    def fill(self, into: memoryview) -> None:
        """Read exactly as much as `into` holds."""
        done = min(self._end - self._begin, len(into))
        into[:done] = memoryview(self._buffer)[self._begin : self._begin + done]
        self._begin += done
        while done < len(into):
            done += self._receive(into[done:])

    def rest(self, answer: _Answer) -> bytes:
        """The whole body of an answer, which may come in chunks."""
        if answer.length > LISTING:
            raise Unclear
        if answer.length >= 0:
            body = bytearray(answer.length)
            self.fill(memoryview(body))
            return bytes(body)
        raw, self._begin = self._buffer[self._begin : self._end], self._end
        while (whole := _unchunked(raw)) is None:
            if len(raw) > LISTING:
                raise Unclear
            count = self._receive(memoryview(self._buffer))
            raw += self._buffer[:count]
        return whole

    @property
    def holds_more(self) -> bool:
        """Did more come than the answer should have had?"""
        return self._begin < self._end

    def close(self) -> None:
        """Nothing more is asked here."""
        self._stream.close()

    def _receive(self, into: memoryview) -> int:
        if not (count := self._stream.recv_into(into)):
            raise ConnectionResetError
        return count


class _Signer:
    """Writes requests. They have no body; host, date and session are signed."""

    def __init__(self, s3: S3Settings) -> None:
        access, self._secret = clients.credentials(s3)
        self._access, self._region = access.get_secret_value(), s3.region
        self._token = s3.session_token.get_secret_value() if s3.session_token else ""
        self._host = urlsplit(s3.endpoint).netloc
        self._key = ("", b"")  # that of a day

    def request(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> bytes:
        """The bytes of a request.

        Args:
            method: GET or HEAD.
            path: bucket and key, percent-encoded.
            query: names in order, percent-encoded.
            headers: more of them, unsigned.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        names = "host;x-amz-content-sha256;x-amz-date" + (";x-amz-security-token" if self._token else "")
        signed = f"host:{self._host}\nx-amz-content-sha256:{NOTHING}\nx-amz-date:{stamp}\n"
        if self._token:
            signed += f"x-amz-security-token:{self._token}\n"
        canonical = f"{method}\n{path}\n{query}\n{signed}\n{names}\n{NOTHING}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key_of(stamp[:8]), text.encode(), "sha256").hex()
        more = "".join(f"{name}:{value}\n" for name, value in headers.items())
        if more.count("\n") != len(headers):
            raise Unclear  # a line break where none belongs
        lines = (
            f"{method} {path}{'?' + query if query else ''} HTTP/1.1\n{signed}{more}"
            f"authorization:AWS4-HMAC-SHA256 Credential={self._access}/{scope},SignedHeaders={names},"
            f"Signature={signature}\naccept-encoding:identity\nuser-agent:slmx\n\n"
        )
        return lines.replace("\n", "\r\n").encode()

    def _key_of(self, day: str) -> bytes:
        known, key = self._key
        if known != day:
            key = f"AWS4{self._secret.get_secret_value()}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, key)
        return key


def _connect(s3: S3Settings) -> socket.socket:
    parts = urlsplit(s3.endpoint)
    secure = parts.scheme == "https"
    stream = socket.create_connection((parts.hostname or "", parts.port or (443 if secure else 80)), s3.connect_timeout)
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            import ssl

            verify = clients.verification(s3)
            context = ssl.create_default_context(cafile=str(verify) if isinstance(verify, Path) else None)
            if verify is False:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream, server_hostname=parts.hostname)
        stream.settimeout(s3.read_timeout)
    except BaseException:
        stream.close()
        raise
    return stream


def _unchunked(raw: bytes | bytearray) -> bytes | None:
    """The body of which these are the chunks; None while they are not complete. ValueError where they are none."""
    parts: list[bytes | bytearray] = []
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size, at = int(raw[at:end].partition(b";")[0], 16), end + 2
        if size == 0:
            return b"".join(parts) if raw.endswith(b"\r\n\r\n") else None
        parts.append(raw[at : at + size])
        at += size + 2
    return None


def _listed(root: Element, bucket: str) -> tuple[list[Remote], str]:
    """The objects of a ListBucketResult and the token of the next page; ValueError where it is something else."""
    space, _, name = root.tag.rpartition("}")
    if name != "ListBucketResult":
        raise ValueError
    space = f"{space}}}" if space else ""
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    found = []
    for entry in root.iterfind(f"{space}Contents"):
        key, size, etag = (entry.findtext(space + name) or "" for name in ("Key", "Size", "ETag"))
        found.append(Remote(bucket, decode(key), int(size), etag.strip('"')))
    more = root.findtext(f"{space}IsTruncated") == "true"
    token = root.findtext(f"{space}NextContinuationToken") or ""
    if more and not token:
        raise ValueError
    return found, token if more else ""
