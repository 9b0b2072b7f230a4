"""`slmx eval rescore`: metrics again from the answers that are stored, with today's code, another preset or normaliser.

No model is needed. The new numbers go beside the old ones, into files with "rescored" in their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slmx.errors import PartlyDone, UsageError
from slmx.eval.journal import locked
from slmx.eval.judge import Grades, Judge, grade
from slmx.eval.metrics import METRICS, SIMPLE_QA, Row, check_metrics
from slmx.eval.results import metric_names, predictions_record, results_record, score_all
from slmx.eval.runs import PREDICTIONS, RESULTS, Run, read_predictions_file
from slmx.events import Listener, nobody
from slmx.files import slug, write_json
from slmx.records import Prediction, Record
from slmx.registry import unknown_name
from slmx.signals import Stop
from slmx.text import NORMALISERS, normaliser_for

BY_QUESTION = "auto"
_SAME = 1e-12  # sums in another order differ by less


@dataclass(frozen=True)
class Rescoring:
    """What `slmx eval rescore` was asked for.

    `normaliser` replaces the one that an answer was scored with: a name, or "auto" for each question's own.
    """

    preset: str = "default"
    normaliser: str = ""
    vocabulary: Path | None = None
    seed: int = 0
    overwrite: bool = False

    def check(self) -> None:
        """UsageError for an unknown preset or normaliser, before anything is read."""
        known = [*NORMALISERS, BY_QUESTION]
        if self.normaliser and self.normaliser not in known:
            raise unknown_name("normaliser", self.normaliser, known)
        check_metrics(metric_names(self.preset, simple_qa=False), vocabulary=self.vocabulary)


class Change(Record, frozen=True, omit_defaults=False):
    """A metric before and after; `answers` counts those whose value changed. None: it was not there."""

    metric: str
    before: float | None
    after: float | None
    answers: int | None


class Rescored(Record, frozen=True, omit_defaults=False):
    """A run that was scored again: where its new files are, and what changed. `judge` is the judge's report, if any."""

    run: str
    predictions: str
    results: str
    n: int
    changes: list[Change]
    unchanged: list[str]
    judge: dict[str, Any]


class RescoreReport(Record, frozen=True, omit_defaults=False):
    """All runs of one command that were scored again."""

    runs: list[Rescored]

    def check(self) -> None:
        """Answers that the judge could not be asked about are no success (exit code 3)."""
        named = [f"{one.run}: {one.judge['failed']}" for one in self.runs if one.judge.get("failed")]
        if named:
            raise PartlyDone(
                f"Some answers could not be graded. Failed: {'; '.join(named)}.",
                hint="The same command asks for them again; what failed stands in results.…json, judge.failures.",
            )


def rescore_all(
    runs: Sequence[Run], asked: Rescoring, *, judge: Judge | None = None, stop: Stop, listen: Listener = nobody
) -> RescoreReport:
    """Score runs again, with a judge's grades where there is one; see `rescore` and `grade` for what is raised."""
    asked.check()
    done = []
    for run in runs:
        _check_finished(run)
        grades = None if judge is None else grade(run, judge, stop=stop, listen=listen)
        done.append(rescore(run, asked, grades))
    return RescoreReport(runs=done)


def _check_finished(run: Run) -> None:
    if not run.finished:
        hint = "The same `slmx eval run` command again goes on where it stopped."
        raise UsageError(f"{run.path} is not finished.", hint=hint)


def rescore(run: Run, asked: Rescoring, grades: Grades | None = None) -> Rescored:
    """Score a run's answers again and write predictions and results beside the old ones, or in their place.

    What was measured before is measured again, beside what is asked for; numbers that do not come from the answers
    (durations, memory) are taken over.

    Raises:
        UsageError: the run is not finished, or a metric needs a vocabulary.
        RefusedError: the originals are to be replaced while another process writes them.
    """
    _check_finished(run)
    predictions = [_normalised(prediction, asked.normaliser) for prediction in run.predictions()]
    if not predictions:
        raise UsageError(f"{run.path} holds no predictions.")
    stored = list(run.results.get("metric_versions", {}))
    names = metric_names(asked.preset, simple_qa=any(name in stored for name in SIMPLE_QA))
    names = tuple(dict.fromkeys((*names, *(name for name in stored if name in METRICS))))
    rows = score_all(predictions, names, vocabulary=asked.vocabulary)
    if grades is not None:
        rows = [{**row, **grades.rows[p.question_id]} for p, row in zip(predictions, rows, strict=True)]
    results = _results(run, asked, predictions, rows, grades)
    predictions_path, results_path = _places(run, asked, grades)
    with locked(run.path) if asked.overwrite and run.path.is_dir() else nullcontext():
        before = _rows_before(run)
        write_json(predictions_path, predictions_record(predictions, rows))
        write_json(results_path, results)
    changes, unchanged = _changes(run.results, results, before, dict(zip(_ids(predictions), rows, strict=True)))
    return Rescored(
        run=str(run.path),
        predictions=str(predictions_path),
        results=str(results_path),
        n=len(predictions),
        changes=changes,
        unchanged=unchanged,
        judge=dict(grades.report) if grades else {},
    )


