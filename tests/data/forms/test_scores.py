"""A teacher's scores: what the standard library pickles is read without it, and nothing in a pickle is ever run."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from slmx.data.forms.scores import open_scores, read_scores
from slmx.errors import RefusedError, SlmxError

PROTOCOLS = (2, 3, 4, 5)


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.integers(-(2**62), 2**62),
        st.dictionaries(st.integers(0, 2**62), st.floats(-50, 50, width=32)),
    ),
    st.sampled_from(PROTOCOLS),
)
def test_every_dict_of_numbers_comes_back(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[int, dict[int, float]], protocol: int
) -> None:
    path = written(tmp_path_factory.mktemp("scores") / "s.pkl", scores, protocol)
    assert dict(read_scores(path)) == scores


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, np.int64, np.dtype(">f4").type])
def test_scalars_of_numpy(tmp_path: Path, protocol: int, kind: Any) -> None:
    path = written(tmp_path / "s.pkl", {1: {2: kind(3), 4: kind(5)}, 6: {7: kind(8)}}, protocol)
    assert dict(read_scores(path)) == {1: {2: 3.0, 4: 5.0}, 6: {7: 8.0}}


def test_ids_as_text_and_whole_scores(tmp_path: Path) -> None:
    path = written(tmp_path / "s.pkl", {"1": {"2": 3, "10": -4}, "5": {"2": 3}})
    assert dict(read_scores(path)) == {1: {2: 3.0, 10: -4.0}, 5: {2: 3.0}}


def test_many_queries_through_gzip_and_the_cache(tmp_path: Path) -> None:
    draw = random.Random(0)
    scores = {q: {draw.randrange(9_000_000): float(np.float32(draw.random())) for _ in range(5)} for q in range(3000)}
    path = tmp_path / "s.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(scores)))
    found = open_scores(path, tmp_path)
    assert all(found.of(query) == own for query, own in scores.items())
    assert found.of(99_999) == {}
    (place,) = (tmp_path / "scores").iterdir()
    before = place.stat().st_mtime_ns
    assert open_scores(path, tmp_path).of(5) == scores[5]
    assert place.stat().st_mtime_ns == before


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "was-run"
    path = written(tmp_path / "s.pkl", {1: {2: Malicious(trace)}}, protocol)
    with pytest.raises(RefusedError, match=r"it calls \w+\.system"):
        list(read_scores(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1, 2], "more than dicts and numbers"),
        (5, "it holds no dict"),
        ({1: 2.0}, "has no dict of scores"),
        ({1: {2: None}}, "a score is no number"),
        ({"a": {2: 1.0}}, "is no whole number"),
        ({1: {2: "x"}}, "a score is no number"),
        ({1: OrderedDict({2: 1.0})}, "it calls collections.OrderedDict"),
        ({1: np.arange(3)}, "it calls"),
    ],
)
def test_what_is_no_dict_of_numbers_is_refused(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(RefusedError, match=told):
        list(read_scores(written(tmp_path / "s.pkl", value)))


def test_one_dict_in_two_places_is_refused(tmp_path: Path) -> None:
    shared = {2: 1.0}
    with pytest.raises(RefusedError, match="one dict in two places"):
        list(read_scores(written(tmp_path / "s.pkl", {1: shared, 2: shared})))


def test_a_file_that_was_cut_off_is_said(tmp_path: Path) -> None:
    whole = pickle.dumps({q: dict.fromkeys(range(50), 1.5) for q in range(50)})
    plain, zipped = tmp_path / "s.pkl", tmp_path / "s.pkl.gz"
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        plain.write_bytes(whole[:size])
        with pytest.raises(SlmxError, match=r"damaged|no dict"):
            list(read_scores(plain))
    zipped.write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(SlmxError, match="damaged"):
        open_scores(zipped, tmp_path)
    assert not any((tmp_path / "scores").glob("*/queries.npy"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_junk_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "s.pkl"
    path.write_bytes(b"\x80\x04" + junk)
    with contextlib.suppress(SlmxError):
        list(read_scores(path))
