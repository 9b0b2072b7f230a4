"""`slmx eval run`: questions -> rankings -> prompts -> answers -> metrics, for every cell of a plan.

Retrieval comes first for all cells; then each model is loaded once and answers in all its cells. Whatever was answered
stands in the cell's journal (slmx.eval.journal), so the same command again goes on or says that the cell is finished.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from slmx.data.datasets import Dataset, open_dataset
from slmx.errors import PartlyDone, SlmxError, UsageError
from slmx.eval.cell import CellRun, CellWork, run_cell
from slmx.eval.metrics import check_metrics
from slmx.eval.plan import Cell, Plan, cell_folder, make_cells, sample, sample_size
from slmx.eval.results import metric_names
from slmx.eval.runlog import Recorder, Told
from slmx.events import Listener, Notice, Progress, nobody
from slmx.files import hash_value
from slmx.models.generators import name_of, open_generator
from slmx.records import GoldLevel, Passage, Question, Ranking, Record
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.retrievers import RETRIEVERS, Retriever, find_passages, find_preset, model_name
from slmx.signals import Stop
from slmx.track.memory import MemoryLog
from slmx.track.trackers import NO_TRACKERS, Trackers


@dataclass(frozen=True)
class RunOptions:
    """Everything that `slmx eval run` was asked for, settings filled in."""

    models: Sequence[str]
    dataset: str
    modes: Sequence[str]
    retrievers: Sequence[str]
    ks: Sequence[int]
    data_dir: Path
    cache_dir: Path
    output_dir: Path
    corpus: str = ""
    oracle: GoldLevel = "long"
    name: str = ""
    reranker: str = ""
    language: str = "auto"
    max_samples: int | None = None
    batch_size: int | None = None
    metrics_preset: str = "default"
    vocabulary: Path | None = None
    words: int = 100
    overlap: int = 0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False
    generator: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A plan with the dataset and the questions it stands for.

    `retrievers` are the retrievers asked for, by the names that cells have. `history` is what was told so far.
    """

    options: RunOptions
    plan: Plan
    dataset: Dataset
    questions: list[Question]
    retrievers: Mapping[str, str]
    history: list[Told]


class RunReport(Record, frozen=True):
    """What a run did: its plan and, for each cell that is finished, its folder and the content of results.json."""

    plan: Plan
    cells: list[CellRun]

    def check(self) -> None:
        """An engine that failed on questions is no success (exit code 3, or 1 where it failed on all of a cell)."""
        failed = {run.folder: run.results["failed_generations"] for run in self.cells}
        named = [f"{folder}: {count}" for folder, count in failed.items() if count]
        if not named:
            return
        hint = "Their errors stand in predictions.json, metadata.error; --overwrite runs the cells again."
        if any(run.results["failed_generations"] == run.results["num_examples"] for run in self.cells):
            raise SlmxError(f"No answer could be generated in a cell. Failed: {'; '.join(named)}.", hint=hint)
        raise PartlyDone(f"Some answers could not be generated and score 0. Failed: {'; '.join(named)}.", hint=hint)


@dataclass(frozen=True)
class Found:
    """The rankings of one retriever for all questions, with what a run records of it."""

    rankings: Mapping[str, Ranking]
    fingerprint: Mapping[str, Any]
    index_bytes: int
    seconds: float
    joules: float
    same_corpus: bool


