"""SimpleQA's official grade (Wei et al. 2024): a model behind an OpenAI-compatible server reads gold and answer.

Every reply is appended to a journal beside the run, so that a killed command goes on where it stopped and no reply is
paid for twice. A reply that names no grade is counted and never guessed.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from slmx.errors import SlmxError, UsageError
from slmx.eval.grades import PREFIX, Entry, journal_path, key_of, prompt, replies_of, template
from slmx.eval.metrics import GRADES, Grade, Row, Scored, grade_numbers, match, simple_qa_grade
from slmx.eval.runs import Run
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import hash_bytes
from slmx.journal import open_locked
from slmx.models.server import ChatServer, RequestFailed
from slmx.pool import Pool, Stopped, outcomes
from slmx.records import Prediction, Record
from slmx.signals import Stop

NAMED_IDS = 20
WORRY_SECONDS = 10.0


@dataclass(frozen=True)
class Judge:
    """Who grades: a model behind a server, asked by so many threads at once, for replies of so many tokens at most."""

    server: ChatServer
    model: str
    concurrency: int = 8
    max_tokens: int = 1024


@dataclass(frozen=True)
class Grades:
    """A judge's grades as numbers, a row a question; the versions of these metrics; a report for results.json."""

    name: str
    rows: Mapping[str, Row]
    versions: Mapping[str, str]
    report: Mapping[str, Any]


def open_judge(
    url: str, model: str, *, api_key: str, max_tokens: int, concurrency: int, retries: int, timeout: float
) -> Judge | None:
    """The judge that was asked for, if any; no request is made.

    Raises:
        UsageError: an address without a model or the other way round, or an address that is none.
    """
    if not url and not model:
        return None
    if not url or not model:
        hint = "--judge http://localhost:8000/v1 --judge-model M"
        raise UsageError("A judge takes an address and a model.", hint=hint)
    server = ChatServer(url, api_key=api_key, timeout=timeout, retries=retries, connections=concurrency)
    return Judge(server, model, concurrency, max_tokens)


