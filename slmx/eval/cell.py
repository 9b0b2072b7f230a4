"""One cell of a plan: prompts, batches, answers, files. `run_cell` may be killed at any moment and called again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from slmx import __version__
from slmx.eval import prompts, tracked
from slmx.eval.journal import NAME as JOURNAL, Journal, locked, open_journal, read_predictions
from slmx.eval.machine import machine, versions
from slmx.eval.metrics import METRICS
from slmx.eval.plan import Cell, mode_preset
from slmx.eval.results import metric_names, predictions_record, results_record, score_all
from slmx.eval.runlog import Told, run_log
from slmx.events import Listener, Notice, Progress
from slmx.files import hash_value, read_json, write_json
from slmx.models.generators import Generator
from slmx.records import Completion, Passage, Prediction, Question, Record, Request
from slmx.retrieve.metrics import answer_coverage_at_k, evaluate_rankings
from slmx.signals import Stop
from slmx.text import normaliser_for
from slmx.track.gpus import MIB
from slmx.track.memory import MemoryLog
from slmx.track.trackers import Trackers

RUN_FILE = "run.json"
FORMAT = 1  # of run.json and the journal; raised when an old run could not be continued


@dataclass(frozen=True)
class CellWork:
    """What a cell is to do. `configuration` holds hashes alone: what the answers depend on, beside model and template.

    `options` are those of the command, for the record; `dataset_facts` counts what the questions were chosen from.
    `contexts` are the passages of each question, best first; `gold_known` tells that their ids are those of the
    questions' gold passages, so that retrieval metrics mean something.
    """

    cell: Cell
    folder: Path
    questions: Sequence[Question]
    contexts: Sequence[Sequence[Passage]]
    gold_known: bool
    configuration: Mapping[str, Any]
    options: Mapping[str, Any]
    dataset_facts: Mapping[str, int]
    history: Sequence[Told]
    batch_size: int | None
    metrics_preset: str
    vocabulary: Path | None
    simple_qa: bool
    seed: int
    index_bytes: int
    retrieve_seconds: float
    retrieve_joules: float
    memory: MemoryLog
    trackers: Trackers
    overwrite: bool


class CellRun(Record, frozen=True, omit_defaults=False):
    """A finished cell: where it is, what it scored, and whether it had been finished before."""

    cell: Cell
    folder: str
    results: dict[str, Any]
    had_finished: bool


class Session(Record, frozen=True, omit_defaults=False):
    """One sitting at a cell; a cell that was interrupted has several. Of one that was killed nothing is known.

    `generate_seconds` end with the last answer that was saved.
    """

    started: str
    batches: int
    questions: int
    new_tokens: int
    generate_seconds: float
    load_seconds: float
    load_joules: float = 0.0
    generate_joules: float = 0.0


class RunFile(Record, frozen=True, omit_defaults=False):
    """The content of run.json: what was run, on what, and the plan of batches that a resume must repeat.

    `configuration` is what the answers depend on, by content, and `identity` its hash; `options` is what was asked for,
    and `cell` which part of it this is (None in the run files of earlier versions).
    """

    format: int
    slmx: str
    identity: str
    configuration: dict[str, Any]
    options: dict[str, Any]
    batches: list[list[int]]
    versions: dict[str, str]
    machine: dict[str, Any]
    created: str
    cell: Cell | None = None
    sessions: list[Session] = []
    cost: dict[str, Any] = {}
    finished: bool = False


def run_cell(work: CellWork, generator: Generator, *, stop: Stop, listen: Listener) -> CellRun:
    """Answer what is not answered yet, then write results.json, predictions.json and memory_usage.json.

    Raises:
        RefusedError: another process runs the same cell.
        SlmxError: with exit code 130 or 143 when `stop` was asked for, after the batch at hand was saved.
    """
    configuration = _configuration(work, generator)
    identity = hash_value(configuration)
    folder = _own_folder(work, identity)
    if not work.overwrite and (run_file := read_run_file(folder)) is not None and run_file.finished:
        listen(Notice(f"{folder} is finished; --overwrite runs it again."))
        return CellRun(cell=work.cell, folder=str(folder), results=_known(work, folder, run_file), had_finished=True)
    requests = _requests(work, generator)
    if work.overwrite:  # not before the prompts are built: what cannot run must not cost the old results
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        work.trackers.run(tracked.run_of(folder, work.options, configuration)) as tracker,
        run_log(folder / "run.log", listen, work.history, also=tracker.text) as told,
        work.memory.fresh().sampling() as memory,
    ):
        run_file = _start(folder, work, generator, requests, configuration, identity)
        planned = [[requests[i].question.question_id for i in batch] for batch in run_file.batches]
        with open_journal(folder, planned) as journal:
            run_file = _answer(work, generator, requests, folder, run_file, journal, memory, stop, told)
            results = _finish(work, generator, folder, run_file, memory)
        if tracker:
            tracked.report(tracker, folder, results, memory.record())
    return CellRun(cell=work.cell, folder=str(folder), results=results, had_finished=False)


def _configuration(work: CellWork, generator: Generator) -> dict[str, Any]:
    """All that the answers depend on, by content."""
    _, mode = mode_preset(work.cell.preset)
    template = {"template": mode.template, "passage": mode.passage, "separator": mode.separator}
    return {
        "format": FORMAT,
        "mode": {"name": work.cell.mode, "preset": work.cell.preset, **template},
        "k": work.cell.k,
        "generator": {"name": generator.name, **generator.fingerprint()},
        "batch_size": work.batch_size,
        **work.configuration,
    }


def _own_folder(work: CellWork, identity: str) -> Path:
    """The cell's folder, or, where another configuration lives there, the same name with a short hash at the end.

    A folder that a kill left before its run.json was written is nobody's. `--overwrite` replaces this configuration's
    own results wherever they are, and another one's only where this one has none.
    """
    there = read_run_file(work.folder)
    apart = work.folder.with_name(f"{work.folder.name}-{identity[:8]}")
    if there is not None and there.identity == identity:
        return work.folder
    taken = any((work.folder / name).exists() for name in (RUN_FILE, JOURNAL, "results.json", "predictions.json"))
    return apart if taken and (apart.exists() or not work.overwrite) else work.folder


def read_run_file(folder: Path) -> RunFile | None:
    """The run file of a cell's folder; None where there is none, or one of another version of slmx."""
    if not (folder / RUN_FILE).is_file():
        return None
    try:
        return msgspec.convert(read_json(folder / RUN_FILE), RunFile)
    except msgspec.ValidationError:
        return None


