from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from slmx import files
from slmx.errors import RefusedError, SlmxError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as out:
        out.write(b"half")
        raise ZeroDivisionError
    assert files.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_never_leaves_a_wrong_file_at_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom slmx.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as out:\n"
        "    out.write(b'x' * 5_000_000); out.flush(); print('half', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not path.exists()


def test_what_is_there_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"1", overwrite=False)
    with pytest.raises(RefusedError, match="exists") as error:
        files.write_bytes(path, b"2", overwrite=False)
    assert error.value.code == 4
    assert path.read_bytes() == b"1"


def test_a_result_is_as_public_as_any_other_file(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_lines_are_read_through_gzip_with_blank_ones_and_a_mark_left_out(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbf{}\n\n  \n[1]\r\n2"
    (tmp_path / "plain").write_bytes(raw)
    (tmp_path / "packed").write_bytes(gzip.compress(raw))
    expected = [(1, b"{}\n"), (4, b"[1]\r\n"), (5, b"2")]
    assert list(files.read_lines(tmp_path / "plain")) == expected
    assert list(files.read_lines(tmp_path / "packed")) == expected


def test_damaged_missing_and_wrong_files_are_told_apart(tmp_path: Path) -> None:
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(os.urandom(10_000))[:-500])
    with pytest.raises(SlmxError, match="damaged"):
        list(files.read_lines(packed))
    with pytest.raises(SlmxError, match="There is no file"):
        list(files.read_lines(tmp_path / "absent"))
    with pytest.raises(SlmxError, match="is a folder"):
        list(files.read_lines(tmp_path))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SlmxError, match="not valid JSON"):
        files.read_json(tmp_path / "bad.json")


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53) | st.none())))
def test_jsonl_round_trips(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    assert files.write_jsonl(path, rows) == len(rows)
    assert [json.loads(line) for _, line in files.read_lines(path)] == rows


@given(st.lists(st.binary(), min_size=1), st.lists(st.binary(), min_size=1))
def test_hashes_tell_different_parts_apart(left: list[bytes], right: list[bytes]) -> None:
    assert (files.hash_bytes(*left) == files.hash_bytes(*right)) == (left == right)


def test_a_value_hashes_alike_in_any_order_of_its_keys() -> None:
    assert files.hash_value({"a": 1, "b": [2]}) == files.hash_value({"b": [2], "a": 1})


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "C:/x", "c:\\x", "\\\\host\\x", "a\\..\\..\\x"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        files.safe_join(tmp_path, name)


@given(st.text())
def test_a_slug_is_one_segment(name: str) -> None:
    made = files.slug(name)
    assert made
    assert "/" not in made
    assert made not in (".", "..")
    assert files.slug(made) == made


# ------------------------------------------------------------------------------------------------------- whole folders


def made_folder(path: Path, content: str = "new", **options: bool) -> None:
    with files.whole_folder(path, marker="own.json", **options) as made:
        (made / "own.json").write_text(content)


def test_a_folder_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a"
    made_folder(path)
    with pytest.raises(ZeroDivisionError), files.whole_folder(path, marker="own.json", overwrite=True) as made:
        (made / "own.json").write_text("half")
        raise ZeroDivisionError
    assert (path / "own.json").read_text() == "new"
    made_folder(path, "newer", overwrite=True)
    assert (path / "own.json").read_text() == "newer"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_only_when_asked_and_only_when_it_is_one_of_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    made_folder(path)
    with pytest.raises(RefusedError, match="--overwrite"):
        made_folder(path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    made_folder(theirs, overwrite=True)  # it was empty
    (theirs / "own.json").rename(theirs / "thesis.txt")
    (tmp_path / "file").write_text("theirs")
    for place in (theirs, tmp_path / "file"):
        for overwrite in (True, False):
            with pytest.raises(RefusedError, match=r"holds no own\.json") as error:
                made_folder(place, overwrite=overwrite)
            assert error.value.code == 4
    assert (theirs / "thesis.txt").read_text() == "new"
    assert (tmp_path / "file").read_text() == "theirs"


def test_what_came_to_the_place_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for overwrite in (False, True):
        with pytest.raises(RefusedError), files.whole_folder(path, marker="own.json", overwrite=overwrite):
            path.mkdir(exist_ok=True)
            (path / "thesis.txt").write_text("theirs")
        assert [p.name for p in tmp_path.rglob("*")] == ["a", "thesis.txt"]
        (path / "thesis.txt").unlink()
        path.rmdir()


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    made_folder(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    made_folder(tmp_path / "link", "newer", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "own.json").read_text() == "newer"


def test_a_folder_is_as_public_as_any_other(tmp_path: Path) -> None:
    made_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
