"""SimpleQA's official grade by a judge behind a real HTTP server on this machine, with all that servers do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from slmx.app import run
from slmx.eval.grades import parse, prompt, template
from slmx.records import Prediction

MakeRun = Callable[..., Path]
SAID = ["Paris", "Anna", "1970", "Казань", "I do not know", "seven"]
GRADES = {"Paris": "A", "Anna": "B", "1970": "B", "Казань": "CORRECT", "I do not know": "C", "seven": "A"}
KEY = "sk-very+secret/key"


class Judge:
    """A server that grades by GRADES. `behave` may answer in another way: it gets the answer and how often it came."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self.turn = threading.Lock()
        self.behave: Callable[[BaseHTTPRequestHandler, str, int], bool] = lambda handler, said, times: False
        self.seconds = 0.0
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = re.findall(r"Predicted answer: (.*)", body["messages"][0]["content"])[-1]
                with judge.turn:
                    judge.seen.append(said)
                    judge.headers.append(dict(self.headers))
                    judge.bodies.append(body)
                    judge.at_once += 1
                    judge.most_at_once = max(judge.most_at_once, judge.at_once)
                    times = judge.seen.count(said)
                try:
                    time.sleep(judge.seconds)
                    if not judge.behave(self, said, times):
                        reply(self, GRADES[said])
                finally:
                    with judge.turn:
                        judge.at_once -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def reply(handler: BaseHTTPRequestHandler, text: str) -> None:
    usage = {"prompt_tokens": 900, "completion_tokens": 2}
    content = {"model": "served", "choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    send(handler, 200, json.dumps(content).encode())


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> bool:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


@contextmanager
def serving() -> Iterator[Judge]:
    judge = Judge()
    thread = threading.Thread(target=judge.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield judge
    finally:
        judge.server.shutdown()
        thread.join()
        judge.server.server_close()


@pytest.fixture
def judge() -> Iterator[Judge]:
    with serving() as judge:
        yield judge


@pytest.fixture
def folder(empty_folder: Path, make_run: MakeRun) -> Path:
    return make_run(Path("outputs/tiny_towns_no_context"), SAID)


def rescore(folder: Path, judge: Judge, *more: str) -> int:
    return run(["eval", "rescore", str(folder), "--judge", judge.url, "--judge-model", "org/judge", *more])


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.rescored-default-judge-org-judge.json").read_text(encoding="utf-8")))


def test_a_judge_grades_every_answer_and_its_disagreement_with_the_strings_is_told(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescore(folder, judge) == 0
    told = results(folder)
    assert (told["judge_correct"], told["judge_incorrect"], told["judge_not_attempted"]) == (0.5, 2 / 6, 1 / 6)
    assert told["judge_accuracy_given_attempted"] == pytest.approx(3 / 5)
    assert told["judge_f1"] == pytest.approx(2 * 3 / (6 + 5))
    report = told["judge"]
    assert (report["graded"], report["unparsed"], report["failed"]) == (6, 0, 0)
    assert report["grades"] == {"correct": 3, "incorrect": 2, "not_attempted": 1}
    assert (report["right_by_judge_alone_ids"], report["right_by_match_alone"]) == (["q3"], 0)
    assert report["by_strings_and_judge"]["incorrect"]["correct"] == 1 and report["same_grade"] == 5
    assert told["metric_versions"]["judge_correct"].endswith(" org/judge")
    assert Counter(judge.seen) == Counter(SAID)
    body = judge.bodies[0]
    assert body["model"] == "org/judge" and body["temperature"] == 0 and body["max_tokens"] == 1024
    assert "Authorization" not in judge.headers[0]
    shown = capsys.readouterr().out
    assert "org/judge graded 6 of 6 answers" in shown and "The same grade: 5 of 6 (83.3 %)" in shown
    assert "Correct for the judge alone: 1 (q3)" in shown


def test_what_is_graded_is_never_asked_again_and_a_changed_answer_is(
    folder: Path, judge: Judge, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescore(folder, judge, "--quiet") == 0
    before = (folder / "judge-org-judge.jsonl").read_bytes()
    assert rescore(folder, judge, "--overwrite") == 0
    assert len(judge.seen) == 6 and (folder / "judge-org-judge.jsonl").read_bytes() == before
    assert "6 answers are graded already" in capsys.readouterr().err
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["judge_correct"] == 0.5
    for name in ("predictions.jsonl", "run.json"):
        (folder / name).unlink()
    make_run(folder, [*SAID[:5], "Paris"])
    assert rescore(folder, judge, "--dry-run") == 0
    assert "1 requests to org/judge" in capsys.readouterr().out and len(judge.seen) == 6
    assert rescore(folder, judge, "--quiet") == 0
    assert judge.seen[6:] == ["Paris"]


def test_the_key_goes_into_the_header_and_nowhere_else(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMX_JUDGE__API_KEY", KEY)
    monkeypatch.setenv("SLMX_JUDGE__RETRIES", "0")
    judge.behave = lambda handler, said, times: (
        said == "Anna" and send(handler, 401, f"Incorrect API key provided: {KEY}\x1b[31m".encode())
    )
    assert rescore(folder, judge) == 1
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    captured = capsys.readouterr()
    assert "refused with 401: Incorrect API key provided: ********" in captured.err
    assert "judge.api_key" in captured.err and "\x1b" not in captured.err
    assert run(["config", "show"]) == 0
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err
    assert not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_failures_that_pass_are_outlived(folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    def cut_before(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    def cut_in_the_middle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True

    first_time: dict[str, Callable[[BaseHTTPRequestHandler], object]] = {
        "Paris": lambda handler: send(handler, 503, b"busy", Retry_After="0.1"),
        "Anna": lambda handler: send(handler, 429, b'{"error": "slow down"}'),
        "1970": cut_before,
        "Казань": lambda handler: send(handler, 200, b"<html>not an API</html>"),
        "I do not know": lambda handler: send(handler, 200, b'{"choices": []}'),
        "seven": cut_in_the_middle,
    }

    def behave(handler: BaseHTTPRequestHandler, said: str, times: int) -> bool:
        if times == 1:
            first_time[said](handler)
        return times == 1

    judge.behave = behave
    assert rescore(folder, judge) == 0
    assert results(folder)["judge"]["graded"] == 6 and Counter(judge.seen) == Counter(SAID * 2)
    assert capsys.readouterr().err.count("trying again") == 1  # not once a thread


def test_a_reply_without_a_grade_is_counted_and_not_guessed(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    said_by_judge = {"Anna": "It could be CORRECT or INCORRECT.", "1970": "", "seven": "I cannot help with that."}
    judge.behave = lambda handler, said, times: said in said_by_judge and (reply(handler, said_by_judge[said]) is None)
    assert rescore(folder, judge) == 0
    told = results(folder)
    assert told["judge"]["unparsed"] == 3 and told["judge"]["graded"] == 3 and told["n"]["judge_correct"] == 3
    assert told["judge_not_attempted"] == pytest.approx(1 / 3)
    assert "3 replies name no grade and are left out: q1, q2, q5" in capsys.readouterr().out
    assert rescore(folder, judge, "--quiet") == 0 and len(judge.seen) == 6


def test_answers_that_get_no_reply_are_named_and_asked_for_again(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMX_JUDGE__RETRIES", "1")
    judge.behave = lambda handler, said, times: said == "Anna" and times <= 2 and send(handler, 500, b"oops")
    assert rescore(folder, judge) == 3
    captured = capsys.readouterr()
    assert "Some answers could not be graded" in captured.err and "1 answers have no reply" in captured.out
    told = results(folder)
    assert told["judge"]["graded"] == 5 and "500: oops" in told["judge"]["failures"]["q1"]
    assert rescore(folder, judge, "--quiet") == 0
    assert results(folder)["judge"]["graded"] == 6 and judge.seen.count("Anna") == 3 and len(judge.seen) == 8


def test_a_server_that_is_away_or_sends_elsewhere_ends_the_command_soon(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMX_JUDGE__RETRIES", "0")
    monkeypatch.setenv("SLMX_JUDGE__CONCURRENCY", "2")
    judge.behave = lambda handler, said, times: send(handler, 307, b"", Location="http://127.0.0.1:9/elsewhere")
    assert rescore(folder, judge) == 1
    assert "sends requests elsewhere (307)" in capsys.readouterr().err and len(judge.seen) <= 3
    judge.behave = lambda handler, said, times: send(handler, 500, b"out of memory")
    judge.seen.clear()
    assert rescore(folder, judge) == 1
    assert "The judge cannot be asked" in capsys.readouterr().err
    judge.server.socket.close()
    closed = judge.url
    assert run(["eval", "rescore", str(folder), "--judge", closed, "--judge-model", "m"]) == 1
    assert "did not answer after 1 try" in capsys.readouterr().err
    for url in ("ftp://x/v1", "localhost:8000", "http://me:secret@x/v1"):
        assert run(["eval", "rescore", str(folder), "--judge", url, "--judge-model", "m"]) == 2
    assert "secret" not in capsys.readouterr().err


def test_a_slow_answer_is_cut_off_by_the_timeout(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMX_JUDGE__RETRIES", "0")
    monkeypatch.setenv("SLMX_JUDGE__TIMEOUT", "0.4")

    def drip(handler: BaseHTTPRequestHandler, said: str, times: int) -> bool:
        if said != "Anna":
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(30):  # a byte now and then keeps a socket's own timeout from firing
            handler.wfile.write(b" ")
            time.sleep(0.1)
        return True

    judge.behave = drip
    assert rescore(folder, judge) == 3
    assert "too slowly" in results(folder)["judge"]["failures"]["q1"]


def test_no_more_requests_at_once_than_allowed(folder: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMX_JUDGE__CONCURRENCY", "2")
    judge.seconds = 0.05
    assert rescore(folder, judge, "--quiet") == 0
    assert judge.most_at_once == 2


def start(folder: Path, judge: Judge) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slmx", "eval", "rescore", str(folder), "--judge", judge.url]
    return subprocess.Popen(
        [*command, "--judge-model", "org/judge"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLMX_JUDGE__CONCURRENCY": "1"},
    )


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1_200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_and_pays_for_no_reply_twice(folder: Path, judge: Judge, number: int) -> None:
    judge.seconds = 0.3
    process = start(folder, judge)
    journal = folder / "judge-org-judge.jsonl"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    if number == signal.SIGTERM:
        assert "its replies are saved" in told and "asks only for what is missing" in told
    else:
        journal.write_bytes(journal.read_bytes() + b'{"question_id": "q')  # as a kill in the middle of a line leaves it
    kept = [json.loads(line)["question_id"] for line in journal.read_bytes().splitlines() if line.endswith(b"}")]
    assert 2 <= len(kept) < 6 and not list(folder.glob("results.rescored*"))
    judge.seconds = 0.0
    asked = len(judge.seen)
    assert rescore(folder, judge, "--quiet") == 0
    assert len(judge.seen) - asked == 6 - len(kept)
    assert results(folder)["judge"]["graded"] == 6


def test_two_commands_do_not_ask_the_same_judge_about_the_same_run(
    folder: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.seconds = 0.3
    process = start(folder, judge)
    wait_until((folder / "judge-org-judge.jsonl").exists)
    assert rescore(folder, judge) == 4
    process.terminate()
    process.communicate(timeout=60)


def test_right_can_be_what_a_judge_says(
    folder: Path, judge: Judge, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(
        Path("outputs/tiny_towns_oracle_context"), ["Paris", *SAID[1:3], "seven", *SAID[4:]], context="oracle"
    )
    compare = ["eval", "compare", str(folder), str(other), "--right-by"]
    assert rescore(folder, judge, "--quiet") == 0
    assert run([*compare, "judge"]) == 2
    assert "tiny_towns_oracle_context was not graded" in capsys.readouterr().err
    said_by_judge = {"Anna": "I cannot tell."}
    judge.behave = lambda handler, said, times: said in said_by_judge and reply(handler, said_by_judge[said]) is None
    assert rescore(other, judge, "--quiet") == 0
    assert run([*compare, "judge", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [pair] = told["pairs"]
    assert told["unscored"] == 1 and pair["n"] == 5  # Anna has no grade in one run, so in none
    assert (pair["helped"], pair["hurt"], pair["both_right"], pair["both_wrong"]) == (0, 0, 3, 2)
    assert pair["tests"][0]["metric"] == "judge_correct" and pair["tests"][0]["n"] == 5
    assert run([*compare, "judge:org/judge", "--quiet"]) == 0
    assert run([*compare, "judge:other"]) == 2
    assert run(["eval", "rescore", str(folder), "--judge", judge.url, "--judge-model", "second", "--quiet"]) == 0
    capsys.readouterr()
    assert run([*compare, "judge"]) == 2
    assert "judge:org/judge, judge:second" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- prompt and reply


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("A", "correct"),
        (" B\n", "incorrect"),
        ("C.", "not_attempted"),
        ("A: CORRECT", "correct"),
        ("CORRECT", "correct"),
        ("INCORRECT", "incorrect"),
        ("NOT_ATTEMPTED", "not_attempted"),
        ("not attempted", "not_attempted"),
        ("**B**", "incorrect"),
        ("Grade: INCORRECT", "incorrect"),
        ("The grade is NOT ATTEMPTED.", "not_attempted"),
        ("<think>Is it A or B?</think>\n\nB", "incorrect"),
        ("Apple", None),
        ("D", None),
        ("", None),
        ("It is not CORRECT", None),
        ("CORRECT? No: INCORRECT", None),
        ("The answer is correct, I believe, in part.", None),
        ("<think>A", None),
    ],
)
def test_a_grade_is_the_letter_or_the_whole_word(reply: str, grade: str | None) -> None:
    from slmx.eval.grades import Entry

    assert Entry(question_id="q", key="", model="m", reply=reply).grade == grade


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_reply_breaks_the_reader(reply: str) -> None:
    assert parse(reply) in ("correct", "incorrect", "not_attempted", None)


def test_the_template_is_the_official_one_and_answers_are_plain_text() -> None:
    assert template().startswith("Your job is to look at a question, a gold target")
    assert template().endswith('Just return the letters "A", "B", or "C", with no text around it.')
    asked = Prediction(
        question_id="q",
        question="What is {target}?",
        predicted_answer="{question} {0} %s \\1",
        ground_truth=["x", "y"],
        contexts=[],
        context_type="none",
        model_name="m",
    )
    filled = prompt(asked)
    assert "Question: What is {target}?\nGold target: x or y\nPredicted answer: {question} {0} %s \\1\n" in filled