def plan_run(options: RunOptions, listen: Listener = nobody) -> Planned:
    """Open the dataset, choose the questions and lay out the cells; nothing is retrieved or answered yet.

    Raises:
        UsageError: a model, mode, dataset or metric that is not known, no question, or retrieval without a corpus.
    """
    history: list[Told] = []
    recorder = Recorder(listen, history.append)
    check_metrics(metric_names(options.metrics_preset, simple_qa=False), vocabulary=options.vocabulary)
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise UsageError(f"{options.output_dir} is a file.", hint="--output-dir names the folder where runs go.")
    size = sample_size(options.modes, options.max_samples)
    names = [name_of(model) for model in options.models]
    if len(set(names)) < len(names):
        raise UsageError(f"Two models of this run have the same name: {', '.join(names)}.", hint="Run them one by one.")
    retrievers = {_retriever_name(options, name): name for name in options.retrievers}
    dataset = _dataset(options, options.dataset, recorder)
    everything = dataset.questions()
    questions = sample(everything, size, options.seed)
    if not questions:
        raise UsageError(f"{options.dataset} holds no questions.", hint="`slmx data describe` tells what it holds.")
    if not any(question.answers for question in questions):
        raise UsageError(
            f"{dataset.name} has questions without answers, so answers cannot be scored.",
            hint=f"Its relevance marks can: slmx eval retrieval --models bm25 --datasets {options.dataset}",
        )
    cells = make_cells(names, dataset.name, options.modes, list(retrievers), options.ks)
    if any(cell.context == "retrieved" for cell in cells) and not dataset.has_passages and not options.corpus:
        raise UsageError(
            f"{dataset.name} has no passages to retrieve from.",
            hint="Name a corpus: --corpus FOLDER (a BEIR folder, a passages folder or an index).",
        )
    if any(cell.context == "oracle" for cell in cells) and not any(q.gold.at(options.oracle) for q in questions):
        raise UsageError(
            f"{dataset.name} marks no gold passage, so oracle mode has nothing to show.",
            hint="Use a form with documents, or leave --mode oracle out.",
        )
    plan = Plan(
        cells=cells,
        dataset=dataset.name,
        questions=len(questions),
        of=len(everything),
        oracle=options.oracle,
        output_dir=str(options.output_dir / options.name if options.name else options.output_dir),
    )
    told = ", ".join(cell.folder for cell in cells)
    recorder.write(f"Plan: {len(cells)} cells, {len(questions)} of {len(everything)} questions each: {told}")
    return Planned(options, plan, dataset, questions, retrievers, history)


def _retriever_name(options: RunOptions, name: str) -> str:
    """The name of a retriever in cells and folders: the preset's own for an alias, and the reranker's behind it."""
    own = name if name in RETRIEVERS.names() else find_preset(name)[0]
    return f"{own}+{model_name(options.reranker)}" if options.reranker else own


def _dataset(options: RunOptions, name: str, listen: Listener) -> Dataset:
    return open_dataset(
        name,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        words=options.words,
        overlap=options.overlap,
        listen=listen,
    )


def run(planned: Planned, *, stop: Stop, listen: Listener = nobody, trackers: Trackers = NO_TRACKERS) -> RunReport:
    """Run the whole plan; cells that are finished already are read, not run. Each cell is one run of the trackers.

    Raises:
        SlmxError: with exit code 130 or 143 when `stop` was asked for, after the batch at hand was saved.
    """
    options, plan = planned.options, planned.plan
    # All are opened before anything is retrieved, so that what is missing is said at once; weights are loaded in turn.
    generators = [open_generator(model, listen=listen, **options.generator) for model in options.models]
    recorder = Recorder(listen, planned.history.append)

    def watched(event: Progress | Notice) -> None:
        recorder(event)
        if stop.asked:
            raise stop.error("Stopped while retrieving.", hint="The same command again begins anew; vectors are kept.")

    with MemoryLog().sampling() as memory:
        memory.mark("system", "experiment_start")
        found = _retrieve_all(planned, memory, watched)
    passages = _texts(planned, found, listen)
    done: list[CellRun] = []
    for generator in generators:
        try:
            for cell in (cell for cell in plan.cells if cell.model == generator.name):
                work = _work(planned, cell, found, passages, memory, trackers)
                done.append(run_cell(work, generator, stop=stop, listen=listen))
        finally:
            generator.close()
    return RunReport(plan=plan, cells=done)


