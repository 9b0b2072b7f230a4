"""Conversations to learn from, out of every form in which instruction data is published.

    question, answer (str or list) · instruction, [input], output | response (or a list of `instances`)
    · messages: [{role, content}] · prompt, completion

in JSON, JSON lines or parquet; and out of a dataset of questions with passages, as `slmx eval run` asks them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from slmx import files, presets
from slmx.data.datasets import Dataset
from slmx.data.sources import BadRow
from slmx.data.stream import head, rows
from slmx.errors import SlmxError
from slmx.presets.rendering import render
from slmx.records import Passage, Question
from slmx.text import holds_answer, normaliser_for

ROLES = ("system", "user", "assistant")
ABSENT = "The passages do not hold the answer."  # what a model is taught to say when they do not
SHOWN = 3  # passages of a prompt that stands for a retriever's
FORMS = "question + answer, instruction + output (or response), messages, or prompt + completion"


class Turn(NamedTuple):
    """One message: system, user or assistant."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Turns in order; the assistant's are learnt. `kind` says what it teaches, of which `question`, where known."""

    turns: list[Turn]
    kind: str = ""
    question: str = ""


# ---------------------------------------------------------------------------------------------------------------- rows


def read_conversations(path: Path) -> Iterator[Conversation | BadRow]:
    """The conversations of a file; rows that are none come as BadRows.

    Raises:
        SlmxError: the file is absent, damaged, or holds no rows at all.
    """
    number = 0
    for line, row in _parquet_rows(path) if _is_parquet(path) else _json_rows(path):
        number += 1
        if isinstance(row, BadRow):
            yield row
        else:
            yield from _of_row(line, row)
    if not number:
        raise SlmxError(f"{path} holds no rows.", hint=f"A row has {FORMS}.")


def _is_parquet(path: Path) -> bool:
    with files.open_bytes(path) as stream:
        return stream.read(4) == b"PAR1"


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    if head(path).layout not in ("lines", "array", "sections"):
        raise SlmxError(f"{path} holds no JSON rows.", hint=f"JSON, JSON lines or parquet, a row with {FORMS}.")
    decoder = msgspec.json.Decoder()
    for line, raw, _ in rows(path):
        try:
            yield line, decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = (
                f"not valid JSON: {error}" if raw else "the file ends inside this row or before its array is closed"
            )
            yield line, BadRow(line=line, field="row", reason=reason)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=256, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SlmxError(f"{path} is damaged: {said}", hint="Was it cut? Fetch it again.") from None


def _of_row(line: int, row: Any) -> Iterator[Conversation | BadRow]:
    if not isinstance(row, dict):
        yield BadRow(line=line, field="row", reason="it is no object")
        return
    if isinstance(row.get("instances"), list) and "instruction" in row:
        for one in row["instances"]:
            yield from _of_row(line, {"instruction": row["instruction"], **(one if isinstance(one, dict) else {})})
        return
    turns = _turns(row)
    if turns is None:
        yield BadRow(line=line, field="row", reason=f"it has {', '.join(list(row)[:8]) or 'nothing'}; wanted: {FORMS}")
        return
    for number, turn in enumerate(turns):
        if turn.role not in ROLES:
            yield BadRow(line=line, field=f"messages[{number}].role", reason=f"unknown: {turn.role!r}")
            return
        if not turn.content.strip() and turn.role != "system":
            yield BadRow(line=line, field=turn.role, reason="it is empty")
            return
    if not any(turn.role == "assistant" for turn in turns):
        yield BadRow(line=line, field="messages", reason="the assistant says nothing")
        return
    yield Conversation([Turn(turn.role, turn.content.strip()) for turn in turns if turn.content.strip()])