def _known(work: CellWork, folder: Path, run_file: RunFile) -> dict[str, Any]:
    """The results of a finished cell; metrics that were not asked for then are added from its journal."""
    path = folder / "results.json"
    results: dict[str, Any] = read_json(path) if path.is_file() else {}
    stored = results.get("metric_versions", {})
    names = metric_names(work.metrics_preset, simple_qa=work.simple_qa)
    if all(stored.get(name) == METRICS[name].version for name in names):
        return results
    return _derive(work, folder, run_file, [name for name in stored if name in METRICS])


def _requests(work: CellWork, generator: Generator) -> list[Request]:
    _, mode = mode_preset(work.cell.preset)
    asked = list(zip(work.questions, work.contexts, strict=True))
    built = prompts.build_all(mode, asked, generator.window())
    return [Request(question=q, prompt=prompt) for q, prompt in zip(work.questions, built, strict=True)]


def _start(
    folder: Path,
    work: CellWork,
    generator: Generator,
    requests: Sequence[Request],
    configuration: dict[str, Any],
    identity: str,
) -> RunFile:
    """The run file of an interrupted run, or a new one with its plan of batches."""
    there = read_run_file(folder)
    if there is not None:
        return there
    used = generator.describe()
    run_file = RunFile(
        format=FORMAT,
        slmx=__version__,
        identity=identity,
        configuration=configuration,
        options=dict(work.options),
        batches=generator.plan(requests, work.batch_size),
        versions=versions(),
        machine=machine(used.get("device", "auto"), used.get("dtype", "auto")),
        created=_now(),
        cell=work.cell,
    )
    write_json(folder / RUN_FILE, run_file)
    return run_file


