"""Is a server there at all: its name, its port, its certificate, its clock. The first part of `slmx s3 test`."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from slmx.records import Record

Outcome = Literal["ok", "warn", "fail", "skip"]
MAX_SKEW = 15 * 60  # seconds; S3 refuses a signature that is further off
NOTED_SKEW = 60
CERTIFICATE_DAYS = 14  # an end nearer than this is worth a warning
# OpenSSL's numbers of a certificate that nobody we trust has signed: self-signed, or an issuer that is not known here.
UNTRUSTED = (18, 19, 20, 21)
WRONG_NAME = (62, 63, 64)
EXPIRED, NOT_YET_VALID = 10, 9


class Line(Record, frozen=True):
    """One line of the diagnosis: what was looked at, how it went, what was seen, and what to do about it."""

    check: str
    outcome: Outcome
    said: str
    hint: str = ""


def reach(url: str, verify: bool | Path, timeout: float) -> Iterator[Line]:
    """DNS, TCP, TLS and clock of an endpoint; the first line that fails is the last.

    Args:
        url: the endpoint, `http://…` or `https://…`.
        verify: check the certificate against the usual authorities, not at all, or against this file.
        timeout: seconds for one connection.
    """
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    for line in (_dns(host, port), _tcp(host, port, timeout)):
        yield line
        if line.outcome == "fail":
            return
    line, context = _tls(host, port, verify, timeout) if tls else (_no_tls(host), None)
    yield line
    if line.outcome != "fail":
        yield _clock(host, port, context, timeout)


def _dns(host: str, port: int) -> Line:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        hint = "Is the host in CLEARML_S3_ENDPOINT spelled right? Is the VPN on?"
        return Line(check="DNS", outcome="fail", said=f"the name {host} is not known here ({error})", hint=hint)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return Line(check="DNS", outcome="ok", said=f"{host} is {', '.join(addresses[:3])}")


def _tcp(host: str, port: int, timeout: float) -> Line:
    started = time.perf_counter()
    try:
        with socket.create_connection((host, port), timeout):
            pass
    except TimeoutError:
        hint = "A firewall that drops packets, a VPN that is off, or a wrong port."
        return Line(check="TCP", outcome="fail", said=f"port {port} does not answer within {timeout:g} s", hint=hint)
    except ConnectionRefusedError:
        hint = "The server is down, or CLEARML_S3_ENDPOINT has the wrong port (MinIO: 9000, not the console's 9001)."
        return Line(check="TCP", outcome="fail", said=f"port {port} is closed", hint=hint)
    except OSError as error:
        return Line(
            check="TCP", outcome="fail", said=f"port {port}: {error.strerror or error}", hint="Is the net there?"
        )
    return Line(check="TCP", outcome="ok", said=f"port {port} in {1000 * (time.perf_counter() - started):.0f} ms")


def _no_tls(host: str) -> Line:
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return Line(check="TLS", outcome="ok", said="none, and none needed on this machine")
    hint = "Keys are never sent, but everybody on the way can read and change the content; use https:// where you can."
    return Line(check="TLS", outcome="warn", said="none: the endpoint starts with http://", hint=hint)


def _tls(host: str, port: int, verify: bool | Path, timeout: float) -> tuple[Line, ssl.SSLContext | None]:
    try:
        context = _context(verify)
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            version, certificate = secure.version(), secure.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return _bad_certificate(error, host, port), None
    except ssl.SSLError as error:
        return _no_handshake(error, host, port), None
    except OSError as error:
        what = error.strerror or str(error) or type(error).__name__
        return Line(check="TLS", outcome="fail", said=f"no handshake: {what}", hint="Does this port speak TLS?"), None
    if verify is False:
        hint = "Anybody can pose as this server. Better: CLEARML_S3_VERIFY_SSL=/path/to/ca.pem."
        return Line(check="TLS", outcome="warn", said=f"{version}, the certificate is NOT verified", hint=hint), context
    return _good_certificate(f"{version}", str(certificate.get("notAfter", "")), verify), context


def _context(verify: bool | Path) -> ssl.SSLContext:
    if verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    from botocore.httpsession import get_cert_path

    authorities = str(verify) if isinstance(verify, Path) else get_cert_path(True)  # those that the client trusts
    return ssl.create_default_context(cafile=authorities)


def _good_certificate(version: str, ends: str, verify: bool | Path) -> Line:
    by = f"signed by {verify}" if isinstance(verify, Path) else "verified"
    said = f"{version}, certificate {by}"
    if ends:
        days = (ssl.cert_time_to_seconds(ends) - time.time()) / 86400
        said += f", valid for {days:.0f} days"
        if days < CERTIFICATE_DAYS:
            return Line(check="TLS", outcome="warn", said=said, hint="Ask the server's owner to renew it.")
    return Line(check="TLS", outcome="ok", said=said)


def _bad_certificate(error: ssl.SSLCertVerificationError, host: str, port: int) -> Line:
    if error.verify_code in UNTRUSTED:
        said = f"the certificate is signed by nobody this machine trusts ({error.verify_message})"
        hint = (
            f"Save the server's CA certificate as a file (`openssl s_client -connect {host}:{port} -showcerts` shows "
            "it; compare its fingerprint with its owner's) and set CLEARML_S3_VERIFY_SSL=/path/to/ca.pem. "
            "Only where that cannot be: CLEARML_S3_VERIFY_SSL=false switches the check off."
        )
    elif error.verify_code in WRONG_NAME:
        said, hint = f"the certificate is for another name than {host}", "Use the name it was made for as the endpoint."
    elif error.verify_code in (EXPIRED, NOT_YET_VALID):
        said = f"the certificate is out of its time ({error.verify_message})"
        hint = "Is this machine's date right? Else the server's owner has to renew it."
    else:
        said, hint = f"the certificate does not hold ({error.verify_message})", "Ask the server's owner."
    return Line(check="TLS", outcome="fail", said=said, hint=hint)


def _no_handshake(error: ssl.SSLError, host: str, port: int) -> Line:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    hint = "Ask the server's owner which TLS versions it speaks."
    if "wrong version number" in reason or "http request" in reason:
        hint = f"The port speaks plain HTTP: set CLEARML_S3_ENDPOINT=http://{host}:{port}."
    elif "no certificate or crl found" in reason or "pem" in reason:
        hint = "The CA bundle in CLEARML_S3_VERIFY_SSL is no PEM file."
    return Line(check="TLS", outcome="fail", said=f"no handshake: {reason}", hint=hint)


def _clock(host: str, port: int, context: ssl.SSLContext | None, timeout: float) -> Line:
    """The server's `Date` against ours: a signature holds for a quarter of an hour."""
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        if context
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date", "")
        now = time.time()
    except (http.client.HTTPException, OSError) as error:
        hint = "Is this an S3 server? One that speaks HTTPS needs an endpoint with https://."
        said = f"no answer over HTTP ({type(error).__name__})"
        return Line(check="clock", outcome="fail", said=said, hint=hint)
    finally:
        connection.close()
    try:
        skew = now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return Line(check="clock", outcome="warn", said="the server does not tell its time")
    way = f"this machine is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    if abs(skew) > MAX_SKEW:
        hint = "Signatures are refused after 15 minutes: set the clock (`timedatectl set-ntp true`)."
        return Line(check="clock", outcome="fail", said=way, hint=hint)
    if abs(skew) > NOTED_SKEW:
        return Line(check="clock", outcome="warn", said=way, hint="At 15 minutes the server refuses signatures.")
    return Line(check="clock", outcome="ok", said="this machine and the server agree")
