"""`data process` and `data download` end to end, on Swift over HTTPS and on rclone."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest

from slmx.app import run
from slmx.s3 import known
from tests.s3.conftest import *  # noqa: F403  # the servers
from tests.s3.servers import Server

SAMPLE = Path(str(resources("slmx") / "sample"))
FULL = {"nq": "nq_full_dataset.json", "simple_qa": "simple_qa_converted.json"}
Slmx = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def slmx(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> Slmx:
    """Runs a command line: exit code, the JSON of stdout (one value or lines), stderr."""

    def go(*args: str) -> tuple[int, Any, str]:
        code = run([*args, "--json"])
        said = capsys.readouterr()
        try:
            return code, json.loads(said.out) if said.out else None, said.err
        except json.JSONDecodeError:
            return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return go


@pytest.fixture(params=["swift_tls", "rclone", pytest.param("ceph", marks=pytest.mark.ceph)])
def bucket(request: pytest.FixtureRequest, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A bucket with the two raw files of the sample, and the settings that lead there."""
    server: Server = request.getfixturevalue(request.param)
    return settings_of(server, monkeypatch, raw=True)


def settings_of(server: Server, monkeypatch: pytest.MonkeyPatch, *, raw: bool) -> Server:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for file in known.FILES:
        if raw and file.kind == "raw":
            server.client().put_object(Bucket=server.bucket, Key=file.name, Body=(SAMPLE / file.name).read_bytes())
    return server


def states(found: Any) -> dict[tuple[str, str], str]:
    return {(step["mode"], step["step"]): step["state"] for done in found for step in done["steps"]}


def keys(server: Server) -> set[str]:
    return {row["Key"] for row in server.client().list_objects_v2(Bucket=server.bucket).get("Contents", [])}


def test_both_modes_end_to_end_and_a_second_run_does_nothing(bucket: Server, slmx: Slmx) -> None:
    code, found, err = slmx("data", "process", "--mode", "both")
    assert code == 0, err
    assert set(states(found).values()) == {"done"}
    assert {done["rows"] for done in found} == {150}
    assert keys(bucket) == {file.name for file in known.FILES}
    for file in known.FILES:
        assert file.local(Path("data")).is_file(), file.name
    train, evaluation = (
        json.loads(Path(f"data/nq/nq_converted_{half}.json").read_text()) for half in ("train", "eval")
    )
    assert len(train) + len(evaluation) == 150
    code, found, err = slmx("data", "process", "--mode", "both")
    assert (code, set(states(found).values())) == (0, {"kept"}), err

    shutil.rmtree("data")  # another machine: the ready files, verified
    code, rows, err = slmx("data", "download", "--mode", "both")
    assert code == 0, err
    assert {row["verified"] for row in rows} == {"sha256"}
    assert {row["name"] for row in rows} == {file.name for file in known.FILES if file.kind != "raw"}
    code, found, err = slmx("data", "check", "nq", "simple-qa")
    assert code == 0, err


@pytest.mark.parametrize("mode", ["nq", "simple_qa"])
def test_one_mode_alone(bucket: Server, slmx: Slmx, mode: str) -> None:
    code, found, err = slmx("data", "process", "--mode", mode)
    assert code == 0, err
    assert [done["mode"] for done in found] == [mode]
    assert FULL[mode] in keys(bucket)
    assert not Path("data", "nq" if mode == "simple_qa" else "simple_qa").exists()


@pytest.mark.parametrize("mode", ["nq", "simple_qa", "custom"])
def test_upload_and_download_of_each_mode(bucket: Server, slmx: Slmx, mode: str) -> None:
    """What s3 upload takes there, s3 download brings back: the same bytes."""
    folder = Path("data", mode)
    folder.mkdir(parents=True)
    names = [file.name for file in known.FILES if file.mode == mode] or ["notes.txt"]
    for name in names:
        (folder / name).write_text(f"content of {name}")
    extra = ["--local-file", str(folder), "--s3-key", "custom/"] if mode == "custom" else []
    code, _, err = slmx("s3", "upload", "--mode", mode, "--prefix", "p/", *extra)
    assert code == 0, err
    shutil.rmtree("data")
    code, _, err = slmx("s3", "download", "--mode", mode, "--prefix", "p/", *extra)
    assert code == 0, err
    assert {path.name: path.read_text() for path in folder.iterdir()} == {n: f"content of {n}" for n in names}


def test_without_upload_nothing_goes_to_the_bucket(rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch) -> None:
    server = settings_of(rclone, monkeypatch, raw=True)
    before = keys(server)
    assert slmx("data", "process", "--mode", "nq", "--no-upload")[0] == 0
    assert keys(server) == before
    assert slmx("data", "check", "nq")[0] == 0


def test_a_raw_file_that_is_here_needs_no_bucket_at_all(slmx: Slmx) -> None:
    raw = known.files_of("nq")[0]
    raw.local(Path("d")).parent.mkdir(parents=True)
    shutil.copy(SAMPLE / raw.name, raw.local(Path("d")))
    code, found, err = slmx("data", "process", "--mode", "nq", "--no-upload", "--data-dir", "d", "--max-items", "12")
    assert code == 0, err
    assert states(found)["nq", "raw"] == "kept"
    assert found[0]["rows"] == 12
    code, _, err = slmx("data", "process", "--mode", "nq", "--data-dir", "d", "--max-items", "12")
    assert code == 2
    assert "CLEARML_S3_ACCESS_KEY" in err


