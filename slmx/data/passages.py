"""Documents become passages: cleaned, about as long as asked for, whole sentences, with gold marks and a way back.

A passage ends where a sentence ends; a heading opens a new one once the last is half full, a paragraph once it is
nearly full. A document with the same content gives the same passages with the same ids, whatever stands around it, so
that the documents that questions share are written once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from slmx import files
from slmx.data import sources
from slmx.data.clean import Cleaned, clean
from slmx.data.sources import BadRow, BadRows, Item, Span
from slmx.errors import PartlyDone, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.records import Document, Gold, Passage, Question, Record
from slmx.text import WordText, normaliser_for, sentences

MARKER = "dataset.json"  # every folder that slmx wrote has it, and only such a folder is replaced
LONGEST = 1.5  # a passage may be this many times as long as asked for, rather than cut a sentence


class Cut(NamedTuple):
    """A passage and the raw characters of its document that it was made from."""

    passage: Passage
    raw: Span


# ----------------------------------------------------------------------------------------------------------------- ids


def doc_id_of(title: str, text: str) -> str:
    """A readable id that only this content has: the title (or first words) and eight digits of the hash."""
    name = re.sub(r"\W+", "_", title or " ".join(text[:60].split()[:6])).strip("_")
    return f"{name[:60] or 'text'}-{files.hash_bytes(title, text)[:8]}"


def passage_of(title: str, text: str) -> Passage:
    """A text that is a passage as it stands."""
    doc_id = doc_id_of(title, text)
    return Passage(passage_id=f"{doc_id}#0", text=text, title=title, doc_id=doc_id)


# ------------------------------------------------------------------------------------------------------------- cutting


class _Unit(NamedTuple):
    """What is never cut apart: a sentence with the headings before it, or a part of a sentence that is too long."""

    start: int
    end: int
    words: int
    opens: str = ""  # "heading" or "paragraph", where it begins one


def cut(document: Document, *, words: int = 100, overlap: int = 0) -> list[Cut]:
    """The passages of a document in order.

    Args:
        document: its text may be simplified NQ (with HTML tokens) or plain.
        words: about how many words a passage has; at most 1.5 times as many.
        overlap: up to how many words, as whole sentences, a passage repeats of the one before.
    """
    check_sizes(words, overlap)
    cleaned = clean(document.text)
    doc_id = document.doc_id or doc_id_of(document.title, document.text)
    made = []
    for number, (start, end) in enumerate(_spans(cleaned, words, overlap)):
        passage = Passage(
            passage_id=f"{doc_id}#{number}", text=cleaned.text[start:end], title=document.title, doc_id=doc_id
        )
        made.append(Cut(passage, cleaned.raw(start, end)))
    return made


def check_sizes(words: int, overlap: int) -> None:
    """UsageError unless passages of these sizes can be cut."""
    if words < 10:
        raise UsageError(f"Passages of {words} words are too short.", hint="Give --words 10 or more.")
    if not 0 <= overlap <= words // 2:
        hint = f"Give --overlap 0 to {words // 2}: at most half of --words."
        raise UsageError(f"An overlap of {overlap} words does not fit passages of {words}.", hint=hint)


def _spans(cleaned: Cleaned, words: int, overlap: int) -> list[Span]:
    units = list(_units(cleaned, words))
    groups: list[Span] = []
    first = fresh = count = 0  # the group's first unit, its first one that no other group has, its words
    for place, unit in enumerate(units):
        if place > fresh and _ends_before(unit, count, words):
            groups.append((first, place))
            first = _back(units, place, min(overlap, int(LONGEST * words) - unit.words))
            fresh, count = place, sum(u.words for u in units[first:place])
        count += unit.words
    if units:
        small = sum(u.words for u in units[fresh:]) < words / 4
        if groups and small and sum(u.words for u in units[groups[-1][0] :]) <= LONGEST * words:
            groups[-1] = (groups[-1][0], len(units))
        else:
            groups.append((first, len(units)))
    return [(units[a].start, units[b - 1].end) for a, b in groups]


def _ends_before(unit: _Unit, count: int, words: int) -> bool:
    """Does a passage of `count` words end before this unit?"""
    if count + unit.words > words and (count >= words / 2 or count + unit.words > LONGEST * words):
        return True
    return count >= words * {"heading": 0.5, "paragraph": 0.8}.get(unit.opens, 1.0)


def _back(units: list[_Unit], place: int, room: int) -> int:
    """How far back from `place` whole units fit into `room` words."""
    while place and units[place - 1].words <= room:
        place -= 1
        room -= units[place].words
    return place


def _units(cleaned: Cleaned, words: int) -> Iterator[_Unit]:
    text = cleaned.text
    waiting: _Unit | None = None  # headings that wait for their text
    for start, end in sentences(text):
        unit = _Unit(
            start, end, text.count(" ", start, end) + 1, "paragraph" if text[start - 1 : start] == "\n" else ""
        )
        if start in cleaned.headings and unit.words <= words / 4:
            if waiting is not None and waiting.words + unit.words > words / 4:
                yield waiting
                waiting = None
            waiting = _joined(waiting, unit._replace(opens="heading"))
            continue
        for part in _parts(text, unit, words, 0 if waiting is None else waiting.words):
            yield _joined(waiting, part)
            waiting = None
    if waiting is not None:
        yield waiting


def _joined(before: _Unit | None, unit: _Unit) -> _Unit:
    if before is None:
        return unit
    return _Unit(before.start, unit.end, before.words + unit.words, before.opens)


def _parts(text: str, unit: _Unit, words: int, before: int) -> Iterator[_Unit]:
    """The unit, or equal parts of it where it is longer than a passage may be that already has `before` words."""
    if unit.words <= words or before + unit.words <= LONGEST * words:
        yield unit
        return
    parts = -(-unit.words // words)
    spans = [found.span() for found in re.finditer(r"\S+", text[unit.start : unit.end])]
    for number in range(parts):
        a, b = number * len(spans) // parts, (number + 1) * len(spans) // parts
        opens = unit.opens if number == 0 else ""
        yield _Unit(unit.start + spans[a][0], unit.start + spans[b - 1][1], b - a, opens)


# ---------------------------------------------------------------------------------------------------------- gold marks


_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")


class Held:
    """A text to be asked for answers on word boundaries.

    A possessive 's counts as the end of its word and as a word of its own: NQ's answers have it apart ("McDonald 's"),
    and "Schiller's poem" holds "Schiller".
    """

    def __init__(self, text: str, normaliser: str) -> None:
        apart = _POSSESSIVE.sub(" s", text)
        self._texts = [WordText(t, normaliser) for t in ((text,) if apart == text else (text, apart))]

    def any_of(self, answers: list[str]) -> bool:
        """Does one of the answers stand in the text?"""
        return any(text.holds_any(answers) for text in self._texts)


def mark(item: Item, cuts: list[list[Cut]], held: list[list[Held]]) -> Gold:
    """Which passages of an item's documents are gold.

    Args:
        item: its long answers are raw spans of the first document.
        cuts: the passages of each document.
        held: the same passages as texts to be asked for answers.
    """
    short = [
        c.passage.passage_id
        for document, texts in zip(cuts, held, strict=True)
        for c, text in zip(document, texts, strict=True)
        if text.any_of(item.question.answers)
    ]
    overlapping = [
        c.passage.passage_id
        for c in (cuts[0] if cuts else [])
        if any(c.raw[0] < end and start < c.raw[1] for start, end in item.long_spans)
    ]
    holding = set(short)
    long = [p for p in overlapping if p in holding] + [p for p in overlapping if p not in holding]
    every = [c.passage.passage_id for document in cuts for c in document]
    return Gold(long=long, short=_unique(short), document=_unique(every))


def _unique(ids: list[str]) -> list[str]:
    return list(dict.fromkeys(ids))


# ------------------------------------------------------------------------------------------------------ a whole source


class Counts(Record, frozen=True):
    """What a source became. `with_gold` are questions that have a gold passage."""

    questions: int = 0
    documents: int = 0
    passages: int = 0
    with_gold: int = 0
    left_out: int = 0
    warned: int = 0


class Stored(Record, frozen=True):
    """`dataset.json`: where a BEIR folder that slmx wrote comes from, and the hashes of what is in it."""

    name: str
    source: str
    source_hash: str
    format: str
    words: int
    overlap: int
    counts: Counts
    corpus_hash: str
    queries_hash: str

    def check(self, folder: Path) -> None:
        """PartlyDone (exit code 3) when rows were left out; the folder is there all the same."""
        if self.counts.left_out:
            said = f"{self.counts.left_out} rows of {self.source} were left out."
            raise PartlyDone(said, hint=f"See {folder / 'errors.jsonl'}.")

    def warn(self, folder: Path, listen: Listener) -> None:
        """Tell how many rows were left out or kept with a warning, if any, and where they are named."""
        left_out, warned = self.counts.left_out, self.counts.warned
        if left_out or warned:
            said = f"{self.source}: {left_out} rows left out, {warned} kept with a warning"
            listen(Notice(f"{said}; see {folder / 'errors.jsonl'}.", "warning"))


class _Folder:
    """The open files of a folder that is being written, and what is known of its content so far."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._encode = msgspec.json.Encoder().encode
        (folder / "qrels").mkdir()
        self._corpus, self._queries, self._qrels, self._errors = (
            stack.enter_context((folder / name).open("wb", buffering=files.BLOCK))
            for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "errors.jsonl")
        )
        self._qrels.write(b"query-id\tcorpus-id\tscore\n")
        self._written: set[bytes] = set()
        self._ids: dict[str, int] = {}
        self.hashes = {"corpus": sha256(), "queries": sha256()}
        self.documents = self.passages = self.questions = self.with_gold = 0

    def is_new(self, doc_id: str) -> bool:
        """Was nothing of this document written yet? Keeps 16 bytes a document."""
        key = sha256(doc_id.encode()).digest()[:16]
        if key in self._written:
            return False
        self._written.add(key)
        return True

    def passage(self, passage: Passage) -> None:
        """Append a passage to the corpus."""
        row = {"_id": passage.passage_id, "title": passage.title, "text": passage.text, "doc_id": passage.doc_id}
        self._put("corpus", row)
        self.passages += 1

    def question(self, question: Question) -> None:
        """Append a question and its relevance marks; where its id is taken it gets "-2" or more behind it."""
        own = self._free(question.question_id)
        metadata = {"answers": question.answers, "gold": question.gold, "source": question.metadata}
        self._put("queries", {"_id": own, "text": question.question, "metadata": metadata})
        gold = question.gold.at("long")
        self._qrels.writelines(f"{own}\t{passage_id}\t1\n".encode() for passage_id in gold)
        self.questions += 1
        self.with_gold += bool(gold)

    def _free(self, wanted: str) -> str:
        """The id itself, or with the first number behind it that gives one which no question has yet."""
        own, number = wanted, self._ids.get(wanted, 1)
        while own in self._ids:
            number += 1
            own = f"{wanted}-{number}"
        self._ids[wanted] = number  # the next one with this id goes on from here
        self._ids.setdefault(own, 1)
        return own

    def error(self, row: BadRow) -> None:
        """Append a bad row."""
        self._errors.write(self._encode(row) + b"\n")

    def _put(self, which: str, row: object) -> None:
        line = self._encode(row) + b"\n"
        (self._corpus if which == "corpus" else self._queries).write(line)
        self.hashes[which].update(line)


