"""A proxy on 127.0.0.1 that spoils what passes: flips a byte, cuts a body, answers 503, stalls.

    with Proxy(server.endpoint) as proxy:
        proxy.faults.append(Flip("down", gets, offset=1000))
        ... a client of proxy.endpoint ...
        assert proxy.faults[0].happened

Heads pass as they are (so signatures hold); only bodies are counted and changed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

BLOCK = 65536
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Request:
    """The head of a request."""

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def range_start(self) -> int:
        """The first byte that a range asks for, 0 without a range."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])

    @property
    def part(self) -> int:
        """The number of an uploaded part, 0 where it is none."""
        _, found, rest = self.target.partition("partNumber=")
        return int(rest.partition("&")[0]) if found else 0


Where = Callable[[Request], bool]


@dataclass
class Fault:
    """Happens to bodies of one direction in requests that `where` takes, after `skip` of them at most `times` times."""

    direction: Direction
    where: Where
    offset: int = 0
    times: int = 1
    happened: int = 0
    seconds: float = 0.0
    skip: int = 0
    status: str = "503 Service Unavailable"

    def taken(self) -> bool:
        """May it happen once more? Counts."""
        if self.skip:
            self.skip -= 1
            return False
        if self.happened >= self.times:
            return False
        self.happened += 1
        return True


class Flip(Fault):
    """Flips one bit of the byte at `offset` of the body."""


class Cut(Fault):
    """Closes both connections after `offset` bytes of the body."""


class Stall(Fault):
    """Sends nothing for `seconds` after `offset` bytes of the body, then closes."""


class Busy(Fault):
    """Answers `status` in the server's stead (direction and offset do not matter)."""


class _Closed(Exception):
    pass


class _Line:
    """A socket that is read by heads and by counts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self._held = sock, b""

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self._held:
            self._held += self._more()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def take(self, most: int) -> bytes:
        held = self._held or self._more()
        taken, self._held = held[:most], held[most:]
        return taken

    def line(self) -> bytes:
        while b"\r\n" not in self._held:
            self._held += self._more()
        line, _, self._held = self._held.partition(b"\r\n")
        return line + b"\r\n"

    def _more(self) -> bytes:
        data = self.sock.recv(BLOCK)
        if not data:
            raise _Closed
        return data


class Proxy:
    """Listens on a free port until the block ends."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        assert parts.scheme == "http"
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self._upstream, timeout=60)
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {client, server}
        try:
            here, there = _Line(client), _Line(server)
            while self._exchange(here, there):
                pass
        except (_Closed, OSError, ValueError):
            pass
        finally:
            for sock in (client, server):
                sock.close()
            with self._lock:
                self._sockets -= {client, server}

    def _exchange(self, here: _Line, there: _Line) -> bool:
        raw = here.head()
        first, headers = _parse(raw)
        method, target, _ = first.split(" ", 2)
        request = Request(method, target, headers)
        with self._lock:
            self.requests.append(request)
        if fault := self._fault(request, "up", Busy):
            return self._busy(here, headers, f"HTTP/1.1 {fault.status}\r\nContent-Length: 0\r\n".encode())
        there.sock.sendall(raw)
        if headers.get("expect", "").lower() == "100-continue":
            answer = there.head()
            here.sock.sendall(answer)
            if b" 100 " not in answer.split(b"\r\n")[0]:
                return False
        self._body(here, there, headers, request, "up", has_body=True)
        while True:
            answer = there.head()
            here.sock.sendall(answer)
            status, reply = _parse(answer)
            code = int(status.split(" ")[1])
            if code >= 200:
                break
        self._body(there, here, reply, request, "down", has_body=method != "HEAD" and code not in (204, 304))
        return "close" not in reply.get("connection", "").lower()

    def _busy(self, here: _Line, headers: dict[str, str], head: bytes) -> bool:
        if "expect" in headers:
            here.sock.sendall(head + b"Connection: close\r\n\r\n")
            return False
        left = int(headers.get("content-length", 0))
        while left:
            left -= len(here.take(left))
        here.sock.sendall(head + b"\r\n")
        return True

    def _body(
        self, source: _Line, sink: _Line, headers: dict[str, str], request: Request, way: Direction, *, has_body: bool
    ) -> None:
        if not has_body:
            return
        if "chunked" in headers.get("transfer-encoding", "").lower():
            while size := int((line := source.line()).split(b";")[0], 16):
                sink.sock.sendall(line)
                self._pass(source, sink, size, request, way)
                sink.sock.sendall(source.line())
            sink.sock.sendall(line)
            while (line := source.line()) != b"\r\n":
                sink.sock.sendall(line)
            sink.sock.sendall(line)
            return
        if "content-length" not in headers and way == "down":
            while True:
                sink.sock.sendall(source.take(BLOCK))
        self._pass(source, sink, int(headers.get("content-length", 0)), request, way)

    def _pass(self, source: _Line, sink: _Line, size: int, request: Request, way: Direction) -> None:
        flip = self._fault(request, way, Flip, size)
        end = self._fault(request, way, Cut, size) or self._fault(request, way, Stall, size)
        done = 0
        while done < size:
            block = bytearray(source.take(size - done))
            if flip and done <= flip.offset < done + len(block):
                block[flip.offset - done] ^= 0x01
            if end and end.offset < done + len(block):
                sink.sock.sendall(block[: end.offset - done])
                time.sleep(end.seconds)
                raise _Closed
            sink.sock.sendall(block)
            done += len(block)

    def _fault(self, request: Request, way: Direction, kind: type[Fault], size: int = 1 << 62) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                fits = type(fault) is kind and (fault.direction == way or kind is Busy) and fault.offset < size
                if fits and fault.where(request) and fault.taken():
                    return fault
        return None


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}
