from __future__ import annotations

from pathlib import Path

import pytest

from slmx.errors import RefusedError, SlmxError
from slmx.eval.journal import NAME, open_journal, read_predictions
from slmx.records import Prediction

BATCHES = [["a", "b"], ["c"], ["d", "e"]]


def prediction(question_id: str, answer: str = "x") -> Prediction:
    return Prediction(
        question_id=question_id,
        question="q",
        predicted_answer=answer,
        ground_truth=["x"],
        contexts=[],
        context_type="none",
        model_name="m",
    )


def write(folder: Path, count: int) -> bytes:
    with open_journal(folder, BATCHES) as journal:
        for batch in BATCHES[journal.done : journal.done + count]:
            journal.append([prediction(question_id) for question_id in batch])
    return (folder / NAME).read_bytes()


def test_an_unbroken_journal_is_finished_and_read_back(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with open_journal(tmp_path, BATCHES) as journal:
        assert journal.finished
    assert list(read_predictions(tmp_path)) == ["a", "b", "c", "d", "e"]


def test_trap_23_wherever_a_crash_cuts_the_journal_whole_batches_stay_and_the_rest_is_repeated(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", 3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole) + 1, 7):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / NAME).write_bytes(whole[:length])
        rows = sum(end <= length for end in ends)
        with open_journal(folder, BATCHES) as journal:
            assert journal.done == sum(rows >= last for last in (2, 3, 5))
        assert write(folder, 3) == whole


def test_junk_behind_whole_batches_is_cut_off(tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    (tmp_path / NAME).write_bytes(good + b"\x00\x00\xff{}\n")
    with open_journal(tmp_path, BATCHES) as journal:
        assert journal.done == 1
    assert (tmp_path / NAME).read_bytes() == good


def test_a_batch_that_was_not_planned_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path, BATCHES) as journal, pytest.raises(SlmxError, match="planned"):
        journal.append([prediction("b"), prediction("a")])


def test_trap_18_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path, BATCHES),
        pytest.raises(RefusedError, match="Another process"),
        open_journal(tmp_path, BATCHES),
    ):
        pass
    with open_journal(tmp_path, BATCHES):
        pass
