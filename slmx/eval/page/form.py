"""The section on the form of answers and prompts: lengths, what was cut, what leaked."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from slmx.eval.page import charts
from slmx.eval.page.material import Material, Shown
from slmx.eval.page.numbers import NONE, percent
from slmx.eval.page.parts import Cell, Column, Section, Table

_BINS = (0, 1, 2, 4, 8, 16, 32, 64)
_NAMES = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64+")

# Chat-control tokens, special tokens, thinking blocks, and the tags of documents: none belongs into an answer.
_LEAKED = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?(?:s|pad|unk|bos|eos|think|thinking|answer|context|passage)>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|^#{2,3} ?(?:Instruction|Response|Input):"
    r"|</?(?:P|H[1-6]|Table|Tr|Td|Th|Ul|Ol|Li|Dl|Dd|Dt|div|span|br|p|a|b|i|ref|sup)(?: [^<>\n]{0,80})?/?>",
    re.MULTILINE,
)


def leaked_tag(answer: str) -> str | None:
    """The first control token or tag that stands in an answer; None where there is none."""
    found = _LEAKED.search(answer)
    return found.group() if found else None


def form(material: Material) -> Section:
    """Lengths as a histogram, and the audit: empty, cut off, copied, leaked; prompts that were shortened."""
    counts = [_counts(run.said) for run in material.runs]
    top = max(max(one) for one in counts)
    lengths: list[list[Cell]] = [
        [
            run.named,
            charts.histogram(f"{run.label}: answers by length", one, _NAMES, top),
            NONE if (mean := run.mean("answer_words")) is None else f"{mean:.1f}",
            str(_median(run.said)),
        ]
        for run, one in zip(material.runs, counts, strict=True)
    ]
    heads = ["empty", "cut off at the cap", "copied from a passage", "leaked tags", "failed"]
    answers: list[list[Cell]] = [[run.named, *_audit(run)] for run in material.runs]
    tables = [
        Table(
            "How long the answers are",
            [
                Column("run", "words"),
                Column("answers by number of words", "drawing"),
                Column("mean words"),
                Column("median words"),
            ],
            lengths,
        ),
        Table(
            "Audit of the answers, % of the questions",
            [Column("run", "words"), *map(Column, heads)],
            answers,
            note="Cut off: the token cap ended the answer; – where a generator has no tokens. Copied: 20 words or more "
            "stand as one run in a passage. Leaked tags: control tokens of chat templates, thinking blocks or markup "
            "of documents in the answer.",
        ),
        *_prompts(material),
    ]
    return Section(
        "form",
        "Form of the answers",
        "Numbers that explain strange scores: a model that is cut off, stays silent, copies or leaks control tokens is "
        "not judged for what it knows.",
        tables,
    )


def _counts(said: Sequence[str]) -> list[int]:
    counts = [0] * len(_BINS)
    for answer in said:
        counts[bisect_right(_BINS, len(answer.split())) - 1] += 1
    return counts


def _median(said: Sequence[str]) -> int:
    lengths = sorted(len(answer.split()) for answer in said)
    return lengths[len(lengths) // 2] if lengths else 0


def _audit(run: Shown) -> list[str]:
    leaked = sum(leaked_tag(answer) is not None for answer in run.said)
    failed = run.stops.get("failed", 0)
    n = len(run.said)
    return [
        *(percent(run.mean(name)) for name in ("empty", "hit_cap", "context_echo")),
        percent(leaked / n),
        percent(failed / n),
    ]


def _prompts(material: Material) -> list[Table]:
    """What had to be left out of prompts; only where there are passages and results.json tells."""
    names = {
        "prompts_shortened": "prompts shortened",
        "passages_dropped": "passages left out",
        "answers_cut": "answers cut with them",
        "without_context": "without any passage",
    }
    rows: list[list[Cell]] = [
        [run.named, *(f"{run.facts['prompts'].get(name, 0):,}" for name in names)]
        for run in material.runs
        if run.context != "none" and "prompts" in run.facts
    ]
    columns = [Column("run", "words"), *map(Column, names.values())]
    return [Table("What did not fit into the prompts, counts", columns, rows)] if rows else []
