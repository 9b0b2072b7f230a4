"""`slmx s3 artifacts` and `slmx s3 browse` in a pipe, on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmx.app import run
from tests.s3.servers import Server

ONE, TWO = "4f1d2c" + "0" * 26, "9a8b7c" + "1" * 26
KEYS = {
    f"rag/smollm2.v1.{ONE}/artifacts/predictions/predictions.json": b'{"a": 1}',
    f"rag/smollm2.v1.{ONE}/artifacts/predictions/extra/more.csv": b"a,b\n",
    f"rag/smollm2.v1.{TWO}/artifacts/predictions/predictions.json": b'{"a": 2}',
    f"rag/sub/qwen.{TWO}/artifacts/report/report.html": b"<p>",
    f"rag/smollm2.v1.{ONE}/models/model.bin": b"no artifact",
    "datasets/nq/train.json": b"[]",
    "loose.txt": b"x",
}


@pytest.fixture
def filled(rclone: Server, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in rclone.environment().items():
        monkeypatch.setenv(name, value)
    client = rclone.client()
    for key, content in KEYS.items():
        client.put_object(Bucket=rclone.bucket, Key=key, Body=content)
    return rclone


def listed(args: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert run(["s3", *args, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_artifacts_by_project_and_run(filled: Server, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(["artifacts"], capsys)
    assert [(a["project"], str(a["run"])[:12], a["name"], a["file"], a["size"]) for a in found] == [
        ("rag", "smollm2.v1.4", "predictions", "extra/more.csv", 4),
        ("rag", "smollm2.v1.4", "predictions", "predictions.json", 8),
        ("rag", "smollm2.v1.9", "predictions", "predictions.json", 8),
        ("rag/sub", "qwen.9a8b7c1", "report", "report.html", 3),
    ]
    assert all(str(a["modified"]).endswith("Z") for a in found)
    assert len(listed(["artifacts", "--project", "rag"], capsys)) == 3
    assert len(listed(["artifacts", "--project", "rag*"], capsys)) == 4
    assert len(listed(["artifacts", "--run", "4f1d2c"], capsys)) == 2
    assert len(listed(["artifacts", "--run", "smollm2.v1"], capsys)) == 3
    assert len(listed(["artifacts", "--prefix", "rag/sub/"], capsys)) == 0  # below the prefix there is no project
    assert run(["s3", "artifacts"]) == 0
    assert "report/report.html" in capsys.readouterr().out


def test_one_artifact_is_fetched(filled: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["s3", "artifacts", "--fetch", "predictions"]) == 2
    assert "2 runs" in capsys.readouterr().err
    assert run(["s3", "artifacts", "--fetch", "predictoins"]) == 2
    assert 'Did you mean "predictions"?' in capsys.readouterr().err
    assert run(["s3", "artifacts", "--fetch", "predictions", "--run", ONE]) == 0
    folder = Path("data/artifacts/rag") / f"smollm2.v1.{ONE}" / "predictions"
    assert (folder / "predictions.json").read_bytes() == b'{"a": 1}'
    assert (folder / "extra" / "more.csv").read_bytes() == b"a,b\n"
    (folder / "predictions.json").write_text("mine")
    assert run(["s3", "artifacts", "--fetch", "predictions", "--run", ONE]) == 4
    assert (folder / "predictions.json").read_text() == "mine"


def test_an_artifact_cannot_leave_its_folder(
    moto: Server, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    moto.client().put_object(Bucket=moto.bucket, Key=f"p/e.{ONE}/artifacts/evil/../../../../../../gone", Body=b"x")
    assert run(["s3", "artifacts", "--fetch", "evil", "--data-dir", "deep/er"]) != 0
    assert not list(empty_folder.rglob("gone"))


def test_a_listing_in_a_pipe(filled: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["s3", "browse"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("folder", "datasets/"),
        ("folder", "rag/"),
        ("1", "loose.txt"),
    ]
    found = listed(["browse", f"s3://{filled.bucket}/rag/"], capsys)
    assert (found[0]["key"], found[0]["folder"]) == (f"rag/smollm2.v1.{ONE}/", True)
    assert len(listed(["browse", "--recursive"], capsys)) == len(KEYS)
    assert listed(["browse", "nothing/here/"], capsys) == []


def test_a_missing_bucket_is_an_error_and_an_empty_one_is_not(
    rclone: Server, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in rclone.environment().items():
        monkeypatch.setenv(name, value)
    assert run(["s3", "browse"]) == 0
    assert listed(["artifacts"], capsys) == []
    for command in ("browse", "artifacts"):
        assert run(["s3", command, "--bucket", "not-there-at-all"]) == 1
        assert "not-there-at-all" in capsys.readouterr().err


def test_pages_are_followed_to_the_last_key(
    rclone: Server, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in rclone.environment().items():
        monkeypatch.setenv(name, value)
    from concurrent.futures import ThreadPoolExecutor

    client = rclone.client()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.put_object(Bucket=rclone.bucket, Key=f"k{n:05d}", Body=b""), range(1100)))
    assert [entry["key"] for entry in listed(["browse"], capsys)] == [f"k{n:05d}" for n in range(1100)]
