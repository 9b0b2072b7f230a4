"""Ten minutes of `slmx train lm` beside stories260K: bits a byte on the last 150 stories of the TinyStories file.

    python benchmarks/stories.py             # train as was chosen, and compare
    python benchmarks/stories.py --choose    # first choose how often to read the stories

A tokenizer and a nano model are made here from the other stories, in the time that is given (compiling included), and
both models are measured on the same windows: each story, halved at a space until both see it whole, after the model's
own beginning of a text. What is chosen is chosen on the 150 stories before the last, with a model that has read
neither: the last 150 are for the comparison alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import DATA, RESULTS, save
from train_lm import KEPT_OUT, stories_of, token_folder

from slmx.data.token_files import open_folder
from slmx.events import Notice, Progress
from slmx.signals import Stop
from slmx.train.lm import estimate_lm, train_lm
from slmx.train.lm_plan import LmOptions, plan_lm
from slmx.train.ranks import Ranks

WINDOW = 512  # tokens, of both models
VOCABULARY = 4096
CANDIDATES = (3, 4, 5)  # passes over the stories


def main() -> None:
    """Train, measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=RESULTS / "stories.json")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the model may train")
    parser.add_argument("--choose", action="store_true", help="compare the candidates")
    options = parser.parse_args()
    text, theirs = DATA / "text" / "en" / "tinystories_sample_2MiB.txt", DATA / "models" / "stories260K-hf"
    if not text.is_file() or not theirs.is_dir():
        print(f"stories: needs {text} and {theirs}; left out", file=sys.stderr)
        return
    stories = stories_of(text)
    found: dict[str, Any] = json.loads(options.to.read_text())["figures"] if options.to.is_file() else {}
    if options.choose or "choice" not in found:
        others = stories[:-KEPT_OUT]
        found["choice"] = [{"passes": n, **judged(others, theirs, n, math.inf)} for n in CANDIDATES]
    found |= judged(stories, theirs, chosen(found), options.seconds)
    report(options.to, found)


def chosen(found: dict[str, Any]) -> int:
    """The passes that gave the fewest bits a byte on the stories that serve for choosing."""
    return int(min(found["choice"], key=lambda one: float(one["slmx"]))["passes"])


def judged(stories: list[str], theirs: Path, passes: int, seconds: float) -> dict[str, Any]:
    """A model made of all but the last stories and stories260K, on the last ones."""
    with tempfile.TemporaryDirectory() as folder:
        found = trained(stories, Path(folder), passes, seconds)
        windows = windows_of(stories[-KEPT_OUT:], [theirs, Path(folder) / "run"])
        found |= {"windows": len(windows), "bytes": sum(len(one.encode()) for one in windows)}
        for name, model in (("stories260K", theirs), ("slmx", Path(folder) / "run")):
            found[name] = bits_per_byte(model, windows)
            print(f"{name}: {found[name]:.4f} bits a byte on {len(windows)} windows", file=sys.stderr)
    return found


def windows_of(stories: list[str], folders: list[Path]) -> list[str]:
    """Stories in pieces that fit the windows of all models, halved at a space until they do."""
    from tokenizers import Tokenizer

    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in folders]

    def pieces(text: str) -> list[str]:
        longest = max(len(one.encode(text, add_special_tokens=False).ids) for one in tokenizers)
        if longest < WINDOW:
            return [text]
        middle = text.rfind(" ", 0, len(text) // 2 + 1)
        middle = middle if middle > 0 else len(text) // 2
        return [*pieces(text[:middle]), *pieces(text[middle:].lstrip())]

    return [piece for story in stories for piece in pieces(story)]


@torch.no_grad()
def bits_per_byte(folder: Path, windows: list[str]) -> float:
    """Bits a byte of UTF-8 text over all windows, by transformers; each begins with the model's begin of text."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    nats, count = 0.0, 0
    for text in windows:
        ids = [model.config.bos_token_id, *tokenizer.encode(text, add_special_tokens=False).ids]
        tokens = torch.tensor([ids])
        logits = model(tokens).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(text.encode())
    return nats / math.log(2) / count


def trained(stories: list[str], folder: Path, passes: int, seconds: float) -> dict[str, Any]:
    """What a training of a nano model reports; it reads all but the last stories so often, or for so long."""
    token_folder(stories, folder / "tokens", VOCABULARY)
    common: dict[str, Any] = {
        "data": folder / "tokens",
        "save_dir": folder / "run",
        "preset": "nano-6m",
        "batch_tokens": 4096,
        "decay": 0.6,
        "weight_decay": 0.2,
        "val_interval": 0,
        "save_interval": 0,
        "sample_interval": 0,
    }
    ranks = Ranks(torch.device("cpu"))
    estimate = estimate_lm(plan_lm(LmOptions(**common, steps=10_000)), ranks=ranks, steps=10)
    tokens = len(open_folder(folder / "tokens").train)
    steps = int(min(passes * tokens // common["batch_tokens"], 0.94 * (seconds - 15) / estimate.seconds_per_step))
    began, shown = time.perf_counter(), [0.0]

    def listen(event: Progress | Notice) -> None:
        passed = time.perf_counter() - began
        if isinstance(event, Notice) or passed - shown[0] > 15:
            shown[0] = passed
            told = event.text if isinstance(event, Notice) else f"{event.done} of {event.total}: {event.note}"
            print(f"  {passed:.0f} s: {told}", file=sys.stderr)

    report = train_lm(plan_lm(LmOptions(**common, steps=steps)), ranks=ranks, stop=Stop(), listen=listen)
    return {
        "seconds": time.perf_counter() - began,
        "steps": steps,
        "tokens": report.tokens,
        "tokens_per_second": report.tokens_per_second,
        "val_bits_per_byte": report.scores["bits_per_byte"],
    }


def report(to: Path, found: dict[str, Any]) -> None:
    """Write what was measured."""
    tried = ", ".join(f"{one['passes']} passes {one['slmx']:.3f}" for one in found["choice"])
    save(
        to,
        title="A nano model in ten minutes",
        what=f"`slmx train lm --preset nano-6m` from nothing for {found['seconds'] / 60:.1f} minutes (compiling "
        f"included), beside stories260K, on the {KEPT_OUT} stories that were kept out of its training.",
        rows=[
            {"figure": "slmx, bits a byte", "value": f"{found['slmx']:.3f}", "target": "below stories260K's"},
            {"figure": "stories260K, bits a byte", "value": f"{found['stories260K']:.3f}"},
            {
                "figure": f"{chosen(found)} passes",
                "value": f"{found['tokens']:,} tokens at {found['tokens_per_second']:,.0f} tokens/s",
            },
        ],
        notes=[
            f"The same {found['windows']} windows for both: stories, halved until both models see them whole.",
            f"The passes were chosen on the {KEPT_OUT} stories before those, by models that had read neither; bits a "
            f"byte there: {tried}.",
        ],
        **found,
    )


if __name__ == "__main__":
    main()
