"""Lost in the middle (Liu et al. 2023): NQ-open questions, each with passages that are ready cut."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from slmx.data.passages import Held, passage_of
from slmx.data.sources import BadRow, Item, RowReader, item
from slmx.records import Gold
from slmx.text import normaliser_for


class Context(msgspec.Struct):
    """One passage of a row."""

    text: str
    title: str = ""
    isgold: bool = False


class Annotated(msgspec.Struct):
    """The gold passage as NQ annotates it; the fallback of rows whose `ctxs` mark none."""

    title: str = ""
    long_answer: str = ""
    chunked_long_answer: str = ""
    short_answers: list[str] = []


class Row(msgspec.Struct):
    """One line."""

    question: str
    answers: list[str]
    ctxs: list[Context]
    nq_annotated_gold: Annotated = msgspec.field(default_factory=Annotated)


def _items(line: int, row: Row, _section: str) -> Iterator[Item | BadRow]:
    annotated = row.nq_annotated_gold
    contexts = [c for c in row.ctxs if c.text.strip()]
    if not any(c.isgold for c in contexts) and annotated.chunked_long_answer.strip():
        contexts.insert(0, Context(text=annotated.chunked_long_answer, title=annotated.title, isgold=True))
    passages = [passage_of(c.title, c.text) for c in contexts]
    made = item(
        line,
        row.question,
        row.answers,
        passages=passages,
        long_answers=[annotated.long_answer] if annotated.long_answer else [],
        short_contexts=annotated.short_answers,
    )
    if isinstance(made, BadRow):
        yield made
        return
    normaliser = normaliser_for(row.question)
    gold = [p for p, c in zip(passages, contexts, strict=True) if c.isgold]
    short = [p.passage_id for p in gold if Held(p.text, normaliser).any_of(made.question.answers)]
    long = short + [p.passage_id for p in gold if p.passage_id not in short]
    marked = msgspec.structs.replace(made.question, gold=Gold(long=long, short=short, document=long))
    yield msgspec.structs.replace(made, question=marked)
    if not gold:
        yield BadRow(line=line, field="ctxs", reason="none of the passages is gold", kept=True)


LOST_IN_THE_MIDDLE = RowReader(
    "lost-in-the-middle: questions with ready-cut passages", Row, lambda keys: keys >= {"question", "ctxs"}, _items
)
