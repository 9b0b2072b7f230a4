"""What an answer is worth: named, versioned metrics of one answer, and their means with intervals.

Every metric takes a `Scored` and gives a number, 0 to 1 unless its unit says otherwise, or None where it is not defined
(no gold answers, no context). With several golds the best one counts, unless a metric says otherwise. A metric that
raises fails the run: nothing here catches it, and `aggregate` refuses rows from which a metric has vanished.

Words are those of `slmx.text.words`: a gold such as "---" keeps its raw words and never matches everything. A blank
gold is no answer and earns nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slmx.errors import SlmxError, UsageError
from slmx.eval.statistics import RESAMPLES, bootstrap_interval, percentile_interval, resample_counts
from slmx.registry import unknown_name
from slmx.text import WordText, normaliser_for, sentences, word_run, words

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

Grade = Literal["correct", "incorrect", "not_attempted"]
GRADES: tuple[Grade, ...] = ("correct", "incorrect", "not_attempted")
Row = Mapping[str, float | None]
ECHO_WORDS = 20


@dataclass(frozen=True)
class Scored:
    """One answer and all that a metric may look at; what is derived from it is computed once, when first asked for.

    Args:
        prediction: the answer as scored, after the prompt's own words and thinking blocks are gone.
        answers: the golds.
        contexts: the passages that the prompt held, as text, best first; empty without context.
        question: decides the normaliser.
        normaliser: a name from `slmx.text`; chosen by the question if empty.
        hit_cap: did the token cap end the answer? None where the generator has no tokens.
        vocabulary: BERT's vocab.txt or tokenizer.json, for `token_recall@bert` alone.
    """

    prediction: str
    answers: Sequence[str]
    contexts: Sequence[str] = ()
    question: str = ""
    normaliser: str = ""
    hit_cap: bool | None = None
    vocabulary: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "normaliser", self.normaliser or normaliser_for(self.question))

    @cached_property
    def words(self) -> list[str]:
        """The words of the prediction."""
        return words(self.prediction, self.normaliser)

    @cached_property
    def golds(self) -> list[list[str]]:
        """The words of each gold; an empty list for a blank one."""
        return [words(answer, self.normaliser) for answer in self.answers]

    @cached_property
    def passages(self) -> list[WordText]:
        """The passages, normalised once."""
        return [WordText(text, self.normaliser) for text in self.contexts]


def overlap(left: Iterable[str], right: Iterable[str]) -> int:
    """The size of the multiset overlap of two word lists: a word counts as often as both hold it."""
    return (Counter(left) & Counter(right)).total()


def _best(scored: Scored, credit: Callable[[list[str]], float]) -> float | None:
    """The largest credit among the golds that are not blank; 0 if all are, None if there are none at all."""
    if not scored.answers:
        return None
    return float(max((credit(gold) for gold in scored.golds if gold), default=0.0))


def em(scored: Scored) -> float | None:
    """Exact match: the words of the prediction are the words of a gold."""
    return _best(scored, lambda gold: scored.words == gold)


def match(scored: Scored) -> float | None:
    """The words of a gold stand in the prediction as a run: "us" is not in "russia"."""
    return _best(scored, lambda gold: word_run(gold, scored.words))


def token_recall(scored: Scored) -> float | None:
    """The share of a gold's words that the prediction holds, as multisets (Adlakha et al. 2023)."""
    return _best(scored, lambda gold: overlap(scored.words, gold) / len(gold))


def substring_recall(scored: Scored) -> float | None:
    """The share of a gold's words that occur in the lower-cased prediction, inside words too: over-credits."""
    text = scored.prediction.lower()
    return _best(scored, lambda gold: sum(word in text for word in gold) / len(gold))


def _f1_of_best_gold(part: Literal["precision", "recall", "f1"], scored: Scored) -> float | None:
    """SQuAD's F1, or the precision or recall of the same gold: the one with the largest F1, the first among equals."""
    if not scored.answers:
        return None
    best = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for gold in scored.golds:
        common = overlap(scored.words, gold)
        if common and (f1 := 2 * common / (len(scored.words) + len(gold))) > best["f1"]:
            best = {"precision": common / len(scored.words), "recall": common / len(gold), "f1": f1}
    return best[part]


