"""The answer in plain sentences: which retriever to use, is the difference real, and what else must be known.

Everything said here is read off the tests and tables of the report; nothing is judged anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from slmx.eval.compare import Test
from slmx.eval.metrics import METRICS
from slmx.eval.page.cost import seconds
from slmx.eval.page.form import leaked_tag
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import is_real, p_value, percent, points, span

_FEW_QUESTIONS = 300
_RIVALS = 2  # how many a model are told of in words; all stand in the tables
_OFTEN = 0.05  # a flaw in more than this share of a run's answers is worth a caution


@dataclass(frozen=True)
class Choice:
    """The retrievers of a model with its settings: the best, and how each other one stands against it.

    The tests are in favour of the best.
    """

    best: Shown
    others: Sequence[tuple[Shown, Test]]

    @property
    def equals(self) -> list[tuple[Shown, Test]]:
        """Those that could not be told from the best."""
        return [(run, test) for run, test in self.others if not is_real(test)]


def verdict(material: Material) -> list[str]:
    """One or two sentences that answer the question of the report, then what supports them, a model each.

    Retrievers are chosen among runs of the same settings, so that what a setting changes is no merit of a retriever.
    """
    choices = [choice for group in material.groups if (choice := _choice(material, group))]
    if not choices:
        return _without_retrievers(material)
    several = len(material.groups) > 1
    supports = [
        f"{_reader(material, choice)}: {said}" if several else said
        for choice in choices
        for said in _support(material, choice)
    ]
    return [_headline(material, choices), *supports]


def called(material: Material, run: Shown) -> str:
    """A run's retriever in a sentence; with its k where the runs differ in it, or the run where that is too little."""
    cell = run.run.cell
    group = next(group for group in material.groups if run in group)
    if sum(other.run.cell.shows == cell.shows for other in group) > 1:  # over another corpus, say
        return run.named
    several = len({other.run.cell.k for other in material.runs if other.context == "retrieved"}) > 1
    return f"{cell.retriever} with k={cell.k}" if several else cell.retriever


def _choice(material: Material, group: Sequence[Shown]) -> Choice | None:
    scored = [run for run in group if run.context == "retrieved" and material.right(run).mean is not None]
    if not scored:
        return None
    best = max(scored, key=lambda run: material.right(run).mean or 0.0)
    others = [(run, test) for run in scored if run is not best and (test := _in_favour(material, best, run))]
    return Choice(best, sorted(others, key=lambda other: other[1].difference))


def _in_favour(material: Material, best: Shown, other: Shown) -> Test | None:
    """The test between two runs, turned so that a positive difference speaks for `best`."""
    first, second = sorted((best, other), key=lambda run: run.place)
    test = material.test(first, second)
    if test is None or second is best:
        return test
    turned = {"difference": -test.difference, "low": -test.high, "high": -test.low}
    return msgspec.structs.replace(test, first=test.second, second=test.first, **turned)


# ------------------------------------------------------------------------------------------------------ with retrievers


def _headline(material: Material, choices: Sequence[Choice]) -> str:
    contested = [choice for choice in choices if choice.others]
    if not contested:
        return _only_retriever(material, choices)
    clear = [choice for choice in contested if not choice.equals]
    best = list(dict.fromkeys(called(material, choice.best) for choice in contested))
    if len(best) == 1 and len(clear) == len(contested):
        others = list(dict.fromkeys(called(material, run) for choice in contested for run, _ in choice.others))
        models = f" with {_all_of(contested)}" if len(contested) > 1 else ""
        return f"Use {best[0]}. It is better than {listed(others)}{models}, and the difference is real, not chance."
    if len(contested) == 1:
        return _tie(material, contested[0])
    if not clear:
        return (
            f"No clear winner: with {_all_of(contested)} no difference between the best retriever and the next "
            f"could be shown on these {material.comparison.questions:,} questions."
        )
    told = []
    for choice in contested:
        names = [called(material, run) for run in (choice.best, *(run for run, _ in choice.equals))]
        real = "a real difference" if choice in clear else "no real difference shown"
        told.append(f"with {_reader(material, choice)} use {' or '.join(names)} ({real})")
    return f"It depends on the {_differing(contested)}: {'; '.join(told)}."


def _reader(material: Material, choice: Choice) -> str:
    """The model of a choice; with its runs' letters where the model has other settings beside."""
    groups = [group for group in material.groups if group[0].model == choice.best.model]
    if len(groups) == 1:
        return choice.best.model
    keys = [run.key for group in groups if choice.best in group for run in group]
    return f"{choice.best.model} ({', '.join(keys)})"


