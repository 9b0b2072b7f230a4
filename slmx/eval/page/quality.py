"""Sections on the answers: how many are right, what is lost where, and what the passages changed."""

from __future__ import annotations

from slmx.eval.compare import Decomposition, Reading
from slmx.eval.page import charts
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE, estimate, estimated, measured, percent
from slmx.eval.page.parts import Cell, Column, Key, Link, Section, Svg, Table

_ANSWER_METRICS = {
    "token_recall": "token recall",
    "em": "EM",
    "f1": "F1",
    "k_precision": "k-precision",
    "simpleqa_correct": "SimpleQA correct",
    "simpleqa_accuracy_given_attempted": "of attempted",
    "simpleqa_not_attempted": "not attempted",
    "simpleqa_f1": "SimpleQA F1",
}
RIGHT = {
    "match": "a gold answer stands in the answer, word for word",
    "em": "the answer is a gold answer",
    "judge": "a judge, itself a model, graded it correct",
}


def right_answers(material: Material) -> Section:
    """The matrix of model × mode, a bar for every run, and the other metrics of answers."""
    by = material.comparison.right_by
    told = RIGHT[by.partition(":")[0]]
    rows: list[list[Cell]] = [
        [run.named, _level(material, run), estimated(material.right(run))] for run in material.runs
    ]
    bars = Table(
        "Right answers of every run, %",
        [Column("run", "words"), Column("right, with 95 % interval", "drawing"), Column("right (interval)")],
        rows,
    )
    return Section(
        "quality",
        "Right answers",
        f"An answer counts as right where {told} ({by}). The interval is where the share would lie with other "
        "questions of the same kind: a 95 % bootstrap over questions.",
        [*([_matrix(material)] if len(material.runs) > 1 else []), bars, _metrics(material)],
    )


def _matrix(material: Material) -> Table:
    """Model × mode; several runs of a model in one mode (another template, say) share a cell."""
    shows = list(dict.fromkeys(run.run.cell.shows for run in material.runs))
    rows: list[list[Cell]] = []
    for model in material.models:
        cells: list[Cell] = []
        for context in shows:
            here = [run for run in material.runs if run.model == model and run.run.cell.shows == context]
            made = [estimate(material.right(run)) for run in here]
            cells.append(estimated(material.right(here[0])) if len(here) == 1 else "; ".join(made) or NONE)
        rows.append([model, *cells])
    heads = {"none": "no context", "oracle": "gold passage (oracle)"}
    columns = [Column("model", "words"), *(Column(heads.get(context, context)) for context in shows)]
    return Table("Right answers by model and mode, % (95 % interval)", columns, rows)


def _level(material: Material, run: Shown) -> Svg | str:
    right = material.right(run)
    if right.mean is None or right.low is None or right.high is None:
        return NONE
    return charts.level(f"{run.label}: {estimate(right)} % right", right.mean, right.low, right.high)


def _metrics(material: Material) -> Table:
    there = {
        name: title
        for name, title in _ANSWER_METRICS.items()
        if any(run.mean(name) is not None for run in material.runs)
    }
    rows: list[list[Cell]] = [
        [run.named, *(measured(run.mean(name), run.interval(name)) for name in there)] for run in material.runs
    ]
    return Table(
        "Other metrics of the answers, % (95 % interval)",
        [Column("run", "words"), *(Column(title) for title in there.values())],
        rows,
        note="Token recall: the share of a gold answer's words that the answer holds. EM: the answer is a gold answer. "
        "F1: overlap of words both ways; low where answers are long. k-precision: the share of the answer's words that "
        "its passages hold. docs/metrics.md defines each.",
        wide=True,
    )


# ----------------------------------------------------------------------------------------------------- what is lost


def losses(material: Material) -> Section | None:
    """Knowledge, reading loss and retrieval loss of every model that has more than one run, as stacked bars."""
    rows: list[list[Cell]] = [
        [
            material.shown(reading.run).named,
            _split(one, reading, reading.right.mean),
            percent(reading.right.mean),
            estimated(reading.retrieval_loss),
            estimated(one.reading_loss),
            estimated(one.knowledge),
        ]
        for one in material.comparison.decompositions
        for reading in one.contexts
        if reading.right.mean is not None
    ]
    if not rows:
        return None
    columns = [
        Column("run", "words"),
        Column("of 100 questions", "drawing"),
        Column("right"),
        Column("retrieval loss"),
        Column("reading loss"),
        Column("knowledge"),
    ]
    return Section(
        "losses",
        "What is lost where",
        "Knowledge is what the model gets right without any passage. Reading loss is what it still gets wrong with the "
        "gold passage before it: no retriever can mend that. Retrieval loss is what it gets right with the gold "
        "passage but not with what the retriever found.",
        [Table("Right and lost, % of all questions (95 % interval)", columns, rows, note=_negative(material))],
        [
            Key("c-right", "right"),
            Key("c-retrieval", "lost by the retriever"),
            Key("c-reading", "lost in reading"),
            Key("c-ink", "line: known without passages"),
        ],
    )