def _retrieve_all(planned: Planned, memory: MemoryLog, listen: Listener) -> dict[str, Found]:
    """Rankings of every retriever in the plan, at the largest k, by the retriever's name."""
    options, questions = planned.options, planned.questions
    found: dict[str, Found] = {}
    for name in dict.fromkeys(cell.retriever for cell in planned.plan.cells if cell.retriever):
        begin, joules = time.perf_counter(), memory.mark("retriever", "before_load")
        oracle = name == "oracle"
        retriever = _open(planned, name, listen)
        depth = max(len(q.gold.at(options.oracle)) for q in questions) if oracle else max(options.ks)
        memory.mark("retriever", "before_retrieve")
        rankings = retriever.search(questions, max(depth, 1), listen=listen)
        joules = memory.mark("retriever", "after_retrieve") - joules
        seconds = time.perf_counter() - begin
        listen(Notice(f"{name}: {len(questions)} questions retrieved in {seconds:.1f} s"))
        found[name] = Found(
            rankings={ranking.question_id: ranking for ranking in rankings},
            fingerprint=retriever.fingerprint(),
            index_bytes=retriever.index_bytes(),
            seconds=seconds,
            joules=joules,
            same_corpus=oracle or not options.corpus,
        )
    return found


def _corpus(planned: Planned, retriever: str, listen: Listener) -> Dataset:
    """Where a retriever searches; the oracle's passages are always those of the dataset itself."""
    if retriever == "oracle" or not planned.options.corpus:
        return planned.dataset
    return _dataset(planned.options, planned.options.corpus, listen)


def _open(planned: Planned, name: str, listen: Listener) -> Retriever:
    options = planned.options
    return open_retriever(
        planned.retrievers.get(name, name),
        _corpus(planned, name, listen),
        cache_dir=options.cache_dir,
        device=options.device,
        dtype=options.dtype,
        reranker=options.reranker or None if name != "oracle" else None,
        language=options.language,
        oracle=options.oracle,
        listen=listen,
    )


def _texts(planned: Planned, found: Mapping[str, Found], listen: Listener) -> dict[tuple[str, str], Passage]:
    """The passages that were found, by (retriever, id)."""
    kept: dict[tuple[str, str], Passage] = {}
    for name, one in found.items():
        wanted = {hit.passage_id for ranking in one.rankings.values() for hit in ranking.hits}
        passages = find_passages(_corpus(planned, name, listen), wanted)
        kept.update({(name, passage_id): passage for passage_id, passage in passages.items()})
    return kept


def _work(
    planned: Planned,
    cell: Cell,
    found: Mapping[str, Found],
    passages: Mapping[tuple[str, str], Passage],
    memory: MemoryLog,
    trackers: Trackers,
) -> CellWork:
    """Everything that one cell needs, gathered."""
    options, questions, dataset = planned.options, planned.questions, planned.dataset
    contexts: list[list[Passage]] = [[] for _ in questions]
    one = found.get(cell.retriever)
    if one is not None:
        for place, question in enumerate(questions):
            hits = one.rankings[question.question_id].hits
            contexts[place] = [passages[cell.retriever, hit.passage_id] for hit in (hits[: cell.k] if cell.k else hits)]
    return CellWork(
        cell=cell,
        folder=cell_folder(options.output_dir, options.name, cell),
        questions=questions,
        contexts=contexts,
        gold_known=one is not None and one.same_corpus,
        configuration={
            "dataset": {"name": dataset.name, "hash": dataset.content_hash, "questions": len(questions)},
            "questions_hash": hash_value([question.question_id for question in questions]),
            "retriever": dict(one.fingerprint) if one else {},
            "oracle": options.oracle if cell.context == "oracle" else "",
        },
        options=msgspec.to_builtins(asdict(options), enc_hook=str) | {"dataset_path": str(dataset.path)},
        dataset_facts={"dataset_questions": planned.plan.of, "rows_left_out": dataset.left_out},
        history=planned.history,
        batch_size=options.batch_size,
        metrics_preset=options.metrics_preset,
        vocabulary=options.vocabulary,
        simple_qa=dataset.simple_qa,
        seed=options.seed,
        index_bytes=one.index_bytes if one else 0,
        retrieve_seconds=one.seconds if one else 0.0,
        retrieve_joules=one.joules if one else 0.0,
        memory=memory,
        trackers=trackers,
        overwrite=options.overwrite,
    )
