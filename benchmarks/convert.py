"""NQ merged → nq_full_dataset.json: `slmx data convert` beside the plain script that loads, converts and dumps.

Whole processes in turn, on the same file; their outputs must hold the same rows. Then the peak memory of both at one
and at four times the rows. The files (0.15 and 0.6 GB) lie in a temporary folder and are deleted.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from harness import DATA, Run, arguments, child, in_turn, ratio_row, save

ROWS = 3610
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi")


def plain(source: str, to: str) -> None:
    """How one writes it first: every row in memory, `split(" ")`, one dump."""
    out = []
    with Path(source).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        tokens = row["document_text"].split(" ")
        long, short = [], []
        for annotation in row["annotations"]:
            index = annotation["long_answer"]["candidate_index"]
            if index >= 0:
                candidate = row["long_answer_candidates"][index]
                long.append(" ".join(tokens[candidate["start_token"] : candidate["end_token"]]))
            short += [" ".join(tokens[s["start_token"] : s["end_token"]]) for s in annotation["short_answers"]]
        url = urlsplit(row["document_url"])
        title = parse_qs(url.query).get("title") or [unquote(url.path.rsplit("/", 1)[-1])]
        out.append(
            {
                "question": row["question"],
                "answer": row["answer"],
                "context": row["document_text"],
                "long_context": long,
                "short_context": short,
                "id": str(row["example_id"]),
                "url": row["document_url"],
                "title": title[0].replace("_", " "),
            }
        )
    with Path(to).open("w", encoding="utf-8") as file:
        json.dump(out, file, ensure_ascii=False)


def make(path: Path, rows: int) -> None:
    """The test file: real text where the shared data is at hand, else made-up words of the same lengths."""
    tool = DATA.parent / "tools" / "make_nq_merged.py"
    if tool.is_file():
        child([sys.executable, str(tool), str(path), "--rows", str(rows)])
        return
    chance = random.Random(0)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as out:
        for number in range(rows):
            out.write(json.dumps(_row(chance, words, number), ensure_ascii=False) + "\n")


def _row(chance: random.Random, words: list[str], number: int) -> dict[str, Any]:
    tokens: list[str] = []
    candidates = []
    for _ in range(max(1, int(chance.lognormvariate(0, 0.6) * 50))):
        start = len(tokens)
        tokens += ["<P>", *chance.choices(words, k=100), "</P>"]
        candidates.append({"start_token": start, "end_token": len(tokens), "top_level": True})
    index = chance.randrange(len(candidates))
    begin = candidates[index]["start_token"] + chance.randint(1, 90)
    annotation = {
        "long_answer": {**candidates[index], "candidate_index": index},
        "short_answers": [{"start_token": begin, "end_token": begin + 2}],
        "yes_no_answer": "NONE",
    }
    return {
        "question": f"which words stand in place {number}",
        "answer": [" ".join(tokens[begin : begin + 2])],
        "document_text": " ".join(tokens),
        "document_url": f"https://example.org/w/index.php?title=Article_{number}&oldid={number}",
        "annotations": [annotation] * chance.choice((1, 1, 5)),
        "long_answer_candidates": candidates,
        "example_id": 10**15 + number,
    }


def same_rows(one: Path, other: Path) -> bool:
    """Do two converted files hold equal rows, in the same order?"""
    from slmx.data.stream import rows

    return all(json.loads(a.raw) == json.loads(b.raw) for a, b in zip(rows(one), rows(other), strict=True))


def main() -> None:
    """Measure and write the result."""
    args = arguments(__doc__, "convert")
    folder = Path(tempfile.mkdtemp(prefix="slmx-convert-"))
    slmx = str(Path(sys.executable).parent / "slmx")

    def ours(source: Path) -> Run:
        return child([slmx, "data", "convert", str(source), "--to", str(folder / "ours.json"), "--overwrite"])

    def theirs(source: Path) -> Run:
        return child([sys.executable, __file__, "--plain", str(source), str(folder / "theirs.json")])

    try:
        one, four = folder / "one.jsonl", folder / "four.jsonl"
        make(one, ROWS)
        first, plain_first = ours(one), theirs(one)  # these also bring the file into the system's cache
        if not same_rows(folder / "ours.json", folder / "theirs.json"):
            sys.exit("The two ways differ.")
        measured = in_turn(lambda: ours(one).wall, lambda: theirs(one).wall, rounds=args.rounds)
        make(four, 4 * ROWS)
        large = ours(four)
        size = one.stat().st_size / 1e6
        rows = [
            ratio_row("faster than the plain script", measured, "at least 2×"),
            {"figure": f"throughput at {ROWS:,} rows", "value": f"{size / measured['ours_s']:.0f} MB/s", "target": ""},
            {"figure": f"peak memory at {ROWS:,} rows", "value": f"{first.peak_mib:.0f} MiB", "target": "under 120 MB"},
            {
                "figure": f"peak memory at {4 * ROWS:,} rows",
                "value": f"{large.peak_mib:.0f} MiB",
                "target": "under 120 MB",
            },
            {"figure": "the plain script's", "value": f"{plain_first.peak_mib:.0f} MiB", "target": ""},
        ]
        figures = {"peak_mib": first.peak_mib, "peak_mib_4x": large.peak_mib, "plain_peak_mib": plain_first.peak_mib}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what = f"`slmx data convert` of {ROWS:,} NQ rows ({size:.0f} MB), whole processes in turn, the same rows out."
    save(args.to, title="Convert", what=what, rows=rows, notes=(), **measured, **figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:4])
    else:
        main()