def _split(one: Decomposition, reading: Reading, right: float) -> Svg:
    """100 questions as a bar: right, lost by the retriever, lost in reading; a line for what the model knows."""
    missed = max((reading.retrieval_loss.mean if reading.retrieval_loss else None) or 0.0, 0.0)
    rest = max(1 - right - missed, 0.0)
    colour, words = ("c-reading", "lost in reading") if one.reading_loss else ("c-wrong", "wrong")
    knowledge = one.knowledge.mean if one.knowledge else None
    return charts.stacked(
        f"{reading.run}: {percent(right)} % right, {percent(missed)} % lost by the retriever, "
        f"{percent(rest)} % {words}",
        [
            charts.Part("c-right", right, "right"),
            charts.Part("c-retrieval", missed, "lost by the retriever"),
            charts.Part(colour, rest, words),
        ],
        mark=knowledge,
        mark_words=f"known without passages: {percent(knowledge)} %",
    )


def _negative(material: Material) -> str:
    gains = [
        reading.run
        for one in material.comparison.decompositions
        for reading in one.contexts
        if reading.retrieval_loss and (reading.retrieval_loss.mean or 0.0) < 0
    ]
    return (
        f"A negative retrieval loss ({', '.join(gains)}): better with the found passages than with the gold ones."
        if gains
        else ""
    )


# -------------------------------------------------------------------------------------------------- helped and hurt


def flows(material: Material) -> Section | None:
    """For every pair of runs of one model that differ in their passages: helped, hurt, both right, both wrong."""
    rows: list[list[Cell]] = []
    for first, second in [*material.pairs_of_retrievers(), *material.pairs_with_nothing()]:
        pair = material.pair(first, second)
        if pair.n == 0:
            continue
        named = {
            "both_right": ("c-right", "right in both"),
            "helped": ("c-helped", "helped: wrong, then right"),
            "hurt": ("c-hurt", "hurt: right, then wrong"),
            "both_wrong": ("c-wrong", "wrong in both"),
        }
        parts = [charts.Part(colour, getattr(pair, name) / pair.n, words) for name, (colour, words) in named.items()]
        label = f"{first.label} to {second.label}: helped {pair.helped}, hurt {pair.hurt} of {pair.n}"
        rows.append(
            [
                material.step(first, second),
                charts.stacked(label, parts),
                *(
                    Link(f"{getattr(pair, name):,}", first.place, second.place, name.replace("_", "-"))
                    for name in ("helped", "hurt", "both_right", "both_wrong")
                ),
                Link(f"{pair.same_answer:,}", first.place, second.place, "ignored"),
            ]
        )
    if not rows:
        return None
    columns = [
        Column("from → to", "words"),
        Column("of 100 questions", "drawing"),
        *map(Column, ("helped", "hurt", "both right", "both wrong", "same answer")),
    ]
    return Section(
        "flows",
        "What the passages changed",
        "Question by question, from one run to another of the same model: helped went from wrong to right, hurt from "
        "right to wrong. A count leads to its questions. Same answer: word for word, right or wrong; from no context "
        "to passages that means the passages were ignored.",
        [Table("Questions whose answer changed", columns, rows)],
        [
            Key("c-right", "right in both"),
            Key("c-helped", "helped"),
            Key("c-hurt", "hurt"),
            Key("c-wrong", "wrong in both"),
        ],
    )


# ------------------------------------------------------------------------------------------------- known and unknown


def known(material: Material) -> Section | None:
    """What passages do for questions that the model knew, and for those that it did not."""
    rows: list[list[Cell]] = []
    for one in material.comparison.decompositions:
        for reading in one.contexts:
            if reading.known is None or not reading.known.n:  # a model that knows nothing has no such split
                continue
            sizes = [str(made.n) if made else "0" for made in (reading.known, reading.unknown)]
            rows.append(
                [
                    material.shown(reading.run).named,
                    estimated(reading.known),
                    sizes[0],
                    estimated(reading.unknown),
                    sizes[1],
                ]
            )
    if not rows:
        return None
    columns = [
        Column("run", "words"),
        Column("right of the known"),
        Column("known"),
        Column("right of the unknown"),
        Column("unknown"),
    ]
    return Section(
        "known",
        "Known and unknown questions",
        "Known: the same model answers right without passages. Below 100 % of the known, passages mislead it; the "
        "share of the unknown is what retrieval adds.",
        [Table("Right answers with passages, % (95 % interval), by what the model knew", columns, rows)],
    )
