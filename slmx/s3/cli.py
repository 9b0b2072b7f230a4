"""The signatures of `slmx s3 …`."""

from __future__ import annotations

from typing import Annotated

import typer

from slmx import options
from slmx.group import Group

app = Group("s3", "Files and buckets.")


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
            datasets_in=list(dict.fromkeys([data, "datasets"])) if check_datasets else [],
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
