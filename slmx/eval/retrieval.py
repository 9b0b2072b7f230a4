"""`slmx eval retrieval`: retrievers over datasets with relevance marks, scored as BEIR scores, a folder a pair.

A pair's folder holds `run.trec` (the rankings, the form of exchange), `per_query.json` and `metrics.json`, which is
written last: where it is there and was made from the same content, the pair is finished and is not run again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slmx.data.beir import write_run
from slmx.data.datasets import Dataset, open_dataset
from slmx.errors import SlmxError, UsageError
from slmx.eval.machine import machine, versions
from slmx.eval.statistics import bootstrap_interval
from slmx.events import Listener, Notice, nobody
from slmx.files import hash_value, read_json, slug, write_json
from slmx.records import Record
from slmx.retrieve.evaluate import Evaluation, evaluate
from slmx.retrieve.metrics import KS
from slmx.retrieve.opening import open_retriever
from slmx.retrieve.retrievers import Retriever

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 1
RESULTS = "metrics.json"
RUN = "run.trec"
PER_QUERY = "per_query.json"
COUNTS = ("passages", "depth", "own_excluded", "qrels_absent", "without_text", "index_bytes", "search_seconds")


class PairResult(Record, frozen=True):
    """`metrics.json`: one retriever on one dataset. Metrics are 0 to 1, intervals 95 % bootstrap intervals of means.

    `counts` are those of `slmx.retrieve.evaluate.Evaluation`; `seconds` is everything, opening the index included.
    """

    model: str
    dataset: str
    split: str
    queries: int
    metrics: dict[str, float]
    intervals_95: dict[str, tuple[float, float]]
    counts: dict[str, int | float]
    seconds: float
    identity: str
    configuration: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    bootstrap_seed: int
    format: int = FORMAT


class Pair(Record, frozen=True):
    """A pair's result and where its files are; `had_finished` when an earlier run had done it."""

    result: PairResult
    folder: str
    had_finished: bool = False


class RetrievalReport(Record, frozen=True):
    """All pairs of a command, model by model."""

    pairs: list[Pair]
    ks: list[int]


