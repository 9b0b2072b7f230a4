"""Names, patterns and places; ETags and parts."""

from __future__ import annotations

import os
from hashlib import md5
from pathlib import Path

import pytest

from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.s3.cleanup import seconds
from slmx.s3.plan import Filter, Folder, local_files, side
from slmx.s3.verify import MIB, file_etag, is_md5, multipart_etag, part_sizes, parts_of


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], {"a.json", "x/b.json", "x/c.txt"}),
        (["*.json"], [], {"a.json", "x/b.json"}),
        (["x/*"], ["*.txt"], {"x/b.json"}),
        ([], ["b*"], {"a.json", "x/c.txt"}),
    ],
)
def test_patterns(include: list[str], exclude: list[str], taken: set[str]) -> None:
    wanted = Filter(include, exclude)
    assert {name for name in ("a.json", "x/b.json", "x/c.txt") if wanted.takes(name)} == taken


def test_sides() -> None:
    assert str(side("s3://bucket/a/b")) == "s3://bucket/a/b/"
    assert str(side("s3://bucket")) == "s3://bucket/"
    assert side("data/nq").path == Path("data/nq")
    with pytest.raises(UsageError):
        side("s3:bucket")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "a\\..\\..\\x", "a/", "", "a\0b"])
def test_names_that_cannot_be_files_below_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError):
        Folder(tmp_path).place(name)


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.place("a/b") == tmp_path / "a" / "b"
    with pytest.raises(RefusedError, match="same file"):
        folder.place("a//b")


def test_unfinished_files_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".a.json.abcd1234.part").touch()
    (tmp_path / "mine.part").touch()
    assert [name for name, _ in local_files(tmp_path, Filter())] == ["mine.part"]
    with pytest.raises(SlmxError, match="does not exist"):
        list(local_files(tmp_path / "absent", Filter()))


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1, 12 * MIB])
def test_the_etag_of_a_file_in_parts(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    assert file_etag(tmp_path / "f") == md5(content).hexdigest()
    parts = [content[first : first + 5 * MIB] for first in range(0, size, 5 * MIB)]
    assert file_etag(tmp_path / "f", 5 * MIB) == multipart_etag([md5(part).digest() for part in parts])


def test_sizes_of_parts_are_guessed() -> None:
    assert parts_of(f"{'0' * 32}-3") == 3
    assert not parts_of("0" * 32)
    assert is_md5("0" * 32)
    assert 8 * MIB in part_sizes(20 * MIB, 3)
    assert all(-(-20 * MIB // size) == 3 for size in part_sizes(20 * MIB, 3))
    assert not list(part_sizes(1, 0))


def test_lengths_of_time() -> None:
    assert [seconds(text) for text in ("90s", "30m", "24h", "7d")] == [90, 1800, 86400, 604800]
    with pytest.raises(UsageError):
        seconds("1 day")
