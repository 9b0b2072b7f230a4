"""What the rooms above see of the data: questions, passages, and which passages are relevant.

    >>> dataset = open_dataset("nq", data_dir=Path("data"), cache_dir=Path(".cache"))
    >>> questions = dataset.questions()                       # with answers and the ids of their gold passages
    >>> corpus = {p.passage_id: p for p in dataset.passages()}
    >>> corpus[questions[0].gold.at("long")[0]].text          # what oracle mode shows the model

A dataset is a BEIR folder on the disk. Sources of other forms are turned into one in the cache the first time; its name
there is a hash of the source's content, the parameters and the code that cuts, so a stale one is never found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files as resources
from pathlib import Path

import msgspec

from slmx import files
from slmx.data import beir, sources
from slmx.data.passages import MARKER, Stored, build, check_sizes, code_version
from slmx.errors import RefusedError, SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.presets import DatasetPreset, find, load
from slmx.records import Passage, Question
from slmx.registry import nearest

_ENDINGS = re.compile(r"(\.(jsonl?|csv|tsv))?(\.gz)?$")


@dataclass(frozen=True)
class Dataset:
    """Questions and passages by a name.

    Attributes:
        name: the preset's own name, else the file's or folder's.
        path: what the user named, or where the preset's file lies.
        folder: the BEIR folder with the content.
        simple_qa: answers are graded correct / incorrect / not attempted as well.
    """

    name: str
    path: Path
    folder: Path
    simple_qa: bool = False

    def questions(self) -> list[Question]:
        """Every question in the source's order. Those of a foreign BEIR folder have no answers and no gold marks.

        Raises:
            SlmxError: two questions have one id, so that scores and answers could not be told apart.
        """
        if not self.has_questions:
            return []
        questions = list(beir.read_queries(self.folder))
        twice = [own for own, times in Counter(q.question_id for q in questions).items() if times > 1]
        if twice:
            named = ", ".join(twice[:3]) + (", …" if len(twice) > 3 else "")
            raise SlmxError(
                f"{self.folder / 'queries.jsonl'}: {len(twice)} ids stand at more than one question: {named}.",
                hint="Give every question an `_id` of its own, in the qrels too.",
            )
        return questions

    def passages(self) -> Iterator[Passage]:
        """Every passage in the source's order, streamed; nothing where there is no corpus."""
        if self.has_passages:
            yield from beir.read_corpus(self.folder)

    @property
    def has_questions(self) -> bool:
        """Are there questions?"""
        return (self.folder / "queries.jsonl").is_file()

    @property
    def has_passages(self) -> bool:
        """Is there a corpus?"""
        return (self.folder / "corpus.jsonl").is_file()

    def splits(self) -> list[str]:
        """The names of the relevance marks, "test" first."""
        return beir.splits(self.folder)

    def qrels(self, split: str = "test") -> beir.Qrels:
        """Relevance marks, question → passage → grade; UsageError with the known splits when there are none."""
        path = self.folder / "qrels" / f"{split}.tsv"
        if not path.is_file():
            known = ", ".join(self.splits()) or "none"
            raise UsageError(f"{self.name} has no qrels for {split!r}.", hint=f"There are: {known}.")
        return beir.read_qrels(path)

    @cached_property
    def stored(self) -> Stored | None:
        """What slmx wrote down when it made the folder; None for a foreign one."""
        return _stored(self.folder)

    @property
    def left_out(self) -> int:
        """How many rows of the source could not be used: no score of this dataset counts them."""
        return self.stored.counts.left_out if self.stored is not None else 0

    @cached_property
    def corpus_hash(self) -> str:
        """A hash of the passages' content; "" where there are none."""
        return self._hash("corpus")

    @cached_property
    def content_hash(self) -> str:
        """A hash of the questions, answers, gold marks and passages."""
        return files.hash_bytes(self._hash("corpus"), self._hash("queries"))

    def _hash(self, which: str) -> str:
        path = self.folder / f"{which}.jsonl"
        if not path.is_file():
            return ""
        if self.stored is not None and _inside_cache(self.folder):
            return self.stored.corpus_hash if which == "corpus" else self.stored.queries_hash
        return files.hash_file(path)


def _stored(folder: Path) -> Stored | None:
    path = folder / MARKER
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stored)
    except msgspec.DecodeError as error:
        raise SlmxError(f"{path} cannot be read: {error}.", hint="Make the folder again.") from None


def _inside_cache(folder: Path) -> bool:
    """Folders in the cache are named by content and nobody edits them; any other folder may have been edited."""
    return folder.parent.name == "datasets" and len(folder.name) == 64


