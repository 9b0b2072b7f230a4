"""Text as the metrics see it: normalised words, runs of words, and sentences; and templates. English and Russian.

Normalisers go by name, so that the name can be stored beside every number made with one:

`norm`
    The SQuAD 1.1 order (Rajpurkar et al. 2016, `evaluate-v1.1.py`): lower-case, delete ASCII punctuation, delete the
    whole words a|an|the, collapse white space.
`norm-u1`
    For questions in Cyrillic: as `norm`, and besides all Unicode punctuation goes (« » — …; not symbols such as № and
    €), ё becomes е, a letter written with a combining mark (й as и + breve) counts as the single letter, and the stress
    mark of "Москва́" goes. English articles go as well, so an English answer to a Russian question scores as under
    `norm`.

Like SQuAD, both delete punctuation and put no space in its place: "1941–1945" is one word under `norm-u1`, however its
dash is typed.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CYRILLIC = re.compile(r"[\u0400-\u052f]")
_STRESS = "\u0301"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _UnicodePunctuation(dict[int, int | None]):
    """The table of `norm-u1` for str.translate, filled as characters are met (all of Unicode would take 0.1 s)."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        gone = char in string.punctuation or char == _STRESS or unicodedata.category(char).startswith("P")
        self[code] = None if gone else code
        return self[code]


_UNICODE_PUNCTUATION = _UnicodePunctuation({ord("ё"): ord("е")})


def norm(s: str) -> str:
    """`s` normalised by SQuAD 1.1: lower-case, no ASCII punctuation, no a|an|the, single spaces. May be empty."""
    return " ".join(_ARTICLES.sub(" ", s.lower().translate(_ASCII_PUNCTUATION)).split())


def norm_u1(s: str) -> str:
    """`s` normalised for Cyrillic: as `norm`, with all Unicode punctuation out and ё → е. May be empty."""
    composed = unicodedata.normalize("NFC", s.lower())
    return " ".join(_ARTICLES.sub(" ", composed.translate(_UNICODE_PUNCTUATION)).split())


NORMALISERS: dict[str, Callable[[str], str]] = {"norm": norm, "norm-u1": norm_u1}


def normaliser_for(question: str) -> str:
    """The name of the normaliser for a question and its answers: "norm-u1" if it holds a Cyrillic letter, else "norm".

    One letter is enough, because a Russian question may name more in Latin letters than it says in Russian.
    """
    return "norm-u1" if _CYRILLIC.search(question) else "norm"


def words(s: str, normaliser: str = "norm") -> list[str]:
    """The words of `s`: normalised and split, or `s.lower().split()` where nothing is left ("---", "A+", "The").

    The list is empty only if `s` is blank. UsageError for an unknown normaliser.
    """
    function = NORMALISERS.get(normaliser)
    if function is None:
        from slmx.registry import unknown_name  # costs more to import than all of this module

        raise unknown_name("normaliser", normaliser, NORMALISERS)
    return function(s).split() or s.lower().split()


def word_run(needle: Sequence[str], haystack: Sequence[str]) -> bool:
    """Does `needle` stand in `haystack` as a run of whole, adjoining words? An empty needle never does.

    Words hold no white space (those of `words` do not). For many needles in one text, see `WordText`.
    """
    return bool(needle) and _line(needle) in _line(haystack)


def _line(run: Iterable[str]) -> str:
    """Words as one string with a space on both sides, so that `in` compares whole words at C speed."""
    return f" {' '.join(run)} "


class WordText:
    """A text normalised once, to be asked about many answers.

    >>> WordText("Born in St. Louis, Missouri.").holds("St Louis")
    True
    """

    __slots__ = ("_text", "normaliser")

    def __init__(self, text: str, normaliser: str = "norm") -> None:
        self.normaliser = normaliser
        self._text = _line(words(text, normaliser))

    @property
    def words(self) -> list[str]:
        """The words of the text, as the function `words` gives them."""
        return self._text.split()

    def holds(self, answer: str) -> bool:
        """Does the answer stand in the text on word boundaries? A blank answer never does."""
        return self.holds_run(words(answer, self.normaliser))

    def holds_any(self, answers: Iterable[str]) -> bool:
        """Does one of the answers stand in the text on word boundaries?"""
        return any(self.holds(answer) for answer in answers)

    def holds_run(self, run: Sequence[str]) -> bool:
        """Do these words, normalised already, stand in the text side by side? No words never do."""
        return bool(run) and _line(run) in self._text


