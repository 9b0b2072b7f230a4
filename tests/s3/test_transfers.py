"""What upload, download, sync, check and cleanup do, through the command line, against real servers."""

from __future__ import annotations

import os
from hashlib import md5, sha256
from pathlib import Path

import pytest

from slmx.s3.client import SHA256_KEY
from slmx.s3.verify import multipart_etag
from tests.s3.servers import Server
from tests.s3.tools import MIB, command, get, keys, lines, open_uploads, put, store_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files: empty, small, odd names, and one that goes up in parts."""
    folder = tmp_path / "in"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "empty.txt").touch()
    (folder / "sub dir" / "ünï+code &%41.txt").write_bytes(os.urandom(1000))
    (folder / "b.json").write_bytes(b"{}")
    (folder / "large.bin").write_bytes(os.urandom(9 * MIB))
    return folder


def test_sync_up_check_sync_down_check(server: Server, tree: Path, tmp_path: Path) -> None:
    there = f"s3://{server.bucket}/some/prefix"
    first = command(server, "sync", tree, there, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = lines(first.stdout)
    assert {row["name"] for row in rows} == {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert {row["action"] for row in rows} == {"new"}
    assert {row["verified"] for row in rows} <= {"etag", "read back"}
    again = lines(command(server, "sync", tree, there, "--json", cwd=tmp_path).stdout)
    assert {row["action"] for row in again} == {"same"}
    assert command(server, "check", tree, there, cwd=tmp_path).returncode == 0
    down = command(server, "sync", there, "out", "--json", cwd=tmp_path)
    assert down.returncode == 0, down.stderr
    assert {row["verified"] for row in lines(down.stdout)} == {"sha256"}
    for path in tree.rglob("*"):
        if path.is_file():
            copy = tmp_path / "out" / path.relative_to(tree)
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mode & 0o777 == path.stat().st_mode & 0o777
    assert command(server, "check", there, "out", "--read", cwd=tmp_path).returncode == 0
    assert not open_uploads(server)


def test_what_differs_needs_overwrite_and_nothing_moves_without(swift: Server, tree: Path, tmp_path: Path) -> None:
    there = f"s3://{swift.bucket}"
    put(swift, "b.json", b"theirs")
    refused = command(swift, "sync", tree, there, cwd=tmp_path)
    assert (refused.returncode, keys(swift)) == (4, ["b.json"])
    assert "--overwrite" in refused.stderr
    planned = lines(command(swift, "sync", tree, there, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert {row["action"] for row in planned} == {"would add", "would replace"}
    assert keys(swift) == ["b.json"]
    assert command(swift, "sync", tree, there, "--overwrite", cwd=tmp_path).returncode == 0
    assert get(swift, "b.json") == b"{}"
    (tree / "b.json").write_bytes(b"[]")
    assert command(swift, "sync", there, tree, cwd=tmp_path).returncode == 4
    assert (tree / "b.json").read_bytes() == b"[]"
    assert command(swift, "sync", there, tree, "--overwrite", cwd=tmp_path).returncode == 0
    assert (tree / "b.json").read_bytes() == b"{}"


def test_check_tells_with_rclones_symbols(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("same", "other", "mine"):
        (tmp_path / "in" / name).write_bytes(b"12345")
    for name, content in (("same", b"12345"), ("other", b"54321"), ("theirs", b"x")):
        put(rclone, name, content)
    done = command(rclone, "check", "in", f"s3://{rclone.bucket}", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert {row["name"]: row["symbol"] for row in lines(done.stdout)} == {
        "same": "=",
        "other": "*",
        "mine": "+",
        "theirs": "-",
    }
    said = command(rclone, "check", "in", f"s3://{rclone.bucket}", cwd=tmp_path).stdout.splitlines()
    assert said[:3] == ["+ mine", "- theirs", "* other"]


def test_names_do_not_steer_the_terminal(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[2Jb\n= c").write_bytes(b"x")
    for words in (["check"], ["sync", "--dry-run"]):
        done = command(rclone, *words, "in", f"s3://{rclone.bucket}", cwd=tmp_path)
        assert "a\\x1b[2Jb\\x0a= c" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr


def test_check_by_reading_sees_what_the_hash_kept_with_an_object_hides(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"good")
    put(rclone, "a", b"bad!", Metadata={SHA256_KEY: sha256(b"good").hexdigest()})
    assert command(rclone, "check", "in", f"s3://{rclone.bucket}", cwd=tmp_path).returncode == 0
    assert command(rclone, "check", "in", f"s3://{rclone.bucket}", "--read", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize("mode", ["nq", "simple_qa"])
def test_the_known_files_of_a_mode_go_up_and_come_down(swift_tls: Server, tmp_path: Path, mode: str) -> None:
    from slmx.s3.known import files_of

    names = [file.name for file in files_of(mode)]  # type: ignore[arg-type]
    (tmp_path / "data" / mode).mkdir(parents=True)
    for name in names[:3]:
        (tmp_path / "data" / mode / name).write_bytes(os.urandom(2000))
    up = command(swift_tls, "upload", "--mode", mode, cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    assert "left out" in up.stderr
    assert sorted(keys(swift_tls)) == sorted(names[:3])
    down = command(swift_tls, "download", "--mode", mode.replace("_", "-"), "--data-dir", "other", cwd=tmp_path)
    assert down.returncode == 0, down.stderr
    for name in names[:3]:
        content = (tmp_path / "data" / mode / name).read_bytes()
        assert (tmp_path / "other" / mode / name).read_bytes() == content


def test_older_keys_and_the_bucket_called_datasets_are_found(rclone: Server, tmp_path: Path) -> None:
    client = rclone.client()
    if "datasets" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="datasets")
    client.put_object(Bucket="datasets", Key="nq_full_dataset.json", Body=b"[1]")
    put(rclone, "datasets/nq/eval.json", b"[2]")
    done = command(rclone, "download", "--mode", "nq", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "nq" / "nq_full_dataset.json").read_bytes() == b"[1]"
    assert (tmp_path / "data" / "nq" / "nq_converted_eval.json").read_bytes() == b"[2]"


def test_objects_of_other_tools_are_verified_by_their_etag_or_said_to_be_unverified(
    swift: Server, tmp_path: Path
) -> None:
    put(swift, "single", b"x" * 1000)
    client = swift.client()
    parts = [os.urandom(6 * MIB), b"tail"]
    opened = client.create_multipart_upload(Bucket=swift.bucket, Key="parts")["UploadId"]
    etags = [
        client.upload_part(Bucket=swift.bucket, Key="parts", UploadId=opened, PartNumber=number, Body=part)["ETag"]
        for number, part in enumerate(parts, 1)
    ]
    described = {"Parts": [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]}
    client.complete_multipart_upload(Bucket=swift.bucket, Key="parts", UploadId=opened, MultipartUpload=described)
    done = command(swift, "sync", f"s3://{swift.bucket}", "out", "--json", cwd=tmp_path)
    assert {row["name"]: row["verified"] for row in lines(done.stdout)} == {"single": "etag", "parts": "etag"}
    assert multipart_etag([md5(part).digest() for part in parts]) == client.head_object(
        Bucket=swift.bucket, Key="parts"
    )["ETag"].strip('"')


def test_the_hash_is_found_under_a_name_of_any_case(moto: Server, tmp_path: Path) -> None:
    put(moto, "a", b"good", Metadata={SHA256_KEY.upper(): sha256(b"good").hexdigest().upper()})
    store = store_of(moto)
    for reader in (store.quick, store.plain):
        remote = store.look(moto.bucket, "a")
        assert remote is not None
        assert reader.read(remote).remote.sha256 == sha256(b"good").hexdigest()


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/etc/absolute", "C:/drive", "..\\back", "a/.."])
def test_keys_that_lead_out_of_the_folder_are_refused_and_the_rest_arrives(
    swift: Server, tmp_path: Path, key: str
) -> None:
    put(swift, key, b"evil")
    put(swift, "good", b"good")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    done = command(swift, "sync", f"s3://{swift.bucket}", inside, "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [inside / "good"]
    assert {row["name"]: row["action"] for row in lines(done.stdout)} == {key: "failed", "good": "new"}


def test_a_link_in_the_folder_is_no_way_out(rclone: Server, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "outside")
    put(rclone, "link/file")
    assert command(rclone, "sync", f"s3://{rclone.bucket}", "out", cwd=tmp_path).returncode == 1
    assert not list((tmp_path / "outside").iterdir())


def test_empty_missing_and_denied_are_told_apart(swift: Server, tmp_path: Path) -> None:
    said = {}
    guest = {"CLEARML_S3_ACCESS_KEY": "test:guest", "CLEARML_S3_SECRET_KEY": "guesting"}
    wrong = {"CLEARML_S3_SECRET_KEY": "not-the-secret-7x"}
    for name, words, env in (
        ("empty", ["download", "--prefix", "x/"], {}),
        ("no key", ["download", "--s3-key", "nothing"], {}),
        ("no bucket", ["download", "--prefix", "x/", "--bucket", "absent-bucket"], {}),
        ("denied", ["download", "--prefix", "x/"], guest),
        ("keys", ["download", "--prefix", "x/"], wrong),
        ("unset", ["download", "--prefix", "x/"], {"CLEARML_S3_SECRET_KEY": ""}),
        ("placeholder", ["download", "--prefix", "x/"], {"CLEARML_S3_ACCESS_KEY": "your-access-key-here"}),
        (
            "gone",
            ["download", "--prefix", "x/"],
            {"CLEARML_S3_ENDPOINT": "http://127.0.0.1:9", "SLMX_S3__RETRIES": "0"},
        ),
    ):
        done = command(swift, *words, cwd=tmp_path, env=env)
        assert "not-the-secret-7x" not in done.stdout + done.stderr
        said[name] = (done.returncode, done.stderr)
    expected = {
        "empty": (1, "is empty"),
        "no key": (1, "There is no object"),
        "no bucket": (1, 'no bucket "absent-bucket"'),
        "denied": (1, "denied"),
        "keys": (2, "does not accept the keys"),
        "unset": (2, "CLEARML_S3_SECRET_KEY is not set"),
        "placeholder": (2, "CLEARML_S3_ACCESS_KEY still holds a placeholder (read from environment)"),
        "gone": (1, "cannot be reached"),
    }
    for name, (code, words) in expected.items():
        assert said[name][0] == code, said[name]
        assert words in said[name][1], said[name]
    assert "AWS_SECRET_ACCESS_KEY" in said["unset"][1]


def test_a_certificate_of_an_unknown_authority_is_told_and_a_bundle_helps(swift_tls: Server, tmp_path: Path) -> None:
    put(swift_tls, "x/a")
    words = ["download", "--prefix", "x/", "--data-dir", "out"]
    done = command(swift_tls, *words, cwd=tmp_path, env={"CLEARML_S3_VERIFY_SSL": "true"})
    assert done.returncode == 1
    assert "certificate" in done.stderr
    assert "CLEARML_S3_VERIFY_SSL=/path/to/ca.pem" in done.stderr
    by_bundle = command(
        swift_tls, *words, cwd=tmp_path, env={"CLEARML_S3_VERIFY_SSL": "", "AWS_CA_BUNDLE": swift_tls.ca_bundle}
    )
    assert by_bundle.returncode == 0, by_bundle.stderr
    off = command(swift_tls, *words, "--overwrite", cwd=tmp_path, env={"CLEARML_S3_VERIFY_SSL": "false"})
    assert off.returncode == 0, off.stderr


def test_names_of_aws_tools_in_the_environment_do_not_lead_elsewhere(rclone: Server, tmp_path: Path) -> None:
    put(rclone, "x/a")
    elsewhere = {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_PROFILE": "absent",
        "AWS_SKIP_SIGNATURE": "true",
    }
    done = command(rclone, "download", "--prefix", "x/", "--data-dir", "out", cwd=tmp_path, env=elsewhere)
    assert done.returncode == 0, done.stderr


def test_whether_the_server_keeps_conditions_is_found_out_and_said(
    swift: Server, rclone: Server, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"a")
    on_swift = command(swift, "sync", "in", f"s3://{swift.bucket}", "--json", cwd=tmp_path)
    assert lines(on_swift.stdout)[0]["atomic"] == "yes"
    on_rclone = command(rclone, "sync", "in", f"s3://{rclone.bucket}", "--json", cwd=tmp_path)
    assert lines(on_rclone.stdout)[0]["atomic"] == "no"
    assert "If-None-Match" in on_rclone.stderr


def test_cleanup_removes_what_is_old_and_leaves_what_is_young(swift: Server, tmp_path: Path) -> None:
    swift.client().create_multipart_upload(Bucket=swift.bucket, Key="x/half")
    part = tmp_path / "data" / "nq" / ".full.json.abcd1234.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    mine = tmp_path / "data" / "nq" / "mine.part"
    mine.write_bytes(b"whole")
    assert "Nothing is left" in command(swift, "cleanup", cwd=tmp_path).stdout
    dry = lines(command(swift, "cleanup", "--older-than", "0s", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert {row["kind"] for row in dry} == {"upload", "file"}
    assert open_uploads(swift)
    done = command(swift, "cleanup", "--older-than", "0s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not open_uploads(swift)
    assert not part.exists()
    assert mine.exists()
