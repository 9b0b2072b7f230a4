"""The process behind slmx.track.clearml: reads reports and hands them to ClearML's library.

It takes JSON lines on stdin: first `environment`, `offline` and a `cache` folder for the library, then a `folder` for
each run; the end of stdin means that no more will come, even when the run itself was killed. It answers on stdout:
signs of life, a run's page, what is done, and `away` before it ends without having sent everything.
"""

from __future__ import annotations

import html
import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec

from slmx.track.clearml import SPOOL, STATE, read_state, tail

ALIVE_SECONDS = 2.0
PING_SECONDS = 5.0
QUIET = {
    "CLEARML_NO_DEFAULT_SERVER": "1",
    "CLEARML_SUPPRESS_UPDATE_MESSAGE": "1",
    "CLEARML_LOG_LEVEL": "WARNING",
    "CLEARML_LOG_ENVIRONMENT": "",  # no variable of the environment is recorded
}
DEVELOPMENT = {
    "report_use_subprocess": False,  # this process is one, and what it forks would outlive it
    "worker": {"report_period_sec": 1, "console_report_period": 1},
    "store_uncommitted_code_diff": False,  # the code of whoever runs slmx is not read
    "store_code_diff_from_remote": False,
    "vcs_repo_detect_async": False,
    "detect_with_pip_freeze": False,
}


class Away(Exception):
    """The server cannot be used; why."""


def main() -> None:
    """Send runs until there are no more."""
    say = _take_stdout()
    lines = iter(sys.stdin.buffer)
    asked = msgspec.json.decode(next(lines))
    os.environ.update(asked["environment"] | QUIET)
    folders: SimpleQueue[str | None] = SimpleQueue()
    over = threading.Event()

    def read() -> None:
        for line in lines:
            folders.put(msgspec.json.decode(line)["folder"])
        folders.put(None)
        over.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        with _cache_folder(asked["cache"]), _signs_of_life(say, asked["offline"]):
            sending = Sending(say, asked["environment"], offline=asked["offline"])
            while folder := folders.get():
                sending.run(Path(folder), over)
    except Away as away:
        say({"away": str(away)})
        _leave(1)
    except Exception as error:  # of a library whose errors nobody lists: the session is kept offline then
        say({"away": f"{type(error).__name__}: {error}"})
        _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    """End now: the library's own exit handlers would wait for a server that may be gone."""
    sys.stderr.flush()
    os._exit(code)


