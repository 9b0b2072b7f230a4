"""NQ-open + simplified NQ → NQ merged: the questions of the first with the documents of the second, in one pass."""

from __future__ import annotations

from pathlib import Path

import msgspec

from slmx import files
from slmx.data.nq import OpenRow
from slmx.data.sources import BadRow, BadRows, decode_row
from slmx.data.stream import rows
from slmx.errors import PartlyDone, SlmxError
from slmx.events import Listener, Progress, nobody
from slmx.records import Record


class Token(msgspec.Struct):
    """One token of the unsimplified form."""

    token: str


class SimplifiedRow(msgspec.Struct):
    """One line of simplified NQ; what is only passed on stays undecoded JSON."""

    question_text: str
    document_text: msgspec.Raw = msgspec.Raw(b"")
    document_tokens: msgspec.Raw = msgspec.Raw(b"")
    document_url: msgspec.Raw = msgspec.Raw(b'""')
    annotations: msgspec.Raw = msgspec.Raw(b"[]")
    long_answer_candidates: msgspec.Raw = msgspec.Raw(b"[]")
    example_id: msgspec.Raw = msgspec.Raw(b'""')


class Merged(Record, frozen=True):
    """What a merge did. `unmatched` names the questions without a document; `again` counts documents of one that had
    a document already (the first is kept); `left_out` counts bad rows of either file."""

    target: str
    questions: int
    written: int
    read: int
    again: int = 0
    left_out: int = 0
    errors: str = ""
    unmatched: list[str] = []

    def check(self) -> None:
        """PartlyDone (exit code 3) when a question found no document or a row was bad; the file is there."""
        if self.unmatched or self.left_out:
            said = (
                f"{len(self.unmatched)} of {self.questions} questions have no document, {self.left_out} rows are bad."
            )
            raise PartlyDone(said, hint=f"See {self.errors}.")


def merge_nq(
    open_file: Path,
    simplified: Path,
    to: Path,
    *,
    strict: bool = False,
    allow_errors: bool = False,
    overwrite: bool = False,
    listen: Listener = nobody,
) -> Merged:
    """Write `to` in the merged form; questions match on `strip().lower()`. Memory holds NQ-open and one row.

    Raises:
        SlmxError: no question matches at all, or too many bad rows.
        RefusedError: `to` exists and `overwrite` is false.
    """
    bad = BadRows(strict=strict, allow=allow_errors)
    problems: list[BadRow] = []
    waiting = _questions(open_file, bad, problems)
    count, read, again = len(waiting), 0, 0
    done: set[str] = set()
    errors = to.with_name(f"{to.name}.errors.jsonl")
    decoder = msgspec.json.Decoder(SimplifiedRow)
    with files.atomic_write(to, overwrite=overwrite) as out:
        for line, raw, _ in rows(simplified):
            read += 1
            row = decode_row(decoder, line, raw)
            key = "" if isinstance(row, BadRow) else row.question_text.strip().lower()
            made = row if isinstance(row, BadRow) else _merged(line, waiting[key], row) if key in waiting else None
            if isinstance(made, BadRow):
                bad.add(made)
                problems.append(msgspec.structs.replace(made, field=f"{simplified.name}: {made.field}"))
            elif made is not None:
                out.write(made)
                done.add(key)
                del waiting[key]
            else:
                again += key in done
            if read % 1000 == 0:
                listen(Progress(f"Merging {simplified.name}", read, unit="documents"))
        problems += [
            BadRow(line=line, field="question", reason=f"no document has it: {row.question}")
            for line, row in waiting.values()
        ]
        if problems:
            files.write_jsonl(errors, problems)
        else:
            errors.unlink(missing_ok=True)
        bad.seen = max(read, bad.left_out)
        bad.judge(simplified, f"All are named in {errors}.")
        if not done:
            hint = "The first file is NQ-open (question, answer), the second simplified NQ (question_text, …)."
            raise SlmxError(f"No question of {open_file} stands in {simplified}.", hint=hint)
    listen(Progress(f"Merging {simplified.name}", read, read, unit="documents"))
    return Merged(
        target=str(to),
        questions=count,
        written=len(done),
        read=read,
        again=again,
        left_out=bad.left_out,
        errors=str(errors) if problems else "",
        unmatched=[row.question for _, row in waiting.values()],
    )


def _questions(path: Path, bad: BadRows, problems: list[BadRow]) -> dict[str, tuple[int, OpenRow]]:
    """NQ-open by its questions as they are compared; a second row of the same question adds its answers."""
    found: dict[str, tuple[int, OpenRow]] = {}
    decoder = msgspec.json.Decoder(OpenRow)
    for line, raw, _ in rows(path):
        row = decode_row(decoder, line, raw)
        if isinstance(row, BadRow):
            bad.add(row)
            problems.append(msgspec.structs.replace(row, field=f"{path.name}: {row.field}"))
            continue
        key = row.question.strip().lower()
        row.answer = [row.answer] if isinstance(row.answer, str) else row.answer
        if key in found:
            row.answer = list(dict.fromkeys([*found[key][1].answer, *row.answer]))
        found[key] = (line, row)
    return found


def _merged(line: int, waiting: tuple[int, OpenRow], row: SimplifiedRow) -> bytes | BadRow:
    """A line of the merged form."""
    text: msgspec.Raw | str = row.document_text
    if not row.document_text and not row.document_tokens:
        return BadRow(line=line, field="document_text", reason="neither document_text nor document_tokens is there")
    if not row.document_text:
        try:
            tokens = msgspec.json.decode(row.document_tokens, type=list[Token])
        except msgspec.ValidationError as error:
            return BadRow(line=line, field="document_tokens", reason=str(error))
        text = " ".join(t.token.replace(" ", "_") for t in tokens)  # so that split(" ") counts tokens
    merged = {
        "question": waiting[1].question,
        "answer": waiting[1].answer,
        "document_text": text,
        "document_url": row.document_url,
        "annotations": row.annotations,
        "long_answer_candidates": row.long_answer_candidates,
        "example_id": row.example_id,
    }
    return msgspec.json.encode(merged) + b"\n"
