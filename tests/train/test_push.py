"""A model reaches the Hub when somebody asks: the real client against a server of this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a push needs; `files` are those that were committed, `refuse` answers 403."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.refuse = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuse:
            self.answer({"error": "You may not."}, 403)
        elif self.path.endswith("/repos/create"):
            self.answer({"url": f"{self.server.address}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                value = json.loads(line)
                if value["key"] == "file":
                    self.server.files[value["value"]["path"]] = base64.b64decode(value["value"]["content"])
            self.answer({"commitUrl": f"{self.server.address}/me/mine/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({}, 404 if self.server.refuse else 200)

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub: Hub, folder: Path) -> subprocess.CompletedProcess[str]:
    """Push from a process of its own: the client reads its address and its switches once."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    code = "import sys; from pathlib import Path; from slmx.train.push import check_push, push; check_push('me/mine'); "
    code += "from slmx.errors import SlmxError\ntry: push(Path(sys.argv[1]), 'me/mine')\n"
    code += "except SlmxError as e: sys.exit(str(e))"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_model_is_pushed_and_what_is_of_this_machine_stays(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors", "1_Pooling/config.json", "README.md", "training_ids.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"is": "{name}"}}' if name != "README.md" else "---\ntags: [a]\n---\nhello")
    for name in ("run.json", "leaks.json", "checkpoints/step_1/state.json", "logs/runs/events"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    done = push(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"model.safetensors", "1_Pooling/config.json", "README.md", "training_ids.json"}
    assert hub.files["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


def test_a_hub_that_refuses_is_said_and_the_model_stays(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    hub.refuse = True
    done = push(hub, tmp_path)
    assert done.returncode == 1 and "me/mine was not pushed" in done.stderr and "hf upload me/mine" in done.stderr
    assert "Traceback" not in done.stderr and "hf_test" not in done.stderr