def holds_answer(text: str, answers: Iterable[str], normaliser: str = "norm") -> bool:
    """Does one of the answers stand in `text` on word boundaries ("us" is not in "russia")?"""
    return WordText(text, normaliser).holds_any(answers)


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` of `values` replaced, in one pass; other braces are plain text.

    A line that is blank only because its values are empty is left out, with one of two blank lines around it, so that
    an empty title or an empty list of passages leaves no gap.
    """
    lines: list[str] = []
    gap = False
    for line in template.split("\n"):
        filled = _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), line)
        if not filled.strip() and line.strip():
            gap = not lines or not lines[-1].strip()
        elif not (gap and not filled.strip()):
            lines.append(filled)
            gap = False
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- sentences

# Candidates for an end: a newline, or a run of terminators with the brackets, quotes and footnote marks that close it.
# The quantifiers are possessive and every run matches, whatever follows it, so that no character is read twice.
_END = re.compile(r"(?P<newline>[\n\r\v\f\x85\u2028\u2029])|(?P<stop>[.!?…]++)(?:[\"'”’»)\]]|\[\d{1,3}\])*+")
_SPACES = re.compile(r"\s*+")
_NEXT_WORD = re.compile(r"[\"'“”„«‘(\[–—\s-]{0,8}+(?P<word>\w{0,12}+)")
_LAST_TOKEN = re.compile(r"[^\s\"'“„«‘(\[–—]*\Z")
_LONGEST_ABBREVIATION = 12


def _names(spaced: str) -> frozenset[str]:
    return frozenset(spaced.split())


# Never the end, whatever comes next: they stand before a name, a number or an example.
_BEFORE_MORE = _names(
    "mr mrs ms dr prof rev hon gov sen rep gen col maj capt lt sgt adm pres mt vs cf e.g i.e viz approx "
    "им ул пр-т пер наб акад проф доц инж ген полк ср напр т.е т.к т.н т.ч т.о"
)
# Not the end before a digit ("No. 5", "рис. 3").
_BEFORE_DIGIT = _names("no nos fig figs vol vols ch sec art p pp par eq ca рис табл стр гл с ст п пп № ок")
# Not the end, unless the next word is one that opens sentences.
_ABBREVIATIONS = _names(
    "st jr sr inc ltd co corp bros etc al ave blvd dept univ est ft ph.d jan feb mar apr jun jul aug sep sept oct nov "
    "dec гг вв см др пр руб коп тыс млн млрд трлн обл гор пос дер оз о-в р-н св нач кон сер н.э т.д т.п "
    "кв куб мин сек чел экз тел корп"
)
# No single letters here: "A", "I", "В", "С" are initials as well.
_OPENERS = _names(
    "the he she it they we you in on at this that these those his her its their there then when after but however "
    "он она оно они мы вы это этот эта эти его её ее их на но по при после затем тогда однако когда там"
)


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of `text` as character spans (start, end), in order, without the white space around them.

    Every character that is not white space lies in exactly one span. A newline always ends a sentence. Otherwise one
    ends at `.`, `!`, `?` or `…` before white space, unless the next word goes on in lower case, or the dot belongs to
    an abbreviation ("St.", "e.g.", "г.", "т. е."), an initial or acronym ("J. S.", "D.C.") or a list number ("1."). An
    abbreviation can end one only before a word that often opens sentences ("… in 1990 г. Он …"). Rules, no model:
    good enough to cut passages and to read a first sentence. Linear in the length of the text.
    """
    spans: list[tuple[int, int]] = []
    start = _skip_spaces(text, 0)
    for end in _END.finditer(text):
        if end.start() < start or not (end["newline"] or _closes(text, start, end)):
            continue
        stop = end.end()
        spans.append((start, start + len(text[start:stop].rstrip())))
        start = _skip_spaces(text, stop)
    if start < len(text):
        spans.append((start, start + len(text[start:].rstrip())))
    return spans


def _skip_spaces(text: str, start: int) -> int:
    """The place of the first character at or after `start` that is not white space."""
    found = _SPACES.match(text, start)
    assert found is not None  # matches the empty string at least
    return found.end()


def _closes(text: str, start: int, end: re.Match[str]) -> bool:
    """Does this run of terminators end the sentence that began at `start`? Looks at a few characters on either side."""
    if not text[end.end() : end.end() + 1].isspace():
        return False  # at the end of the text the last sentence closes anyway
    following = _NEXT_WORD.match(text, end.end())
    word = following["word"] if following else ""
    if not word or word[0].islower():
        return False
    return end["stop"] != "." or not _belongs_to_abbreviation(text, start, end.start(), word)


def _belongs_to_abbreviation(text: str, start: int, dot: int, following: str) -> bool:
    """Is the single dot at `dot` part of the token before it (abbreviation, initial, acronym, list number)?"""
    window = text[max(start, dot - _LONGEST_ABBREVIATION - 1) : dot]
    found = _LAST_TOKEN.search(window)
    token = found.group() if found else ""
    if not token or len(token) > _LONGEST_ABBREVIATION:
        return False
    lower = token.lower()
    if lower in _BEFORE_MORE or (lower in _BEFORE_DIGIT and following[0].isdigit()):
        return True
    if token.isdigit():
        return dot - start == len(token) and len(token) <= 3  # "1. First item": a number and nothing before it
    short = lower in _ABBREVIATIONS or all(len(part) == 1 and part.isalpha() for part in token.split("."))
    return short and following.lower() not in _OPENERS
