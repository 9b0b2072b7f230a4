"""The signatures of `slmx data …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.data import cli_training
from slmx.group import Group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.data.check import Checked
    from slmx.data.convert import Converted
    from slmx.data.describe import Description
    from slmx.data.merge_nq import Merged
    from slmx.data.passages import Stored
    from slmx.data.process import Processed

app = Group("data", "Sources in, records and training files out.")


_datasets = options.preset_names("datasets")
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="Form of the source: nq-merged, nq-full, nq-open, dpr, lost-in-the-middle, simple-qa-csv, simple-qa-json, "
        "qa-pairs, flashrag, beir; auto looks at the content.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail at the first bad row.")]
Named = Annotated[str, typer.Argument(help="A preset, a file or a folder.", autocompletion=_datasets)]


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A file or folder of any accepted form, gzip too.")],
    to: Annotated[Path, typer.Option("--to", help="The file to write: .json is an array, .jsonl lines.")],
    format: Format = "auto",
    form: Annotated[
        str, typer.Option("--to-format", help="nq-full, simple-qa-json or qa-pairs; auto goes by the source.")
    ] = "auto",
    max_items: options.MaxItems = None,
    split: Annotated[
        float | None,
        typer.Option(
            "--split", help="Write FILE_train and FILE_eval too, this share to the first (by hash of the id)."
        ),
    ] = None,
    seed: options.Seed = None,
    clean_text: Annotated[bool, typer.Option("--clean-text", help="Contexts without HTML tokens.")] = False,
    strict: Strict = False,
    allow_errors: options.AllowErrors = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Convert a source: NQ to nq_full_dataset.json, SimpleQA to simple_qa_converted.json, others to qa_pairs.jsonl.

    Bad rows are named in FILE.errors.jsonl. Exit code 3: rows were left out; more than 5 % fail.

    Example: `slmx data convert NQ-open.dev.merged.jsonl --to nq_full_dataset.json --split 0.8`
    """
    from slmx import console, settings
    from slmx.data.convert import convert as work

    with console.listening() as listen:
        result = work(
            source,
            to,
            format=format,
            form=form,
            max_items=max_items,
            split=split,
            seed=seed if seed is not None else settings.load().seed if split else 0,
            clean_text=clean_text,
            strict=strict,
            allow_errors=allow_errors,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(result, _render_converted)
    result.check()


def _render_converted(result: Converted) -> RenderableType:
    from slmx import console

    counts = [("rows", result.rows), ("written", result.written), ("left out", result.left_out)]
    counts += [("kept with a warning", result.warned)] if result.warned else []
    counts += [("train", result.train), ("eval", result.eval)] if result.train or result.eval else []
    rows = [(label, str(n)) for label, n in counts] + [("file", path) for path in result.files]
    rows += [("bad rows", result.errors)] if result.errors else []
    return console.table(f"{result.format} → {result.form}", ("", ""), rows)


@app.command("merge-nq")
def merge_nq(
    open_file: Annotated[Path, typer.Option("--open", help="NQ-open: question and answer.")],
    simplified: Annotated[Path, typer.Option("--simplified", help="Simplified NQ with documents, gzip too.")],
    to: Annotated[Path, typer.Option("--to", help="The merged file to write.")],
    strict: Strict = False,
    allow_errors: options.AllowErrors = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Join NQ-open with simplified NQ in one pass. Exit code 3: a question has no document.

    Example: `slmx data merge-nq --open NQ-open.dev.jsonl --simplified nq-dev.jsonl.gz --to NQ-open.dev.merged.jsonl`
    """
    from slmx import console
    from slmx.data.merge_nq import merge_nq as work

    with console.listening() as listen:
        result = work(
            open_file,
            simplified,
            to,
            strict=strict,
            allow_errors=allow_errors,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(result, _render_merged)
    result.check()


def _render_merged(result: Merged) -> RenderableType:
    from slmx import console

    rows = [
        ("questions", str(result.questions)),
        ("documents read", str(result.read)),
        ("written", str(result.written)),
        ("without a document", str(len(result.unmatched))),
        ("bad rows", str(result.left_out)),
        ("file", result.target),
    ]
    return console.table("NQ-open + simplified NQ", ("", ""), rows)


@app.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Presets, files or folders; none: all under the data folder.", autocompletion=_datasets),
    ] = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
) -> None:
    """Is a dataset readable and sound? Exit code 1 when something fails.

    Example: `slmx data check nq scifact`
    """
    from slmx import console, settings
    from slmx.data.check import check as work

    loaded = settings.load()
    with console.listening() as listen:
        result = work(
            names or [], data_dir=data_dir or loaded.data_dir, cache_dir=cache_dir or loaded.cache_dir, listen=listen
        )
    console.result(result, _render_checked)
    result.check()


def _render_checked(result: Checked) -> RenderableType:
    from slmx import console

    rows = [(line.state, line.dataset, line.what, line.found) for line in result.lines]
    return console.table("", ("", "dataset", "looked at", "found"), rows, left=4)


@app.command("describe")
def describe(name: Named, format: Format = "auto", data_dir: options.DataDir = None) -> None:
    """Counts, lengths in words, where answers stand, topics and languages of a dataset.

    Example: `slmx data describe simple-qa`
    """
    from slmx import console, settings
    from slmx.data.describe import describe as work

    with console.listening() as listen:
        result = work(name, data_dir=data_dir or settings.load().data_dir, format=format, listen=listen)
    console.result(result, _render_described)


def _render_described(result: Description) -> RenderableType:
    from rich.console import Group as Stack

    from slmx import console

    n = max(result.questions, 1)
    spreads = [
        ("answers a question", result.answers_a_question),
        ("question words", result.question_words),
        ("answer words", result.answer_words),
        ("documents a question", result.documents_a_question),
        ("document words", result.document_words),
        ("passage words", result.passage_words),
    ]
    lengths = [
        (label, str(s.n), f"{s.mean:.2f}", f"{s.median:g}", f"{s.p95:g}", f"{s.max:g}") for label, s in spreads if s.n
    ]
    facts = [("questions", str(result.questions)), ("passages in the source", str(result.passages))]
    facts += [("rows left out", str(result.left_out)), ("rows kept with a warning", str(result.warned))]
    if result.documents_a_question.n:
        facts += [
            ("questions without documents", str(result.without_documents)),
            ("answer found as written", f"{result.found_as_string} ({100 * result.found_as_string / n:.2f} %)"),
            ("answer found on word boundaries", f"{result.found_on_words} ({100 * result.found_on_words / n:.2f} %)"),
            ("questions with a long answer", str(result.with_long_answer)),
        ]
    parts = [("language", result.languages), ("topic", result.topics), ("answer type", result.answer_types)]
    facts += [(f"{label}: {key}", str(times)) for label, counted in parts for key, times in counted.items()]
    return Stack(
        console.table(f"{result.name} ({result.format}, {result.path})", ("", ""), facts),
        console.table("", ("", "n", "mean", "median", "p95", "max"), lengths),
    )


@app.command("process")
def process(
    mode: Annotated[str, typer.Option("--mode", help="nq, simple_qa or both.")],
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    no_upload: Annotated[bool, typer.Option("--no-upload", help="Keep the results here.")] = False,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    max_items: options.MaxItems = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Raw file from the bucket (or already here) → converted and split → checked → back to the bucket.

    The results are where experiments look for them: data/nq, data/simple_qa. What is done and whole is not done again.
    Exit code 3: one of two modes failed, or rows were left out.

    Example: slmx data process --mode both
    """
    from slmx import console, settings
    from slmx.data.process import Task, process as work, verdict
    from slmx.s3.known import modes
    from slmx.s3.store import Store
    from slmx.signals import stopping

    loaded = settings.load()
    with stopping() as stop, console.listening() as listen:
        task = Task(
            connect=lambda: Store(loaded.s3),
            data_dir=data_dir or loaded.data_dir,
            cache_dir=cache_dir or loaded.cache_dir,
            bucket=bucket,
            prefix=prefix,
            upload=not no_upload,
            max_items=max_items,
            seed=loaded.seed if seed is None else seed,
            overwrite=overwrite,
            stop=stop,
            listen=listen,
        )
        ready = work(modes(mode), task)
    console.result(ready, _render_processed)
    problem = verdict(modes(mode), ready, task.data_dir)
    if problem is not None:
        raise problem


def _render_processed(result: list[Processed]) -> RenderableType:
    from slmx import console

    rows = [(step.mode, step.step, step.state, step.said) for done in result for step in done.steps]
    return console.table("", ("mode", "step", "state", ""), rows, left=4)


@app.command("download")
def download(
    mode: Annotated[str, typer.Option("--mode", help="nq, simple_qa or both.")],
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    data_dir: options.DataDir = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Ready converted files from the bucket, verified, to where experiments look for them.

    Example: slmx data download --mode nq
    """
    from slmx import console, settings
    from slmx.data.download import download as work
    from slmx.s3 import report
    from slmx.s3.known import modes
    from slmx.s3.store import Store
    from slmx.s3.transfer import Options
    from slmx.signals import stopping

    loaded = settings.load()
    rows = []
    with stopping() as stop, console.listening() as listen:
        where = data_dir or loaded.data_dir
        how = Options(overwrite, dry_run, stop, listen)
        for row in work(modes(mode), Store(loaded.s3), data_dir=where, options=how, bucket=bucket, prefix=prefix):
            console.line(row)
            rows.append(row)
    console.summary(rows, report.render)
    problem = report.problem(rows)
    if problem is not None:
        raise problem


@app.command("passages")
def passages(
    name: Named,
    to: Annotated[Path, typer.Option("--to", help="The folder to write.")],
    words: options.Words = None,
    overlap: options.Overlap = None,
    strict: Strict = False,
    allow_errors: options.AllowErrors = False,
    data_dir: options.DataDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Cut documents into passages with gold marks and write them as a BEIR folder.

    Example: `slmx data passages nq --to data/passages/nq --words 100`
    """
    from slmx import console, settings
    from slmx.data.datasets import locate
    from slmx.data.passages import build

    loaded = settings.load()
    own, path, _ = locate(name, data_dir or loaded.data_dir)
    with console.listening() as listen:
        result = build(
            path,
            to,
            name=own,
            words=loaded.passages.words if words is None else words,
            overlap=loaded.passages.overlap if overlap is None else overlap,
            strict=strict,
            allow_errors=allow_errors,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(result, lambda made: _render_passages(made, to))
    result.check(to)


def _render_passages(result: Stored, to: Path) -> RenderableType:
    from slmx import console

    counts = result.counts
    rows = [
        ("questions", str(counts.questions)),
        ("with gold passages", str(counts.with_gold)),
        ("documents", str(counts.documents)),
        ("passages", str(counts.passages)),
        ("rows left out", str(counts.left_out)),
        ("rows kept with a warning", str(counts.warned)),
        ("folder", str(to)),
    ]
    return console.table(f"Passages of {result.source}", ("", ""), rows)


app.registered_commands += cli_training.app.registered_commands
