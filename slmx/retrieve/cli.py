"""The signatures of `slmx retrieve …`."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmx import options
from slmx.group import Group

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slmx.retrieve.index import Built
    from slmx.retrieve.search import Answer

app = Group("retrieve", "Passages in, rankings out.")


@app.command("index")
def index(
    corpus: Annotated[str, typer.Argument(help="A dataset, a BEIR folder, or a file with documents.")],
    retriever: Annotated[
        str,
        typer.Option(
            "--retriever",
            help="bm25, dense, hybrid …, or an encoder's folder or Hub id.",
            autocompletion=options.preset_names("retrievers"),
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder of the index.")],
    language: options.Language = "auto",
    device: options.Device = None,
    dtype: options.Dtype = None,
    words: options.Words = None,
    overlap: options.Overlap = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Build an index folder: the passages, and what a retriever needs to search them.

    Example: `slmx retrieve index sample --retriever hybrid --to sample-index`
    """
    from slmx import console, settings
    from slmx.retrieve.index import build

    known = settings.load_with_hub_token()
    with console.listening() as listen:
        built = build(
            corpus,
            retriever,
            to,
            data_dir=data_dir or known.data_dir,
            cache_dir=cache_dir or known.cache_dir,
            language=language,
            device=device or known.device,
            dtype=dtype or known.dtype,
            words=words or known.passages.words,
            overlap=known.passages.overlap if overlap is None else overlap,
            overwrite=overwrite,
            listen=listen,
        )
    console.result(built, _render_built)


def _render_built(built: Built) -> str:
    size = f"{built.index_bytes / (1 << 20):.1f} MiB"
    return (
        f"{built.passages} passages indexed for {built.retriever} in {built.seconds:.1f} s, {size}.\n"
        f'Search it: slmx retrieve search {built.folder} "your question"'
    )


@app.command("search")
def search(
    folder: Annotated[Path, typer.Argument(help="An index folder.", metavar="DIR")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("--k", min=1, help="How many passages.")] = 5,
    reranker: options.Reranker = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cache_dir: options.CacheDir = None,
) -> None:
    """Search an index folder and show the passages, best first.

    Example: `slmx retrieve search sample-index "Who built the lighthouse?" --k 3`
    """
    from slmx import console, settings
    from slmx.retrieve.search import search as find

    known = settings.load_with_hub_token()
    with console.listening() as listen:
        answer = find(
            folder,
            query,
            cache_dir=cache_dir or known.cache_dir,
            k=k,
            reranker=reranker,
            device=device or known.device,
            dtype=dtype or known.dtype,
            listen=listen,
        )
    console.result(answer, _render_answer)


def _render_answer(answer: Answer) -> RenderableType:
    from slmx.console import table

    if not answer.hits:
        return f"{answer.retriever} finds nothing for: {answer.query}"
    rows = [[str(hit.rank), f"{hit.score:.4g}", hit.title or hit.passage_id, hit.text] for hit in answer.hits]
    title = f"{answer.retriever}, {1000 * answer.seconds:.0f} ms: {answer.query}"
    return table(title, ["rank", "score", "title", "text"], rows, left=4)


