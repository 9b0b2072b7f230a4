"""`slmx eval run`: questions -> rankings -> prompts -> answers -> metrics, for every cell of a plan.

Retrieval comes first for all cells; then each model is loaded once and answers in all its cells. Whatever was answered
stands in the cell's journal (slmx.eval.journal), so the same command again goes on or says that the cell is finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmx.data.datasets import Dataset, open_dataset
from slmx.errors import UsageError
from slmx.eval.cell import CellRun, CellWork, run_cell
from slmx.eval.metrics import check_metrics
from slmx.eval.plan import Cell, Plan, cell_folder, make_cells, sample, sample_size
from slmx.eval.results import metric_names
from slmx.events import Listener, Notice, nobody
from slmx.files import hash_value
from slmx.models.generators import open_generator
from slmx.records import GoldLevel, Passage, Question, Ranking, Record
from slmx.retrieve.retrievers import Retriever, open_retriever
from slmx.signals import Stop
from slmx.track.memory import MemoryLog


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
    """A plan with the dataset and the questions it stands for."""

    options: RunOptions
    plan: Plan
    dataset: Dataset
    questions: list[Question]


class RunReport(Record, frozen=True):
    """What a run did: its plan and, for each cell that is finished, its folder and the content of results.json."""

    plan: Plan
    cells: list[CellRun]


@dataclass(frozen=True)
class Found:
    """The rankings of one retriever for all questions, with what a run records of it."""

    rankings: Mapping[str, Ranking]
    fingerprint: Mapping[str, Any]
    index_bytes: int
    seconds: float
    same_corpus: bool


def plan_run(options: RunOptions, listen: Listener = nobody) -> Planned:
    """Open the dataset, choose the questions and lay out the cells; nothing is retrieved or answered yet.

    Raises:
        UsageError: a model, mode, dataset or metric that is not known, no question, or retrieval without a corpus.
    """
    check_metrics(metric_names(options.metrics_preset, simple_qa=False), vocabulary=options.vocabulary)
    size = sample_size(options.modes, options.max_samples)
    names = [open_generator(model, **options.generator).name for model in options.models]
    if len(set(names)) < len(names):
        raise UsageError(f"Two models of this run have the same name: {', '.join(names)}.", hint="Run them one by one.")
    dataset = open_dataset(
        options.dataset,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        words=options.words,
        overlap=options.overlap,
        listen=listen,
    )
    everything = dataset.questions()
    questions = sample(everything, size, options.seed)
    if not questions:
        raise UsageError(f"{options.dataset} holds no questions.", hint="`slmx data describe` tells what it holds.")
    cells = make_cells(names, dataset.name, options.modes, options.retrievers, options.ks)
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
        sampled=len(questions) < len(everything),
        oracle=options.oracle,
        output_dir=str(options.output_dir / options.name if options.name else options.output_dir),
    )
    return Planned(options, plan, dataset, questions)


def run(planned: Planned, *, stop: Stop, listen: Listener = nobody) -> RunReport:
    """Run the whole plan; cells that are finished already are read, not run.

    Raises:
        SlmxError: with exit code 130 or 143 when `stop` was asked for, after the batch at hand was saved.
    """
    options, plan, dataset, questions = planned.options, planned.plan, planned.dataset, planned.questions
    with MemoryLog().sampling() as memory:
        memory.mark("system", "experiment_start")
        found = _retrieve_all(options, plan.cells, dataset, questions, memory, listen)
    passages = _texts(options, dataset, found, listen)
    done: list[CellRun] = []
    for model in options.models:
        generator = open_generator(model, listen=listen, **options.generator)
        try:
            for cell in (cell for cell in plan.cells if cell.model == generator.name):
                work = _work(options, cell, dataset, questions, found, passages, memory)
                done.append(run_cell(work, generator, stop=stop, listen=listen))
        finally:
            generator.close()
    return RunReport(plan=plan, cells=done)


def _retrieve_all(
    options: RunOptions,
    cells: Sequence[Cell],
    dataset: Dataset,
    questions: Sequence[Question],
    memory: MemoryLog,
    listen: Listener,
) -> dict[str, Found]:
    """Rankings of every retriever in the plan, at the largest k, by the retriever's name."""
    import time

    found: dict[str, Found] = {}
    names = dict.fromkeys(cell.retriever for cell in cells if cell.retriever)
    for name in names:
        begin = time.perf_counter()
        retriever = _open(options, name, dataset, listen)
        depth = max(options.ks) if name != "oracle" else max(len(q.gold.at(options.oracle)) for q in questions)
        memory.mark("retriever", "before_retrieve")
        rankings = retriever.search(questions, max(depth, 1), listen=listen)
        memory.mark("retriever", "after_retrieve")
        seconds = time.perf_counter() - begin
        listen(Notice(f"{name}: {len(questions)} questions retrieved in {seconds:.1f} s"))
        found[name] = Found(
            rankings={ranking.question_id: ranking for ranking in rankings},
            fingerprint=retriever.fingerprint(),
            index_bytes=retriever.index_bytes(),
            seconds=seconds,
            same_corpus=name == "oracle" or not options.corpus,
        )
    return found


def _corpus(options: RunOptions, dataset: Dataset, listen: Listener) -> Dataset:
    if not options.corpus:
        return dataset
    return open_dataset(
        options.corpus,
        data_dir=options.data_dir,
        cache_dir=options.cache_dir,
        words=options.words,
        overlap=options.overlap,
        listen=listen,
    )


def _open(options: RunOptions, name: str, dataset: Dataset, listen: Listener) -> Retriever:
    if name == "oracle":
        return open_retriever("oracle", dataset, cache_dir=options.cache_dir, oracle=options.oracle, listen=listen)
    return open_retriever(
        name,
        _corpus(options, dataset, listen),
        cache_dir=options.cache_dir,
        device=options.device,
        dtype=options.dtype,
        reranker=options.reranker or None,
        language=options.language,
        listen=listen,
    )


def _texts(
    options: RunOptions, dataset: Dataset, found: Mapping[str, Found], listen: Listener
) -> dict[tuple[str, str], Passage]:
    """The passages that were found, by (retriever, id), read in one pass over each corpus."""
    kept: dict[tuple[str, str], Passage] = {}
    for name, one in found.items():
        wanted = {hit.passage_id for ranking in one.rankings.values() for hit in ranking.hits}
        corpus = dataset if name == "oracle" else _corpus(options, dataset, listen)
        if wanted:
            kept.update({(name, p.passage_id): p for p in corpus.passages() if p.passage_id in wanted})
    return kept


def _work(
    options: RunOptions,
    cell: Cell,
    dataset: Dataset,
    questions: Sequence[Question],
    found: Mapping[str, Found],
    passages: Mapping[tuple[str, str], Passage],
    memory: MemoryLog,
) -> CellWork:
    """Everything that one cell needs, gathered."""
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
        oracle=options.oracle,
        batch_size=options.batch_size,
        metrics_preset=options.metrics_preset,
        vocabulary=options.vocabulary,
        simple_qa=dataset.simple_qa,
        seed=options.seed,
        index_bytes=one.index_bytes if one else 0,
        retrieve_seconds=one.seconds if one else 0.0,
        memory=memory,
        overwrite=options.overwrite,
    )
