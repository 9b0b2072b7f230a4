"""Is a dataset readable and sound? One line a question that was asked of it: ok, warn or fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

from slmx.data.beir import absent, read_queries
from slmx.data.datasets import Dataset, locate, open_dataset
from slmx.data.passages import Counts, Held
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, nobody
from slmx.presets import load
from slmx.records import Question, Record
from slmx.text import normaliser_for

State = Literal["ok", "warn", "fail"]


class Line(Record, frozen=True, omit_defaults=False):
    """One thing that was looked at."""

    dataset: str
    state: State
    what: str
    found: str


class Checked(Record, frozen=True, omit_defaults=False):
    """All that was looked at."""

    lines: list[Line]

    def check(self) -> None:
        """SlmxError (exit code 1) when something failed."""
        failed = [line for line in self.lines if line.state == "fail"]
        if failed:
            first = failed[0]
            raise SlmxError(
                f"{len(failed)} checks failed; the first: {first.dataset}: {first.what}: {first.found}.",
                hint="`slmx data convert SOURCE --to FILE` names bad rows by line in FILE.errors.jsonl.",
            )


def check(names: list[str], *, data_dir: Path, cache_dir: Path, listen: Listener = nobody) -> Checked:
    """Check datasets by name or path; without names all that lie under the data folder."""
    lines: list[Line] = []
    for name in names or present(data_dir):
        lines += _one(name, data_dir, cache_dir, listen)
    return Checked(lines=lines)


def present(data_dir: Path) -> list[str]:
    """The presets and BEIR sets that lie under the data folder; UsageError when there are none."""
    found = []
    for name in load("datasets"):
        try:
            locate(name, data_dir)
        except UsageError:
            continue
        found.append(name)
    folder = data_dir / "beir"
    if folder.is_dir():
        found += sorted(str(p) for p in folder.iterdir() if (p / "queries.jsonl").is_file())
    if not found:
        hint = "Give --data-dir, or name a preset, a file or a folder."
        raise UsageError(f"There are no datasets under {data_dir}.", hint=hint)
    return found


class _Report:
    """Collects the lines of one dataset."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[Line] = []

    def say(self, state: State, what: str, found: str) -> None:
        self.lines.append(Line(dataset=self.name, state=state, what=what, found=found))

    def count(
        self, what: str, bad: int, of: int, *, unit: str, state: State = "warn", examples: Sequence[str] = ()
    ) -> None:
        """ "ok" when nothing is bad, else `state` with a few examples."""
        shown = f" ({', '.join(examples[:3])})" if bad and examples else ""
        self.say(state if bad else "ok", what, f"{bad} of {of} {unit}{shown}")


def _one(name: str, data_dir: Path, cache_dir: Path, listen: Listener) -> list[Line]:
    report = _Report(name)
    try:
        dataset = open_dataset(name, data_dir=data_dir, cache_dir=cache_dir, listen=listen)
        questions = list(read_queries(dataset.folder)) if dataset.has_questions else []  # ids twice are a line below
        form = dataset.stored.format if dataset.stored else "beir"
        report.say("ok", "readable", f"{dataset.path} ({form})")
        if dataset.stored is not None:
            _rows(dataset, dataset.stored.counts, report)
        _questions(questions, report, answers=dataset.stored is not None)
        if dataset.has_passages:
            _passages(dataset, questions, report)
        else:
            report.say("ok", "passages", "none: no_context mode alone, or retriever mode with --corpus")
    except SlmxError as problem:
        report.say("fail", "readable", str(problem).replace("\n", " "))
    return report.lines


def _rows(dataset: Dataset, counts: Counts, report: _Report) -> None:
    bad = counts.left_out or counts.warned
    see = f"; see {dataset.folder / 'errors.jsonl'}" if bad else ""
    report.say("warn" if bad else "ok", "rows", f"{counts.left_out} left out, {counts.warned} kept with a warning{see}")


def _questions(questions: list[Question], report: _Report, *, answers: bool) -> None:
    """Ids, duplicates and answers; a foreign BEIR folder has no answers to look at."""
    n = len(questions)
    if not n:
        report.say("fail", "questions", "there are none")
        return
    twice = [name for name, times in Counter(q.question_id for q in questions).items() if times > 1]
    report.count("question ids twice", len(twice), n, unit="questions", state="fail", examples=twice)
    texts = Counter(q.question.strip().lower() for q in questions)
    again = [text for text, times in texts.items() if times > 1]
    report.count("questions asked twice", len(again), n, unit="questions", examples=again)
    if answers or any(q.answers for q in questions):
        empty = [q.question_id for q in questions if not any(a.strip() for a in q.answers)]
        report.count("questions without an answer", len(empty), n, unit="questions", state="fail", examples=empty)


def _passages(dataset: Dataset, questions: list[Question], report: _Report) -> None:
    """Passage ids and texts, gold marks and qrels against the corpus. Memory holds ids, and texts of gold passages."""
    wanted = {p for q in questions for p in q.gold.at("long")}
    gold: dict[str, str] = {}
    ids, texts = set[str](), set[bytes]()
    n = twice = empty = 0
    for passage in dataset.passages():
        n += 1
        twice += passage.passage_id in ids
        empty += not passage.text.strip()
        ids.add(passage.passage_id)
        texts.add(sha256(passage.text.encode()).digest()[:16])
        if passage.passage_id in wanted:
            gold[passage.passage_id] = passage.text
    report.count("passage ids twice", twice, n, unit="passages", state="fail")
    report.count("empty passages", empty, n, unit="passages")
    report.count("passages with the text of another", n - len(texts), n, unit="passages")
    if wanted:
        _gold(questions, ids, gold, report)
    for split in dataset.splits():
        qrels = dataset.qrels(split)
        missing = absent(qrels, ids)
        of = len({p for marks in qrels.values() for p in marks})
        report.count(f"qrels {split}: passages not in the corpus", len(missing), of, unit="marked", examples=missing)
        strangers = sorted(set(qrels) - {q.question_id for q in questions})
        what = f"qrels {split}: questions not in queries"
        report.count(what, len(strangers), len(qrels), unit="marked", examples=strangers)


def _gold(questions: list[Question], ids: set[str], gold: dict[str, str], report: _Report) -> None:
    marked = {p for q in questions for p in (*q.gold.long, *q.gold.short, *q.gold.document)}
    missing = sorted(marked - ids)
    report.count(
        "gold passages not in the corpus", len(missing), len(marked), unit="marked", state="fail", examples=missing
    )
    n = len(questions)
    without = [q.question_id for q in questions if not q.gold.at("long")]
    report.count("questions without a gold passage", len(without), n, unit="questions", examples=without)
    holding = sum(_holds(q, gold) for q in questions)
    report.say("ok", "questions whose gold passages hold an answer", f"{holding} of {n} ({100 * holding / n:.1f} %)")


def _holds(question: Question, gold: dict[str, str]) -> bool:
    """Does one of a question's gold passages hold one of its answers on word boundaries?"""
    normaliser = normaliser_for(question.question)
    texts = (gold[p] for p in question.gold.at("long") if p in gold)
    return any(Held(text, normaliser).any_of(question.answers) for text in texts)