def _set_recall(scored: Scored, pieces: Callable[[str], frozenset[str]]) -> float | None:
    """The share of a gold's pieces, as a set, that the prediction holds; a gold without pieces earns 0."""
    if not scored.answers:
        return None
    predicted = pieces(scored.prediction)
    return max(len(gold & predicted) / len(gold) if gold else 0.0 for gold in map(pieces, scored.answers))


def _wordset(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\b\w+\b", text.lower()))


def token_recall_wordset(scored: Scored) -> float | None:
    r"""Recall over sets of lower-cased `\b\w+\b` words: no normaliser, articles count."""
    return _set_recall(scored, _wordset)


def token_recall_bert(scored: Scored) -> float | None:
    """Recall over sets of BERT WordPieces with "##" removed. UsageError without a vocabulary."""
    encode = partial(load_wordpieces(scored.vocabulary).encode, add_special_tokens=False)
    return _set_recall(scored, lambda text: frozenset(token.removeprefix("##") for token in encode(text).tokens))


@lru_cache(maxsize=4)
def load_wordpieces(vocabulary: Path | None) -> Tokenizer | BertWordPieceTokenizer:
    """The WordPieces of a vocab.txt (read as uncased) or a tokenizer.json. UsageError if there is no such file."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if vocabulary is None or not vocabulary.is_file():
        missing = f"there is no file {vocabulary}" if vocabulary else "none was given"
        raise UsageError(
            f"token_recall@bert needs the vocabulary of bert-base-uncased; {missing}.",
            hint="--vocabulary FILE names its vocab.txt or tokenizer.json; or leave this metric out.",
        )
    if vocabulary.suffix != ".json":
        return BertWordPieceTokenizer(vocab=str(vocabulary), lowercase=True)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_truncation()  # a saved tokenizer may carry the limits of the model it was saved with
    tokenizer.no_padding()
    return tokenizer


def k_precision(scored: Scored) -> float | None:
    """Faithfulness: the share of the prediction's words that its passages, put together, hold (Adlakha et al. 2023).

    None without context; 0 for an empty prediction, so that every mode with context has the same n.
    """
    if not scored.contexts:
        return None
    knowledge = [word for passage in scored.passages for word in passage.words]
    return overlap(scored.words, knowledge) / len(scored.words) if scored.words else 0.0


def context_echo(scored: Scored) -> float | None:
    """1 if 20 words or more of the prediction stand as one run in a passage. None without context."""
    if not scored.contexts:
        return None
    predicted = scored.words
    runs = [predicted[i : i + ECHO_WORDS] for i in range(len(predicted) - ECHO_WORDS + 1)]
    return float(any(passage.holds_run(run) for run in runs for passage in scored.passages))


def answer_words(scored: Scored) -> float:
    """The length of the prediction in words between white space, articles and all."""
    return float(len(scored.prediction.split()))


def empty(scored: Scored) -> float:
    """1 if the prediction is blank."""
    return float(not scored.prediction.strip())


def hit_cap(scored: Scored) -> float | None:
    """1 if the token cap ended the answer. None where the generator has no tokens."""
    return None if scored.hit_cap is None else float(scored.hit_cap)


# Compared with text under `norm-u1`: lower-case, no apostrophes ("dont"), no articles, no ё.
_NO_ANSWER = re.compile(
    r"(answer |it |this |ответ )?(is )?"
    r"(unknown|unclear|unsure|na|not (sure|mentioned|available|specified|stated|provided|known)|no answer|unanswerable|"
    r"неизвест(ен|на|но|ны)|нет (ответа|данных|информации)|не (указан|упомянут)[оаы]?|не уверена?)"
)
_ABSTENTION = re.compile(
    r"\b("
    r"(do not|dont) (really |actually )?know|(am|im) not (sure|certain|aware)|(have|ive) no idea|"
    r"(can ?not|cant|could not|couldnt|unable to|impossible to|not possible to) (be )?"
    r"(answer(ed)?|determined?|find|found|say|tell|provided?|identify|identified|confirm(ed)?)|"
    r"(is|are|was|were|does|do)( not|nt) (explicitly |directly |specifically )?"
    r"(mention(ed)?|stated?|specify|specified|provided?|available|known|indicated?)|"
    r"no (information|mention)|(not enough|insufficient) (information|context)|"
    r"не (знаю|знаем|известн[оаы]|указан[оаы]?|упоминается|упоминаются|упомянут[оаы]?|сказано|говорится|сообщается)|"
    r"не могу (ответить|сказать|определить|найти)|нет (информации|данных|ответа|сведений|упоминани[яй])|"
    r"(невозможно|нельзя) (определить|установить|ответить|сказать)|неизвестно|затрудняюсь|не имею понятия"
    r")\b"
)
_CONTRAST = re.compile(r"\b(but|however|though|although|но|однако|хотя)\b")
_APOLOGY = re.compile(r"((i am |im )?(very |so )?sorry|i apologi[sz]e|извините|простите|к сожалению)")


def abstains(prediction: str) -> bool:
    """Does the prediction decline to answer, in English or Russian? A blank one does.

    Judged by its first sentence, apologies aside: a bare "unknown", "not mentioned", «не указано», or a phrase such as
    "I don't know", "cannot be determined", «не знаю» that no "but" or "however" takes back. Doubtful cases count as
    attempts, so that a wrong answer is not excused by a polite preface.
    """
    spoken = [" ".join(words(prediction[start:end], "norm-u1")) for start, end in sentences(prediction)]
    while spoken and _APOLOGY.fullmatch(spoken[0]):
        del spoken[0]
    if not spoken or _NO_ANSWER.fullmatch(spoken[0]):
        return True
    phrase = _ABSTENTION.search(spoken[0])
    return phrase is not None and not _CONTRAST.search(" ".join([spoken[0][phrase.end() :], *spoken[1:]]))


def simple_qa_grade(scored: Scored) -> Grade | None:
    """SimpleQA's grade (Wei et al. 2024) by `match`, then `abstains`: a lower bound on correct. None without golds."""
    matched = match(scored)
    if matched is None:
        return None
    return "correct" if matched else "not_attempted" if abstains(scored.prediction) else "incorrect"


def grade_numbers(grade: Grade | None) -> dict[str, float | None]:
    """A grade, ours or a judge's, as the numbers that are averaged; None for all if there is none.

    `accuracy_given_attempted` is defined for attempted answers alone, so its mean is correct / attempted. Put a prefix
    such as "judge_" before all of them, and `aggregate` adds the F1.
    """
    numbers: dict[str, float | None] = {name: None if grade is None else float(grade == name) for name in GRADES}
    numbers["accuracy_given_attempted"] = None if grade == "not_attempted" else numbers["correct"]
    return numbers


def _grade_number(name: str, scored: Scored) -> float | None:
    return grade_numbers(simple_qa_grade(scored))[name]


@dataclass(frozen=True)
class Metric:
    """A metric by name. `version` changes whenever the same answer could score differently; both go with the number.

    `needs` says what a Scored must hold for the metric to be defined.
    """

    name: str
    version: str
    needs: Literal["prediction", "answers", "context", "vocabulary"]
    function: Callable[[Scored], float | None]
    unit: Literal["share", "words"] = "share"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("em", "1", "answers", em),
        Metric("f1", "1", "answers", partial(_f1_of_best_gold, "f1")),
        Metric("precision", "1", "answers", partial(_f1_of_best_gold, "precision")),
        Metric("recall", "1", "answers", partial(_f1_of_best_gold, "recall")),
        Metric("token_recall", "1", "answers", token_recall),
        Metric("token_recall@wordset", "1", "answers", token_recall_wordset),
        Metric("token_recall@bert", "1", "vocabulary", token_recall_bert),
        Metric("substring_recall", "1", "answers", substring_recall),
        Metric("match", "1", "answers", match),
        Metric("k_precision", "1", "context", k_precision),
        *(Metric(f"simpleqa_{name}", "1", "answers", partial(_grade_number, name)) for name in grade_numbers(None)),
        Metric("answer_words", "1", "prediction", answer_words, unit="words"),
        Metric("empty", "1", "prediction", empty),
        Metric("hit_cap", "1", "prediction", hit_cap),
        Metric("context_echo", "1", "context", context_echo),
    )
}
FACTS = ("answer_words", "empty", "hit_cap", "context_echo")
"""What is told of the answers beside every table of means."""
SIMPLE_QA = tuple(name for name in METRICS if name.startswith("simpleqa_"))
"""For datasets that are graded correct / incorrect / not attempted; `aggregate` adds "simpleqa_f1"."""

PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("em", "f1", "token_recall", "match", "k_precision"),
    "squad": ("em", "f1"),
    "flashrag": ("em", "f1", "match", "precision", "recall"),
    "bergen": ("match", "em", "f1", "precision", "recall"),
    "lm-eval": ("em",),
    "lighteval": ("em", "f1"),
    "seed-v1": ("token_recall@bert",),
    "seed-v3": ("substring_recall",),
}
"""The metrics that others report, under our rules; where theirs give other numbers:

squad: the same wherever gold and prediction keep a word when normalised; theirs lets "---" match an empty answer.
flashrag, bergen: their `acc` and `M` look for the gold as a substring ("us" is in "russia", and a gold that normalises
    to nothing is in everything), and their precision and recall are each the best over the golds, not those of one
    gold. FlashRAG's F1 is 0 when just one side is "yes", "no" or "noanswer".
lm-eval: `exact_match` of nq_open removes articles only before a space and keeps inner runs of spaces.
lighteval: its F1 is over sets of words, so a word repeated in vain costs nothing.
seed-v1, seed-v3: as defined by the first and the third rule of the system that slmx replaces.
"""


def preset_metrics(preset: str) -> tuple[str, ...]:
    """The metric names of a preset; UsageError with the nearest name if there is no such preset."""
    if preset not in PRESETS:
        raise unknown_name("metrics preset", preset, PRESETS)
    return PRESETS[preset]