def _differing(choices: Sequence[Choice]) -> str:
    return "settings" if len({choice.best.model for choice in choices}) == 1 else "model"


def _all_of(choices: Sequence[Choice]) -> str:
    models = len({choice.best.model for choice in choices})
    what = "models" if models == len(choices) else "settings" if models == 1 else "models and settings"
    return f"both {what}" if len(choices) == 2 else f"all {len(choices)} {what}"


def _tie(material: Material, choice: Choice) -> str:
    equals = [choice.best, *(run for run, _ in choice.equals)]
    names = [called(material, run) for run in equals]
    worse = [called(material, run) for run, test in choice.others if is_real(test)]
    beaten = f" ({listed(worse)} did worse)" if worse else ""
    timed = [(spent, run) for run in equals if (spent := seconds(run))]
    cheaper = ""
    if len(timed) == len(equals):
        spent, run = min(timed, key=lambda pair: pair[0])
        slowest = max(spent for spent, _ in timed)
        times = f"{1000 * spent:.3g} ms a question, the slowest {1000 * slowest:.3g}"
        cheaper = f" The fastest here was {called(material, run)} ({times})."
    return (
        f"No real difference between {listed(names)} could be shown{beaten}: on these "
        f"{material.comparison.questions:,} questions any may be chance, so choose by cost.{cheaper}"
    )


def _only_retriever(material: Material, choices: Sequence[Choice]) -> str:
    name, *others = dict.fromkeys(called(material, choice.best) for choice in choices)
    if others:
        return f"No two retrievers were tried with one and the same {_differing(choices)}: {listed([name, *others])}."
    tests = [test for choice in choices if (test := _against_nothing(material, choice.best))]
    if not tests:
        return f"Only one retriever was tried, {name}: there is nothing to compare it with."
    if all(is_real(test) and test.difference > 0 for test in tests):
        return f"Use {name} rather than no passages: retrieval helps, and the difference is real, not chance."
    if all(is_real(test) and test.difference < 0 for test in tests):
        return f"Do without {name}: its passages make answers worse, and the difference is real, not chance."
    if not any(map(is_real, tests)):
        return f"Whether {name} helps could not be shown on these {material.comparison.questions:,} questions."
    return f"Whether {name} helps depends on the {_differing(choices)}."


def _support(material: Material, choice: Choice) -> list[str]:
    """What stands behind the headline, for one model: the nearest rivals, what retrieval was worth, what was lost."""
    best = choice.best
    said = [_against(material, best, other, test) for other, test in choice.others[:_RIVALS]]
    if len(choice.others) > _RIVALS:
        said.append(f"{len(choice.others) - _RIVALS} more retrievers stand in the tables below.")
    more = " ".join(filter(None, (_worth(material, best), _lost(material, best))))
    return [" ".join(said), more] if said and more else list(filter(None, (" ".join(said), more)))


def _against(material: Material, best: Shown, other: Shown, test: Test) -> str:
    smallest = test.smallest_difference
    alone = f", before the correction for {test.family} comparisons" if test.family > 1 else ""
    seen = "" if smallest is None else f" With so many questions a difference shows from about {_points(smallest)} on"
    seen += f"{alone}." if seen else ""
    kind = "a real difference" if is_real(test) else "no real difference shown"
    return (
        f"{called(material, best)} answers {percent(material.right(best).mean)} % right, {called(material, other)} "
        f"{percent(material.right(other).mean)} %: {kind}, {_points(test.difference)} (95 % interval "
        f"{span(test.low, test.high)}, p {_equals(test.p_holm)}).{seen}"
    )


def _points(difference: float) -> str:
    return f"{points(difference).lstrip('+')} points"


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _against_nothing(material: Material, run: Shown) -> Test | None:
    """The test of a run against the same model without passages, in favour of the run."""
    one = material.decomposition(run)
    return _in_favour(material, run, material.shown(one.without)) if one and one.without else None


def _worth(material: Material, best: Shown) -> str:
    """What retrieval was worth against no passages."""
    one, test = material.decomposition(best), _against_nothing(material, best)
    if one is None or one.without is None or test is None:
        return ""
    without = material.shown(one.without)
    pair = material.pair(without, best)  # no context comes first in every list of runs
    kind = ("a real gain" if test.difference > 0 else "a real loss") if is_real(test) else "no real difference shown"
    return (
        f"Without passages {percent(material.right(without).mean)} % are right; {called(material, best)} helped on "
        f"{pair.helped:,} questions and hurt on {pair.hurt:,} ({kind})."
    )