def open_dataset(
    name_or_path: str,
    *,
    data_dir: Path,
    cache_dir: Path,
    words: int = 100,
    overlap: int = 0,
    listen: Listener = nobody,
) -> Dataset:
    """A dataset by preset, alias, file of any accepted form, BEIR folder, or the name of a BEIR set.

    Passages of a source that is no BEIR folder are cut at need (`words`, `overlap`) and kept in
    `cache_dir/datasets/`. A source without documents gives a dataset without passages. Bad rows of the source are told
    of each time, not only when it is cut.

    Raises:
        UsageError: nothing goes by this name; the nearest one is named, or where to put the files.
        SlmxError: the source is damaged, or more than one row in twenty is bad.
    """
    check_sizes(words, overlap)
    name, path, simple_qa = locate(name_or_path, data_dir)
    form = sources.detect(path)
    folder = path
    if form != "beir":
        listen(Notice(f"Reading {path} ({form})."))
        key = files.hash_value([sources.hash_source(path, form), form, words, overlap, code_version()])
        folder = cache_dir / "datasets" / key
        if not (folder / MARKER).is_file():
            _fill(folder, path, name, form, words, overlap, listen)
    stored = _stored(folder)
    if stored is not None:
        stored.warn(folder, listen)
        simple_qa = simple_qa or stored.format.startswith("simple-qa")
    return Dataset(name, path, folder, simple_qa)


def _fill(folder: Path, path: Path, name: str, form: str, words: int, overlap: int, listen: Listener) -> None:
    """Build a folder of the cache; whoever opens it warns of bad rows, so that this is not said twice."""

    def progress(event: Progress | Notice) -> None:
        if isinstance(event, Progress):
            listen(event)

    try:
        build(path, folder, name=name, format=form, words=words, overlap=overlap, listen=progress)
    except RefusedError:  # another process was faster, and its folder has the same content
        if not (folder / MARKER).is_file():
            raise


def locate(name_or_path: str, data_dir: Path) -> tuple[str, Path, bool]:
    """The own name and the file or folder of a dataset, and whether it is graded like SimpleQA."""
    found = find(DatasetPreset, name_or_path)
    if found is not None:
        own, preset = found
        return own, _preset_file(own, preset, data_dir), preset.simple_qa
    path = Path(name_or_path)
    if path.exists():
        return _ENDINGS.sub("", path.resolve().name) or path.resolve().name, path, False
    if "/" not in name_or_path and not path.suffix:
        for folder in (data_dir / "beir" / name_or_path, Path("datasets") / name_or_path):
            if folder.is_dir():
                return name_or_path, folder, False
    raise _nothing(name_or_path, data_dir)


def split_ids(name_or_path: str, split: str, *, data_dir: Path) -> set[str]:
    """The ids of the questions of one part of a dataset, "train" or "eval", or what the qrels of a folder are called.

    The parts of a file are the files that `slmx data convert --split` writes beside it; a preset names its own.

    Raises:
        UsageError: the dataset has no such part; says what makes it.
    """
    found = find(DatasetPreset, name_or_path)
    path = locate(name_or_path, data_dir)[1]
    if path.is_dir():
        marks = path / "qrels" / f"{split}.tsv"
        if not marks.is_file():
            known = ", ".join(beir.splits(path)) or "none"
            raise UsageError(f"{path} has no part {split!r}.", hint=f"There are: {known}.")
        return set(beir.read_qrels(marks))
    named = getattr(found[1], split, "") if found is not None and split in ("train", "eval") else ""
    plain = _ENDINGS.sub("", path.name)
    part = (
        data_dir / named if named else path.with_name(f"{plain}_{split}{path.name[len(plain) :].removesuffix('.gz')}")
    )
    if split not in ("train", "eval") or not part.is_file():
        hint = (
            f"The parts are train and eval. `slmx data convert {path} --to FILE --split 0.8` writes both; they lie in "
        )
        raise UsageError(f"{name_or_path} has no part {split!r} here ({part}).", hint=f"{hint}{part.parent}.")
    return {row.question.question_id for row in sources.read(part) if isinstance(row, sources.Item)}


def _preset_file(name: str, preset: DatasetPreset, data_dir: Path) -> Path:
    places = [
        Path(str(resources("slmx") / "sample" / file)) if preset.package else data_dir / file for file in preset.files
    ]
    for path in places:
        if path.exists():
            return path
    looked = ", ".join(str(p) for p in places)
    hint = "Put one of these files there, give --data-dir, or name a file: every accepted form can stand for a dataset."
    raise UsageError(f"The dataset {name} is not here. Looked for {looked}.", hint=hint)


def _nothing(name: str, data_dir: Path) -> UsageError:
    presets = load("datasets")
    known = [n for own, preset in presets.items() for n in (own, *preset.aliases)]
    beir_folder = data_dir / "beir"
    local = sorted(p.name for p in beir_folder.iterdir() if p.is_dir()) if beir_folder.is_dir() else []
    near = nearest(name, [*known, *local])
    said = f'Did you mean "{near}"? ' if near else ""
    hint = (
        f"{said}Known: {', '.join([*presets, *local])}. For a BEIR set, unpack its public zip ({Path(name).name}.zip) "
        f"so that {beir_folder / Path(name).name}/corpus.jsonl is there."
    )
    return UsageError(f'There is no dataset, file or folder "{name}".', hint=hint)
