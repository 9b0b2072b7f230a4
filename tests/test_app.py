from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slmx import console
from slmx.app import COMMANDS, run
from slmx.errors import SlmxError
from slmx.group import spread

HEAVY = ["torch", "transformers", "sentence_transformers", "boto3", "clearml", "pyarrow"]


def loaded_after(args: list[str], env: dict[str, str] | None = None) -> set[str]:
    """The top-level modules that a command line loads, in a fresh process."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('\\nMODULES', *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr))\n"
        f"sys.argv = ['slmx', *{args!r}]\n"
        "from slmx.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


def test_help_loads_nothing_heavy_and_no_pydantic() -> None:
    assert not loaded_after(["--help"]) & {*HEAVY, "pydantic"}


@pytest.mark.parametrize("group", COMMANDS)
def test_help_of_a_group_loads_nothing_heavy(group: str) -> None:
    assert not loaded_after([group, "--help"]) & set(HEAVY)


def test_completion_loads_nothing_heavy_and_knows_presets() -> None:
    env = {"_SLMX_COMPLETE": "complete_bash", "COMP_WORDS": "slmx eval run --model smol", "COMP_CWORD": "4"}
    assert not loaded_after([], env) & set(HEAVY)
    done = subprocess.run(
        [sys.executable, "-m", "slmx"], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    assert "smollm2-360m" in done.stdout.split()


def test_version_and_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slmx ")


@pytest.mark.parametrize("args", [[], ["eval"]])
def test_a_group_without_a_command_shows_its_help_and_no_empty_error(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert "Commands" in out + err
    assert "error" not in err


def test_an_unknown_command_is_wrong_usage_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dta"]) == 2
    assert 'Did you mean "data"?' in capsys.readouterr().err


def test_an_unknown_option_is_wrong_usage_and_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--jsno"]) == 2
    assert "`slmx config show --help`" in capsys.readouterr().err


@pytest.mark.parametrize("args", ["--json config show", "config show --json", "config --json show"])
def test_global_options_stand_before_the_group_or_behind_the_command(
    args: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args.split()) == 0
    assert {line["name"] for line in json.loads(capsys.readouterr().out)} >= {"data_dir", "eval.k"}


def test_quiet_prints_no_result(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_errors_are_json_when_json_is_asked_for(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "--config", "absent.toml", "config", "show"]) == 2
    assert run(["config", "shwo", "--json"]) == 2
    error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert error["code"] == 2
    assert error["hint"]


def test_an_unexpected_error_is_exit_1_with_one_line(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("slmx.settings.show", broken)
    assert run(["config", "show"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in said
    assert "--verbose" in said
    assert "Traceback" not in said


def test_every_error_says_what_to_do_and_keeps_its_code() -> None:
    problem = SlmxError("what", hint="do this", code=4)
    assert (str(problem), problem.code) == ("what\ndo this", 4)


def test_no_color_is_honoured(empty_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slmx", "--no-color", "dta"], capture_output=True, text=True, check=False
    )
    assert "\x1b[" not in done.stderr
    console.manner = console.Manner()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--d", "a", "b", "c"], ["--d", "a", "--d", "b", "--d", "c"]),
        (["--d=a", "b"], ["--d=a", "--d", "b"]),
        (["--k", "1", "--d", "a", "b", "--flag"], ["--k", "1", "--d", "a", "--d", "b", "--flag"]),
        (["--d", "a", "--", "b"], ["--d", "a", "--", "b"]),
        (["--d", "a", "--d", "b"], ["--d", "a", "--d", "b"]),
        (["--other", "a", "b"], ["--other", "a", "b"]),
    ],
)
def test_a_list_option_takes_several_values(args: list[str], expected: list[str]) -> None:
    assert spread(args, {"--d"}) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_the_exit_code_says_which(number: int, code: int) -> None:
    script = (
        "import time\n"
        "from slmx.signals import stopping\n"
        "with stopping() as stop:\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(500):\n"
        "        if stop.asked: break\n"
        "        time.sleep(0.01)\n"
        "raise SystemExit(stop.error('stopped', hint='again').code)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(number)
    assert child.wait(timeout=30) == code


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    script = (
        "import time\n"
        "from slmx.signals import stopping\n"
        "with stopping():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "    print('woken', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) != 0
    assert "KeyboardInterrupt" in child.communicate()[1]
