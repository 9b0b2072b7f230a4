"""A chat model behind an OpenAI-compatible server. What servers do wrong is tested with the judge (tests/eval)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from slmx.errors import UsageError
from slmx.models import server
from slmx.models.server import ChatServer, RequestFailed
from slmx.signals import Stop


class Handler(BaseHTTPRequestHandler):
    paths: list[str] = []
    bodies: list[dict[str, Any]] = []
    answer = b""

    def do_POST(self) -> None:
        self.paths.append(self.path)
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Handler.paths, Handler.bodies = [], []
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def ask(url: str, **settings: Any) -> server.ChatReply:
    messages = [{"role": "user", "content": "Grüße?"}]
    return ChatServer(url, retries=0, **settings).chat("m", messages, max_tokens=5, stop=Stop())


@pytest.mark.parametrize("tail", ["/v1", "/v1/", "/v1/chat/completions"])
def test_a_base_address_and_a_full_one_lead_to_the_same_place(address: str, tail: str) -> None:
    message = {"role": "assistant", "content": "Привет", "reasoning_content": "hm"}
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    content = {"id": "x", "model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    Handler.answer = json.dumps({**content, "usage": usage}).encode()
    reply = ask(address + tail)
    assert Handler.paths == ["/v1/chat/completions"]
    assert Handler.bodies[0]["messages"][0]["content"] == "Grüße?" and Handler.bodies[0]["max_tokens"] == 5
    assert (reply.text, reply.finish, reply.model, reply.prompt_tokens, reply.new_tokens) == (
        *("Привет", "length", "m-1"),
        *(7, 1),
    )


def test_an_answer_without_text_and_usage_is_an_empty_one(address: str) -> None:
    Handler.answer = b'{"choices": [{"message": {"content": null}}]}'
    assert ask(f"{address}/v1") == server.ChatReply(text="")


def test_an_answer_without_end_is_not_read_to_the_end(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_REPLY", 1 << 20)
    Handler.answer = b'{"choices": [{"message": {"content": "' + b"x" * (2 << 20) + b'"}}]}'
    with pytest.raises(RequestFailed, match="more than 1 MiB"):
        ask(f"{address}/v1")


def test_what_is_no_address_is_refused_without_showing_a_password() -> None:
    for url in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(UsageError, match="no address of a server"):
            ChatServer(url)
    with pytest.raises(UsageError) as refused:
        ChatServer("https://me:hunter2@host/v1")
    assert "hunter2" not in str(refused.value)


def test_a_key_over_plain_http_is_unprotected_except_on_this_machine() -> None:
    urls = ("http://judge.example/v1", "https://judge.example/v1", "http://localhost:1/v1")
    assert [ChatServer(url).unprotected for url in urls] == [True, False, False]


def test_a_server_may_ask_for_a_pause_in_seconds_or_until_a_date() -> None:
    assert server._pause_asked("2.5") == 2.5
    assert server._pause_asked("-1") == server._pause_asked("") == server._pause_asked("soon") == 0.0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 20 < server._pause_asked(later) <= 30
