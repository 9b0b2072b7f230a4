"""Training folders with a corpus of their own: MS MARCO and unarXive, as their users have them, and cut or mixed up."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest

from slmx.data.forms import FORMS, FormCorpus, detect, get
from slmx.data.forms.example import Example, Reading
from slmx.errors import RefusedError, SlmxError


def read(folder: Path, form: str) -> list[Example]:
    return list(get(form).read(folder, Reading(folder.parent / "cache")))


def test_ms_marco_keeps_what_scores_far_enough_below_the_lowest_positive(msmarco_folder: Path) -> None:
    assert detect(msmarco_folder) == "ms-marco"
    first, second, third, last = read(msmarco_folder, "ms-marco")
    # 9.0 - 3.0 = 6.0: passage 3 (8.5) is too near, 4 (6.0) just far enough. By systems in turn: 4 is dense's first.
    assert (first.query, first.positive_id, first.negative_ids) == ("who kept the lamp", "0", ["4", "1", "2"])
    assert first.scores == [9.0, 6.0, 1.0, -2.0]
    assert first.positive.startswith("Lighthouse: ") and first.negatives[0].startswith("Engine: ")
    # Two positives, 7.0 and 5.0: the limit is 2.0; passage 1 is a positive that a system found again.
    assert [second.positive_id, third.positive_id] == ["1", "4"]
    assert second.negative_ids == third.negative_ids == ["0", "2"]
    assert (second.scores[0], third.scores[0]) == (7.0, 5.0)
    assert last.negative_ids == [] and last.scores == []


def test_ms_marco_without_scores_takes_all_mined_negatives(msmarco_folder: Path) -> None:
    next(msmarco_folder.glob("*.pkl.gz")).unlink()
    first = read(msmarco_folder, "ms-marco")[0]
    assert first.negative_ids == ["3", "4", "1", "2"] and first.scores == []


def test_ms_marco_texts_are_memory_mapped_copies(msmarco_folder: Path) -> None:
    read(msmarco_folder, "ms-marco")
    assert len(list((msmarco_folder.parent / "cache" / "texts").iterdir())) == 2
    corpus = FormCorpus(msmarco_folder, "ms-marco", Reading(msmarco_folder.parent / "cache"))
    assert [passage.passage_id for passage in corpus.passages()] == ["0", "1", "2", "3", "4", "5"]


def test_ms_marco_that_is_cut_or_mixed_up_is_said(msmarco_folder: Path) -> None:
    mined = msmarco_folder / "msmarco-hard-negatives.jsonl.gz"
    whole = mined.read_bytes()
    mined.write_bytes(whole[:-12])
    with pytest.raises(SlmxError, match=r"hard-negatives\.jsonl\.gz is damaged"):
        read(msmarco_folder, "ms-marco")
    for row, told in (
        ({"qid": 10, "pos": [77], "neg": {}}, "line 1: '77' is not in .*collection.tsv"),
        ({"qid": 99, "pos": [0], "neg": {}}, "line 1: '99' is not in .*queries.train.tsv"),
        ({"qid": 10, "pos": [0]}, "line 1 has no qid, pos and neg"),
        ({"qid": 10, "pos": ["x"], "neg": {}}, "is no whole number"),
    ):
        mined.write_bytes(gzip.compress(json.dumps(row).encode()))
        with pytest.raises(SlmxError, match=told):
            read(msmarco_folder, "ms-marco")
    (msmarco_folder / "collection.tsv").write_text("0 without a tab\n", encoding="utf-8")
    with pytest.raises(SlmxError, match="line 1 has no tab"):
        read(msmarco_folder, "ms-marco")


def test_a_malicious_score_file_is_refused_before_a_pair_is_read(msmarco_folder: Path) -> None:
    next(msmarco_folder.glob("*.pkl.gz")).write_bytes(gzip.compress(pickle.dumps({1: {2: print}})))
    with pytest.raises(RefusedError, match="a score is no number"):
        read(msmarco_folder, "ms-marco")


def test_unarxive_sentences_lead_to_the_cited_papers(unarxive_folder: Path) -> None:
    assert detect(unarxive_folder) == "unarxive-query-doc"
    pairs = [(one.query_id, one.positive_id) for one in read(unarxive_folder, "unarxive-query-doc")]
    cited = {"context-1": ("1", "2"), "context-2": ("1", "3", "2"), "context-4": ("4", "5")}
    assert pairs == [(context, f"0704.{own}") for context, papers in cited.items() for own in papers]


def test_unarxive_papers_cited_together(unarxive_folder: Path) -> None:
    pairs = read(unarxive_folder, "unarxive-doc-doc")
    assert [(one.query_id, one.positive_id) for one in pairs] == [
        ("0704.1", "0704.2"),
        ("0704.1", "0704.3"),
        ("0704.1", "0704.2"),
        ("0704.3", "0704.2"),
        ("0704.4", "0704.5"),
    ]
    assert pairs[0].query == "Lamps [SEP] Of oil and light."
    assert pairs[1].positive == "Towers"  # no abstract, no separator


def test_unarxive_that_is_damaged_is_said(unarxive_folder: Path) -> None:
    (unarxive_folder / "contexts.jsonl").write_text('{"text": "no ids"}\n', encoding="utf-8")
    with pytest.raises(SlmxError, match="line 1 has no text and cited_ids"):
        read(unarxive_folder, "unarxive-query-doc")
    (unarxive_folder / "collection.tsv").write_text("0704.1\tonly a title\n", encoding="utf-8")
    with pytest.raises(SlmxError, match="line 1 has 2 columns"):
        read(unarxive_folder, "unarxive-query-doc")


def test_every_form_says_which_files_give_it_away() -> None:
    assert len({form.about for form in FORMS.values()}) == len(FORMS)
