"""Answers: slmx's batches beside one-by-one fp32 `generate`, on SmolLM2-135M's shape with random weights.

64 questions of nq-open-oracle with their gold passage, 24 new tokens each (no stopping rule, so that both ways write
the same number), the SmolLM2 tokenizer; both from text to text, in turn, in one process. The weights are random
(seeded), so the texts mean nothing: they serve to compare the two ways, and near-ties are commoner than in a trained
model. Needs the shared data.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from harness import DATA, arguments, in_turn, ratio_row, save
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from slmx.eval.prompts import build_all
from slmx.files import read_lines
from slmx.models.device import dtype_name, has_bf16, pick_dtype
from slmx.models.generators import Generator, open_generator
from slmx.presets import ModePreset, get
from slmx.records import Passage, Question, Request

QUESTIONS = 64
NEW_TOKENS = 24
PARAMETERS = 134_515_008
SEED = 0


def make_model(folder: Path, tokenizer: Path) -> None:
    """SmolLM2-135M's shape with random weights, and its tokenizer."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=1 / 24,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    model.save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder)


def read_questions(path: Path) -> list[tuple[Question, list[Passage]]]:
    """The first questions with their gold passage."""
    asked = []
    for number, line in islice(read_lines(path), QUESTIONS):
        row = msgspec.json.decode(line)
        found = row["ctxs"][0]
        question = Question(question_id=str(number), question=row["question"], answers=row["answers"])
        asked.append((question, [Passage(passage_id=str(number), title=found["title"], text=found["text"])]))
    return asked


class OneByOne:
    """The plain way: transformers' `generate` in fp32, one prompt after the other."""

    def __init__(self, folder: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """The texts, in order."""
        texts = []
        for request in requests:
            inputs = self._tokenizer(request.prompt.text, return_tensors="pt", return_token_type_ids=False)
            out = self._model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            new = out[0, inputs["input_ids"].shape[1] :]
            texts.append(self._tokenizer.decode(new, skip_special_tokens=True).strip())
        return texts


def in_batches(generator: Generator, requests: Sequence[Request]) -> list[str]:
    """The texts of slmx, in order, planning included."""
    texts = [""] * len(requests)
    for batch in generator.plan(requests, None):
        for i, completion in zip(batch, generator.generate([requests[i] for i in batch]), strict=True):
            texts[i] = completion.text
    return texts


def opened(folder: Path, dtype: str) -> Generator:
    """Slmx's generator, loaded."""
    generator = open_generator(str(folder), dtype=dtype, device="cpu", max_new_tokens=NEW_TOKENS, stops=())
    generator.load()
    return generator


def equal(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """How many texts are the same, as "63 of 64"."""
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"


def timed(texts: dict[str, list[str]], name: str, answer: Any) -> Any:
    """A function that answers, keeps the texts under `name`, and returns the seconds."""

    def run() -> float:
        begin = time.perf_counter()
        texts[name] = answer()
        return time.perf_counter() - begin

    return run


def main() -> None:
    """Measure and write the result."""
    options = arguments(__doc__, "answer")
    tokenizer, questions = DATA / "tokenizers" / "smollm2", DATA / "nq" / "nq-open-oracle.jsonl.gz"
    if not (tokenizer.is_dir() and questions.is_file()):
        print(f"answer: needs {tokenizer} and {questions}; left out", file=sys.stderr)
        return
    asked = read_questions(questions)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "smollm2-135m-shape-random"
        make_model(folder, tokenizer)
        fp32, plain = opened(folder, "float32"), OneByOne(folder)
        prompts = build_all(get(ModePreset, "oracle_context")[1], asked, fp32.window())
        requests = [Request(question=question, prompt=p) for (question, _), p in zip(asked, prompts, strict=True)]
        plain.answer(requests[:1])  # both ways warm
        in_batches(fp32, requests[:2])
        texts: dict[str, list[str]] = {}
        theirs = timed(texts, "one by one", lambda: plain.answer(requests))
        measured = in_turn(timed(texts, "fp32", lambda: in_batches(fp32, requests)), theirs, rounds=options.rounds)
        rows = [
            ratio_row("fp32, against one by one in fp32", measured, "–" if has_bf16() else "≥ 4.5×"),
            {"figure": "the same texts, fp32", "value": equal(texts["fp32"], texts["one by one"]), "target": "all"},
        ]
        figures: dict[str, Any] = {"fp32": measured, "prompt_tokens": sum(_lengths(fp32, requests))}
        some = QUESTIONS if has_bf16() else 8  # without the instructions bf16 is slow: enough for a look
        bf16 = opened(folder, "bfloat16")
        if has_bf16():
            measured = in_turn(timed(texts, "bf16", lambda: in_batches(bf16, requests)), theirs, rounds=options.rounds)
            figures["bf16"] = measured
            rows.append(ratio_row("bf16, against one by one in fp32", measured, "≥ 4.5×"))
        else:
            texts["bf16"] = in_batches(bf16, requests[:some])
        rows.append(
            {"figure": "the same texts, bf16", "value": equal(texts["bf16"], texts["one by one"][:some]), "target": "–"}
        )
    save(
        options.to,
        title="Answers in batches",
        what="64 NQ questions with their gold passage, 24 new tokens, SmolLM2-135M's shape with random weights.",
        rows=rows,
        notes=[
            f"'auto' picks {dtype_name(pick_dtype('auto'))} on this machine.",
            "The weights are random: times and agreement are measured, not answers.",
        ],
        **figures,
    )


def _lengths(generator: Generator, requests: Sequence[Request]) -> list[int]:
    window = generator.window()
    assert window is not None
    return window.count([request.prompt.text for request in requests])


if __name__ == "__main__":
    main()
