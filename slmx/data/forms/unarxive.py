"""unarXive: papers (id, title, abstract, category) and the sentences that cite them, as two forms of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import combinations
from pathlib import Path

import msgspec

from slmx.data.forms.example import Example, Form, Reading
from slmx.data.passage_texts import Texts, open_texts
from slmx.errors import SlmxError
from slmx.files import hash_file, read_lines
from slmx.records import Passage

SEPARATOR = " [SEP] "
CITED = 10  # papers of one sentence that are paired: a list of fifty references would give 1,225 pairs


class Context(msgspec.Struct):
    """A line of contexts.jsonl."""

    text: str
    cited_ids: list[str]


class Papers:
    """collection.tsv as passages: title [SEP] abstract."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "collection.tsv"

    @cached_property
    def corpus_hash(self) -> str:
        """By content and by how the texts are made of it."""
        return f"unarxive {hash_file(self.path)}"

    def passages(self) -> Iterator[Passage]:
        """Each paper; SlmxError names a line with fewer than three columns."""
        for line, raw in read_lines(self.path):
            cells = raw.decode(errors="replace").rstrip("\r\n").split("\t")
            if len(cells) < 3:
                hint = "A line is: arxiv id, title, abstract, category."
                raise SlmxError(f"{self.path}, line {line} has {len(cells)} columns.", hint=hint)
            title, abstract = cells[1].strip(), cells[2].strip()
            yield Passage(passage_id=cells[0].strip(), text=SEPARATOR.join(part for part in (title, abstract) if part))


def _fits(folder: Path) -> bool:
    return (folder / "collection.tsv").is_file() and (folder / "contexts.jsonl").is_file()


def _contexts(folder: Path, texts: Texts) -> Iterator[tuple[int, str, list[tuple[str, str]]]]:
    """Line, sentence, and id and text of each cited paper that is in the collection; not every cited one is."""
    path, decoder = folder / "contexts.jsonl", msgspec.json.Decoder(Context)
    for line, raw in read_lines(path):
        try:
            context = decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise SlmxError(f"{path}, line {line} has no text and cited_ids: {error}.") from None
        places = {own: texts.place(own) for own in context.cited_ids}
        yield line, context.text, [(own, texts.text(place)) for own, place in places.items() if place is not None]


def _read_query_doc(folder: Path, how: Reading) -> Iterator[Example]:
    texts = open_texts(Papers(folder), how.cache_dir)
    for line, sentence, papers in _contexts(folder, texts):
        for own, text in papers:
            yield Example(query=sentence, positive=text, query_id=f"context-{line}", positive_id=own)


def _read_doc_doc(folder: Path, how: Reading) -> Iterator[Example]:
    texts = open_texts(Papers(folder), how.cache_dir)
    for _, _, papers in _contexts(folder, texts):
        for (first, query), (second, positive) in combinations(papers[:CITED], 2):
            yield Example(query=query, positive=positive, query_id=first, positive_id=second)


def _passages(folder: Path) -> Iterator[Passage]:
    return Papers(folder).passages()


_ABOUT = "collection.tsv and contexts.jsonl"
QUERY_DOC = Form(f"{_ABOUT}: citing sentence → cited paper", _fits, _read_query_doc, _passages)
# The same files: only --forms asks for it.
DOC_DOC = Form(f"{_ABOUT}, by --forms: papers cited in one sentence", lambda _folder: False, _read_doc_doc, _passages)
