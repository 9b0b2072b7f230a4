"""FlashRAG: JSON lines of `id, question, golden_answers, metadata`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from slmx.data.sources import BadRow, Item, RowReader, item


class Row(msgspec.Struct):
    """One line."""

    question: str
    golden_answers: list[str] | str
    id: str | int = ""
    metadata: dict[str, Any] | None = None


def _items(line: int, row: Row, _section: str) -> Iterator[Item | BadRow]:
    yield item(line, row.question, row.golden_answers, question_id=str(row.id), metadata=row.metadata)


FLASHRAG = RowReader("FlashRAG", Row, lambda keys: keys >= {"question", "golden_answers"}, _items)
