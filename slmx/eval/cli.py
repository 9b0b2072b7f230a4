"""The signatures of `slmx eval …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmx import options
from slmx.group import Group

app = Group("eval", "Questions in, predictions and metrics out.")


@app.command("run")
def run(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="A preset, a folder or a Hub id; may be repeated.",
            autocompletion=options.preset_names("models"),
        ),
    ],
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            help="no_context, oracle, retriever …; may be repeated.",
            show_default="no_context",
            autocompletion=options.preset_names("modes"),
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="A preset, a file or a folder.",
            show_default="nq",
            autocompletion=options.preset_names("datasets"),
        ),
    ] = None,
    retriever: Annotated[
        list[str] | None,
        typer.Option(
            "--retriever",
            help="bm25, dense, hybrid …; may be repeated.",
            show_default="bm25",
            autocompletion=options.preset_names("retrievers"),
        ),
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Passages a prompt; may be repeated.", show_default="5")
    ] = None,
    corpus: Annotated[str, typer.Option("--corpus", help="Retrieve from this folder or index instead.")] = "",
    oracle: Annotated[str, typer.Option("--oracle", help="Gold passages of the long or short answer, or document.")] = (
        "long"
    ),
    split: Annotated[
        str,
        typer.Option("--split", help="Only one part: train or eval; of a BEIR folder, its qrels.", show_default="all"),
    ] = "",
    reranker: options.Reranker = None,
    language: options.Language = "auto",
    max_samples: Annotated[int | None, typer.Option("--max-samples", min=1, help="A seeded sample.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Questions a batch.", show_default="chosen")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Tokens an answer may have.", show_default="48")
    ] = None,
    chat: options.Chat = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="Let a thinking model think first.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="Quantise the weights to 8 bits.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Only if you read it.")
    ] = False,
    metrics_preset: options.MetricsPreset = "default",
    vocabulary: options.Vocabulary = None,
    words: options.Words = None,
    overlap: options.Overlap = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    output_dir: options.OutputDir = None,
    clearml: options.ClearML = None,
    tensorboard: options.TensorBoard = None,
    name: Annotated[str, typer.Option("--name", help="A folder between the output folder and the cells.")] = "",
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Questions → passages → answers → metrics, for every combination of model, mode, retriever and k.

    What was answered is kept: the same command again goes on where it stopped.

    Example: `slmx eval run --model extractive --mode no_context oracle retriever --dataset sample`
    """
    from slmx import console, settings
    from slmx.eval import report_table
    from slmx.eval.run import RunOptions, plan_run, run as run_plan
    from slmx.signals import stopping
    from slmx.track.trackers import chosen_trackers, open_trackers

    known = settings.load_with_hub_token()
    track = chosen_trackers(known, clearml=clearml, tensorboard=tensorboard)
    asked = RunOptions(
        models=model,
        dataset=dataset or known.eval.dataset,
        modes=mode or ["no_context"],
        retrievers=retriever or [known.eval.retriever],
        ks=k or [known.eval.k],
        data_dir=data_dir or known.data_dir,
        cache_dir=cache_dir or known.cache_dir,
        output_dir=output_dir or known.output_dir,
        corpus=corpus,
        oracle=options.gold_level(oracle),
        split=split,
        name=name,
        reranker=reranker or "",
        language=language,
        max_samples=max_samples,
        batch_size=batch_size or known.eval.batch_size,
        metrics_preset=metrics_preset,
        vocabulary=vocabulary,
        words=words or known.passages.words,
        overlap=known.passages.overlap if overlap is None else overlap,
        seed=known.seed if seed is None else seed,
        device=device or known.device,
        dtype=dtype or known.dtype,
        overwrite=overwrite,
        generator={
            "max_new_tokens": max_new_tokens or known.eval.max_new_tokens,
            "chat": chat,
            "thinking": thinking,
            "temperature": temperature,
            "seed": known.seed if seed is None else seed,
            "dtype": dtype or known.dtype,
            "device": device or known.device,
            "load_in_8bit": load_in_8bit,
            "trust_remote_code": trust_remote_code,
        },
    )
    with console.listening() as listen:
        planned = plan_run(asked, listen)
    if dry_run:
        console.result(planned.plan, report_table.render_plan)
        return
    console.show(report_table.render_plan(planned.plan))
    with stopping(console.note) as stop, console.listening() as listen, open_trackers(track, listen) as trackers:
        report = run_plan(planned, stop=stop, listen=listen, trackers=trackers)
    console.result(report, report_table.render_report)
    report.check()