def _add(folder: _Folder, item: Item, words: int, overlap: int) -> None:
    normaliser = normaliser_for(item.question.question)
    if item.passages:  # cut and marked by the source itself
        for passage in item.passages:
            if folder.is_new(passage.passage_id):
                folder.passage(passage)
        folder.question(item.question)
        return
    cuts = [cut(document, words=words, overlap=overlap) for document in item.documents if document.text.strip()]
    for passages in cuts:
        if passages and folder.is_new(passages[0].passage.doc_id):
            folder.documents += 1
            for made in passages:
                folder.passage(made.passage)
    held = [[Held(c.passage.text, normaliser) for c in passages] for passages in cuts]
    folder.question(msgspec.structs.replace(item.question, gold=mark(item, cuts, held)))


def build(
    source: Path,
    to: Path,
    *,
    name: str = "",
    format: str = "auto",
    words: int = 100,
    overlap: int = 0,
    strict: bool = False,
    allow_errors: bool = False,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Stored:
    """Read a source of any form and write it as a BEIR folder of passages, whole or not at all.

    The folder holds `corpus.jsonl`, `queries.jsonl` (answers and gold marks in `metadata`), `qrels/test.tsv`,
    `dataset.json`, and `errors.jsonl` when rows were bad. Memory does not grow with the rows but for their ids.

    Raises:
        SlmxError: more than one row in twenty is bad and `allow_errors` is false, or a row is and `strict` is true.
        RefusedError: `to` exists and `overwrite` is false, or it is a folder that slmx did not write.
    """
    check_sizes(words, overlap)
    form = sources.detect(source) if format == "auto" else format
    with files.whole_folder(to, marker=MARKER, overwrite=overwrite) as made:
        bad = BadRows(strict=strict, allow=allow_errors)
        counts, hashes = _write(source, form, made, words, overlap, bad, listen)
        stored = Stored(
            name=name or source.name,
            source=source.name,
            source_hash=sources.hash_source(source, form),
            format=form,
            words=words,
            overlap=overlap,
            counts=counts,
            corpus_hash=hashes["corpus"],
            queries_hash=hashes["queries"],
        )
        files.write_json(made / MARKER, msgspec.to_builtins(stored))
    stored.warn(to, listen)
    return stored


def _write(
    source: Path, form: str, folder: Path, words: int, overlap: int, bad: BadRows, listen: Listener
) -> tuple[Counts, dict[str, str]]:
    with ExitStack() as stack:
        out = _Folder(folder, stack)
        for row in sources.read(source, form):
            bad.add(row)
            if isinstance(row, BadRow):
                out.error(row)
            else:
                _add(out, row, words, overlap)
            if bad.seen % 100 == 0:
                listen(Progress(f"Passages of {source.name}", bad.seen, unit="questions"))
    bad.judge(
        source,
        f"`slmx data convert {source} --to FILE` names all.",
        go_on=f"`slmx data passages {source} --to FOLDER --allow-errors` goes on without them; "
        "then give FOLDER as the dataset.",
    )
    listen(Progress(f"Passages of {source.name}", bad.seen, bad.seen, unit="questions"))
    for name, kept in (("corpus.jsonl", out.passages), ("errors.jsonl", bad.left_out + bad.warned)):
        if not kept:
            (folder / name).unlink()
    counts = Counts(
        questions=out.questions,
        documents=out.documents,
        passages=out.passages,
        with_gold=out.with_gold,
        left_out=bad.left_out,
        warned=bad.warned,
    )
    return counts, {which: made.hexdigest() for which, made in out.hashes.items()}


_READERS = ("nq", "lost_in_the_middle", "simple_qa", "qa_pairs", "flashrag", "beir")
_DECIDING = ("stream", "literals", "clean", "sources", "passages", *_READERS)


def code_version() -> str:
    """A hash of the code that decides what passages a source gives: a part of the cache key."""
    own = Path(__file__).parent
    paths = [own.parent / "text.py", *(own / f"{name}.py" for name in _DECIDING)]
    return files.hash_bytes(*(path.read_bytes() for path in paths))
