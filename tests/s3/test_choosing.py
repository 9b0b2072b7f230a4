"""What upload and download take: modes, patterns, prefixes, one key; and which options do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.s3.servers import Server
from tests.s3.tools import command, keys, put


def test_one_file_under_a_key_and_patterns(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(b"{}")
    up = command(rclone, "upload", "--local-file", "b.json", "--s3-key", "x/c.json", cwd=tmp_path)
    assert (up.returncode, keys(rclone)) == (0, ["x/c.json"])
    put(rclone, "x/d.txt")
    put(rclone, "x/e.json")
    one = command(rclone, "download", "--s3-key", "x/c.json", "--local-file", "here.json", cwd=tmp_path)
    assert (one.returncode, (tmp_path / "here.json").read_bytes()) == (0, b"{}")
    some = ["download", "--prefix", "x/", "--include", "*.json", "--exclude", "e*", "--data-dir", "out"]
    assert command(rclone, *some, cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.json"]
    assert command(rclone, "download", cwd=tmp_path).returncode == 2


def test_patterns_choose_among_the_files_of_a_mode(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "data" / "nq").mkdir(parents=True)
    for kind in ("train", "eval"):
        (tmp_path / "data" / "nq" / f"nq_converted_{kind}.json").write_bytes(b"[]")
    up = command(rclone, "upload", "--mode", "nq", "--exclude", "*train*", cwd=tmp_path)
    assert (up.returncode, keys(rclone)) == (0, ["nq_converted_eval.json"]), up.stderr
    put(rclone, "nq_converted_train.json")
    down = ["download", "--mode", "nq", "--include", "*train*", "--data-dir", "out"]
    assert command(rclone, *down, cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "out" / "nq").iterdir()] == ["nq_converted_train.json"]
    nothing = command(rclone, "download", "--mode", "nq", "--include", "*.txt", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "nq_converted_train.json" in nothing.stderr


@pytest.mark.parametrize("way", ["upload", "download"])
@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "nq", "--local-file", "file"],
        ["--mode", "nq", "--s3-key", "file"],
        ["--s3-key", "file", "--local-file", "file", "--include", "*.json"],
        ["--s3-key", "file", "--local-file", "file", "--exclude", "*.json"],
    ],
)
def test_options_that_would_do_nothing_are_refused(rclone: Server, tmp_path: Path, way: str, words: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"content")
    done = command(rclone, way, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert any(word in done.stderr for word in words if word.startswith("--"))
    assert not keys(rclone)


@pytest.mark.parametrize("prefix", ["runs", "runs/"])
def test_a_prefix_is_a_folder_with_or_without_its_slash(rclone: Server, tmp_path: Path, prefix: str) -> None:
    for name in ("runs/a.json", "runs/sub/b.json", "runs-of-others/c.json"):
        put(rclone, name)
    down = command(rclone, "download", "--prefix", prefix, "--data-dir", "out", cwd=tmp_path)
    assert down.returncode == 0, down.stderr
    found = (path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.json"))
    assert sorted(found) == ["a.json", "sub/b.json"]
    up = command(rclone, "upload", "--local-file", "out", "--prefix", f"copy/{prefix}", cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    assert [key for key in keys(rclone) if key.startswith("copy")] == ["copy/runs/a.json", "copy/runs/sub/b.json"]
