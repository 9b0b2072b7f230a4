"""Runs as they lie on the disk: found under folders, opened, and their answers read as a stream.

A run is the folder of a cell (slmx.eval.cell), or a file of predictions: a `predictions.json`, or an old flat list.
Whatever compares, reports or scores again comes through here; it never needs a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from slmx import files
from slmx.errors import SlmxError, UsageError
from slmx.eval.cell import RUN_FILE, RunFile, read_run_file
from slmx.eval.journal import NAME as JOURNAL
from slmx.eval.plan import CANONICAL, Cell
from slmx.files import read_json
from slmx.records import Context, Prediction, Record
from slmx.text import normaliser_for

PREDICTIONS, RESULTS = "predictions.json", "results.json"
_RANK: dict[Context, int] = {"none": 0, "retrieved": 1, "oracle": 2}
_RETRIEVER = re.compile(r"_retriever_context_(?P<name>.+)_k\d+(-[0-9a-f]{8})?$")


@dataclass(frozen=True)
class Run:
    """One run. `path` is its folder, or its file; `run_file` is None for files that another system wrote.

    `results` is the content of results.json, empty where there is none.
    """

    path: Path
    cell: Cell
    run_file: RunFile | None
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, or the file's."""
        return self.path.name

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that the answers depend on, by content; empty for files of another system."""
        return self.run_file.configuration if self.run_file else {}

    @property
    def finished(self) -> bool:
        """True when every question was answered; of a file of predictions nothing else is known."""
        return self.run_file is None or self.run_file.finished

    @property
    def normaliser(self) -> str:
        """The normaliser that replaced each question's own when the run was scored again; empty otherwise."""
        return str(self.results.get("rescored", {}).get("normaliser", ""))

    def stream(self, *, texts: bool = True) -> Iterator[tuple[int, Prediction]]:
        """The predictions with their places in the dataset, as they lie in the journal: memory holds one at a time.

        `metadata["normaliser"]` is always there.

        Args:
            texts: with `contexts` and `prompt`; without them it is several times faster, and metrics that look at
                the passages are not defined.
        """
        journal = self.path / JOURNAL
        if self.run_file is not None and journal.is_file():
            kind: Any = _Entry if texts else _LeanEntry
            decode = msgspec.json.Decoder(kind).decode
            places = chain.from_iterable(self.run_file.batches)
            for place, (number, line) in zip(places, files.read_lines(journal), strict=False):
                try:
                    yield place, _whole(decode(line).prediction, self.normaliser)
                except msgspec.DecodeError as error:
                    raise SlmxError(f"{journal}, line {number}: {error}.", hint="Run the cell again.") from None
        else:
            path = self.path / PREDICTIONS if self.path.is_dir() else self.path
            yield from enumerate(read_predictions_file(path, texts, self.normaliser))

    def predictions(self, *, texts: bool = True) -> list[Prediction]:
        """All predictions in the dataset's order. Without `texts` about a kilobyte each."""
        return [prediction for _, prediction in sorted(self.stream(texts=texts), key=lambda pair: pair[0])]


class _Lean(Record, frozen=True):
    """A prediction as files hold it, passages and prompt left unread. Old files have few of the fields."""

    question_id: str | int
    question: str
    predicted_answer: str
    ground_truth: list[str] | str
    context_type: Context = "none"
    model_name: str = ""
    token_recall: float | None = None
    metadata: dict[str, Any] = {}


class _Full(_Lean, frozen=True):
    contexts: list[str] = []
    prompt: str = ""


class _LeanEntry(Record, frozen=True):
    prediction: _Lean


class _Entry(Record, frozen=True):
    prediction: _Full


def _whole(read: _Lean, normaliser: str) -> Prediction:
    own = normaliser or read.metadata.get("normaliser") or normaliser_for(read.question)
    answers = [read.ground_truth] if isinstance(read.ground_truth, str) else read.ground_truth
    return Prediction(
        question_id=str(read.question_id),
        question=read.question,
        predicted_answer=read.predicted_answer,
        ground_truth=answers,
        contexts=read.contexts if isinstance(read, _Full) else [],
        context_type=read.context_type,
        model_name=read.model_name,
        token_recall=read.token_recall,
        metadata={**read.metadata, "normaliser": own},
        prompt=read.prompt if isinstance(read, _Full) else "",
    )


class _Rows(Record, frozen=True):
    predictions: list[msgspec.Raw]