def _ids(predictions: Sequence[Prediction]) -> list[str]:
    return [prediction.question_id for prediction in predictions]


def _normalised(prediction: Prediction, normaliser: str) -> Prediction:
    """The prediction to be scored with another normaliser."""
    if not normaliser:
        return prediction
    own = normaliser_for(prediction.question) if normaliser == BY_QUESTION else normaliser
    return msgspec.structs.replace(prediction, metadata={**prediction.metadata, "normaliser": own})


def _results(
    run: Run, asked: Rescoring, predictions: Sequence[Prediction], rows: Sequence[Row], grades: Grades | None
) -> dict[str, Any]:
    """The new results.json: what the answers say, anew; all else as it was."""
    gone = {*run.results.get("n", {}), "judge", "rescored"}
    kept = {name: value for name, value in run.results.items() if name not in gone}
    versions = grades.versions if grades else {}
    replaced = asked.normaliser or run.normaliser  # none asked for: that of an earlier rescoring still holds
    told = {"preset": asked.preset, "normaliser": "" if replaced == BY_QUESTION else replaced}
    fresh = results_record(predictions, rows, seed=asked.seed, cost={}, dataset={}, versions=versions)
    kept = {name: value for name, value in kept.items() if name not in fresh}
    return {**fresh, **kept, "rescored": told, **({"judge": grades.report} if grades else {})}


def _places(run: Run, asked: Rescoring, grades: Grades | None) -> tuple[Path, Path]:
    """Where predictions and results go: in the place of the old ones, or beside them under a name of their own."""
    parts = ["rescored", asked.preset, asked.normaliser, grades.name if grades else ""]
    tag = slug("-".join(part for part in parts if part))
    if run.path.is_dir():
        if asked.overwrite:
            return run.path / PREDICTIONS, run.path / RESULTS
        return run.path / f"predictions.{tag}.json", run.path / f"results.{tag}.json"
    stem = run.path.stem
    beside = run.path if asked.overwrite else run.path.with_name(f"{stem}.{tag}.json")
    return beside, run.path.with_name(f"{stem}.{'' if asked.overwrite else f'{tag}.'}results.json")


def _rows_before(run: Run) -> dict[str, Row]:
    """The metrics of each answer as they are stored; empty where there is no file of predictions."""
    path = run.path / PREDICTIONS if run.path.is_dir() else run.path
    if not path.is_file():
        return {}
    return {
        prediction.question_id: prediction.metadata.get("metrics") or {"token_recall": prediction.token_recall}
        for prediction in read_predictions_file(path, texts=False)
    }


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], before: Mapping[str, Row], after: Mapping[str, Row]
) -> tuple[list[Change], list[str]]:
    """What is not as it was, and the names of the metrics that are."""
    old_means = {name: old.get(name) for name in old.get("n", {})} or _means(before)
    changes, unchanged = [], []
    for name in dict.fromkeys([*new["n"], *old_means]):
        one, other = old_means.get(name), new[name] if name in new["n"] else None
        pairs = [(before[i].get(name), row.get(name)) for i, row in after.items() if name in before.get(i, {})]
        changed = sum(not _same(a, b) for a, b in pairs) if pairs else None
        if _same(one, other) and not changed:
            unchanged.append(name)
        else:
            changes.append(Change(metric=name, before=one, after=other, answers=changed))
    return changes, unchanged


def _means(rows: Mapping[str, Row]) -> dict[str, float]:
    """The means of the numbers that old files have, a row an answer."""
    values: dict[str, list[float]] = {}
    for row in rows.values():
        for name, value in row.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _SAME
