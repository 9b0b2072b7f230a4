from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def merged_row() -> Callable[..., dict[str, Any]]:
    """A row of NQ merged about a river; keywords replace fields."""

    def make(number: int = 0, **fields: Any) -> dict[str, Any]:
        text = (
            f"<H1> River {number} </H1> <P> The river rises in the north . It is 120 km long , and flows south . </P> "
            "<P> Its source was found in 1871 by Anna Berg , who walked there . </P> "
            "<Table> <Tr> <Th> Length </Th> <Td> 120 km </Td> </Tr> </Table>"
        )
        tokens = text.split(" ")
        start, end = tokens.index("Its") - 1, tokens.index("<Table>")
        anna = tokens.index("Anna")
        row = {
            "question": f"who found the source of river {number}",
            "answer": ["Anna Berg"],
            "document_text": text,
            "document_url": f"https://en.wikipedia.org//w/index.php?title=River_{number}&amp;oldid=7",
            "annotations": [
                {
                    "long_answer": {"start_token": start, "end_token": end, "candidate_index": 1},
                    "short_answers": [{"start_token": anna, "end_token": anna + 2}],
                    "yes_no_answer": "NONE",
                }
            ],
            "long_answer_candidates": [
                {"start_token": 4, "end_token": start, "top_level": True},
                {"start_token": start, "end_token": end, "top_level": True},
            ],
            "example_id": 1000 + number,
        }
        return {**row, **fields}

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (or lines as they are) to a file under tmp_path."""

    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write
