"""The signatures of `slmx retrieve …`."""

from __future__ import annotations

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