def _answer(
    work: CellWork,
    generator: Generator,
    requests: Sequence[Request],
    folder: Path,
    run_file: RunFile,
    journal: Journal,
    memory: MemoryLog,
    stop: Stop,
    listen: Listener,
) -> RunFile:
    """Answer the batches that the journal lacks; returns the run file with this session added."""
    first = journal.done
    answered = sum(len(batch) for batch in run_file.batches[:first])
    if first:
        listen(Notice(f"{folder.name}: going on after {answered} of {len(requests)} questions"))
    unloaded = memory.mark("model", "before_load")
    load_seconds = 0.0 if journal.finished else generator.load()
    loaded = memory.mark("model", "before_generate")
    started, begin, seconds, tokens, here = _now(), time.perf_counter(), 0.0, 0, 0
    try:
        for batch in run_file.batches[first:]:
            if stop.asked:
                break
            completions = generator.generate([requests[i] for i in batch])
            journal.append([_prediction(work, i, requests[i], c) for i, c in zip(batch, completions, strict=True)])
            here += len(batch)
            tokens += sum(completion.new_tokens for completion in completions)
            seconds = time.perf_counter() - begin
            note = f"{here / seconds:.1f} questions/s" + (f", {tokens / seconds:.0f} tokens/s" if tokens else "")
            listen(Progress(folder.name, answered + here, len(requests), "questions", note))
            work.trackers.scalars(answered + here, tracked.speed(here, tokens, seconds) | memory.latest())
    finally:  # an engine that failed had answered questions before, which took their time
        generated = memory.mark("model", "after_generate")
        session = Session(
            started=started,
            batches=journal.done - first,
            questions=here,
            new_tokens=tokens,
            generate_seconds=seconds,
            load_seconds=load_seconds,
            load_joules=round(loaded - unloaded, 2),
            generate_joules=round(generated - loaded, 2),
        )
        run_file = msgspec.structs.replace(run_file, sessions=[*run_file.sessions, session])
        write_json(folder / RUN_FILE, run_file)
    if not journal.finished:
        raise stop.error(
            f"Stopped after {answered + here} of {len(requests)} questions of {folder.name}; all answers are saved.",
            hint="The same command again goes on from there.",
        )
    return run_file


def _prediction(work: CellWork, place: int, request: Request, completion: Completion) -> Prediction:
    question, prompt = request.question, request.prompt
    normaliser = normaliser_for(question.question)
    metadata: dict[str, Any] = {
        "question": question.metadata,
        "normaliser": normaliser,
        "passage_ids": [passage.passage_id for passage in prompt.passages],
        "stop": completion.stop,
        "prompt_tokens": completion.prompt_tokens,
        "new_tokens": completion.new_tokens,
        "dropped": prompt.dropped,
        "trimmed": prompt.trimmed,
        "cut_answer": prompt.cut_answer,
    }
    if completion.thinking:
        metadata["thinking"] = completion.thinking
    if completion.error:
        metadata["error"] = completion.error
    if work.cell.context != "none":
        metadata["retrieval"] = _retrieval(work, question, work.contexts[place], normaliser)
    return Prediction(
        question_id=question.question_id,
        question=question.question,
        predicted_answer=completion.text,
        ground_truth=question.answers,
        contexts=[passage.text for passage in prompt.passages],
        context_type=work.cell.context,
        model_name=work.cell.model,
        metadata=metadata,
        prompt=prompt.text,
    )


