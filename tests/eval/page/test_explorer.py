"""The explorer's data: compressed, each passage once, within its budget, and back to the same texts."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

from hypothesis import given, settings, strategies as st

from slmx.eval.page.explorer import Packed, Questions, RunColumn, pack
from slmx.eval.page.parts import clean
from tests.eval.page.conftest import HOSTILE


def columns(*runs: list[list[str]], answers: list[str] | None = None) -> Questions:
    """Questions whose runs have these passages."""
    n = len(runs[0])
    told = answers or ["answer"] * n
    return Questions(
        ids=[str(i) for i in range(n)],
        questions=told,
        golds=[told[:1]] * n,
        runs=[RunColumn("A", "a run", told, [None] * n, [None] * n, [0] * n, texts) for texts in runs],
        pair=(0, 0),
    )


def unpack(packed: Packed) -> tuple[dict[str, Any], list[str]]:
    blocks = dict(re.findall(r'id="([\w-]+)">([\w+/=]*)</script>', packed.elements))
    read = {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in blocks.items()}
    data = read.pop("explorer-data")
    return data, [text for number in range(len(read)) for text in read[f"passages-{number}"]]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "</script>", "c" * 300_000, "ё"]), max_size=4), min_size=1, max_size=5)
)
def test_passages_come_back_and_stand_there_once(contexts: list[list[str]]) -> None:
    data, passages = unpack(pack(columns(contexts, contexts)))
    assert len(passages) == len(set(passages)) == len({text for texts in contexts for text in texts})
    for run in data["passages"]:
        assert [[passages[place] for place in places] for places in run] == contexts
    assert data["blocks"] == sorted(set(data["blocks"]))


def test_no_text_ends_the_element_that_holds_it() -> None:
    packed = pack(columns([list(HOSTILE)] * len(HOSTILE), answers=list(HOSTILE)))
    assert packed.elements.count("<") == packed.elements.count("</script>") * 2
    data, passages = unpack(packed)
    assert passages == data["questions"] == [clean(text) for text in HOSTILE]
    assert packed.kept_rank is None


def test_lone_surrogates_become_replacement_characters() -> None:
    data, passages = unpack(pack(columns([["a\ud800"]], answers=["\udfff"])))
    assert (passages, data["answers"]) == (["a\ufffd"], [["\ufffd"]])


def test_passages_of_the_lowest_ranks_are_left_out_where_all_do_not_fit() -> None:
    import random

    noise = random.Random(0)
    texts = [["".join(noise.choices("abcdefgh", k=2000)) for _ in range(5)] for _ in range(20)]
    whole = pack(columns(texts))
    size = len(whole.elements)
    packed = pack(columns(texts), budget=size // 2)
    assert packed.kept_rank in (1, 2)
    assert len(packed.elements) < size * 0.6
    data, passages = unpack(packed)
    kept = [[passages[place] for place in places] for places in data["passages"][0]]
    assert kept == [one[: packed.kept_rank] for one in texts]
    nothing = pack(columns(texts), budget=0)
    assert nothing.kept_rank == 0
    assert unpack(nothing)[1] == []