@app.command("retrieval")
def retrieval(
    models: Annotated[
        list[str],
        typer.Option(
            "--models",
            help="Retriever presets, encoder folders or Hub ids.",
            autocompletion=options.preset_names("retrievers"),
        ),
    ],
    datasets: Annotated[list[str], typer.Option("--datasets", help="BEIR names or folders.")],
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Cut-offs.", show_default="1 3 5 10 100")] = None,
    split: Annotated[str, typer.Option("--split", help="Which relevance judgements.")] = "test",
    reranker: options.Reranker = None,
    language: options.Language = "auto",
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    output_dir: options.OutputDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """NDCG, recall, MRR and MAP of retrievers on BEIR folders; the runs are written in TREC's form.

    Example: `slmx eval retrieval --models bm25 dense --datasets scifact arguana`
    """
    from slmx import console, settings
    from slmx.eval.retrieval import render, run_retrieval
    from slmx.retrieve.metrics import KS

    known = settings.load_with_hub_token()
    with console.listening() as listen:
        report = run_retrieval(
            models,
            datasets,
            data_dir=data_dir or known.data_dir,
            cache_dir=cache_dir or known.cache_dir,
            output_dir=output_dir or known.output_dir,
            ks=k or KS,
            split=split,
            reranker=reranker,
            language=language,
            device=device or known.device,
            dtype=dtype or known.dtype,
            seed=known.seed if seed is None else seed,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(report, render)


@app.command("compare")
def compare(
    runs: options.Runs,
    right_by: options.RightBy = "match",
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Also test this metric; may be repeated.", show_default="token_recall"),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Compare all runs with this one, instead of each with each.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="FILE.csv for pairs, FILE.jsonl for questions; csv: to stdout.")] = "",
    vocabulary: options.Vocabulary = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
) -> None:
    """What did a context change, question by question, and is it more than chance?

    RUN is a run's folder, a folder above several, or a file of predictions.

    Example: `slmx eval compare outputs --baseline outputs/extractive_nq_no_context`
    """
    from slmx import console, settings
    from slmx.eval import compare_table
    from slmx.eval.compare import compare_runs

    known = settings.load()
    if to:
        compare_table.check_target(to, overwrite=overwrite, as_json=console.manner.json)
    joined, comparison = compare_runs(
        runs,
        right_by=right_by,
        metrics=[name for names in metric or ["token_recall"] for name in names.split(",")],
        vocabulary=vocabulary,
        baseline=baseline,
        seed=known.seed if seed is None else seed,
    )
    if to == compare_table.CSV_TO_STDOUT:
        console.stream(compare_table.csv_lines(comparison), str)
        return
    if to:
        compare_table.write(Path(to), joined, comparison, overwrite=overwrite)
    console.result(comparison, compare_table.render)


@app.command("report")
def report(
    runs: options.Runs,
    to: Annotated[
        Path, typer.Option("--to", help="report.html, report.md or report.tex: the ending says the form.")
    ] = (Path("report.html")),
    right_by: options.RightBy = "match",
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Which retriever to use, is the difference real, what does it cost: runs over the same questions as one page.

    RUN is a run's folder, a folder above several, or a file of predictions.

    Example: `slmx eval report outputs --to report.html`
    """
    from slmx import console, settings
    from slmx.eval.report import render, write_report

    known = settings.load()
    with console.listening() as listen:
        written = write_report(
            runs, to, right_by=right_by, seed=known.seed if seed is None else seed, overwrite=overwrite, listen=listen
        )
    console.result(written, render)


@app.command("list")
def list_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Where to look.", show_default="outputs")
    ] = None,
) -> None:
    """The runs so far: how they differ, what they scored, how old they are, which are not finished.

    Example: `slmx eval list outputs/first-try`
    """
    from slmx import console, settings
    from slmx.eval.list import list_runs, render

    console.result(list_runs(folders or [settings.load().output_dir]), render)


@app.command("rescore")
def rescore(
    runs: options.Runs,
    metrics_preset: options.MetricsPreset = "default",
    normaliser: Annotated[
        str, typer.Option("--normaliser", help="norm, norm-u1 or auto (by question), instead of the stored one.")
    ] = "",
    vocabulary: options.Vocabulary = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Address of an OpenAI-compatible server whose model grades the answers.")
    ] = "",
    judge_model: Annotated[str, typer.Option("--judge-model", help="The model's name there.")] = "",
    judge_tokens: Annotated[
        int, typer.Option("--judge-tokens", min=1, help="Tokens a reply of the judge may have.")
    ] = 1024,
    seed: options.Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the judge would be asked, and stop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the original numbers.")] = False,
) -> None:
    """Metrics again from stored answers, without a model; old files of predictions too.

    What was measured before is measured again by today's rules, and the preset's metrics with it. The new files stand
    beside the old ones. With --judge a model grades each answer by SimpleQA's official template; its key is the setting
    judge.api_key, and the same command goes on where it was stopped.

    Example: `slmx eval rescore outputs --judge http://localhost:8000/v1 --judge-model qwen3-32b`
    """
    from slmx import console, settings
    from slmx.eval import rescore_table
    from slmx.eval.judge import open_judge, waiting
    from slmx.eval.rescore import Rescoring, rescore_all
    from slmx.eval.runs import find_runs
    from slmx.signals import stopping

    known = settings.load()
    asked = Rescoring(
        preset=metrics_preset,
        normaliser=normaliser,
        vocabulary=vocabulary,
        seed=known.seed if seed is None else seed,
        overwrite=overwrite,
    )
    asked.check()
    key = known.judge.api_key.get_secret_value() if known.judge.api_key else ""
    opened = open_judge(
        judge,
        judge_model,
        api_key=key,
        max_tokens=judge_tokens,
        concurrency=known.judge.concurrency,
        retries=known.judge.retries,
        timeout=known.judge.timeout,
    )
    found = find_runs(runs)
    if dry_run:
        console.result(waiting(found, opened), rescore_table.render_waiting)
        return
    with stopping(console.note) as stop, console.listening() as listen:
        report = rescore_all(found, asked, judge=opened, stop=stop, listen=listen)
    console.result(report, rescore_table.render)
    report.check()