@app.command("mine")
def mine(
    source: Annotated[str, typer.Argument(help="A training folder with queries and positives, or a BEIR set's name.")],
    to: Annotated[Path, typer.Option("--to", help="The folder of pairs to write.")],
    retriever: Annotated[
        str,
        typer.Option(
            "--retriever",
            help="Who ranks: bm25, dense, hybrid, or an encoder's folder or Hub id.",
            autocompletion=options.preset_names("retrievers"),
        ),
    ] = "bm25",
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="Where negatives come from.", show_default="the source's own passages"),
    ] = None,
    form: Annotated[str, typer.Option("--form", help="The source's form; auto looks at its files.")] = "auto",
    split: Annotated[str, typer.Option("--split", help="Which marks of a BEIR folder; never test.")] = "train",
    k: Annotated[int, typer.Option("--k", min=1, help="Places of a ranking that are looked at.")] = 100,
    negatives: Annotated[int, typer.Option("--negatives", min=1, help="Negatives a pair, at most.")] = 8,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Leave out the first N that are no known positives.")] = 0,
    margin: Annotated[
        float | None, typer.Option("--margin", help="A negative scores below the positive by more than this.")
    ] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option("--relative-margin", help="The same as a share of the positive's score.", show_default="0.05"),
    ] = None,
    any_score: Annotated[
        bool, typer.Option("--any-score", help="No margin: also what scores above the positive, or if it is not found.")
    ] = False,
    max_score: Annotated[float | None, typer.Option("--max-score", help="No negative scores above it.")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="No negative scores below it.")] = None,
    pick: Annotated[str, typer.Option("--pick", help="top: the best that are left; random: any of them.")] = "top",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="A cross-encoder whose scores count (margins, bounds) and are written."),
    ] = None,
    language: options.Language = "auto",
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Mine hard negatives for training pairs. Killed or stopped, the same command goes on where it was.

    Example: `slmx retrieve mine scifact --retriever dense --negatives 4 --to scifact-mined`
    """
    from slmx import console, settings
    from slmx.errors import UsageError
    from slmx.retrieve.mine import mine as work, render
    from slmx.retrieve.negatives import MineOptions
    from slmx.signals import stopping

    if any_score and not (margin is None and relative_margin is None):
        raise UsageError("--any-score takes what a margin would leave out.", hint="Give --any-score or a margin.")
    known = settings.load_with_hub_token()
    asked = MineOptions(
        source=source,
        to=to,
        data_dir=data_dir or known.data_dir,
        cache_dir=cache_dir or known.cache_dir,
        retriever=retriever,
        corpus=corpus,
        form=form,
        split=split,
        k=k,
        negatives=negatives,
        skip=skip,
        margin=margin,
        relative_margin=None if any_score else 0.05 if relative_margin is None else relative_margin,
        max_score=inf if max_score is None else max_score,
        min_score=-inf if min_score is None else min_score,
        pick=pick,
        seed=known.seed if seed is None else seed,
        teacher=teacher,
        language=language,
        device=device or known.device,
        dtype=dtype or known.dtype,
        overwrite=overwrite,
    )
    with stopping(console.note) as stop, console.listening() as listen:
        mined = work(asked, stop=stop, listen=listen)
    console.result(mined, render)


@app.command("synthesize")
def synthesize(
    corpus: Annotated[str, typer.Argument(help="A dataset, a BEIR folder, or a file with documents.")],
    model: Annotated[
        str,
        typer.Option("--model", help="A preset, a folder or a Hub id.", autocompletion=options.preset_names("models")),
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder of pairs to write.")],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            help="inpars, promptagator, zero-shot, claim, or one of your presets/queries.yaml.",
            autocompletion=options.preset_names("queries"),
        ),
    ] = "inpars",
    examples: Annotated[
        Path | None, typer.Option("--examples", help="A training folder whose pairs are shown as examples.")
    ] = None,
    shots: Annotated[int, typer.Option("--shots", min=1, help="How many of them.")] = 4,
    documents: Annotated[
        int | None, typer.Option("--documents", min=1, help="A seeded sample of so many.", show_default="all")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Queries a document.")] = 1,
    min_words: Annotated[int, typer.Option("--min-words", min=1, help="Shorter documents are passed over.")] = 20,
    max_words: Annotated[int, typer.Option("--max-words", min=1, help="No more of a document are shown.")] = 300,
    min_log_prob: Annotated[
        float | None, typer.Option("--min-log-prob", help="Keep queries with a mean log-probability of at least this.")
    ] = None,
    round_trip: Annotated[
        int, typer.Option("--round-trip", min=0, help="Keep queries that find their document in the first K; 0: off.")
    ] = 0,
    retriever: Annotated[
        str,
        typer.Option("--retriever", help="Who searches for them.", autocompletion=options.preset_names("retrievers")),
    ] = "bm25",
    keep: Annotated[int, typer.Option("--keep", min=0, help="Keep the N most probable; 0: all.")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Tokens a query may have.", show_default="the prompt's"),
    ] = None,
    chat: options.Chat = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Prompts a batch.", show_default="chosen")
    ] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    data_dir: options.DataDir = None,
    cache_dir: options.CacheDir = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Let a language model write queries for documents. Killed or stopped, the same command goes on where it was.

    Example: `slmx retrieve synthesize scifact --model smollm2-360m --prompt claim --round-trip 10 --to scifact-claims`
    """
    from slmx import console, settings
    from slmx.retrieve.queries import SynthesizeOptions
    from slmx.retrieve.synthesize import render, synthesize as work
    from slmx.signals import stopping

    known = settings.load_with_hub_token()
    asked = SynthesizeOptions(
        corpus=corpus,
        model=model,
        to=to,
        data_dir=data_dir or known.data_dir,
        cache_dir=cache_dir or known.cache_dir,
        prompt=prompt,
        examples=examples,
        shots=shots,
        documents=documents,
        queries=queries,
        min_words=min_words,
        max_words=max_words,
        batch_size=batch_size,
        min_log_prob=min_log_prob,
        round_trip=round_trip,
        retriever=retriever,
        keep=keep,
        seed=known.seed if seed is None else seed,
        device=device or known.device,
        dtype=dtype or known.dtype,
        overwrite=overwrite,
        generator={
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "chat": chat,
            "device": device or known.device,
            "dtype": dtype or known.dtype,
        },
    )
    with stopping(console.note) as stop, console.listening() as listen:
        made = work(asked, stop=stop, listen=listen)
    console.result(made, render)