def _retrieval(
    work: CellWork, question: Question, passages: Sequence[Passage], normaliser: str
) -> dict[str, float | None]:
    """Is an answer in what was retrieved, and how do the gold passages rank in it? Before anything was cut."""
    texts = [f"{passage.title}\n{passage.text}" for passage in passages]
    covered = answer_coverage_at_k(texts, question.answers, normaliser, [max(len(texts), 1)])
    numbers: dict[str, float | None] = {"answer_coverage": next(iter(covered.values())) if question.answers else None}
    if work.cell.context == "retrieved" and work.gold_known:
        k = work.cell.k
        gold = question.gold.at("long")
        names = {"ndcg": f"ndcg@{k}", "recall_at_k": f"recall@{k}", "mrr": f"mrr@{k}", "hit": f"hit@{k}"}
        if not gold:
            return numbers | dict.fromkeys(names)
        ranking = [(passage.passage_id, float(-place)) for place, passage in enumerate(passages)]
        scores = evaluate_rankings({"q": dict.fromkeys(gold, 1)}, {"q": ranking}, [k]).per_query["q"]
        numbers |= {own: scores[theirs] for own, theirs in names.items()}
    return numbers


def _finish(work: CellWork, generator: Generator, folder: Path, run_file: RunFile, memory: MemoryLog) -> dict[str, Any]:
    """Write the cell's files from its journal; run.json says `finished` last."""
    memory.mark("system", "experiment_end")
    write_json(folder / "memory_usage.json", memory.record())
    run_file = msgspec.structs.replace(run_file, cost=_cost(work, generator, run_file, memory), finished=True)
    results = _derive(work, folder, run_file)
    write_json(folder / RUN_FILE, run_file)
    return results


def _derive(work: CellWork, folder: Path, run_file: RunFile, also: Sequence[str] = ()) -> dict[str, Any]:
    """results.json and predictions.json from the journal, with the metrics asked for and others; no model is needed."""
    by_id = read_predictions(folder)
    predictions = [by_id[question.question_id] for question in work.questions]
    names = tuple(dict.fromkeys((*metric_names(work.metrics_preset, simple_qa=work.simple_qa), *also)))
    rows = score_all(predictions, names, vocabulary=work.vocabulary)
    results = results_record(predictions, rows, seed=work.seed, cost=run_file.cost, dataset=work.dataset_facts)
    write_json(folder / "predictions.json", predictions_record(predictions, rows))
    write_json(folder / "results.json", results)
    return results


def _cost(work: CellWork, generator: Generator, run_file: RunFile, memory: MemoryLog) -> dict[str, Any]:
    """Durations, sizes, peaks and energy under the names of results.json. Seconds, bytes, MiB, watts and joules.

    Answers of a sitting that was killed are there, their time is not: what is told a question is of the others.
    """
    generating = sum(session.generate_seconds for session in run_file.sessions)
    answered = sum(session.questions for session in run_file.sessions)
    joules = sum(session.generate_joules for session in run_file.sessions)
    joules_each = work.retrieve_joules / len(work.questions) + joules / answered if answered else 0.0
    size = generator.size_bytes()
    return {
        "duration_seconds": round(generating + work.retrieve_seconds, 3),
        "retrieve_seconds": round(work.retrieve_seconds, 3),
        "generate_seconds": round(generating, 3),
        "timed_questions": answered,
        "load_seconds": round(sum(session.load_seconds for session in run_file.sessions), 3),
        "questions_per_second": round(answered / generating, 2) if generating else 0.0,
        "tokens_per_second": round(sum(s.new_tokens for s in run_file.sessions) / generating, 2) if generating else 0.0,
        "model_size_bytes": size,
        "model_size_mb": round(size / MIB, 2),
        "retriever_index_size_bytes": work.index_bytes,
        "retriever_index_size_mb": round(work.index_bytes / MIB, 2),
        **memory.peak_usage,
        **memory.utilization(),
        "energy_joules": round(joules + work.retrieve_joules, 2),
        "energy_joules_per_question": round(joules_each, 4),
        "energy_load_joules": sum(session.load_joules for session in run_file.sessions),
        "energy_source": memory.energy_source(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