def _take_stdout() -> Any:
    """A function that answers; whatever else is printed in this process goes to the log."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: Mapping[str, Any]) -> None:
        with lock:
            try:
                answers.write(msgspec.json.encode(message) + b"\n")
            except BrokenPipeError:
                return  # the run was killed; what it reported is sent all the same

    return say


@contextmanager
def _cache_folder(folder: str) -> Iterator[None]:
    """Whoever started us removes it, too; but the run may have been killed, and so may we."""
    os.environ["CLEARML_CACHE_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _signs_of_life(say: Any, offline: bool) -> Iterator[None]:
    """Say that we live, and, once it is known, that the server does."""
    done, host = threading.Event(), ""

    def beat() -> None:
        while not done.wait(ALIVE_SECONDS):
            if not host or _answers(host):
                say({"alive": True})

    threading.Thread(target=beat, daemon=True).start()  # the library's import may take long on a busy machine
    try:
        host = "" if offline else _api_host()
        if host and not _answers(host):
            raise Away(f"{host} does not answer")
        yield
    finally:
        done.set()


def _api_host() -> str:
    from clearml.backend_api import Session

    host = str(Session.get_api_server_host() or "")
    if not host:
        raise Away("its configuration names no API server")
    return host


def _answers(host: str) -> bool:
    try:
        with urlopen(f"{host}/debug.ping", timeout=PING_SECONDS) as reply:
            return bool(reply.read(1 << 16)) or True
    except HTTPError:
        return True  # it answers, whatever it thinks of us
    except (URLError, OSError, ValueError):
        return False


class Sending:
    """Runs as ClearML's tasks, one after the other."""

    def __init__(self, say: Any, environment: Mapping[str, str], *, offline: bool) -> None:
        from clearml import Task
        from clearml.config import config_obj

        self._say, self._offline, self._task_class = say, offline, Task
        overrides: dict[str, Any] = {"sdk": {"development": DEVELOPMENT}}
        self._bucket = ""
        if bucket := _bucket(environment):
            self._bucket = bucket.pop("uri")
            there = config_obj.get("sdk.aws.s3.credentials", [])
            overrides["sdk"]["aws"] = {"s3": {"credentials": [bucket, *map(dict, there)]}}
            if bucket["host"]:  # other servers than AWS's refuse boto3's trailing checksums, with 411
                os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        config_obj.set_overrides(overrides)
        if offline:
            Task.set_offline(True)

    def run(self, folder: Path, over: threading.Event) -> None:
        """One run from its first report to its close."""
        reports = tail(folder / SPOOL, over)
        task = self._open(folder, next(reports))
        logger = task.get_logger()
        artifacts: list[tuple[str, Path]] = []
        for report in reports:
            match report["report"]:
                case "artifact":
                    artifacts.append((report["name"], Path(report["path"])))
                case "close":
                    self._close(folder, task, artifacts, report["status"])
                case _:
                    _report(logger, report)

    def _open(self, folder: Path, start: Mapping[str, Any]) -> Any:
        types = self._task_class.TaskTypes
        known = "" if self._offline or not start["step"] else read_state(folder).get("task", "")
        task = self._task_class.init(
            project_name=start["project"],
            task_name=start["name"],
            task_type=types.training if start["kind"] == "training" else types.testing,
            reuse_last_task_id=False,
            continue_last_task=known or False,
            output_uri=None if self._offline else self._bucket or None,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        if known:
            task.set_initial_iteration(0)  # steps are counted from the run's beginning, not from this session's
        task.connect(start["configuration"], name="slmx")
        if not self._offline:
            page = task.get_output_log_web_page()
            (folder / STATE).write_bytes(msgspec.json.encode({"task": task.id, "page": page}))
            self._say({"page": page})
        return task

    def _close(self, folder: Path, task: Any, artifacts: list[tuple[str, Path]], status: str) -> None:
        for name, path in artifacts:
            if path.is_file() and not task.upload_artifact(name, artifact_object=path, wait_on_upload=True):
                self._say({"trouble": f"{path} was not uploaded"})
        if not self._offline:
            task.flush(wait_for_uploads=True)
            {"stopped": task.mark_stopped, "failed": task.mark_failed}.get(status, lambda: None)()
        session = task.get_offline_mode_folder()
        task.close()
        done = {"done": str(folder)}
        if self._offline:
            kept = folder / "logs" / f"clearml-{task.id}.zip"
            shutil.move(f"{session}.zip", kept)
            shutil.rmtree(session, ignore_errors=True)
            done["session"] = str(kept)
        self._say(done)


def _bucket(environment: Mapping[str, str]) -> dict[str, Any]:
    """The bucket of the settings as ClearML's library wants it; empty where none is set.

    Not of this process's environment: a session token there may belong to other keys.
    """
    bucket = environment.get("CLEARML_S3_BUCKET", "")
    if not bucket:
        return {}
    endpoint = urlsplit(environment.get("CLEARML_S3_ENDPOINT", ""))
    secure = endpoint.scheme != "http"
    host = endpoint.netloc and f"{endpoint.hostname}:{endpoint.port or (443 if secure else 80)}"
    asked = environment.get("CLEARML_S3_VERIFY_SSL", "True")  # or False, or the path of a CA bundle
    verify = {"True": environment.get("AWS_CA_BUNDLE") or True, "False": False}.get(asked, asked)
    return {
        "uri": f"s3://{host}/{bucket}" if host else f"s3://{bucket}",
        "bucket": bucket,
        "host": host,
        "key": environment.get("CLEARML_S3_ACCESS_KEY", ""),
        "secret": environment.get("CLEARML_S3_SECRET_KEY", ""),
        "token": environment.get("AWS_SESSION_TOKEN", ""),
        "region": environment.get("CLEARML_S3_REGION", ""),
        "secure": secure,
        "verify": verify,
        "multipart": False,
    }


def _report(logger: Any, report: Mapping[str, Any]) -> None:
    """Hand one report over."""
    match report:
        case {"report": "scalars", "step": step, "values": values}:
            for name, value in _finite(values).items():
                title, _, series = name.partition("/")
                logger.report_scalar(title, series or title, value, iteration=step)
        case {"report": "singles", "values": values}:
            for name, value in _finite(values).items():
                logger.report_single_value(name, value)
        case {"report": "text", "line": line}:
            logger.report_text(line, print_console=False)
        case {"report": "table", "name": name, "columns": columns, "rows": rows}:
            logger.report_table(name, name, iteration=0, table_plot=[columns, *rows])
        case {"report": "figure", "name": name, "figure": figure}:
            logger.report_plotly(name, name, figure=figure, iteration=0)
        case {"report": "samples", "name": name, "rows": rows}:
            for number, row in enumerate(rows):
                page = io.StringIO(_page(row))
                logger.report_media(name, f"{number + 1:03}", iteration=0, stream=page, file_extension=".html")


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """What is no number (JSON has null for it) cannot be drawn."""
    return {name: value for name, value in values.items() if value is not None}


def _page(row: Mapping[str, Any]) -> str:
    """An example as a page; all text is escaped."""
    parts = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in row.items())
    style = "dt{font-weight:bold}dd{white-space:pre-wrap;margin:0 0 1em}body{font-family:sans-serif}"
    return f'<!doctype html><meta charset="utf-8"><style>{style}</style><dl>{parts}</dl>'
