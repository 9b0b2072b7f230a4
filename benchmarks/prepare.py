"""Text → token file: `slmx data prepare` on two cores beside a plain loop over the tokenizers library.

Whole processes in turn, on the same text (all English and Russian files of the shared data, 15 MB; made-up words where
they are absent) with GPT-2's tokenizer, or one trained here; both must write the same ids. Then the memory of all
processes together at one and at eight times the text, as one document.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from harness import DATA, arguments, child, in_turn, ratio_row, save

MIB = 1 << 20


def plain(source: str, tokenizer: str, to: str) -> None:
    """How one writes it first: documents in batches through the library (which takes all cores), ids appended."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    backend.encode_special_tokens = True
    end = backend.token_to_id("<|endoftext|>")
    documents = [text.strip() for text in Path(source).read_text(encoding="utf-8").split("<|endoftext|>")]
    with Path(to).open("wb") as out:
        for start in range(0, len(documents), 256):
            for encoding in backend.encode_batch_fast(documents[start : start + 256], add_special_tokens=False):
                out.write(np.array([*encoding.ids, end], dtype="<u2").tobytes())


def text_of(limit: int) -> str:
    """Real text where the shared data is at hand, documents apart; else made-up words."""
    if DATA.is_dir():
        from slmx.data.sources import BadRow
        from slmx.data.texts import Splitting, find_texts, read_texts

        found, _ = find_texts([DATA / "text"])
        documents: list[str] = []
        for file in found:
            pieces = [p for p in read_texts(file, Splitting(encoding="auto")) if not isinstance(p, BadRow)]
            documents += ["".join(p.text for p in pieces)] if len(pieces) < 3 else [p.text for p in pieces]
    else:
        chance = random.Random(0)
        words = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(1, 9))) for _ in range(40_000)]
        weights = [1 / (rank + 1) for rank in range(len(words))]
        documents = [" ".join(chance.choices(words, weights, k=300)) + "." for _ in range(9000)]
    return "\n<|endoftext|>\n".join(documents)[:limit]


def tokenizer_of(folder: Path, text: Path) -> Path:
    """GPT-2's, or one trained on the text."""
    known = DATA / "tokenizers" / "gpt2"
    if known.is_dir():
        return known
    from slmx.train.tokenizer import TokenizerOptions, train_tokenizer

    train_tokenizer(TokenizerOptions([text], folder / "tokenizer", vocab_size=32_000))
    return folder / "tokenizer"


def peak_of_all(command: Sequence[str]) -> float:
    """MiB of a command and its children together, at most, looked at every 20 ms; shared pages count once a process."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in (watched, *watched.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)
            time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}.")
    return peak / MIB


def main() -> None:
    """Measure and write the result."""
    args = arguments(__doc__, "prepare")
    folder = Path(tempfile.mkdtemp(prefix="slmx-prepare-"))
    try:
        text = folder / "text.txt"
        text.write_text(text_of(1 << 30), encoding="utf-8")
        tokenizer = tokenizer_of(folder, text)

        def command(source: Path, *more: str) -> list[str]:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            arguments_of = [str(source), "--tokenizer", str(tokenizer), "--to", str(folder / "ours"), *more]
            return [str(Path(sys.executable).parent / "slmx"), "data", "prepare", *arguments_of]

        def ours() -> float:
            return child(command(text, "--val-share", "0", "--processes", "2")).wall

        def theirs() -> float:
            return child([sys.executable, __file__, "--plain", str(text), str(tokenizer), str(folder / "plain")]).wall

        ours(), theirs()  # these also bring the file into the system's cache
        if (folder / "ours" / "train.bin").read_bytes() != (folder / "plain").read_bytes():
            sys.exit("The two ways differ.")
        tokens = (folder / "plain").stat().st_size // 2
        measured = in_turn(ours, theirs, rounds=args.rounds)
        one = peak_of_all(command(text, "--processes", "2"))
        large = folder / "large.txt"
        single = text.read_text(encoding="utf-8").replace("<|endoftext|>", "")
        with large.open("w", encoding="utf-8") as out:
            for _ in range(8):
                out.write(single)
        eight = peak_of_all(command(large, "--processes", "2"))
        size = text.stat().st_size / 1e6
        rate = tokens / measured["ours_s"] / 1e6
        rows = [
            {"figure": "tokens a second, two cores", "value": f"{rate:.2f} million", "target": "at least 1.0 million"},
            ratio_row("faster than the plain loop", measured, ""),
            {"figure": f"peak memory at {size:.0f} MB of text", "value": f"{one:.0f} MiB", "target": "under 500 MB"},
            {
                "figure": f"peak memory at {8 * size:.0f} MB, one document",
                "value": f"{eight:.0f} MiB",
                "target": "under 500 MB",
            },
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what = (
        f"`slmx data prepare` of {size:.0f} MB of text ({tokens:,} tokens) with {tokenizer.name}'s tokenizer, whole "
        "processes in turn (start-up counted), the same ids out. The plain loop gives batches to the library, "
        "which takes all cores. Memory is that of all processes together."
    )
    save(
        args.to,
        title="Prepare",
        what=what,
        rows=rows,
        notes=(),
        tokens=tokens,
        peak_mib=one,
        peak_8x_mib=eight,
        **measured,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:5])
    else:
        main()
