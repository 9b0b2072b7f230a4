from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.events import Notice
from slmx.models.tokenizers import load_tokenizer
from slmx.train.tokenizer import SPECIAL, TokenizerOptions, train_tokenizer

LINES = [f"The keeper of lamp {n} walked along the harbour, and the harbour was {n} steps long." for n in range(500)]
RUSSIAN = [f"Смотритель маяка {n} шёл вдоль гавани, и гавань была длиной в {n} шагов." for n in range(500)]


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    (tmp_path / "en.txt").write_text("\n".join(LINES), encoding="utf-8")
    (tmp_path / "ru.txt").write_text("\n".join(RUSSIAN), encoding="utf-8")
    return [tmp_path / "en.txt", tmp_path / "ru.txt"]


def test_the_folder_loads_with_transformers_and_loses_nothing(tmp_path: Path, corpus: list[Path]) -> None:
    from transformers import AutoTokenizer

    report = train_tokenizer(TokenizerOptions(corpus, tmp_path / "made", vocab_size=340, special=["<|note|>"]))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert len(loaded) == report.vocab_size == 340
    assert [loaded.convert_tokens_to_ids(token) for token in (*SPECIAL, "<|note|>")] == [0, 1, 2, 3, 4]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 1)
    for text in (LINES[7], RUSSIAN[9], "emoji 🦊, tab\t, two  spaces\n\nend ", "日本語"):
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template is None
    mine = load_tokenizer(tmp_path / "made")
    assert (mine.hash, mine.end_of_text, mine.vocab_size) == (report.hash, 0, 340)


def test_the_report_tells_bytes_a_token_by_source(tmp_path: Path, corpus: list[Path]) -> None:
    report = train_tokenizer(TokenizerOptions(corpus, tmp_path / "made", vocab_size=350))
    assert [row.path for row in report.sources] == [str(path) for path in corpus]
    tokenizer = load_tokenizer(tmp_path / "made")
    for row, path in zip(report.sources, corpus, strict=True):
        text = path.read_text(encoding="utf-8")
        assert row.characters == len(text)
        ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert row.bytes_per_token == round(len(text.encode()) / len(ids), 3)


def test_the_sample_is_bounded_and_seeded(tmp_path: Path, corpus: list[Path]) -> None:
    def made(name: str, seed: int) -> tuple[str, int]:
        options = TokenizerOptions(corpus, tmp_path / name, vocab_size=300, sample_mb=0.03, seed=seed)
        from slmx.data.texts import Splitting

        report = train_tokenizer(TokenizerOptions(**{**vars(options), "how": Splitting(on="line")}))
        return report.hash, report.sample_characters

    first, again, other = made("a", 1), made("b", 1), made("c", 2)
    assert first == again
    assert first[1] != other[1]
    assert 15_000 < first[1] < 60_000


def test_too_small_a_vocabulary_or_sample_and_an_empty_one_are_told(tmp_path: Path, corpus: list[Path]) -> None:
    with pytest.raises(UsageError, match="A vocabulary of 259 has no room"):
        train_tokenizer(TokenizerOptions(corpus, tmp_path / "a", vocab_size=259))
    heard: list[object] = []
    report = train_tokenizer(TokenizerOptions(corpus[:1], tmp_path / "b", vocab_size=30_000), heard.append)
    assert report.vocab_size < 30_000
    assert any(isinstance(event, Notice) and "it is small" in event.text for event in heard)
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(SlmxError, match="There is no text"):
        train_tokenizer(TokenizerOptions([tmp_path / "empty.txt"], tmp_path / "c", vocab_size=300))
    assert not (tmp_path / "c").exists()
    with pytest.raises(RefusedError):
        train_tokenizer(TokenizerOptions(corpus, tmp_path / "b", vocab_size=300))


def test_the_command(empty_folder: Path, corpus: list[Path]) -> None:
    command = [sys.executable, "-m", "slmx", "--json", "train", "tokenizer", *map(str, corpus)]
    done = subprocess.run(
        [*command, "--vocab-size", "340", "--to", "made"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vocab_size"] == 340
    again = subprocess.run([*command, "--to", "made"], capture_output=True, text=True, check=False)
    assert again.returncode == 4
