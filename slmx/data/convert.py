"""Any accepted form → the converted form that users' scripts read, streamed.

NQ becomes `nq_full_dataset.json`, SimpleQA `simple_qa_converted.json`, everything else `qa_pairs.jsonl`. Files get
their names only when they are whole; a bad row is named in `FILE.errors.jsonl` and never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from slmx import files
from slmx.data import sources
from slmx.data.clean import clean
from slmx.data.nq import FullRow
from slmx.data.qa_pairs import PairRow
from slmx.data.simple_qa import converted
from slmx.data.sources import BadRow, BadRows, Item
from slmx.data.stream import row_writer
from slmx.errors import PartlyDone, UsageError
from slmx.events import Listener, Progress, nobody
from slmx.records import Record
from slmx.registry import unknown_name


class Converted(Record, frozen=True):
    """What a conversion did. `left_out` and `warned` count rows; `errors` is the file that names them, "" if none."""

    source: str
    target: str
    format: str
    form: str
    rows: int
    written: int
    left_out: int = 0
    warned: int = 0
    errors: str = ""
    train: int = 0
    eval: int = 0
    files: list[str] = []

    def check(self) -> None:
        """PartlyDone (exit code 3) when rows were left out; the files are there all the same."""
        if self.left_out:
            raise PartlyDone(f"{self.left_out} of {self.rows} rows were left out.", hint=f"See {self.errors}.")


def convert(
    source: Path,
    to: Path,
    *,
    format: str = "auto",
    form: str = "auto",
    max_items: int | None = None,
    split: float | None = None,
    seed: int = 0,
    clean_text: bool = False,
    strict: bool = False,
    allow_errors: bool = False,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Converted:
    """Convert a source.

    Args:
        source: a file or folder of any accepted form.
        to: the file to write; `.json` is an array, `.jsonl` lines.
        format: the source's form, told by its content when "auto".
        form: nq-full, simple-qa-json, qa-pairs, or "auto" (by the source's form; `.jsonl` means qa-pairs).
        max_items: only so many rows from the start.
        split: write FILE_train and FILE_eval as well, this share of the rows to the first. A row's side depends on its
            id and the seed alone, so it stays there when rows are added.
        clean_text: write contexts without HTML tokens.
        strict: fail at the first bad row.
        allow_errors: go on with more than one bad row in twenty.

    Raises:
        SlmxError: too many bad rows (nothing is written but the errors file), or the first one when strict.
        RefusedError: an output exists and `overwrite` is false.
    """
    found = sources.detect(source) if format == "auto" else format
    form = _form(found, to) if form == "auto" else form
    if form not in FORMS:
        raise unknown_name("form to write", form, FORMS)
    targets = _targets(to, split)
    bad = BadRows(strict=strict, allow=allow_errors)
    errors = to.with_name(f"{to.name}.errors.jsonl")
    make, encode = FORMS[form], msgspec.json.Encoder().encode
    written = dict.fromkeys(targets, 0)
    with ExitStack() as stack:
        open_ = {
            side: stack.enter_context(row_writer(path, lines=path.suffix == ".jsonl", overwrite=overwrite))
            for side, path in targets.items()
        }
        with _error_log(errors) as log:
            for row in sources.read(source, found):
                bad.add(row)
                if isinstance(row, BadRow):
                    log(row)
                else:
                    line = encode(make(row, clean_text))
                    for side in _sides(row.question.question_id, split, seed):
                        open_[side].write(line)
                        written[side] += 1
                if bad.seen % 200 == 0:
                    listen(Progress(f"Converting {source.name}", bad.seen, max_items, unit="rows"))
                if max_items is not None and bad.seen >= max_items:
                    break
        bad.judge(source, f"All are named in {errors}.")
    listen(Progress(f"Converting {source.name}", bad.seen, bad.seen, unit="rows"))
    return Converted(
        source=str(source),
        target=str(to),
        format=found,
        form=form,
        rows=bad.seen,
        written=written[""],
        left_out=bad.left_out,
        warned=bad.warned,
        errors=str(errors) if bad.left_out or bad.warned else "",
        train=written.get("train", 0),
        eval=written.get("eval", 0),
        files=[str(path) for path in targets.values()],
    )


def in_train(question_id: str, ratio: float, seed: int) -> bool:
    """Is this row on the train side? A hash decides, so neither order nor other rows matter."""
    return int.from_bytes(sha256(f"{seed}:{question_id}".encode()).digest()[:8], "big") < ratio * 2**64


def _sides(question_id: str, split: float | None, seed: int) -> tuple[str, ...]:
    if split is None:
        return ("",)
    return ("", "train" if in_train(question_id, split, seed) else "eval")


def _targets(to: Path, split: float | None) -> dict[str, Path]:
    """The files to write by side; "" is the whole."""
    if to.suffix not in (".json", ".jsonl"):
        raise UsageError(f"{to.name} tells no form.", hint="Give --to a name that ends in .json or .jsonl.")
    if split is None:
        return {"": to}
    if not 0 < split < 1:
        raise UsageError(f"--split {split} is no share.", hint="Give a number between 0 and 1, such as 0.8.")
    return {"": to, **{side: to.with_name(f"{to.stem}_{side}{to.suffix}") for side in ("train", "eval")}}


def _form(format: str, to: Path) -> str:
    if to.suffix == ".jsonl":
        return "qa-pairs"
    if format.startswith("nq-") and format != "nq-open":
        return "nq-full"
    return "simple-qa-json" if format.startswith("simple-qa") else "qa-pairs"


@contextmanager
def _error_log(path: Path) -> Iterator[Callable[[BadRow], None]]:
    """A function that appends to the errors file, made at the first call; an old one goes if there are no errors."""
    encode = msgspec.json.Encoder().encode
    with ExitStack() as stack:
        out: list[Any] = []

        def log(row: BadRow) -> None:
            if not out:
                out.append(stack.enter_context(files.atomic_write(path)))
            out[0].write(encode(row) + b"\n")

        yield log
    if not out:
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------- forms


def _nq_full(made: Item, clean_text: bool) -> FullRow:
    document = made.documents[0] if made.documents else None
    context, long, short = document.text if document else "", made.long_answers, made.short_contexts
    if clean_text:
        cleaned = clean(context)
        long = [cleaned.part(a, b) for a, b in made.long_spans]
        short = [clean(s, tokenised=True).text for s in short]
        context = cleaned.text
    return FullRow(
        question=made.question.question,
        answer=made.question.answers,
        context=context,
        long_context=long,
        short_context=short,
        id=made.question.question_id,
        url=document.url if document else "",
        title=document.title if document else "",
    )


def _simple_qa(made: Item, clean_text: bool) -> Any:
    if clean_text:
        made = replace(made, documents=[replace(d, text=clean(d.text).text) for d in made.documents])
    return converted(made)


def _qa_pairs(made: Item, _clean_text: bool) -> PairRow:
    question = made.question
    return PairRow(question_id=question.question_id, question=question.question, answer=question.answers)


FORMS: dict[str, Callable[[Item, bool], Any]] = {
    "nq-full": _nq_full,
    "simple-qa-json": _simple_qa,
    "qa-pairs": _qa_pairs,
}