def _turns(row: dict[str, Any]) -> list[Turn] | None:
    """The turns of a row of any form, empty ones too; None where it has no form."""
    if isinstance(row.get("messages"), list):
        return [
            Turn(str(one.get("role")), _text(one.get("content"))) if isinstance(one, dict) else Turn("?", "")
            for one in row["messages"]
        ]
    asked, told = None, None
    if "question" in row:
        asked, told = row["question"], row.get("answer")
    elif "instruction" in row:
        more = _text(row.get("input")).strip()
        asked = f"{_text(row['instruction']).strip()}\n\n{more}".strip()
        told = row.get("output", row.get("response"))
    elif "prompt" in row:
        asked, told = row["prompt"], row.get("completion")
    if asked is None:
        return None
    return [Turn("user", _text(asked)), Turn("assistant", _text(told))]


def _text(value: Any) -> str:
    """A text, or the first of a list of them (answers); "" for anything else."""
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), "")
    return value if isinstance(value, str) else ""


# ---------------------------------------------------------------------------------------------- questions with passages


def from_dataset(dataset: Dataset, *, seed: int = 0) -> Iterator[Conversation]:
    """What the three modes ask of each question with an answer, and what is right to say.

    `no_context` asks the question alone; `oracle` shows its gold passages; `retrieved` shows one gold passage among
    others in a random order; `absent` shows others alone, and the answer is that they do not hold it. The others are
    passages of the corpus, those of the gold document first, in which no accepted answer stands. Prompts are those of
    the modes' presets, to the letter. Where a question has no gold passage, it is asked alone.

    Raises:
        SlmxError: the dataset has no question with an answer.
    """
    modes = {name: presets.get(presets.ModePreset, name)[1] for name in ("no_context", "oracle_context")}
    passages = {passage.passage_id: passage for passage in dataset.passages()}
    ids = list(passages)
    by_document: dict[str, list[str]] = {}
    for passage in passages.values():
        by_document.setdefault(passage.doc_id, []).append(passage.passage_id)
    asked = 0
    for question in dataset.questions():
        if not question.answers:
            continue
        asked += 1
        answer = question.answers[0].strip()
        yield _taught(question, render(modes["no_context"], question, []), answer, "no_context")
        gold = [passages[i] for i in question.gold.at("long") if i in passages]
        if not gold:
            continue
        chance = random.Random(f"{seed}:{question.question_id}")
        others = _others(question, gold, passages, by_document.get(gold[0].doc_id, []), ids, chance)
        with_passages = modes["oracle_context"]
        yield _taught(question, render(with_passages, question, gold[:SHOWN]), answer, "oracle")
        if len(others) < SHOWN:
            continue
        mixed = [gold[0], *others[: SHOWN - 1]]
        chance.shuffle(mixed)
        yield _taught(question, render(with_passages, question, mixed), answer, "retrieved")
        yield _taught(question, render(with_passages, question, others[:SHOWN]), ABSENT, "absent")
    if not asked:
        raise SlmxError(
            f"{dataset.name} has no question with an answer.", hint="`slmx data describe` shows what it has."
        )


def _taught(question: Question, prompt: str, answer: str, kind: str) -> Conversation:
    return Conversation([Turn("user", prompt), Turn("assistant", answer)], kind, question.question)


def _others(
    question: Question,
    gold: list[Passage],
    passages: dict[str, Passage],
    near: list[str],
    ids: list[str],
    chance: random.Random,
) -> list[Passage]:
    """Up to `SHOWN` passages without an accepted answer: at most one of the gold document, the rest from anywhere."""
    taken = {*question.gold.long, *question.gold.short, *(passage.passage_id for passage in gold)}
    normaliser = normaliser_for(question.question)
    found: list[Passage] = []
    for pool, most in ((near, 1), (ids, SHOWN)):
        for own in chance.sample(pool, min(len(pool), 4 * SHOWN)):
            if len(found) >= most:
                break
            one = passages[own]
            if own not in taken and not holds_answer(f"{one.title} {one.text}", question.answers, normaliser):
                found.append(one)
                taken.add(own)
    return found