def check_metrics(names: Iterable[str], *, vocabulary: Path | None = None) -> tuple[str, ...]:
    """The names without repeats, when every one can be computed: to be asked before a run spends anything.

    UsageError for an unknown name (with the nearest one), and for `token_recall@bert` without a readable vocabulary.
    """
    checked = tuple(dict.fromkeys(names))
    for name in checked:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
        if METRICS[name].needs == "vocabulary":
            load_wordpieces(vocabulary)
    return checked


def score(scored: Scored, names: Iterable[str]) -> dict[str, float | None]:
    """The named metrics of one answer, in the order named; None where a metric is not defined for it."""
    return {name: METRICS[name].function(scored) for name in check_metrics(names, vocabulary=scored.vocabulary)}


@dataclass(frozen=True)
class Summary:
    """The mean of a metric over the `n` answers for which it is defined, and its 95 % bootstrap interval.

    Mean, low and high are None where n is 0.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    version: str


def aggregate(
    rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES, versions: Mapping[str, str] | None = None
) -> dict[str, Summary]:
    """The means of per-answer rows (all questions of a cell, one row each), by metric, in the order of the rows.

    Where the rows hold `P_correct`, `P_incorrect` and `P_not_attempted` for a prefix P ("simpleqa", a judge's), `P_f1`
    is added: SimpleQA's harmonic mean of correct / n and correct / attempted, which equals 2 correct / (n + attempted).

    `versions` are those of metrics that are not in METRICS. SlmxError if the rows do not hold the same metrics, or if a
    metric has no version.
    """
    names = list(rows[0]) if rows else []
    known = {name: metric.version for name, metric in METRICS.items()} | dict(versions or {})
    if any(row.keys() != rows[0].keys() for row in rows):
        raise SlmxError("The answers do not all have the same metrics.", hint="Score all of them again.")
    if nameless := [name for name in names if name not in known]:
        raise SlmxError(f"No version is known of {', '.join(nameless)}.")
    means = {name: _mean([row[name] for row in rows], known[name], seed, resamples) for name in names}
    for prefix in [name.removesuffix("_not_attempted") for name in names if name.endswith("_not_attempted")]:
        means[f"{prefix}_f1"] = _simple_qa_f1(rows, prefix, known[f"{prefix}_correct"], seed, resamples)
    return means


def _mean(values: Iterable[float | None], version: str, seed: int, resamples: int) -> Summary:
    defined = [value for value in values if value is not None]
    if not defined:
        return Summary(None, None, None, 0, version)
    low, high = bootstrap_interval(defined, seed=seed, resamples=resamples)
    return Summary(sum(defined) / len(defined), low, high, len(defined), version)


def _simple_qa_f1(rows: Iterable[Row], prefix: str, version: str, seed: int, resamples: int) -> Summary:
    right, wrong, silent = (sum(row[f"{prefix}_{grade}"] == 1 for row in rows) for grade in GRADES)
    n = right + wrong + silent
    if n == 0:
        return Summary(None, None, None, 0, version)
    drawn = resample_counts([right, wrong, silent], seed=seed, resamples=resamples)
    low, high = percentile_interval(2 * drawn[:, 0] / (n + drawn[:, 0] + drawn[:, 1]))
    return Summary(2 * right / (n + right + wrong), low, high, n, version)