def run_retrieval(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    data_dir: Path,
    cache_dir: Path,
    output_dir: Path,
    ks: Sequence[int] = KS,
    split: str = "test",
    reranker: str | None = None,
    language: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> RetrievalReport:
    """Evaluate every model on every dataset; pairs that an earlier run finished are read from their files.

    Args:
        models: retriever presets (bm25, dense, hybrid, …), or folders and Hub ids of text encoders.
        datasets: BEIR folders, or names that are looked up in the data folder.
        output_dir: pairs go to `output_dir/retrieval/{model}_{dataset}/`; where another configuration lives there, a
            short hash is put at the end of the name, unless `overwrite` is given.

    Raises:
        UsageError: nothing to do, an unknown name or split, or a cut-off below 1.
    """
    if not models:
        raise UsageError("No retriever is named.", hint="--models bm25 dense, or the folder of a text encoder.")
    if not datasets:
        raise UsageError("No dataset is named.", hint="--datasets FOLDER, or scifact, arguana …")
    if not ks or min(ks) < 1:
        raise UsageError("A cut-off k must be 1 or more.", hint="--k 10 100")
    opened = [open_dataset(name, data_dir=data_dir, cache_dir=cache_dir, listen=listen) for name in datasets]
    for dataset in opened:
        dataset.qrels(split)  # what cannot be scored is said before anything is encoded
    pairs = []
    for model in models:
        for dataset in opened:
            listen(Notice(f"{model} on {dataset.name}"))
            started = time.perf_counter()
            retriever = open_retriever(
                model,
                dataset,
                cache_dir=cache_dir,
                device=device,
                dtype=dtype,
                reranker=reranker,
                language=language,
                listen=listen,
            )
            configuration = _configuration(retriever, dataset, sorted(set(ks)), split, seed)
            folder = output_dir / "retrieval" / f"{slug(retriever.name)}_{slug(dataset.name)}"
            pairs.append(_run_pair(retriever, dataset, configuration, folder, started, overwrite, listen))
    return RetrievalReport(pairs=pairs, ks=sorted(set(ks)))


def _configuration(retriever: Retriever, dataset: Dataset, ks: Sequence[int], split: str, seed: int) -> dict[str, Any]:
    """All that the numbers depend on, by content."""
    return {
        "format": FORMAT,
        "retriever": retriever.fingerprint(),
        "dataset": dataset.content_hash,
        "qrels": hash_value(dataset.qrels(split)),
        "split": split,
        "ks": list(ks),
        "seed": seed,
    }


def _run_pair(
    retriever: Retriever,
    dataset: Dataset,
    configuration: dict[str, Any],
    folder: Path,
    started: float,
    overwrite: bool,
    listen: Listener,
) -> Pair:
    identity = hash_value(configuration)
    known = _read(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _same(known, identity):
        apart = folder.with_name(f"{folder.name}-{identity[:8]}")
        if apart.exists() or not overwrite:  # another configuration's results are replaced only where this has none
            folder, known = apart, _read(apart)
    if not overwrite and known is not None and known.identity == identity:
        listen(Notice(f"{folder} is finished; --overwrite runs it again."))
        return Pair(result=known, folder=str(folder), had_finished=True)
    evaluation, rankings = evaluate(dataset, retriever, configuration["ks"], configuration["split"], listen=listen)
    if overwrite:  # not before there is something better: what cannot run must not cost the old results
        shutil.rmtree(folder, ignore_errors=True)
    result = _result(evaluation, configuration, identity, time.perf_counter() - started)
    write_run(folder / RUN, rankings, tag=retriever.name)
    write_json(folder / PER_QUERY, evaluation.per_query)
    write_json(folder / RESULTS, result)
    return Pair(result=result, folder=str(folder))


def _same(known: PairResult | None, identity: str) -> bool:
    return known is not None and known.identity == identity


def _read(folder: Path) -> PairResult | None:
    """The finished result in a folder; None where there is none, or one of another format."""
    if not (folder / RESULTS).is_file():
        return None
    try:
        found = msgspec.convert(read_json(folder / RESULTS), PairResult)
    except (msgspec.ValidationError, SlmxError):
        return None
    return found if found.format == FORMAT else None


def _result(evaluation: Evaluation, configuration: dict[str, Any], identity: str, seconds: float) -> PairResult:
    seed = configuration["seed"]
    rows = list(evaluation.per_query.values())
    counts = {name: getattr(evaluation, name) for name in COUNTS}
    return PairResult(
        model=evaluation.retriever,
        dataset=evaluation.dataset,
        split=evaluation.split,
        queries=evaluation.queries,
        metrics=evaluation.metrics,
        intervals_95={n: bootstrap_interval([row[n] for row in rows], seed=seed) for n in evaluation.metrics},
        counts={**counts, "missing": len(evaluation.missing)},
        seconds=seconds,
        identity=identity,
        configuration=configuration,
        versions=versions(),
        machine=machine(),
        bootstrap_seed=seed,
    )


def render(report: RetrievalReport) -> RenderableType:
    """A row a pair, and over several datasets a row with each model's mean; × 100, the 95 % interval below."""
    from rich.console import Group
    from rich.text import Text

    from slmx.console import table

    names = _shown(report.ks)
    rows = []
    for model in dict.fromkeys(pair.result.model for pair in report.pairs):
        results = [pair.result for pair in report.pairs if pair.result.model == model]
        rows += [[model, r.dataset, str(r.queries), *(_cell(r, name) for name in names.values())] for r in results]
        if len(results) > 1:
            means = (sum(r.metrics[name] for r in results) / len(results) for name in names.values())
            rows.append([model, "mean", "", *(f"{100 * mean:.2f}" for mean in means)])
    told = "× 100, with the 95 % bootstrap interval below.\n" + "\n".join(_note(pair) for pair in report.pairs)
    return Group(table("", ["model", "dataset", "queries", *names], rows, left=2), Text(told))


def _shown(ks: Sequence[int]) -> dict[str, str]:
    """Titles and metrics of the table: at 10 where that was asked for, recall at the deepest cut-off."""
    k = 10 if 10 in ks else max(ks)
    columns = {f"nDCG@{k}": f"ndcg@{k}", f"recall@{k}": f"recall@{k}", f"recall@{max(ks)}": f"recall@{max(ks)}"}
    return {**columns, f"MRR@{k}": f"mrr@{k}", "MAP": "map", f"hit@{k}": f"hit@{k}"}


def _cell(result: PairResult, name: str) -> str:
    low, high = result.intervals_95[name]
    return f"{100 * result.metrics[name]:.2f}\n{100 * low:.1f}–{100 * high:.1f}"


def _note(pair: Pair) -> str:
    counts = pair.result.counts
    facts = [
        (counts["own_excluded"], "own documents taken out"),
        (counts["qrels_absent"], "judged passages not in the corpus"),
        (counts["missing"], "questions without a ranking"),
    ]
    told = [f"{count:.0f} {what}" for count, what in facts if count]
    return "; ".join([pair.folder, *told, *(["finished before"] if pair.had_finished else [])])