class _Journal:
    """Replies are on the disk before anything else happens; threads write in turn."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._turn = stream, threading.Lock()

    def append(self, entry: Entry) -> None:
        with self._turn:
            self._stream.write(msgspec.json.encode(entry) + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())


def _end_torn_line(stream: BinaryIO, path: Path) -> None:
    """A kill may have cut the last line; what is appended must not become part of it."""
    size = path.stat().st_size
    if size:
        with path.open("rb") as there:
            there.seek(size - 1)
            if there.read(1) != b"\n":
                stream.write(b"\n")


# ------------------------------------------------------------------------------------------------------------- grading


class Waiting(Record, frozen=True, omit_defaults=False):
    """What a judge would be asked: the answer to --dry-run."""

    run: str
    model: str
    answers: int
    graded: int
    requests: int
    prompt_words: int


def waiting(runs: Iterable[Run], judge: Judge | None) -> list[Waiting]:
    """What is still to be asked about runs; nothing is asked.

    Raises:
        UsageError: there is no judge.
    """
    if judge is None:
        hint = "Without a judge nothing costs: the command writes new files beside the old ones."
        raise UsageError("--dry-run tells what a judge would be asked, and no --judge was given.", hint=hint)
    told = []
    for run in runs:
        predictions = run.predictions(texts=False)
        todo = _todo(predictions, replies_of(journal_path(run, judge.model), judge.model), judge.max_tokens)
        told.append(
            Waiting(
                run=str(run.path),
                model=judge.model,
                answers=len(predictions),
                graded=len(predictions) - len(todo),
                requests=len(todo),
                prompt_words=sum(len(prompt(prediction).split()) for prediction in todo),
            )
        )
    return told


def _todo(predictions: Iterable[Prediction], replies: Mapping[str, Entry], max_tokens: int) -> list[Prediction]:
    """Answers without a reply, or with one that was cut before it named a grade, by a lower limit than now."""

    def done(entry: Entry | None) -> bool:
        if entry is None:
            return False
        return entry.finish != "length" or entry.max_tokens >= max_tokens or entry.grade is not None

    return [prediction for prediction in predictions if not done(replies.get(key_of(prediction)))]


def grade(run: Run, judge: Judge, *, stop: Stop, listen: Listener = nobody) -> Grades:
    """Ask the judge about every answer of a run that it has not graded yet.

    Requests that failed for good are counted in the report's `failed`; the same call asks for them again.

    Raises:
        SlmxError: the judge refuses or is away (what it said is saved), or `stop` was asked for (code 130 or 143).
        RefusedError: another process asks the same judge about the same run.
    """
    if judge.server.unprotected and judge.server.has_key:
        listen(Notice(f"The key goes to {judge.server.host} unencrypted (http).", level="warning"))
    predictions = run.predictions(texts=False)
    path = journal_path(run, judge.model)
    with open_locked(path) as stream:
        _end_torn_line(stream, path)
        replies = replies_of(path, judge.model)
        todo = _todo(predictions, replies, judge.max_tokens)
        if len(todo) < len(predictions):
            listen(Notice(f"{run.name}: {len(predictions) - len(todo)} answers are graded already"))
        failed = _ask(run, judge, todo, _Journal(stream), stop, listen)
    if failed and len(failed) == len(predictions):
        raise SlmxError(f"The judge graded nothing. {next(iter(failed.values()))}", hint="Is the address right?")
    return _grades(run, judge, predictions, replies_of(path, judge.model), failed)


def _ask(
    run: Run, judge: Judge, todo: Sequence[Prediction], journal: _Journal, stop: Stop, listen: Listener
) -> dict[str, str]:
    """Ask about the answers, several at a time; the errors of those that got no reply, by question id."""

    told_at = time.monotonic() - WORRY_SECONDS

    def worry(problem: str) -> None:
        """Tell one problem in a while: many threads meet the same one."""
        nonlocal told_at
        if time.monotonic() - told_at >= WORRY_SECONDS:
            told_at = time.monotonic()
            listen(Notice(problem, level="warning"))

    def work(prediction: Prediction) -> None:
        messages = [{"role": "user", "content": prompt(prediction)}]
        reply = judge.server.chat(judge.model, messages, max_tokens=judge.max_tokens, stop=stop, tell=worry)
        entry = Entry(
            question_id=prediction.question_id,
            key=key_of(prediction),
            model=judge.model,
            reply=reply.text,
            finish=reply.finish,
            max_tokens=judge.max_tokens,
            prompt_tokens=reply.prompt_tokens,
            new_tokens=reply.new_tokens,
        )
        journal.append(entry)

    failed: dict[str, str] = {}
    in_a_row = 0
    again = "The same command asks only for what is missing."
    pool = Pool(judge.concurrency)
    jobs = outcomes(pool, todo, work, stop=stop, ahead=1)
    try:
        for done, (prediction, future) in enumerate(jobs, 1):
            problem = future.exception()
            if isinstance(problem, RequestFailed):
                failed[prediction.question_id] = problem.what
                in_a_row += 1
                if problem.for_all or in_a_row >= max(5, judge.concurrency):
                    hint = f"{problem.hint} {again}".strip()
                    raise SlmxError(f"The judge cannot be asked: {problem.what}", hint=hint)
            else:
                future.result()
                in_a_row = 0
            listen(Progress(f"judge {run.name}", done, len(todo), "answers", f"{len(failed)} failed" if failed else ""))
    except Stopped:
        raise stop.error(
            f"Stopped while {judge.model} was grading {run.name}; its replies are saved.", hint=again
        ) from None
    finally:
        jobs.close()
        pool.close()
    return failed


def _grades(
    run: Run, judge: Judge, predictions: Sequence[Prediction], replies: Mapping[str, Entry], failed: Mapping[str, str]
) -> Grades:
    """The grades of all answers, and what there is to say of them."""
    entries = {p.question_id: replies.get(key_of(p)) for p in predictions}
    grades = {question_id: entry.grade if entry else None for question_id, entry in entries.items()}
    rows = {
        question_id: {f"{PREFIX}_{name}": value for name, value in grade_numbers(found).items()}
        for question_id, found in grades.items()
    }
    version = f"simpleqa-grader@{hash_bytes(template())[:8]} {judge.model}"
    names = [f"{PREFIX}_{name}" for name in grade_numbers(None)]
    unparsed = [i for i, entry in entries.items() if entry is not None and grades[i] is None]
    report = {
        "model": judge.model,
        "server": judge.server.host,
        "template": version.split(maxsplit=1)[0],
        "answers": len(predictions),
        "graded": sum(found is not None for found in grades.values()),
        "unparsed": len(unparsed),
        "unparsed_ids": unparsed[:NAMED_IDS],
        "failed": len(failed),
        "failures": dict(list(failed.items())[:NAMED_IDS]),
        "grades": {name: list(grades.values()).count(name) for name in GRADES},
        "prompt_tokens": sum(entry.prompt_tokens for entry in entries.values() if entry),
        "new_tokens": sum(entry.new_tokens for entry in entries.values() if entry),
        **_disagreement(predictions, grades),
    }
    return Grades(f"{PREFIX}-{judge.model}", rows, dict.fromkeys(names, version), report)


def _disagreement(predictions: Sequence[Prediction], grades: Mapping[str, Grade | None]) -> dict[str, Any]:
    """Where the judge and the string metrics part: the grade by strings against its own, `match` against correct."""
    table: Counter[tuple[str, str]] = Counter()
    judge_alone: list[str] = []
    match_alone: list[str] = []
    for prediction in predictions:
        found = grades[prediction.question_id]
        scored = Scored(
            prediction=prediction.predicted_answer,
            answers=prediction.ground_truth,
            question=prediction.question,
            normaliser=prediction.metadata["normaliser"],
        )
        by_strings = simple_qa_grade(scored)
        if found is None or by_strings is None:
            continue
        table[by_strings, found] += 1
        if (match(scored) == 1) != (found == "correct"):
            (judge_alone if found == "correct" else match_alone).append(prediction.question_id)
    same = sum(count for (one, other), count in table.items() if one == other)
    return {
        "compared": table.total(),
        "same_grade": same,
        "by_strings_and_judge": {one: {other: table[one, other] for other in GRADES} for one in GRADES},
        "right_by_judge_alone": len(judge_alone),
        "right_by_judge_alone_ids": judge_alone[:NAMED_IDS],
        "right_by_match_alone": len(match_alone),
        "right_by_match_alone_ids": match_alone[:NAMED_IDS],
    }
