from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slmx.data import prepare as prepare_module, shards
from slmx.data.prepare import Job, Prepared, prepare
from slmx.data.texts import Splitting
from slmx.data.token_files import open_folder, read_sidecar
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.models.tokenizers import Tokenizer, load_tokenizer
from slmx.signals import Stop

STORIES = [f"Story {n}. A fox met {n} hens by the river, and they talked all day long." for n in range(400)]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer trained here, with an end-of-text token of id 0."""
    from slmx.train.tokenizer import TokenizerOptions, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "corpus.txt").write_text("\n".join(STORIES), encoding="utf-8")
    train_tokenizer(TokenizerOptions([folder / "corpus.txt"], folder / "made", vocab_size=400))
    return folder / "made"


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def texts_of(folder: Path, split: str, tokenizer: Tokenizer) -> list[str]:
    opened = open_folder(folder)
    file = opened.train if split == "train" else opened.val
    assert file is not None
    ids = file.read(0, len(file))
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    assert ends[-1] == len(ids) - 1
    starts = [0, *(ends + 1)]
    return [tokenizer.backend.decode(list(ids[a:b])) for a, b in zip(starts, ends, strict=False)]


def test_every_document_is_on_one_side_and_comes_back(tmp_path: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    made = prepare(Job([corpus], tokenizer, tmp_path / "out", val_share=0.2))
    train, val = (texts_of(tmp_path / "out", split, tokenizer) for split in ("train", "val"))
    assert sorted(train + val) == sorted(STORIES)
    assert 40 < len(val) < 120
    assert [s for s in STORIES if s in set(train)] == train
    assert (made.train_documents, made.val_documents) == (len(train), len(val))
    assert made.text_bytes == sum(len(s.encode()) for s in STORIES)
    sidecar = read_sidecar(tmp_path / "out" / "train.bin")
    assert sidecar is not None
    assert sidecar.tokenizer_hash == tokenizer.hash == load_tokenizer(tmp_path / "out").hash
    assert [(s.path, s.documents) for s in sidecar.sources] == [(str(corpus), 400)]
    assert not list(tmp_path.glob(".*parts"))
    # A document's side does not depend on the others.
    corpus.write_text("<|endoftext|>".join(["A new one.", *STORIES[::-1]]), encoding="utf-8")
    prepare(Job([corpus], tokenizer, tmp_path / "again", val_share=0.2))
    assert set(val) <= set(texts_of(tmp_path / "again", "val", tokenizer)) <= {*val, "A new one."}


def test_few_documents_are_split_by_block(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = " ".join(STORIES)
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    made = prepare(Job([tmp_path / "one.txt"], tokenizer, tmp_path / "out", val_share=0.2))
    assert made.split == "by 4096 bytes"
    train, val = (texts_of(tmp_path / "out", split, tokenizer) for split in ("train", "val"))
    assert made.documents == 1
    assert val
    assert all(part in text for part in train + val)
    assert sum(map(len, train + val)) == len(text)
    assert all(len(part) % 4096 > 3000 or len(part) % 4096 < 200 for part in val if not text.endswith(part))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_shards_processes_and_interruptions_change_no_byte(
    tmp_path: Path, corpus: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(Job([corpus], tokenizer, tmp_path / "whole"))
    monkeypatch.setattr(shards, "SHARD", 3000)
    prepare(Job([corpus], tokenizer, tmp_path / "two", processes=2))
    assert files_of(tmp_path / "two") == files_of(tmp_path / "whole")

    stop = Stop()

    def ask(event: Any) -> None:
        if getattr(event, "task", "") == "Tokenising":
            stop.signal = signal.SIGTERM

    job = Job([corpus], tokenizer, tmp_path / "stopped", processes=1)
    with pytest.raises(SlmxError, match=r"Stopped; 1 shards are kept") as caught:
        prepare(job, stop=stop, listen=ask)
    assert caught.value.code == 143
    with pytest.raises(RefusedError, match=r"begun with other options \(val_share 0.05 there, 0.5 here\)"):
        prepare(Job([corpus], tokenizer, tmp_path / "stopped", val_share=0.5))
    assert prepare(job).resumed == 1
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_a_shard_that_does_not_fit_its_marker_is_done_again(
    tmp_path: Path, corpus: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 3000)
    job = Job([corpus], tokenizer, tmp_path / "out")

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_finish", fail)
        with pytest.raises(OSError, match="no space"):
            prepare(job)
    markers = sorted(job.parts.glob("0*.json"))
    assert len(markers) > 5
    first = shards.path_of(job.parts, 0, 0)
    first.write_bytes(first.read_bytes()[:-2])  # cut
    markers[1].write_text("{", encoding="utf-8")  # damaged
    corpus.write_text(corpus.read_text().replace("Story 100.", "Story one hundred."), encoding="utf-8")
    made = prepare(job)
    assert made.resumed < len(markers) - 2
    prepare(Job([corpus], tokenizer, tmp_path / "fresh"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_the_same_again_is_finished_and_anything_else_is_refused(
    tmp_path: Path, corpus: Path, tokenizer: Tokenizer, tokenizer_folder: Path
) -> None:
    job = Job([corpus], tokenizer, tmp_path / "out")
    made = prepare(job)
    heard: list[Any] = []
    again = prepare(job, listen=heard.append)
    assert "finished already" in heard[-1].text
    assert msgspec.structs.replace(again, seconds=made.seconds, tokens_per_second=made.tokens_per_second) == made
    other = tmp_path / "other"
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["added_tokens"][1]["content"] = "<|padding|>"
    content["model"]["vocab"]["<|padding|>"] = content["model"]["vocab"].pop("<|pad|>")
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RefusedError, match="made with another tokenizer"):
        prepare(Job([corpus], load_tokenizer(other), tmp_path / "out"))
    with pytest.raises(RefusedError, match="made otherwise: seed 0 there, 1 here"):
        prepare(Job([corpus], tokenizer, tmp_path / "out", seed=1))
    corpus.write_text("changed", encoding="utf-8")
    with pytest.raises(RefusedError, match="made from other texts"):
        prepare(job)
    assert prepare(Job([corpus], tokenizer, tmp_path / "out", overwrite=True)).documents == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(RefusedError, match="not replaced"):
        prepare(Job([corpus], tokenizer, tmp_path / "mine", overwrite=True))


def test_an_empty_document_set_and_useless_options_are_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty.txt").write_text(" \n<|endoftext|>\n ", encoding="utf-8")
    with pytest.raises(SlmxError, match=r"There is no text in .*empty\.txt: all documents are empty"):
        prepare(Job([tmp_path / "empty.txt"], tokenizer, tmp_path / "out"))
    with pytest.raises(UsageError, match="is no share"):
        prepare(Job([tmp_path / "empty.txt"], tokenizer, tmp_path / "out", val_share=1.0))
    with pytest.raises(UsageError, match="no regular expression"):
        prepare(Job([tmp_path / "empty.txt"], tokenizer, tmp_path / "out", how=Splitting(on="(")))


def test_bad_rows_are_named_in_a_file_and_too_many_fail(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"text": story}) for story in STORIES]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"body": 1}', '{"text": "cut']), encoding="utf-8")
    made = prepare(Job([tmp_path / "rows.jsonl"], tokenizer, tmp_path / "out"))
    assert (made.documents, made.left_out) == (400, 2)
    named = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(row["line"], row["field"]) for row in named] == [(401, "text"), (402, "row")]
    assert prepare(Job([tmp_path / "rows.jsonl"], tokenizer, tmp_path / "out")).left_out == 2  # the same command again
    monkeypatch.setattr(prepare_module, "_NAMED_ROWS", 1)
    for _ in range(2):
        assert prepare(Job([tmp_path / "rows.jsonl"], tokenizer, tmp_path / "out2")).left_out == 2
    assert '"more":1' in (tmp_path / "out2" / "errors.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:10], '{"body": 1}']), encoding="utf-8")
    with pytest.raises(SlmxError, match="1 of 11 rows"):
        prepare(Job([tmp_path / "rows.jsonl"], tokenizer, tmp_path / "few"))


def slmx(*args: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slmx", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(empty_folder: Path, tokenizer_folder: Path) -> None:
    text = "\n<|endoftext|>\n".join(f"{n} {story}" for n in range(300) for story in STORIES)
    (empty_folder / "big.txt").write_text(text, encoding="utf-8")
    arguments = ["data", "prepare", "big.txt", "--tokenizer", str(tokenizer_folder), "--processes", "2", "--to"]
    whole = slmx("--json", *arguments, "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "slmx", *arguments, "killed"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        parts = empty_folder / ".killed.parts"
        while not len(list(parts.glob("0*.json"))) >= 2 and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    again = slmx("--json", *arguments, "killed")
    made = msgspec.json.decode(again.stdout, type=Prepared)
    assert made.resumed >= 2
    assert files_of(empty_folder / "killed") == files_of(empty_folder / "whole")


def test_the_command_tells_what_it_made_and_how_it_failed(
    empty_folder: Path, corpus: Path, tokenizer_folder: Path
) -> None:
    done = slmx("data", "prepare", corpus, "--tokenizer", tokenizer_folder, "--to", "out")
    assert done.returncode == 0, done.stderr
    assert "train.bin" in done.stdout and "bytes a token" in done.stdout
    (empty_folder / "cp.txt").write_bytes("Ночь, улица, фонарь, аптека.".encode("cp1251"))
    wrong = slmx("data", "prepare", "cp.txt", "--tokenizer", tokenizer_folder, "--to", "cp")
    assert wrong.returncode == 1
    assert "cp.txt is not utf-8" in wrong.stderr and "--encoding cp1251" in wrong.stderr
    none = slmx("data", "prepare", corpus, "--tokenizer", "nowhere", "--to", "x")
    assert none.returncode == 2 and "There is no tokenizer nowhere" in none.stderr
