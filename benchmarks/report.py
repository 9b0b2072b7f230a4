"""The report: 6 synthetic runs over the 4,326 questions of SimpleQA as one page, built and opened in Chromium.

The questions, golds and topics are SimpleQA's, the passages are real text (SciFact and ArguAna, cut at 100 words);
which passages a retriever "found" and which answers are right is drawn from a seed, since no model is needed to measure
a page. Six runs: no context, four retrievers with five passages a question, oracle. Needs the shared data and Chromium.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from harness import DATA, arguments, child, save

from slmx.data.datasets import open_dataset
from slmx.files import read_lines
from slmx.records import Question

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.browser import Browser, open_browser
from tests.eval.made_runs import cell, make_run

K = 5
RUNS = {"bm25": 0.22, "contriever": 0.24, "dense": 0.27, "hybrid": 0.31}
METRICS = ("token_recall", "match", "em", "f1", "answer_words", "empty")
READY = "document.documentElement.dataset.ready"


def passages() -> list[str]:
    """Real text in passages of 100 words."""
    cut = []
    for name in ("scifact", "arguana"):
        for _, line in read_lines(DATA / "beir" / name / "corpus.jsonl"):
            words = msgspec.json.decode(line)["text"].split()
            cut += [" ".join(words[at : at + 100]) for at in range(0, len(words), 100)]
    return cut


def make_runs(outputs: Path, questions: Sequence[Question], texts: Sequence[str]) -> None:
    """The six runs. Retrievers share about half of what they find."""
    draw = random.Random(0)
    near = [draw.sample(range(len(texts)), 2 * K) for _ in questions]

    def said(share: float) -> list[str]:
        wrong = [other.answers[0] for other in draw.sample(questions, len(questions))]
        pairs = zip(questions, wrong, strict=True)
        return [f"The answer is {(q.answers[0] if draw.random() < share else other)}, it seems." for q, other in pairs]

    def found(count: int) -> list[list[str]]:
        return [[texts[place] for place in draw.sample(places, count)] for places in near]

    make_run(outputs, cell("synthetic", "none"), questions, said(0.08), metrics=METRICS)
    make_run(outputs, cell("synthetic", "oracle"), questions, said(0.6), found(1), metrics=METRICS)
    for name, share in RUNS.items():
        make_run(outputs, cell("synthetic", "retrieved", name), questions, said(share), found(K), metrics=METRICS)


def open_seconds(browser: Browser, page: Path) -> tuple[float, float]:
    """Seconds from the address to an explorer that can be used, and then from a search word to its result."""
    begin = time.perf_counter()
    tab = browser.open(page.as_uri())
    tab.wait(READY)
    ready = time.perf_counter() - begin
    searched = tab.js(
        "(() => { const t = performance.now(); const f = document.getElementById('find'); f.value = 'olympic medal';"
        "f.dispatchEvent(new Event('input')); document.body.getBoundingClientRect(); return performance.now() - t; })()"
    )
    if tab.problems:
        sys.exit(f"The page has problems: {tab.problems}")
    tab.close()
    return ready, searched / 1000


def main() -> None:
    """Measure, and write the result."""
    asked = arguments(__doc__, "report")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = open_dataset(str(DATA / "simple_qa" / "simple_qa_test_set.csv"), data_dir=folder, cache_dir=folder)
        questions, texts = dataset.questions(), passages()
        make_runs(folder / "outputs", questions, texts)
        page = folder / "report.html"
        command = [sys.executable, "-m", "slmx", "-q", "eval", "report", str(folder / "outputs"), "--to", str(page)]
        built = [child([*command, "--overwrite"]) for _ in range(asked.rounds)]
        with open_browser(folder) as browser:
            opened = [open_seconds(browser, page) for _ in range(asked.rounds)]
        size = page.stat().st_size / 1e6
    seconds = statistics.median(run.wall for run in built)
    ready, searched = (statistics.median(times) for times in zip(*opened, strict=True))
    save(
        asked.to,
        title="Report",
        what=f"`slmx eval report` over 6 synthetic runs × {len(questions):,} questions with {K} passages each: real "
        "questions and texts, drawn outcomes (see the script).",
        rows=[
            {"figure": "the command, start to end", "value": f"{seconds:.1f} s", "target": "under 10 s"},
            {"figure": "peak memory of the command", "value": f"{max(run.peak_mib for run in built):.0f} MiB"},
            {"figure": "size of report.html", "value": f"{size:.1f} MB", "target": "under 15 MB"},
            {"figure": "opened in Chromium, ready to search", "value": f"{ready:.2f} s", "target": "under 3 s"},
            {"figure": "a search over all questions and answers", "value": f"{1000 * searched:.0f} ms"},
        ],
        build_s=[run.wall for run in built],
        open_s=[times[0] for times in opened],
        size_mb=size,
    )


if __name__ == "__main__":
    main()
