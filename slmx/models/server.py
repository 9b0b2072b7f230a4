"""A chat model behind any OpenAI-compatible server (`POST …/chat/completions`): one request, tried until it succeeds.

Nothing here reads the environment: no proxy, no key that nobody passed. Redirects are not followed, since they would
take the key to another host.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from slmx.errors import SlmxError, UsageError
from slmx.pool import pause
from slmx.records import Record
from slmx.signals import Stop

MAX_REPLY = 4 << 20  # bytes; an answer is a few hundred
MAX_PAUSE = 60.0  # seconds: whatever a server asks for
_OWN_NAMES = re.compile(r"<?HTTPS?Connection(Pool)?\([^)]*\)>?: ")  # urllib3's objects say nothing to a user
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FOR_ALL = frozenset({401, 402, 403, 404, 405})  # no request can succeed


class RequestFailed(SlmxError):
    """This request got no answer. `for_all`: neither will any other, so that there is no use in going on."""

    def __init__(self, what: str, *, hint: str = "", for_all: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.for_all = for_all


class _TryAgain(Exception):
    """A failure that may pass; `pause` is what the server asks for, in seconds."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class ChatReply(Record, frozen=True):
    """What a server answered. `finish` is why it stopped ("stop", "length", …); counts are 0 where it gives none."""

    text: str
    finish: str = ""
    model: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class ChatServer:
    """A server and how it is asked. May be shared by threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout: float = 120.0,
        retries: int = 6,
        pause: float = 0.5,
        connections: int = 8,
    ) -> None:
        """No request is made here.

        Args:
            url: the base address as clients take it ("http://localhost:8000/v1"), or that of `chat/completions`.
            api_key: sent as a bearer token where it is not empty.
            timeout: seconds that one try may take in all.
            retries: further tries after a failure that may pass: no connection, a timeout, 429, 5xx, a broken body.
            pause: seconds before the first further try; doubled each time.
            connections: kept open at most.

        Raises:
            UsageError: not an http(s) address, or one that holds a user or password.
        """
        import urllib3

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a server.", hint="For example http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UsageError("The server's address holds a user or a password.", hint="Pass the key by the settings.")
        path = parts.path.rstrip("/")
        self.host = parts.netloc
        self.unprotected = parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")
        end = "" if path.endswith("/chat/completions") else "/chat/completions"
        query = f"?{parts.query}" if parts.query else ""
        self._url = f"{parts.scheme}://{parts.netloc}{path}{end}{query}"
        self._key, self.has_key = api_key, bool(api_key)
        self._timeout, self._retries, self._pause = timeout, retries, pause
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)

    def chat(
        self,
        model: str,
        messages: Sequence[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        stop: Stop,
        tell: Callable[[str], None] = lambda _problem: None,
    ) -> ChatReply:
        """Ask once, and again after failures that may pass.

        Args:
            model: its name on the server.
            messages: `{"role": …, "content": …}` in order.
            max_tokens: that a reply may have.
            temperature: 0 for the likeliest reply.
            stop: looked at between tries.
            tell: called with what went wrong before every further try.

        Raises:
            RequestFailed: no answer came.
            Stopped: somebody asked to stop between two tries.
        """
        asked = {"model": model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        body = msgspec.json.encode(asked)
        tried = 0
        while True:
            try:
                return self._once(body)
            except _TryAgain as problem:
                tried += 1
                if tried > self._retries:
                    tries = "1 try" if tried == 1 else f"{tried} tries"
                    raise RequestFailed(f"{self.host} did not answer after {tries}: {problem}.") from None
                tell(f"{self.host}: {problem}; trying again")
                wait = max(problem.pause, self._pause * 2 ** (tried - 1) * random.uniform(0.75, 1.25))
                pause(min(wait, MAX_PAUSE), stop)

    def _once(self, body: bytes) -> ChatReply:
        import urllib3

        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "slmx"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        until = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                "POST",
                self._url,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(10.0, self._timeout), read=self._timeout),
                redirect=False,
                preload_content=False,
            )
            try:
                content = self._read(response, until)
            finally:
                response.close()  # a half-read connection must not serve the next request
        except urllib3.exceptions.HTTPError as error:
            raise _TryAgain(self._clean(_OWN_NAMES.sub("", str(error)))) from None
        if response.status == 200:
            return self._parse(content)
        said = self._clean(content[:2_000].decode(errors="replace")) or "no reason given"
        told = f"{response.status}: {said}"
        if response.status in _TRY_AGAIN:
            raise _TryAgain(told, _pause_asked(response.headers.get("Retry-After", "")))
        if 300 <= response.status < 400:
            raise RequestFailed(f"{self.host} sends requests elsewhere ({response.status}).", for_all=True)
        hint = "Is the key right? It is the setting judge.api_key." if response.status in (401, 403) else ""
        raise RequestFailed(f"{self.host} refused with {told}", hint=hint, for_all=response.status in _FOR_ALL)

    @staticmethod
    def _read(response: Any, until: float) -> bytes:
        """The body as it comes, however slowly, but no longer and no more than there is reason to wait for."""
        parts, size = [], 0
        while block := response.read1(1 << 16):
            parts.append(block)
            size += len(block)
            if size > MAX_REPLY:
                raise _TryAgain(f"an answer of more than {MAX_REPLY >> 20} MiB")
            if time.monotonic() > until:
                raise _TryAgain("the answer came too slowly")
        return b"".join(parts)

    def _parse(self, content: bytes) -> ChatReply:
        try:
            body = msgspec.json.decode(content, type=_Body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _TryAgain(f"the answer is no chat completion ({self._clean(str(error))})") from None
        if not body.choices:
            raise _TryAgain("the answer holds no choice")
        usage = body.usage or _Usage()
        return ChatReply(
            text=body.choices[0].message.content or "",
            finish=body.choices[0].finish_reason or "",
            model=body.model or "",
            prompt_tokens=usage.prompt_tokens,
            new_tokens=usage.completion_tokens,
        )

    def _clean(self, text: str) -> str:
        """A server's words as one short line, without the key that it may have echoed."""
        text = text.replace(self._key, "********") if self._key else text
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= 300 else f"{line[:299]}…"


def _pause_asked(header: str) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 where there is none."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
