"""Answer metrics: their check values, the official SQuAD numbers, and the traps that others fell into."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, strategies as st

from slmx.errors import SlmxError
from slmx.eval import metrics
from slmx.eval.metrics import (
    FACTS,
    METRICS,
    PRESETS,
    SIMPLE_QA,
    Metric,
    Scored,
    Summary,
    abstains,
    aggregate,
    check_metrics,
    grade_numbers,
    preset_metrics,
    score,
    simple_qa_grade,
)

ANSWERS = st.lists(
    st.lists(st.sampled_from(["The", "a", "Paris,", "paris", "U.S.", "us", "14", "--", "é"]), max_size=6).map(" ".join)
    | st.text(max_size=20),
    min_size=1,
    max_size=4,
)
WITHOUT_VOCABULARY = [name for name in METRICS if name != "token_recall@bert"]


def one(name: str, prediction: str, *answers: str, **kwargs: object) -> float | None:
    return score(Scored(prediction, answers, **kwargs), [name])[name]  # type: ignore[arg-type]


# The official SQuAD 1.1 script, evaluate-v1.1.py, written plainly.


def squad_tokens(s: str) -> list[str]:
    text = "".join(ch for ch in s.lower() if ch not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(prediction: str, gold: str) -> tuple[float, float, float]:
    predicted, wanted = squad_tokens(prediction), squad_tokens(gold)
    same = sum((Counter(predicted) & Counter(wanted)).values())
    if same == 0:
        return 0.0, 0.0, 0.0
    precision, recall = same / len(predicted), same / len(wanted)
    return 2 * precision * recall / (precision + recall), precision, recall


@given(ANSWERS, ANSWERS)
def test_em_and_f1_are_the_official_squad_numbers(predictions: list[str], golds: list[str]) -> None:
    prediction = predictions[0]
    assume(squad_tokens(prediction) and all(squad_tokens(gold) for gold in golds))
    numbers = score(Scored(prediction, golds), ["em", "f1", "precision", "recall"])
    assert numbers["em"] == max(float(squad_tokens(prediction) == squad_tokens(gold)) for gold in golds)
    triples = [squad_f1(prediction, gold) for gold in golds]
    assert numbers["f1"] == pytest.approx(max(f1 for f1, _, _ in triples))
    assert any((numbers["f1"], numbers["precision"], numbers["recall"]) == pytest.approx(triple) for triple in triples)


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("It was 14 December 1972", ["14 December 1972 UTC"], 0.75),
        ("the united states", ["USA", "United States"], 1.0),
        ("", ["14 December 1972 UTC"], 0.0),
        ("...", ["---"], 0.0),
    ],
)
def test_token_recall_wordset_check_values(prediction: str, golds: list[str], expected: float) -> None:
    assert one("token_recall@wordset", prediction, *golds) == expected


def test_check_values_of_the_other_metrics() -> None:
    assert one("em", "The Beatles!", "beatles") == 1.0
    assert one("f1", "It was 14 December 1972", "14 December 1972 UTC") == pytest.approx(2 * 3 / (5 + 4))
    assert one("token_recall", "It was 14 December 1972", "14 December 1972 UTC") == 0.75
    assert one("token_recall", "New York", "new new york york") == 0.5
    assert one("substring_recall", "She is from Russia", "US army") == 0.5
    assert one("match", "He said it was Paris, France", "paris france") == 1.0
    assert one("k_precision", "Paris is nice", "x", contexts=["Paris is big.", "Rome"]) == pytest.approx(2 / 3)
    assert one("em", "Елка", "«Ёлка»", question="Что это?") == 1.0
    assert one("em", "Елка", "«Ёлка»", question="What?") == 0.0


# Traps


@pytest.mark.parametrize("gold", ["---", ")", "A+", "The", "..."])
@pytest.mark.parametrize("name", ["em", "f1", "token_recall", "match", "substring_recall"])
def test_trap_1_a_gold_that_normalises_to_nothing_matches_itself_alone(name: str, gold: str) -> None:
    assert one(name, "Paris is big", gold) == 0.0
    assert one(name, "", gold) == 0.0
    assert one(name, gold, gold) == 1.0


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs == "answers"])
def test_trap_1_a_blank_gold_earns_nothing(name: str) -> None:
    for prediction in ("", "Paris"):
        assert one(name, prediction, "", " \n") in (0.0, None) or name.startswith("simpleqa_")
    assert one("simpleqa_correct", "", "") == one("simpleqa_correct", "Paris", " ") == 0.0


def test_trap_2_f1_counts_repeated_words_as_often_as_they_stand() -> None:
    assert one("f1", "paris paris paris", "paris") == 0.5
    assert one("precision", "paris paris paris", "paris") == pytest.approx(1 / 3)


def test_trap_3_precision_recall_and_f1_are_those_of_the_same_gold() -> None:
    golds = ("paris", "big old city of paris on river seine")
    scored = Scored("big city paris", golds)
    numbers = score(scored, ["f1", "precision", "recall"])
    assert numbers == {"f1": pytest.approx(6 / 11), "precision": 1.0, "recall": 3 / 8}


def test_trap_4_a_metric_that_raises_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Scored) -> float:
        raise ZeroDivisionError

    monkeypatch.setitem(METRICS, "broken", Metric("broken", "1", "answers", broken))
    with pytest.raises(ZeroDivisionError):
        score(Scored("x", ["x"]), ["em", "broken"])


def test_trap_4_a_metric_cannot_vanish_from_some_answers() -> None:
    with pytest.raises(SlmxError, match="same metrics"):
        aggregate([{"em": 1.0, "f1": 1.0}, {"em": 1.0}])


def test_trap_24_every_mean_says_over_how_many_answers_it_is() -> None:
    rows = [{"em": 1.0, "k_precision": None}] * 3 + [{"em": 0.0, "k_precision": 0.5}]
    means = aggregate(rows, resamples=100)
    assert (means["em"].mean, means["em"].n) == (0.75, 4)
    assert means["k_precision"] == Summary(0.5, 0.5, 0.5, 1, METRICS["k_precision"].version)
    assert aggregate([{"em": None}])["em"] == Summary(None, None, None, 0, "1")
    assert aggregate([]) == {}


def test_trap_match_respects_word_boundaries() -> None:
    assert one("match", "She comes from Russia", "US") == 0.0
    assert one("match", "York, new", "New York") == 0.0
    assert one("match", "in the U.S. army", "US Army") == 1.0


# Every metric, any text


@given(ANSWERS, ANSWERS, st.lists(st.text(max_size=30), max_size=2))
def test_every_share_lies_between_0_and_1(predictions: list[str], golds: list[str], contexts: list[str]) -> None:
    numbers = score(Scored(predictions[0], golds, contexts), WITHOUT_VOCABULARY)
    for name, number in numbers.items():
        assert number is None or 0 <= number <= 1 or METRICS[name].unit == "words"
    assert list(numbers) == WITHOUT_VOCABULARY


@given(ANSWERS.filter(lambda golds: bool(golds[0].strip())))
def test_the_gold_itself_is_a_perfect_answer(golds: list[str]) -> None:
    perfect = score(Scored(golds[0], golds), ["em", "f1", "token_recall", "match", "simpleqa_correct"])
    assert set(perfect.values()) == {1.0}


def test_without_golds_or_context_a_metric_is_not_defined() -> None:
    numbers = score(Scored("Paris", []), WITHOUT_VOCABULARY)
    assert {name for name, number in numbers.items() if number is not None} == {"answer_words", "empty"}
    assert one("k_precision", "", "x", contexts=["x"]) == 0.0


# Names


def test_an_unknown_metric_or_preset_is_answered_with_the_nearest_name() -> None:
    for call in (lambda: score(Scored("x", ["x"]), ["token_recal"]), lambda: check_metrics(["token_recal"])):
        with pytest.raises(SlmxError, match='"token_recal"') as raised:
            call()
        assert raised.value.code == 2 and '"token_recall"' in raised.value.hint
    with pytest.raises(SlmxError) as raised:
        preset_metrics("bergn")
    assert raised.value.code == 2 and '"bergen"' in raised.value.hint


def test_presets_and_facts_name_metrics_that_exist() -> None:
    assert {name for preset in PRESETS.values() for name in preset} | set(FACTS) | set(SIMPLE_QA) <= set(METRICS)
    assert PRESETS["default"] == ("em", "f1", "token_recall", "match", "k_precision")
    assert set(PRESETS) >= {"squad", "flashrag", "bergen", "lm-eval", "lighteval", "seed-v1", "seed-v3"}
    assert preset_metrics("seed-v3") == ("substring_recall",)
    assert check_metrics(["em", "f1", "em"]) == ("em", "f1")
    assert all(metric.name == name and metric.version for name, metric in METRICS.items())


# WordPieces

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris", "un", "##used", "used", "walk", "##ing", "the"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def test_token_recall_bert_compares_sets_of_wordpieces_without_their_marks(vocabulary: Path) -> None:
    def recall(prediction: str, *golds: str) -> float | None:
        return one("token_recall@bert", prediction, *golds, vocabulary=vocabulary)

    assert recall("used Walking in PARIS", "unused") == 0.5  # "used" and "##used" are one piece, "un" is missing
    assert recall("The walk", "walking", "Paris") == 0.5
    assert recall("paris", "") == recall("", "paris") == 0.0


def test_token_recall_bert_reads_a_tokenizer_json_and_forgets_its_limits(vocabulary: Path, tmp_path: Path) -> None:
    from tokenizers import BertWordPieceTokenizer

    saved = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    saved.enable_truncation(3)
    saved.enable_padding(length=8)
    saved.save(str(tmp_path / "tokenizer.json"))
    scored = Scored("the the walk paris", ["walking paris"], vocabulary=tmp_path / "tokenizer.json")
    assert score(scored, ["token_recall@bert"]) == score(replace(scored, vocabulary=vocabulary), ["token_recall@bert"])
    assert score(scored, ["token_recall@bert"]) == {"token_recall@bert": pytest.approx(2 / 3)}


def test_token_recall_bert_without_its_vocabulary_is_wrong_usage(tmp_path: Path) -> None:
    for missing in (None, tmp_path / "absent.txt"):
        for call in (
            lambda path=missing: check_metrics(["token_recall@bert"], vocabulary=path),
            lambda path=missing: one("token_recall@bert", "x", "x", vocabulary=path),
        ):
            with pytest.raises(SlmxError, match="vocabulary") as raised:
                call()
            assert raised.value.code == 2


# SimpleQA


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        " \n",
        "I don't know.",
        "I don’t know who wrote it",
        "unknown",
        "The answer is unknown.",
        "N/A",
        "Not mentioned",
        "The passage does not mention it.",
        "It cannot be determined from the text.",
        "I'm sorry, but I can't answer that.",
        "Sorry. I do not know.",
        "There is no information about her.",
        "не знаю",
        "Неизвестно.",
        "К сожалению, в тексте это не указано.",
        "Извините. Я не могу ответить.",
        "Невозможно определить",
    ],
)
def test_an_answer_that_declines_is_not_attempted(prediction: str) -> None:
    assert abstains(prediction)
    assert simple_qa_grade(Scored(prediction, ["Paris"])) == "not_attempted"


@pytest.mark.parametrize(
    "prediction",
    [
        "Rome",
        "None",
        "The Unknown Soldier",
        "Неизвестный солдат",
        "Rome. I don't know more.",
        "I don't know, but it may be Rome.",
        "The text does not mention it. However, it is Rome.",
        "Я не знаю, но думаю, что Рим.",
        "Not Rome",
    ],
)
def test_a_wrong_answer_is_not_excused_by_what_stands_around_it(prediction: str) -> None:
    assert not abstains(prediction)
    assert simple_qa_grade(Scored(prediction, ["Paris"])) == "incorrect"


def test_an_answer_that_holds_the_gold_is_correct_even_if_it_hedges() -> None:
    assert simple_qa_grade(Scored("I am not sure, perhaps Paris.", ["Paris"])) == "correct"


def test_grades_make_three_shares_and_the_harmonic_mean() -> None:
    predictions = ["Paris"] * 2 + ["Rome"] * 3 + ["I don't know"] * 5
    means = aggregate([score(Scored(p, ["Paris"]), SIMPLE_QA) for p in predictions], resamples=2_000)
    assert {name.removeprefix("simpleqa_"): (round(s.mean or 0, 6), s.n) for name, s in means.items()} == {
        "correct": (0.2, 10),
        "incorrect": (0.3, 10),
        "not_attempted": (0.5, 10),
        "accuracy_given_attempted": (0.4, 5),
        "f1": (round(2 * 0.2 * 0.4 / (0.2 + 0.4), 6), 10),
    }
    f1 = means["simpleqa_f1"]
    assert f1.low is not None and f1.mean is not None and f1.high is not None
    assert 0 <= f1.low < f1.mean < f1.high <= 1


def test_grades_of_a_judge_are_summarised_alike_and_unparsed_ones_left_out() -> None:
    rows = [
        {f"judge_{name}": number for name, number in grade_numbers(grade).items()}
        for grade in ("correct", "not_attempted", None)
    ]
    versions = dict.fromkeys(rows[0], "judge-1")
    means = aggregate(rows, versions=versions, resamples=100)
    assert means["judge_f1"].n == 2 and means["judge_f1"].mean == pytest.approx(2 / 3)
    assert means["judge_f1"].version == "judge-1"
    assert aggregate(rows[2:], versions=versions)["judge_f1"].mean is None
    with pytest.raises(SlmxError, match="judge_correct"):
        aggregate(rows)


def test_nobody_attempted() -> None:
    means = aggregate([score(Scored("", ["Paris"]), SIMPLE_QA)] * 3, resamples=100)
    assert means["simpleqa_f1"].mean == 0.0
    assert means["simpleqa_accuracy_given_attempted"] == Summary(None, None, None, 0, "1")


# Facts of form


def test_the_length_counts_every_word_and_articles_too() -> None:
    assert one("answer_words", "The end,  of\nit ---", "x") == 5.0
    assert (one("empty", " \n", "x"), one("empty", "---", "x")) == (1.0, 0.0)


def test_an_echo_is_twenty_words_of_a_passage_in_one_run() -> None:
    passage = " ".join(f"w{i}" for i in range(50))
    run = passage.split()[10:30]
    assert one("context_echo", "So: " + " ".join(run).upper() + ".", "x", contexts=["other", passage]) == 1.0
    assert one("context_echo", " ".join(run[:19]), "x", contexts=[passage]) == 0.0
    assert one("context_echo", " ".join([*run[:10], "cut", *run[10:]]), "x", contexts=[passage]) == 0.0
    assert one("context_echo", " ".join(run), "x") is None


def test_the_token_cap_is_what_the_generator_says() -> None:
    assert [one("hit_cap", "x", "x", hit_cap=hit) for hit in (True, False, None)] == [1.0, 0.0, None]


def test_what_is_derived_from_an_answer_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(text: str, normaliser: str) -> list[str]:
        calls[text] += 1
        return text.lower().split()

    monkeypatch.setattr(metrics, "words", counted)
    score(Scored("some answer", ["a gold"], ["a passage"]), PRESETS["default"])
    assert calls == {"some answer": 1, "a gold": 1}
