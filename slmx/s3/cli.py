"""The signatures of `slmx s3 …`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.group import Group

if TYPE_CHECKING:
    from slmx.s3.store import Store
    from slmx.s3.transfer import Moved, Options

app = Group("s3", "Files and buckets.")
Mode = Annotated[str, typer.Option("--mode", help="nq, simple_qa, both, or custom (--local-file, --s3-key).")]
LocalFile = Annotated[
    Path | None, typer.Option("--local-file", help="Of custom: a file, or a folder.", show_default="the data folder")
]
Key = Annotated[str, typer.Option("--s3-key", help="Of custom: a key, or a folder's with / at its end.")]
Include = Annotated[list[str] | None, typer.Option("--include", help="Only names that fit; may be repeated.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="No names that fit; may be repeated.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", min=1, max=256, help="Requests in flight.", show_default="16")
]
Source = Annotated[str, typer.Argument(metavar="SRC", help="A folder or s3://bucket/prefix.")]
Target = Annotated[str, typer.Argument(metavar="DST", help="A folder or s3://bucket/prefix.")]


@app.command("test")
def test(
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    test_operations: Annotated[
        bool, typer.Option("--test-operations", help="Write, read and delete too, under a fresh name.")
    ] = False,
    check_datasets: Annotated[bool, typer.Option("--check-datasets", help="Look for the known dataset files.")] = False,
) -> None:
    """What is wrong with this bucket, line by line: name, port, TLS, clock, keys, bucket, prefix.

    Ends with 0 only if all that was asked for holds.

    Example: `slmx s3 test --test-operations`
    """
    from slmx import console, settings
    from slmx.s3 import test
    from slmx.signals import stopping

    s3 = settings.load().s3
    data = bucket or s3.data_bucket or s3.bucket
    with stopping() as stop, console.listening() as listen:
        found = test.diagnose(
            s3,
            bucket=data,
            prefix=prefix,
            test_operations=test_operations,
            check_datasets=check_datasets,
            stopped=lambda: stop.asked,
            listen=listen,
        )
    console.result(found, test.render)
    if stop.asked:
        raise stop.error("Stopped; what was written for the test is gone.", hint="The same command starts anew.")
    if not found.passed:
        raise test.problem(found)


@app.command("browse")
def browse(
    prefix: Annotated[str, typer.Argument(help="Where to begin: a prefix, or s3://bucket/prefix.")] = "",
    bucket: options.Bucket = "",
    recursive: Annotated[
        bool, typer.Option("--recursive", help="In a pipe: every key, not only this folder's.")
    ] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Walk through a bucket: folders, sizes, dates, a filter as you type, previews, downloads.

    In a pipe, or with --json, a listing: size, date and key.

    Example: `slmx s3 browse datasets/nq/`
    """
    from slmx import console, settings
    from slmx.s3 import browse
    from slmx.s3.client import data_bucket

    known = settings.load()
    named, where = browse.place(prefix)
    where_from = data_bucket(known.s3, named or bucket)
    if console.in_terminal():
        browse.walk(known.s3, where_from, where, data_dir or known.data_dir)
    else:
        console.stream(browse.listing(known.s3, where_from, where, recursive=recursive), browse.line)


