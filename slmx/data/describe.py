"""What is in a dataset: counts, lengths in words, where answers stand, topics, languages."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from slmx.data import sources
from slmx.data.beir import read_corpus, read_queries
from slmx.data.clean import clean
from slmx.data.datasets import locate
from slmx.data.passages import Held
from slmx.data.sources import BadRow, Item
from slmx.events import Listener, Progress, nobody
from slmx.records import Document, Question, Record
from slmx.text import normaliser_for

MOST = 12  # so many topics and answer types are named; the rest are summed
_CYRILLIC, _LATIN = re.compile(r"[\u0400-\u04ff]"), re.compile(r"[A-Za-z]")


class Spread(Record, frozen=True, omit_defaults=False):
    """How a number is distributed. `p95` is the nearest rank."""

    n: int
    mean: float = 0.0
    median: float = 0.0
    p95: float = 0.0
    max: float = 0.0


def spread(values: Iterable[float]) -> Spread:
    """Mean, median, 95th percentile and maximum."""
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return Spread(n=0)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    p95 = ordered[-(-n * 95 // 100) - 1]
    return Spread(n=n, mean=sum(ordered) / n, median=middle, p95=p95, max=ordered[-1])


class Description(Record, frozen=True, omit_defaults=False):
    """A dataset in numbers.

    `found_as_string` counts questions one of whose answers stands in their documents as it is written, letter case
    aside; `found_on_words` those where it stands on word boundaries after normalisation. `document_words` counts the
    white-space words of a question's documents as the source has them (HTML tokens dropped), repeated ones each time.
    """

    name: str
    path: str
    format: str
    questions: int
    left_out: int
    warned: int
    answers_a_question: Spread
    question_words: Spread
    answer_words: Spread
    documents_a_question: Spread
    without_documents: int
    document_words: Spread
    found_as_string: int
    found_on_words: int
    with_long_answer: int
    passages: int
    passage_words: Spread
    languages: dict[str, int]
    topics: dict[str, int]
    answer_types: dict[str, int]


class _Tally:
    """Numbers of one kind each in a flat array: 8 bytes a value."""

    def __init__(self) -> None:
        self.answers, self.question_words, self.answer_words = array("d"), array("d"), array("d")
        self.documents, self.document_words, self.passage_words = array("d"), array("d"), array("d")
        self.as_string = self.on_words = self.long = self.passages = 0
        self.languages: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()
        self.types: Counter[str] = Counter()

    def question(self, question: Question) -> None:
        self.answers.append(len(question.answers))
        self.question_words.append(len(question.question.split()))
        self.answer_words.extend(len(a.split()) for a in question.answers)
        self.languages[language(question.question)] += 1
        for key, counter in (("topic", self.topics), ("answer_type", self.types)):
            named = question.metadata.get(key)
            if isinstance(named, str):
                counter[named] += 1

    def item(self, item: Item) -> None:
        self.question(item.question)
        documents = item.documents or [Document(doc_id=p.doc_id, text=p.text) for p in item.passages]
        texts = [clean(d.text).text for d in documents]
        self.documents.append(len(texts))
        self.document_words.extend(len(t.split()) for t in texts)
        self.long += bool(item.long_answers)
        self.passages += len(item.passages)
        self.passage_words.extend(len(p.text.split()) for p in item.passages)
        lowered = [a.lower() for a in item.question.answers]
        self.as_string += any(a in t for t in map(str.lower, texts) for a in lowered)
        normaliser = normaliser_for(item.question.question)
        self.on_words += any(Held(t, normaliser).any_of(item.question.answers) for t in texts)


def language(text: str) -> str:
    """ "ru" where Cyrillic letters outnumber Latin ones, "en" the other way round, else "other"."""
    cyrillic, latin = len(_CYRILLIC.findall(text)), len(_LATIN.findall(text))
    if cyrillic == latin == 0:
        return "other"
    return "ru" if cyrillic > latin else "en"


def describe(name: str, *, data_dir: Path, format: str = "auto", listen: Listener = nobody) -> Description:
    """Read a source once and count. Memory: a few numbers a row."""
    own, path, _ = locate(name, data_dir)
    form = sources.detect(path) if format == "auto" else format
    tally = _Tally()
    left_out, warned = 0, set[int]()
    if form == "beir":
        _folder(path, tally)
    else:
        for number, row in enumerate(sources.read(path, form), 1):
            if isinstance(row, BadRow):
                left_out += not row.kept
                if row.kept:
                    warned.add(row.line)
            else:
                tally.item(row)
            if number % 200 == 0:
                listen(Progress(f"Reading {path.name}", number, unit="rows"))
    return Description(
        name=own,
        path=str(path),
        format=form,
        questions=len(tally.answers),
        left_out=left_out,
        warned=len(warned),
        answers_a_question=spread(tally.answers),
        question_words=spread(tally.question_words),
        answer_words=spread(tally.answer_words),
        documents_a_question=spread(tally.documents),
        without_documents=tally.documents.count(0.0),
        document_words=spread(tally.document_words),
        found_as_string=tally.as_string,
        found_on_words=tally.on_words,
        with_long_answer=tally.long,
        passages=tally.passages,
        passage_words=spread(tally.passage_words),
        languages=dict(tally.languages.most_common()),
        topics=_most(tally.topics),
        answer_types=_most(tally.types),
    )


def _folder(path: Path, tally: _Tally) -> None:
    """A BEIR folder: its questions and its corpus; which document belongs to which question is for the qrels to say."""
    if (path / "queries.jsonl").is_file():
        for question in read_queries(path):
            tally.question(question)
    if (path / "corpus.jsonl").is_file():
        for passage in read_corpus(path):
            tally.passages += 1
            tally.passage_words.append(len(passage.text.split()))


def _most(counter: Counter[str]) -> dict[str, int]:
    named = dict(counter.most_common(MOST))
    rest = sum(counter.values()) - sum(named.values())
    return {**named, **({"(others)": rest} if rest else {})}