def read_predictions_file(path: Path, texts: bool, normaliser: str = "") -> Iterator[Prediction]:
    """The predictions of a predictions.json, or of an old file: a list of question_id, question, ground_truth, …

    `texts` and what comes back as in `Run.stream`; a `normaliser` replaces each question's own.

    Raises:
        UsageError: the file holds something else.
    """
    with files.open_bytes(path) as source:
        content = source.read()
    try:
        if content.lstrip()[:1] == b"[":
            raws = msgspec.json.decode(content, type=list[msgspec.Raw])
        else:
            raws = msgspec.json.decode(content, type=_Rows).predictions
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{path} holds no predictions: {error}.",
            hint='Accepted: a run\'s predictions.json, or a list of {"question_id", "question", "ground_truth", '
            '"predicted_answer"}.',
        ) from None
    kind: Any = _Full if texts else _Lean
    decode = msgspec.json.Decoder(kind).decode
    for number, raw in enumerate(raws, 1):
        try:
            yield _whole(decode(raw), normaliser)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}, prediction {number}: {error}.") from None


def open_run(path: Path) -> Run:
    """A run by its folder or its file of predictions, finished or not.

    Raises:
        UsageError: there is no run.
    """
    if path.is_dir():
        run_file = read_run_file(path)
        if run_file is not None:
            return Run(path, _cell(path, run_file), run_file, _results(path))
        if not (path / PREDICTIONS).is_file():
            raise UsageError(f"{path} holds no run.", hint="`slmx eval list` shows the runs there are.")
        return Run(path, _cell_of_file(path / PREDICTIONS, path.name), None, _results(path))
    if not path.is_file():
        raise UsageError(f"There is no run {path}.", hint="`slmx eval list` shows the runs there are.")
    return Run(path, _cell_of_file(path, path.stem), None, {})


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs that paths name: a run itself, or all runs below a folder; in the order named, none twice.

    Those below a folder are in the order of a question's help: by model, no context, retrievers, oracle.

    Raises:
        UsageError: a path names no run.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir() or (path / RUN_FILE).is_file():
            chosen = [open_run(path)]
        else:
            below = [p.parent for p in sorted(path.rglob(RUN_FILE)) if read_run_file(p.parent) is not None]
            chosen = sorted(map(open_run, below), key=order) or [open_run(path)]
        for run in chosen:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def order(run: Run) -> tuple[str, int, str, int, str, str]:
    """The place of a run among others, as a key to sort by: no context stands before all passages of its model.

    The dataset comes late, since one dataset may go by two names.
    """
    cell = run.cell
    return cell.model, _RANK[cell.context], cell.retriever, cell.k, cell.dataset, run.name


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, different for all: what sets them apart, "bm25, k=5" or "smollm2-360m, none"."""
    models = len({run.cell.model for run in runs}) > 1
    datasets = len({run.cell.dataset for run in runs}) > 1
    names = []
    for run in runs:
        parts = [run.cell.dataset] * datasets + [run.cell.model] * models + [run.cell.shows]
        names.append(", ".join(part for part in parts if part))
    count = Counter(names)
    names = [name if count[name] == 1 else f"{name} ({run.name})" for name, run in zip(names, runs, strict=True)]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({run.path})" for name, run in zip(names, runs, strict=True)]


def _results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _cell(folder: Path, run_file: RunFile) -> Cell:
    """The cell as run.json holds it; those of earlier versions do not, and it is put together from what they hold."""
    if run_file.cell is not None:
        return run_file.cell
    configuration = run_file.configuration
    mode = configuration["mode"]
    context = next(context for context, name in CANONICAL.items() if name == mode["name"])
    named = _RETRIEVER.search(folder.name)
    kind = str(configuration.get("retriever", {}).get("kind", ""))
    return Cell(
        model=configuration["generator"]["name"],
        dataset=configuration["dataset"]["name"],
        mode=mode["name"],
        context=context,
        preset=mode["preset"],
        retriever=named["name"] if named and context == "retrieved" else kind,
        k=configuration["k"],
    )


def _cell_of_file(path: Path, name: str) -> Cell:
    """What the first prediction of a file tells of its run."""
    first = next(read_predictions_file(path, texts=False), None)
    if first is None:
        raise UsageError(f"{path} holds no predictions.")
    mode = CANONICAL[first.context_type]
    return Cell(model=first.model_name or name, dataset="", mode=mode, context=first.context_type, preset=mode)
