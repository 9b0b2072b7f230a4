"""Runs over the same questions put side by side, question by question; those that do not belong together are refused.

Answers are scored anew from the journals, so that runs of different versions and metrics presets are measured alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slmx.errors import RefusedError, UsageError
from slmx.eval.grades import stored_grades
from slmx.eval.metrics import METRICS, Grade, check_metrics
from slmx.eval.results import RETRIEVAL_VERSIONS, score_all
from slmx.eval.runs import Run, labels
from slmx.records import Prediction
from slmx.registry import unknown_name
from slmx.text import words

Outcome = Literal["helped", "hurt", "both_right", "both_wrong"]
RIGHT_BY = ("match", "em", "judge")
DEFAULT_METRICS = ("match", "token_recall")
NAMED = 3  # how many ids a refusal names


@dataclass(frozen=True)
class Joined:
    """Runs over the same questions, in the dataset's order; inner lists have one element a question.

    `right` tells whether the answer counts as right; it is None in all runs where it is undefined in one (no gold
    answer, no grade of the judge), so that all have the same questions. `covered` tells whether the passages hold an
    answer as they were retrieved, before any was cut to fit the prompt; None without context. `said` are the answers.
    `values` are metrics by name.
    """

    runs: Sequence[Run]
    labels: Sequence[str]
    right_by: str
    question_ids: Sequence[str]
    questions: Sequence[str]
    ground_truth: Sequence[Sequence[str]]
    normalisers: Sequence[str]
    said: Sequence[Sequence[str]]
    right: Sequence[Sequence[bool | None]]
    covered: Sequence[Sequence[bool | None]]
    values: Mapping[str, Sequence[Sequence[float | None]]]

    def outcomes(self, first: int, second: int) -> list[Outcome | None]:
        """What became of each question between two runs, by their places; None where it has no gold answer."""
        return [outcome(a, b) for a, b in zip(self.right[first], self.right[second], strict=True)]

    def same_answer(self, first: int, second: int) -> list[bool]:
        """Are the answers the same words?"""
        pairs = zip(self.said[first], self.said[second], self.normalisers, strict=True)
        return [a == b or words(a, normaliser) == words(b, normaliser) for a, b, normaliser in pairs]


def outcome(first: bool | None, second: bool | None) -> Outcome | None:
    """What became of a question that was right or not in a first run and in a second."""
    if first is None or second is None:
        return None
    if first:
        return "both_right" if second else "hurt"
    return "helped" if second else "both_wrong"


def join(
    runs: Sequence[Run],
    *,
    right_by: str = "match",
    metrics: Iterable[str] = DEFAULT_METRICS,
    vocabulary: Path | None = None,
) -> Joined:
    """Put finished runs side by side, question by question.

    Args:
        runs: as `find_runs` gives them.
        right_by: match, em, or judge (`judge:MODEL` where several have graded).
        metrics: further metrics wanted in `values`.
        vocabulary: BERT's, for `token_recall@bert` alone.

    Raises:
        UsageError: no run, an unfinished one, an unknown metric or one without its vocabulary, or answers that no
            judge graded.
        RefusedError: the runs are not over the same questions with the same golds, dataset and normaliser.
    """
    kind, _, judge = right_by.partition(":")
    if kind not in RIGHT_BY or (judge and kind != "judge"):
        raise unknown_name("way to tell right from wrong", right_by, RIGHT_BY)
    column_of_right = "judge_correct" if kind == "judge" else kind
    names = tuple(dict.fromkeys((column_of_right, *metrics)))
    for name in names:
        if name not in METRICS and name not in RETRIEVAL_VERSIONS and name != column_of_right:
            raise unknown_name("metric", name, [*METRICS, *RETRIEVAL_VERSIONS])
    scored = check_metrics((name for name in names if name in METRICS), vocabulary=vocabulary)
    _check_finished(runs)
    _check_datasets(runs)
    texts = any(METRICS[name].needs == "context" for name in scored)
    first: list[Prediction] = []
    said, right, covered = [], [], []
    values: dict[str, list[list[float | None]]] = {name: [] for name in names}
    for run in runs:
        predictions = run.predictions(texts=texts)
        if not first:
            _check_ids(run, predictions)
            first = predictions
        predictions = _aligned(runs[0], first, run, predictions)
        rows = score_all(predictions, scored, vocabulary=vocabulary)
        if kind == "judge":
            grades = stored_grades(run, predictions, judge)
            rows = [{**row, **_judged(grade)} for row, grade in zip(rows, grades, strict=True)]
        for name, column in values.items():
            column.append([row.get(name) for row in rows])
        right.append([None if (value := row[column_of_right]) is None else value == 1 for row in rows])
        covered.append([None if (share := row.get("answer_coverage")) is None else share == 1 for row in rows])
        said.append([prediction.predicted_answer for prediction in predictions])
    unscored = {place for column in right for place, value in enumerate(column) if value is None}
    right = [[None if place in unscored else value for place, value in enumerate(column)] for column in right]
    values[column_of_right] = [[None if value is None else float(value) for value in column] for column in right]
    return Joined(
        runs=runs,
        labels=labels(runs),
        right_by=right_by,
        question_ids=[prediction.question_id for prediction in first],
        questions=[prediction.question for prediction in first],
        ground_truth=[prediction.ground_truth for prediction in first],
        normalisers=[prediction.metadata["normaliser"] for prediction in first],
        said=said,
        right=right,
        covered=covered,
        values=values,
    )


def _judged(grade: Grade | None) -> dict[str, float | None]:
    return {"judge_correct": None if grade is None else float(grade == "correct")}


def _check_finished(runs: Sequence[Run]) -> None:
    if not runs:
        raise UsageError("No run was named.", hint="`slmx eval list` shows the runs there are.")
    if unfinished := [run.name for run in runs if not run.finished]:
        raise UsageError(
            f"Not finished: {', '.join(unfinished)}.",
            hint="The same `slmx eval run` command again goes on where it stopped.",
        )


def _check_datasets(runs: Sequence[Run]) -> None:
    """One dataset: the same name, or the same content. Passages cut in another way are a fair thing to compare."""
    known = [run for run in runs if run.configuration]
    for run in known[1:]:
        one, other = known[0].configuration["dataset"], run.configuration["dataset"]
        if one["name"] != other["name"] and one["hash"] != other["hash"]:
            raise RefusedError(
                f"Different datasets: {known[0].name} is over {one['name']}, {run.name} over {other['name']}.",
                hint="A paired comparison needs the same questions; name runs over one dataset.",
            )


def _check_ids(run: Run, predictions: Sequence[Prediction]) -> None:
    if not predictions:
        raise UsageError(f"{run.name} holds no predictions.")
    repeated = len(predictions) - len({prediction.question_id for prediction in predictions})
    if repeated:
        raise RefusedError(f"{run.name} cannot be joined: {repeated} of its predictions repeat a question id.")


def _aligned(one: Run, first: Sequence[Prediction], run: Run, predictions: list[Prediction]) -> list[Prediction]:
    """A run's predictions in the order of the first run's; refused where they are not for the same questions."""
    _check_ids(run, predictions)
    by_id = {prediction.question_id: prediction for prediction in predictions}
    ids = {prediction.question_id for prediction in first}
    if ids != by_id.keys():
        only_one, only_run, both = len(ids - by_id.keys()), len(by_id.keys() - ids), len(ids & by_id.keys())
        raise RefusedError(
            f"Different questions: {both} are in both {one.name} and {run.name}, {only_one} only in the first, "
            f"{only_run} only in the second.",
            hint="Was --max-samples, --seed or the split another one? Run both over the same questions.",
        )
    aligned = [by_id[prediction.question_id] for prediction in first]
    pairs = list(zip(first, aligned, strict=True))
    _refuse("questions under the same id", one, run, [a.question_id for a, b in pairs if a.question != b.question])
    _refuse("gold answers", one, run, [a.question_id for a, b in pairs if a.ground_truth != b.ground_truth])
    normalisers = [a.question_id for a, b in pairs if a.metadata["normaliser"] != b.metadata["normaliser"]]
    hint = f"Score both alike: slmx eval rescore RUN --normaliser {first[0].metadata['normaliser']} --overwrite"
    _refuse("normalisers", one, run, normalisers, hint)
    return aligned


def _refuse(what: str, one: Run, run: Run, ids: Sequence[str], hint: str = "Name runs over one dataset.") -> None:
    if ids:
        count = "1 question" if len(ids) == 1 else f"{len(ids)} questions"
        named = ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        raise RefusedError(f"Different {what} in {one.name} and {run.name}: {count} ({named}).", hint=hint)
