"""What counts as a word, a run of words and a sentence."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, strategies as st

from slmx.errors import SlmxError
from slmx.text import WordText, holds_answer, norm, norm_u1, normaliser_for, sentences, word_run, words

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "us", "russia", "дом"]), max_size=6)
PROSE = st.lists(
    st.sampled_from(
        ["Bach", "the", "J.", "St.", "г.", "т.", "е.", "3.14", "U.S.", "...", "…", "!", "?", '."', "«Да!»", "\n", "  "]
    ),
    max_size=30,
)


def squad(s: str) -> str:
    """normalize_answer of the official SQuAD 1.1 script, step by step."""
    lowered = s.lower()
    without_punctuation = "".join(ch for ch in lowered if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split())


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@given(st.text() | st.text(alphabet="athe nAN.-' \t"))
def test_norm_is_the_squad_normalisation(s: str) -> None:
    assert norm(s) == squad(s)


@given(st.text() | st.text(alphabet="аёЁйaA.«»— \u0301\u0306\u0308\n"))
def test_words_are_never_blank_and_a_text_has_some_unless_it_is_blank(s: str) -> None:
    for normaliser in ("norm", "norm-u1"):
        found = words(s, normaliser)
        assert all(word and word.split() == [word] for word in found)
        assert bool(found) == bool(s.strip())


def test_norm_u1_drops_unicode_punctuation_and_writes_e_for_yo() -> None:
    assert norm_u1("«Ёлка» — это… Ель!") == "елка это ель"
    assert norm("«Ёлка»") == "«ёлка»"
    assert norm_u1("The Beatles") == norm("The Beatles") == "beatles"


def test_norm_u1_treats_the_two_encodings_of_a_letter_alike_and_ignores_stress() -> None:
    assert norm_u1("чёрный чай") == norm_u1("че\u0308рныи\u0306 чаи\u0306") == "черный чай"
    assert norm_u1("Москва\u0301") == "москва"


def test_the_normaliser_follows_the_script_of_the_question() -> None:
    assert normaliser_for("Who wrote War and Peace?") == "norm"
    assert normaliser_for("Кто создал Microsoft Windows Server 2003?") == "norm-u1"
    with pytest.raises(SlmxError, match="norm-u2") as raised:
        words("x", "norm-u2")
    assert raised.value.code == 2 and '"norm-u1"' in raised.value.hint


@pytest.mark.parametrize("gold", ["---", ")", "A+", "The", "a", "…"])
def test_trap_1_a_text_that_normalises_to_nothing_keeps_its_raw_words(gold: str) -> None:
    assert words(gold) == [gold.lower()]
    assert words("  \n ") == []


@given(WORDS, WORDS)
def test_word_run_is_a_slice_of_the_haystack(needle: list[str], haystack: list[str]) -> None:
    n = len(needle)
    expected = n > 0 and any(haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))
    assert word_run(needle, haystack) == expected


@given(WORDS, WORDS.filter(bool), WORDS)
def test_word_run_finds_what_was_put_in(before: list[str], needle: list[str], after: list[str]) -> None:
    assert word_run(needle, before + needle + after)


def test_an_answer_stands_on_word_boundaries() -> None:
    assert not holds_answer("She comes from Russia.", ["us"])
    assert holds_answer("She lives in the U.S. now.", ["us"])
    assert holds_answer("The Beatles' album", ["nothing", "the beatles album"])
    assert holds_answer("Он родился в «Ёлкино».", ["Елкино"], "norm-u1")
    assert not holds_answer("any text at all", ["", " ", "---", "the"])


def test_a_text_normalised_once_answers_for_many() -> None:
    text = WordText("word " * 100_000 + "St. Louis, Missouri")
    assert text.holds("st louis") and text.holds_any(["Paris", "Missouri"]) and text.holds_run(["word", "st"])
    assert not text.holds("loui") and not text.holds_any([]) and not text.holds_run([])


@pytest.mark.parametrize(
    "sentence",
    [
        "He lived in St. Louis, Missouri.",
        "She moved to Washington, D.C. and stayed.",
        "Some fugues, e.g. those of J. S. Bach, i.e. the known ones, are long.",
        "Dr. Smith paid 3.14 million, approx. 5 % of it, to Apple Inc. in Jan. 1999.",
        "Well... it depends… on you.",
        '"Who is it?" he asked.',
        "Он родился в 1990 г. в г. Москва.",
        "А. С. Пушкин жил в XIX в. в Петербурге, т. е. в столице, на ул. Мойка.",
        "«Приехали!» — сказал он.",
        "See Fig. 3 and No. 5.",
        "1. First of all.",
    ],
)
def test_trap_11_a_dot_inside_a_sentence_does_not_end_it(sentence: str) -> None:
    assert pieces(sentence) == [sentence]
    assert pieces(f"{sentence} {sentence}") == [sentence, sentence]


@pytest.mark.parametrize(
    "first",
    [
        "It ended in 1990.",
        "He lives in Washington, D.C.",
        'He said "go."',
        "It was cold.[12]",
        "(Nobody knows.)",
        "Really?!",
        "Это было в 1941 г.",
        "Стулья, столы и т. д.",
        "He chose plan B.",
        "Он ушёл…",
    ],
)
def test_a_sentence_ends_before_one_that_begins(first: str) -> None:
    for second in ("The war ended.", "Он вернулся."):
        assert pieces(f"{first} {second}") == [first, second]


def test_a_newline_ends_a_sentence_whatever_stands_around_it() -> None:
    assert pieces("Title\n\n It is\u2028a text by J.\r\n Bach.\n and so on ") == [
        "Title",
        "It is",
        "a text by J.",
        "Bach.",
        "and so on",
    ]
    assert sentences(" \n ") == sentences("") == []


@given(st.text() | st.text(alphabet='aA.!? \n"«[1]…') | PROSE.map(" ".join) | PROSE.map("".join))
def test_every_character_lies_in_exactly_one_sentence(text: str) -> None:
    covered = 0
    for start, end in sentences(text):
        assert covered <= start < end
        assert not text[covered:start].strip()
        assert text[start:end].strip() == text[start:end]
        covered = end
    assert not text[covered:].strip()


@pytest.mark.parametrize(
    "junk",
    ["a. ", ".", ". ", "…", "x", " ", "\n", ' "', '."', "[1]", ".[1", "!)", "A.", "- ", " \n.", "т. е. ", "\u0301"],
)
def test_half_a_megabyte_of_junk_takes_linear_work(junk: str) -> None:
    text = junk * (500_000 // len(junk))
    spans = sentences(text)
    assert bool(spans) == bool(text.strip())
    assert words(text) is not None and words(text, "norm-u1") is not None
