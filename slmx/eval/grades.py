"""What a judge said of a run's answers: the official prompt, how a reply is read, and the journal that holds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

import msgspec

from slmx.errors import UsageError
from slmx.eval.metrics import Grade
from slmx.eval.runs import Run
from slmx.files import hash_bytes, read_lines, slug
from slmx.models.stopping import read as read_reply
from slmx.records import Prediction, Record

PREFIX = "judge"
TEMPLATE = "simpleqa_grader.txt"
_PLACES = re.compile(r"\{(question|target|predicted_answer)\}")
_LETTER = re.compile(r"\s*([ABC])\b")
_WORDS = re.compile(r"(?<![Nn][Oo][Tt] )\b(?:NOT[ _]ATTEMPTED|INCORRECT|CORRECT)\b")
_MARKS = " \t\r\n.*_`'\"#:"
_GRADE_OF: dict[str, Grade] = {
    **{"A": "correct", "B": "incorrect", "C": "not_attempted"},
    **{"CORRECT": "correct", "INCORRECT": "incorrect", "NOT_ATTEMPTED": "not_attempted"},
}


class Entry(Record, frozen=True):
    """A line of the journal. `key` is the hash of the prompt: another answer, gold or template has another one."""

    question_id: str
    key: str
    model: str
    reply: str
    finish: str = ""
    max_tokens: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def grade(self) -> Grade | None:
        """The grade that the reply names, thinking aside."""
        return parse(read_reply(self.reply, ()).text)


# ---------------------------------------------------------------------------------------------------- prompt and reply


@cache
def template() -> str:
    """The official grader template."""
    content = package_files("slmx.eval").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return content.partition("\n---\n")[2].rstrip("\n")


def prompt(prediction: Prediction) -> str:
    """The template filled in one pass, so that braces in a question or an answer are plain text.

    SimpleQA has one gold answer; where a dataset accepts several, they stand with "or" between them.
    """
    given = {
        "question": prediction.question,
        "target": " or ".join(prediction.ground_truth),
        "predicted_answer": prediction.predicted_answer,
    }
    return _PLACES.sub(lambda place: given[place[1]], template())


def parse(reply: str) -> Grade | None:
    """The grade of a reply: its first letter A, B or C, else the whole words; None where it names none, or several.

    The words count in capitals within a longer text, in any case where they are all of it.
    """
    if letter := _LETTER.match(reply):
        return _GRADE_OF[letter[1]]
    whole = reply.strip(_MARKS).upper().replace(" ", "_")
    if whole in _GRADE_OF:
        return _GRADE_OF[whole]
    named = {_GRADE_OF[word.replace(" ", "_")] for word in _WORDS.findall(reply)}
    return named.pop() if len(named) == 1 else None


# ------------------------------------------------------------------------------------------------------------- journal


def journal_path(run: Run, model: str) -> Path:
    """Where a judge's replies for a run stand."""
    name = f"{PREFIX}-{slug(model)}.jsonl"
    return run.path / name if run.path.is_dir() else run.path.with_name(f"{run.path.stem}.{name}")


def replies_of(path: Path, model: str = "") -> dict[str, Entry]:
    """The replies of a journal by key, the last one for each; those of another model, and a torn line, are left out."""
    found: dict[str, Entry] = {}
    if path.is_file():
        for _, line in read_lines(path):
            try:
                entry = msgspec.json.decode(line, type=Entry)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if not model or entry.model == model:
                found[entry.key] = entry
    return found


def key_of(prediction: Prediction) -> str:
    """What a reply stands for: the hash of the prompt, so another answer, gold or template has another key."""
    return hash_bytes(prompt(prediction))


# ------------------------------------------------------------------------------------------------------ stored grades


def stored_grades(run: Run, predictions: Sequence[Prediction], model: str = "") -> list[Grade | None]:
    """The grades of a run's answers that a judge gave before; None where its reply names none.

    Args:
        run: graded by `slmx eval rescore --judge`.
        predictions: its answers.
        model: the judge; may be empty where there is one alone.

    Raises:
        UsageError: no judge, several, or one that has not seen all the answers.
    """
    by_model: dict[str, dict[str, Entry]] = {}
    pattern = f"{PREFIX}-*.jsonl" if run.path.is_dir() else f"{run.path.stem}.{PREFIX}-*.jsonl"
    folder = run.path if run.path.is_dir() else run.path.parent
    for path in sorted(folder.glob(pattern)):
        for entry in replies_of(path).values():
            by_model.setdefault(entry.model, {})[entry.key] = entry
    hint = f"slmx eval rescore {run.path} --judge URL --judge-model M"
    if not by_model or (model and model not in by_model):
        raise UsageError(f"{run.name} was not graded by {model or 'a judge'}.", hint=hint)
    if not model and len(by_model) > 1:
        named = ", ".join(f"judge:{name}" for name in sorted(by_model))
        raise UsageError(f"{run.name} was graded by several judges.", hint=f"Name one with --right-by: {named}.")
    replies = by_model[model or next(iter(by_model))]
    entries = [replies.get(key_of(prediction)) for prediction in predictions]
    if missing := sum(entry is None for entry in entries):
        raise UsageError(f"{missing} answers of {run.name} are not graded.", hint=f"The rest: {hint}")
    return [entry.grade for entry in entries if entry is not None]
