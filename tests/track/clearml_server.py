"""As much of ClearML's API as its library needs to report a task, with doors to shut: a server of ours, for tests.

The real server needs Elasticsearch and MongoDB; this one speaks the same HTTP to the real library and keeps what comes.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = "b" * 32


def token() -> str:
    """A token as the library takes it apart; nobody checks the signature."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"exp": int(time.time()) + 36000, "iat": int(time.time()), "api_version": "2.30", "env": "test"}
    claims |= {"server_version": "1.16", "feature_set": "basic", "identity": {"user": "u", "company": "c"}}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


class Server:
    """Listens on a free port. `stalled` makes every request wait until the server is closed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        self.files: list[bytes] = []
        self.bytes = b""
        self.stall_after: str | None = None
        self._stalled = threading.Event()
        self._closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server._stalled.is_set():
                    server._closed.wait()
                    self.close_connection = True
                    return
                content, kind = server.reply(self.path, body), "application/json"
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = _answer

            def log_message(self, *_args: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        hosts = dict.fromkeys(("CLEARML_API_HOST", "CLEARML_WEB_HOST", "CLEARML_FILES_HOST"), self.url)
        return {**hosts, "CLEARML_API_ACCESS_KEY": "access", "CLEARML_API_SECRET_KEY": "a-s$cret"}

    def reply(self, path: str, body: bytes) -> bytes:
        call = re.sub(r"^/(v[0-9.]+/)?", "", path.partition("?")[0])
        self.calls.append(call)
        self.bytes += body
        data = self._data(call, body, path)
        if self.stall_after == call:
            self._stalled.set()
        meta = {"id": "1", "trx": "1", "result_code": 200, "result_subcode": 0, "result_msg": "OK", "error_stack": ""}
        meta |= {"endpoint": {"name": call, "requested_version": "2.30", "actual_version": "1.0"}, "error_data": {}}
        return json.dumps({"meta": meta, "data": data}).encode()

    def _data(self, call: str, body: bytes, path: str) -> dict[str, Any]:
        if call == "events.add_batch":
            self.events += [json.loads(line) for line in body.splitlines() if line.strip()]
            return {"added": len(self.events), "errors": 0, "errors_info": {}}
        if "/" in call or "." not in call:
            self.files.append(body)
            return {}
        asked = json.loads(body or b"{}")
        asked = asked if isinstance(asked, dict) else {}
        if call == "auth.login":
            return {"token": token()}
        if call == "tasks.create":
            task = f"{len(self.tasks):032x}"
            self.tasks[task] = {"id": task, "status": "created", "user": "u", "company": "c", "execution": {}, **asked}
            return {"id": task}
        if call == "projects.get_all":
            return {"projects": [{"id": PROJECT, "name": asked.get("name", "slmx").strip("^$")}]}
        if call == "projects.get_by_id":
            return {"project": {"id": PROJECT, "name": "slmx"}}
        if call == "projects.create":
            return {"id": PROJECT}
        task = str(asked.get("task", ""))
        if call == "tasks.get_by_id":
            return {"task": self.tasks[task]}
        if call == "tasks.get_all":
            return {"tasks": []}
        if task in self.tasks:
            if call == "tasks.add_or_update_artifacts":
                self.tasks[task]["execution"].setdefault("artifacts", []).extend(asked["artifacts"])
                return {"updated": 1}
            self.tasks[task].update({key: value for key, value in asked.items() if key not in ("task", "force")})
            status = {"tasks.started": "in_progress", "tasks.completed": "completed", "tasks.stopped": "stopped"}
            self.tasks[task]["status"] = status.get(call, self.tasks[task]["status"])
            return {"updated": 1, "fields": {}}
        return {}