def _lost(material: Material, best: Shown) -> str:
    """Where the points that are missing to 100 are lost."""
    one, reading = material.decomposition(best), material.reading(best)
    loss = one.reading_loss.mean if one and one.reading_loss else None
    retrieval = reading.retrieval_loss.mean if reading and reading.retrieval_loss else None
    if loss is None or retrieval is None:
        return ""
    if retrieval < 0:
        return f"It does better with the passages found than with the gold ones, by {_points(-retrieval)}."
    advice = "the model's reading is what to improve" if loss > retrieval else "finding passages is what to improve"
    return (
        f"Of 100 answers {percent(loss)} are lost in reading (wrong even with the gold passage), {percent(retrieval)} "
        f"in retrieval: {advice}."
    )


# --------------------------------------------------------------------------------------------------- without retrievers


def _without_retrievers(material: Material) -> list[str]:
    scored = [run for run in material.runs if material.right(run).mean is not None]
    if not scored:
        return ["No question has a gold answer, so nothing can be said of right and wrong."]
    best = max(scored, key=lambda run: material.right(run).mean or 0.0)
    share = percent(material.right(best).mean)
    if len(scored) == 1:
        return [
            f"One run: {best.label} answers {share} % of {material.right(best).n:,} questions right. No retriever was "
            "tried, and there is nothing to compare it with."
        ]
    rivals = sorted(
        ((run, test) for run in scored if run is not best and (test := _in_favour(material, best, run))),
        key=lambda rival: rival[1].difference,
    )
    said = [f"No retriever was tried. The most right answers: {best.label}, {share} %."]
    if rivals:
        other, test = rivals[0]
        told = "a real difference" if is_real(test) else "no real difference shown"
        said.append(
            f"Next is {other.label}, {percent(material.right(other).mean)} %: {told}, {_points(test.difference)} (95 % "
            f"interval {span(test.low, test.high)}, p {_equals(test.p_holm)})."
        )
    return said


# ------------------------------------------------------------------------------------------------------------- cautions


def cautions(material: Material) -> list[str]:
    """What a reader must know before trusting the numbers; empty where there is nothing."""
    comparison = material.comparison
    notes = list(comparison.notes)
    if comparison.questions < _FEW_QUESTIONS:
        notes.append(f"Only {comparison.questions:,} questions: small differences cannot be seen.")
    if comparison.unscored:
        notes.append(
            f"{comparison.unscored:,} questions have no gold answer or no grade and are in no share of right answers."
        )
    notes += [f"{run.named}: {', '.join(flaws)}." for run in material.runs if (flaws := _flaws(run))]
    return notes + [
        f"{run.named}: {listed(old)} of results.json were measured by another version's rules, while right and wrong "
        f"are today's; `slmx eval rescore {run.run.path} --overwrite` measures them again."
        for run in material.runs
        if (old := _measured_otherwise(run))
    ]


def _measured_otherwise(run: Shown) -> list[str]:
    """The stored metrics whose rules have changed since; what the answers do not tell (retrieval, a judge) aside."""
    stored = run.facts.get("metric_versions", {})
    return [name for name, version in stored.items() if name in METRICS and METRICS[name].version != version]


def _flaws(run: Shown) -> list[str]:
    n = len(run.said)
    prompts = run.facts.get("prompts", {})
    leaked = sum(leaked_tag(answer) is not None for answer in run.said)
    empty, capped = run.mean("empty") or 0.0, run.mean("hit_cap") or 0.0
    found = [
        (run.stops.get("failed", 0) > 0, f"{run.stops.get('failed', 0):,} generations failed"),
        (empty > _OFTEN, f"{percent(empty)} % of the answers are empty"),
        (capped > _OFTEN, f"{percent(capped)} % of the answers are cut off by the token cap"),
        (leaked > _OFTEN * n, f"{percent(leaked / n)} % of the answers hold leaked control tokens or tags"),
        (
            bool(prompts.get("answers_cut")),
            f"{prompts.get('answers_cut', 0):,} prompts lost their answer when shortened",
        ),
        (bool(prompts.get("without_context")), f"{prompts.get('without_context', 0):,} questions had no passage"),
    ]
    return [words for applies, words in found if applies]


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