@app.command("upload")
def upload(
    mode: Mode = "custom",
    local_file: LocalFile = None,
    s3_key: Key = "",
    include: Include = None,
    exclude: Exclude = None,
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    data_dir: options.DataDir = None,
    concurrency: Concurrency = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Files into a bucket, each with its SHA-256, compared with what the server says it got.

    What is there with the same content is skipped; what differs needs --overwrite.

    Example: `slmx s3 upload --mode nq`, `slmx s3 upload --local-file notes.txt --s3-key docs/notes.txt`
    """
    from slmx import settings
    from slmx.s3.download import Request
    from slmx.s3.plan import Filter
    from slmx.s3.upload import upload

    wanted = Filter(include or [], exclude or [])
    asked = Request(mode, data_dir or settings.load().data_dir, bucket, prefix, local_file, s3_key, wanted)
    _transfer(lambda store, how: upload(store, asked, how), concurrency, dry_run, overwrite)


@app.command("download")
def download(
    mode: Mode = "custom",
    local_file: LocalFile = None,
    s3_key: Key = "",
    include: Include = None,
    exclude: Exclude = None,
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    data_dir: options.DataDir = None,
    concurrency: Concurrency = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Objects into files, each verified before it gets its name: by the SHA-256 kept with it, else by its ETag.

    What the store keeps no hash of is "unverified". What is there with the same content is skipped; what differs needs
    --overwrite.

    Example: `slmx s3 download --mode nq`, `slmx s3 download --prefix runs/ --include '*.json'`
    """
    from slmx import settings
    from slmx.s3.download import Request, download
    from slmx.s3.plan import Filter

    wanted = Filter(include or [], exclude or [])
    asked = Request(mode, data_dir or settings.load().data_dir, bucket, prefix, local_file, s3_key, wanted)
    _transfer(lambda store, how: download(store, asked, how), concurrency, dry_run, overwrite)


@app.command("sync")
def sync(
    source: Source,
    target: Target,
    include: Include = None,
    exclude: Exclude = None,
    concurrency: Concurrency = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Bring what the source has and the target lacks, folder to bucket or bucket to folder. Nothing is deleted.

    Example: `slmx s3 sync data/nq s3://datasets/nq`
    """
    from slmx.s3.plan import Filter, side
    from slmx.s3.sync import sync

    ends, wanted = (side(source), side(target)), Filter(include or [], exclude or [])
    _transfer(lambda store, how: sync(store, *ends, wanted, how), concurrency, dry_run, overwrite)


@app.command("check")
def check(
    source: Source,
    target: Target,
    include: Include = None,
    exclude: Exclude = None,
    read: Annotated[
        bool, typer.Option("--read", help="Read every object, instead of trusting the hash that the store has of it.")
    ] = False,
    concurrency: Concurrency = None,
) -> None:
    """Compare two sides by content: = the same, + only in SRC, - only in DST, * different, ! not readable.

    Ends with 0 only if all are the same.

    Example: `slmx s3 check data/nq s3://datasets/nq`
    """
    from slmx import console
    from slmx.errors import SlmxError
    from slmx.s3.check import check, count, render
    from slmx.s3.plan import Filter, side
    from slmx.signals import stopping

    ends, wanted = (side(source), side(target)), Filter(include or [], exclude or [])
    rows = []
    with stopping() as stop, console.listening() as listen:
        for row in check(_store(concurrency), *ends, wanted, read=read, stop=stop, listen=listen):
            console.line(row)
            rows.append(row)
    console.summary(rows, render)
    if any(row.symbol != "=" for row in rows):
        raise SlmxError(f"{source} and {target} differ: {count(rows)}.", hint="`slmx s3 sync` brings what is missing.")


@app.command("cleanup")
def cleanup(
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    data_dir: options.DataDir = None,
    older_than: Annotated[str, typer.Option("--older-than", help="Leave what is younger: 30m, 24h, 7d.")] = "24h",
    dry_run: options.DryRun = False,
) -> None:
    """Remove what killed transfers left: open multipart uploads in the bucket, unfinished files in the data folder.

    Open uploads cost storage and are seen in no listing. --dry-run shows them.

    Example: `slmx s3 cleanup --older-than 7d --dry-run`
    """
    from slmx import console, settings
    from slmx.s3.cleanup import cleanup, render, seconds
    from slmx.s3.client import data_bucket

    known = settings.load()
    age, where = seconds(older_than), data_bucket(known.s3, bucket)
    rows = []
    for row in cleanup(_store(), where, prefix, data_dir or known.data_dir, older_than=age, dry_run=dry_run):
        console.line(row)
        rows.append(row)
    console.summary(rows, render)


@app.command("artifacts")
def artifacts(
    project: Annotated[str, typer.Option("--project", help="Only this project's; a pattern with * too.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only this run's: name, name.task, or a task id's start.")] = "",
    fetch: Annotated[
        str, typer.Option("--fetch", help="Download the artifact of this name to DATA_DIR/artifacts.")
    ] = "",
    bucket: options.Bucket = "",
    prefix: options.Prefix = "",
    data_dir: options.DataDir = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """What experiments left in the bucket, by project and run, with sizes and dates; --fetch gets one.

    Example: `slmx s3 artifacts --project rag`, `slmx s3 artifacts --run 4f1d2c --fetch predictions`
    """
    from slmx import console, settings
    from slmx.s3 import artifacts
    from slmx.s3.client import artifact_bucket

    known = settings.load()
    where, store = artifact_bucket(known.s3, bucket), _store()
    with console.listening() as listen:
        found = list(artifacts.artifacts(store, where, prefix, project=project, run=run, listen=listen))
    if not fetch:
        console.result(found, artifacts.render)
        return
    files, folder = artifacts.one_artifact(found, fetch), (data_dir or known.data_dir) / "artifacts"
    _transfer(lambda s, how: artifacts.fetch_artifact(s, where, files, folder, how), None, dry_run, overwrite)


def _store(concurrency: int | None = None) -> Store:
    from slmx import settings
    from slmx.s3.store import Store

    s3 = settings.load().s3
    return Store(s3.model_copy(update={"concurrency": concurrency}) if concurrency else s3)


def _transfer(
    run: Callable[[Store, Options], Iterator[Moved]], concurrency: int | None, dry_run: bool, overwrite: bool
) -> None:
    """Run one transfer command: a line a file with --json, a table at the end, the error that its failures make."""
    from slmx import console
    from slmx.s3 import report
    from slmx.s3.transfer import Options
    from slmx.signals import stopping

    rows: list[Moved] = []
    with stopping() as stop, console.listening() as listen:
        for row in run(_store(concurrency), Options(overwrite, dry_run, stop, listen)):
            console.line(row)
            rows.append(row)
    console.summary(rows, report.render)
    problem = report.problem(rows)
    if problem is not None:
        raise problem