def test_the_older_layout_and_the_shared_bucket_are_read(
    rclone_server: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = settings_of(rclone_server.with_bucket(), monkeypatch, raw=False)
    client = server.client()
    client.put_object(Bucket=server.bucket, Key="old/datasets/nq/train.json", Body=b"[1]")
    client.put_object(Bucket=server.bucket, Key="old/datasets/nq/nq_full_dataset.json", Body=b"[1, 2]")
    code, rows, err = slmx("data", "download", "--mode", "nq", "--prefix", "old/")
    assert code == 0, err
    assert Path("data/nq/nq_converted_train.json").read_bytes() == b"[1]"
    assert Path("data/nq/nq_full_dataset.json").read_bytes() == b"[1, 2]"
    assert {row["verified"] for row in rows} == {"etag"}
    code, _, err = slmx("data", "download", "--mode", "both", "--prefix", "old/")
    assert code == 3
    assert "simple_qa" in err
    shared = rclone_server.with_bucket("shared").bucket  # stands for `datasets`, which other tests may use
    monkeypatch.setattr("slmx.s3.download.SHARED_BUCKET", shared)
    client.put_object(Bucket=shared, Key="simple_qa_eval.json", Body=b"[3]")
    assert slmx("data", "download", "--mode", "simple_qa")[0] == 0
    assert Path("data/simple_qa/simple_qa_eval.json").read_bytes() == b"[3]"


def test_steps_are_redone_by_content_and_overwriting_is_asked_for(
    rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of(rclone, monkeypatch, raw=True)
    ask = ("data", "process", "--mode", "nq")
    assert slmx(*ask)[0] == 0
    whole = Path("data/nq/nq_full_dataset.json")
    good = whole.read_bytes()

    whole.unlink()  # gone: made again
    code, found, _ = slmx(*ask)
    assert (code, states(found)["nq", "convert"], states(found)["nq", "upload"]) == (0, "done", "kept")
    assert whole.read_bytes() == good

    whole.write_bytes(good.replace(b"who", b"WHO", 1))  # damaged or edited: noticed, and kept without --overwrite
    assert slmx(*ask)[0] == 4
    assert whole.read_bytes() != good
    assert slmx(*ask, "--overwrite")[0] == 0
    assert whole.read_bytes() == good

    raw = known.files_of("nq")[0].local(Path("data"))
    raw.write_bytes(raw.read_bytes()[:-100])  # cut: what was fetched is known
    code, _, err = slmx(*ask)
    assert code == 4
    assert "edited or damaged" in err
    code, found, _ = slmx(*ask, "--overwrite")
    assert (code, states(found)["nq", "raw"], states(found)["nq", "convert"]) == (0, "done", "kept")

    assert slmx(*ask, "--max-items", "9")[0] == 4  # other parameters, other content
    assert whole.read_bytes() == good
    assert not list(Path("data/nq").glob(".*"))


def test_bad_rows_are_named_and_the_rest_is_done(rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch) -> None:
    server = settings_of(rclone, monkeypatch, raw=True)
    raw = (SAMPLE / "NQ-open.dev.merged.jsonl").read_bytes() + b'{"question": 7}\n'
    server.client().put_object(Bucket=server.bucket, Key="NQ-open.dev.merged.jsonl", Body=raw)
    code, found, err = slmx("data", "process", "--mode", "nq")
    assert (code, found[0]["left_out"], found[0]["rows"]) == (3, 1, 150)
    assert "nq_full_dataset.json.errors.jsonl" in err
    assert len(Path("data/nq/nq_full_dataset.json.errors.jsonl").read_text().splitlines()) == 1


def test_of_two_modes_one_may_fail(rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch) -> None:
    server = settings_of(rclone, monkeypatch, raw=True)
    server.client().delete_object(Bucket=server.bucket, Key="simple_qa_test_set_with_documents.csv")
    code, found, err = slmx("data", "process", "--mode", "both")
    assert (code, [done["mode"] for done in found]) == (3, ["nq"])
    assert "simple_qa_test_set_with_documents.csv" in err
    code, _, err = slmx("data", "process", "--mode", "simple_qa")
    assert code == 1
    assert str(Path("data/simple_qa")) in err


def test_a_damaged_raw_file_is_not_uploaded(rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch) -> None:
    server = settings_of(rclone, monkeypatch, raw=False)
    server.client().put_object(Bucket=server.bucket, Key="NQ-open.dev.merged.jsonl", Body=b'{"broken": \n' * 30)
    assert slmx("data", "process", "--mode", "nq")[0] in (1, 2)
    assert keys(server) == {"NQ-open.dev.merged.jsonl"}
    assert not Path("data/nq/nq_full_dataset.json").exists()


def test_a_signal_ends_between_steps_and_the_next_run_goes_on(
    rclone: Server, slmx: Slmx, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmx.data import process

    settings_of(rclone, monkeypatch, raw=True)
    real = process.convert

    def interrupted(*args: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **named)

    monkeypatch.setattr(process, "convert", interrupted)
    code, _, err = slmx("data", "process", "--mode", "nq")
    assert code == 143, err
    monkeypatch.setattr(process, "convert", real)
    code, found, _ = slmx("data", "process", "--mode", "nq")
    assert (code, states(found)["nq", "raw"], states(found)["nq", "convert"]) == (0, "kept", "done")


def test_an_unknown_mode_is_wrong_usage(slmx: Slmx) -> None:
    code, _, err = slmx("data", "process", "--mode", "simpleqa")
    assert code == 2
    assert "simple_qa" in err
