from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmx.data.chat_templates import ALPACA, CHATML, Template
from slmx.data.conversations import ABSENT, Conversation, Turn, read_conversations
from slmx.data.prepare_sft import SftJob, prepare_sft
from slmx.data.sft_files import EmptyMask, open_sft
from slmx.data.sources import BadRow
from slmx.errors import SlmxError, UsageError
from slmx.models.tokenizers import Tokenizer, load_tokenizer

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from slmx.train.tokenizer import TokenizerOptions, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    text = "Who kept the lamp? The keeper of the harbour kept the lamp, and the answer is short.\n" * 50
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    train_tokenizer(TokenizerOptions([folder / "corpus.txt"], folder / "made", vocab_size=300))
    return folder / "made"


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def parts(template: Template, tokenizer: Tokenizer, *turns: tuple[str, str]) -> list[tuple[str, bool]]:
    """Runs of text that are learnt or not."""
    ids, mask = template.encode(Conversation([Turn(*turn) for turn in turns]))
    runs: list[tuple[list[int], bool]] = []
    for i, learnt in zip(ids, mask, strict=True):
        if not runs or runs[-1][1] != bool(learnt):
            runs.append(([], bool(learnt)))
        runs[-1][0].append(i)
    return [(tokenizer.backend.decode(run, skip_special_tokens=False), learnt) for run, learnt in runs]


def test_the_older_template_to_the_letter(tokenizer: Tokenizer) -> None:
    made = parts(Template("alpaca", tokenizer), tokenizer, ("user", "Who kept it?"), ("assistant", "The keeper."))
    assert made == [
        ("### Instruction:\nWho kept it?\n\n### Response:\n", False),
        ("The keeper.<|endoftext|>", True),
    ]


def test_chatml_learns_every_answer_with_the_end_of_its_turn(tokenizer: Tokenizer) -> None:
    turns = [("system", "Be short."), ("user", "Who?"), ("assistant", "He."), ("user", "Why?"), ("assistant", "So.")]
    assert parts(Template("chatml", tokenizer), tokenizer, *turns) == [
        ("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", False),
        ("He.<|im_end|>", True),
        ("\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", False),
        ("So.<|im_end|><|endoftext|>", True),
    ]


def test_the_space_before_a_plain_answer_is_generated_with_it(tokenizer: Tokenizer) -> None:
    made = parts(Template("plain", tokenizer), tokenizer, ("user", "Answer:"), ("assistant", "the lamp"))
    assert made == [("Answer:", False), (" the lamp<|endoftext|>", True)]


@pytest.mark.parametrize("name", ["chatml", "alpaca"])
def test_a_prompt_has_the_ids_that_it_has_when_the_model_is_asked(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    from transformers import AutoTokenizer

    from slmx.models.templates import PromptEncoder

    template = Template(name, tokenizer)
    asked = AutoTokenizer.from_pretrained(tokenizer.folder)
    asked.chat_template = {"chatml": CHATML, "alpaca": ALPACA}[name]
    encoder = PromptEncoder(asked, chat=True)
    for question in (
        "Who kept the lamp?",
        "ends so.",
        "(brackets)",
        "12 o'clock",
        "spells <|im_end|> and <|im_start|>",
    ):
        ids, mask = template.encode(Conversation([Turn("user", question), Turn("assistant", "He.")]))
        assert ids[: mask.index(1)] == encoder.encode([question])[0], question


def test_control_tokens_in_a_conversation_stay_text(tokenizer: Tokenizer) -> None:
    ids, mask = Template("chatml", tokenizer).encode(
        Conversation([Turn("user", "Say <|im_end|>"), Turn("assistant", "<|endoftext|> said <|im_start|>")])
    )
    end, _, begin, turn_end = range(4)
    assert [i for i in ids if i < 4] == [begin, turn_end, begin, turn_end, end]
    assert [i for i, learnt in zip(ids, mask, strict=True) if learnt and i < 4] == [turn_end, end]


ROWS: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"question": "q?", "answer": ["a", "b"]}, [("user", "q?"), ("assistant", "a")]),
    ({"question": "q?", "answer": "a"}, [("user", "q?"), ("assistant", "a")]),
    ({"instruction": "Do", "input": "this", "output": "done"}, [("user", "Do\n\nthis"), ("assistant", "done")]),
    ({"instruction": "Do", "input": "", "response": "done"}, [("user", "Do"), ("assistant", "done")]),
    ({"prompt": "p", "completion": "c"}, [("user", "p"), ("assistant", "c")]),
    (
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
        | {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": " a "}]},
        [("user", "u"), ("assistant", "a")],
    ),
    ({"instruction": "Do", "instances": [{"input": "x", "output": "y"}]}, [("user", "Do\n\nx"), ("assistant", "y")]),
]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(("row", "turns"), ROWS)
def test_every_form_of_row(tmp_path: Path, form: str, row: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row if form == "jsonl" else [row]), encoding="utf-8")
    assert list(read_conversations(path)) == [Conversation([Turn(*turn) for turn in turns])]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"text": "x"}, "row", "it has text; wanted"),
        ({"question": "q"}, "assistant", "it is empty"),
        ({"prompt": " ", "completion": "c"}, "user", "it is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "unknown: 'tool'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "the assistant says nothing"),
        ([1], "row", "it is no object"),
    ],
)
def test_a_row_that_is_no_conversation_says_why(write_lines: Write, row: Any, field: str, reason: str) -> None:
    path = write_lines("rows.jsonl", [{"question": "q", "answer": "a"}, row])
    _, bad = read_conversations(path)
    assert isinstance(bad, BadRow)
    assert bad.field == field
    assert bad.reason.startswith(reason)


def job(tmp_path: Path, tokenizer: Tokenizer, *sources: Path | str, **more: Any) -> SftJob:
    return SftJob([str(s) for s in sources], tokenizer, tmp_path / "out", cache_dir=tmp_path / "cache", **more)


def test_the_files_come_back_and_the_split_is_stable(tmp_path: Path, tokenizer: Tokenizer, write_lines: Write) -> None:
    rows = [{"question": f"Who kept lamp {n}?", "answer": f"Keeper {n}."} for n in range(100)]
    made = prepare_sft(job(tmp_path, tokenizer, write_lines("a.jsonl", rows), val_share=0.2))
    opened = open_sft(tmp_path / "out", tokenizer_hash=tokenizer.hash)
    assert opened.val is not None
    assert (len(opened.train), len(opened.val)) == (made.train_examples, made.val_examples)
    assert made.train_examples + made.val_examples == 100 and 8 < made.val_examples < 35
    ids, mask = opened.train.example(0)
    text = tokenizer.backend.decode(list(ids[mask]), skip_special_tokens=False)
    assert text.startswith("Keeper ") and text.endswith(".<|im_end|><|endoftext|>")
    assert opened.train.sidecar is not None and opened.train.sidecar.options["template"] == "chatml"
    assert opened.train.lengths.sum() == len(opened.train.ids)
    with pytest.raises(SlmxError, match="made with another tokenizer"):
        open_sft(tmp_path / "out", tokenizer_hash="0" * 64)
    from transformers import AutoTokenizer

    assert opened.tokenizer is not None
    assert AutoTokenizer.from_pretrained(opened.tokenizer).chat_template == CHATML
    assert load_tokenizer(opened.tokenizer).hash == tokenizer.hash


def test_a_question_stays_on_one_side_with_all_that_is_taught_of_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = prepare_sft(job(tmp_path, tokenizer, "sample", template="qa", val_share=0.3))
    assert made.kinds["no_context"] >= made.kinds["oracle"] >= made.kinds["retrieved"] == made.kinds["absent"] > 10
    opened = open_sft(tmp_path / "out")
    sides: list[dict[str, list[str]]] = []
    for examples in (opened.train, opened.val):
        assert examples is not None
        answers: dict[str, list[str]] = {}
        for n in range(len(examples)):
            ids, mask = examples.example(n)
            prompt, answer = (tokenizer.backend.decode(list(ids[keep])) for keep in (~mask, mask))
            question = prompt.rpartition("\n\nQuestion: ")[2].removesuffix("\nAnswer:")
            answers.setdefault(question, []).append(answer.strip())
        sides.append(answers)
    assert not set(sides[0]) & set(sides[1])
    for question, answers_of in (sides[0] | sides[1]).items():
        said = [answer for answer in answers_of if answer != ABSENT]
        assert len(set(said)) == 1, question
    assert sum(answer == ABSENT for side in sides for of in side.values() for answer in of) == made.kinds["absent"]


def test_a_question_stays_on_one_side_whatever_its_prompts_look_like(
    tmp_path: Path, tokenizer: Tokenizer, empty_folder: Path
) -> None:
    modes = [
        "no_context: {context: none, about: mine, template: 'ASK {question} NOW'}",
        "oracle_context: {context: oracle, about: mine, template: '{passages} ASK {question} NOW', passage: '{text}'}",
    ]
    (empty_folder / "presets").mkdir()
    (empty_folder / "presets" / "modes.yaml").write_text("\n".join(modes))
    prepare_sft(job(tmp_path, tokenizer, "sample", template="qa", val_share=0.3))
    opened = open_sft(tmp_path / "out")
    sides: list[set[str]] = []
    for examples in (opened.train, opened.val):
        assert examples is not None
        texts = [tokenizer.backend.decode(list(examples.example(n)[0])) for n in range(len(examples))]
        sides.append({text.partition("ASK ")[2].partition(" NOW")[0] for text in texts})
    assert len(sides[0]) > 5 and len(sides[1]) > 5 and not sides[0] & sides[1]


def test_the_absent_answer_is_absent(tmp_path: Path) -> None:
    from slmx.data.conversations import from_dataset
    from slmx.data.datasets import open_dataset
    from slmx.text import holds_answer

    dataset = open_dataset("sample", data_dir=tmp_path, cache_dir=tmp_path)
    answers = {q.question: q.answers for q in dataset.questions()}
    seen = 0
    for conversation in from_dataset(dataset):
        prompt = conversation.turns[0].content
        passages, _, question = prompt.rpartition("\n\nQuestion: ")
        accepted = answers[question.removesuffix("\nAnswer:")]
        if conversation.kind == "absent":
            assert not holds_answer(passages, accepted)
            seen += 1
    assert seen > 10


def test_an_all_zero_mask_is_an_error_that_shows_the_tokens(
    tmp_path: Path, tokenizer: Tokenizer, write_lines: Write
) -> None:
    source = write_lines("a.jsonl", [{"question": f"Who kept lamp {n}?", "answer": "He."} for n in range(9)])
    deaf = tmp_path / "deaf"
    tokenizer.copy_to(deaf)
    config = json.loads((deaf / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages if m['role'] == 'user' %}User: {{ m['content'] }}\n{% endfor %}"
    (deaf / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(EmptyMask, match="writes no answer") as caught:
        prepare_sft(job(tmp_path, load_tokenizer(deaf), source, template="chat"))
    assert "".join(text for text, _ in caught.value.view).startswith("User: Who kept lamp 0?")
    assert not any(learnt for _, learnt in caught.value.view)
    assert not (tmp_path / "out").exists()
    prepare_sft(job(tmp_path, tokenizer, source, val_share=0))
    mask = tmp_path / "out" / "train.mask.bin"
    mask.write_bytes(bytes(len(mask.read_bytes())))
    with pytest.raises(EmptyMask, match="nothing would be learnt of 9 of 9 examples"):
        open_sft(tmp_path / "out")
    command = [sys.executable, "-m", "slmx", "data", "prepare-sft", str(source), "--tokenizer", str(deaf)]
    said = subprocess.run(
        [*command, "--template", "chat", "--to", str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert "In the loss:" in said.stderr and "User: Who kept lamp 0?" in said.stderr
    assert "error: The template chat writes no answer" in said.stderr


def test_damaged_files_are_named(tmp_path: Path, tokenizer: Tokenizer, write_lines: Write) -> None:
    prepare_sft(job(tmp_path, tokenizer, write_lines("a.jsonl", [{"question": "q", "answer": "a"}]), val_share=0))
    folder = tmp_path / "out"
    mask, offsets = folder / "train.mask.bin", folder / "train.offsets.npy"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-1])
    with pytest.raises(SlmxError, match=r"train\.mask\.bin has .* it was cut"):
        open_sft(folder)
    mask.write_bytes(whole)
    good = offsets.read_bytes()
    offsets.write_bytes(good[:-8])
    with pytest.raises(SlmxError, match=r"train\.offsets\.npy"):
        open_sft(folder)
    np.save(offsets, np.array([0, 3], dtype=np.int64))
    with pytest.raises(SlmxError, match=r"does not fit train\.bin"):
        open_sft(folder)
    offsets.write_bytes(good)
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-3])
    with pytest.raises(SlmxError, match=r"train\.bin has .* it was cut"):
        open_sft(folder)


def test_the_older_packed_file_is_read(tmp_path: Path) -> None:
    samples = np.zeros((2, 2, 512), dtype="<i4")
    samples[:, 1] = -100
    for row, (prompt, answer) in zip(samples, [([5, 6], [7, 50256]), ([8], [9, 10, 50256])], strict=True):
        ids = [*prompt, *answer]
        row[0, : len(ids)] = ids
        row[1, len(prompt) : len(ids)] = answer
    samples.tofile(tmp_path / "train_sft_packed.bin")
    opened = open_sft(tmp_path / "train_sft_packed.bin").train
    assert [[part.tolist() for part in opened.example(n)] for n in range(2)] == [
        [[5, 6, 7, 50256], [False, False, True, True]],
        [[8, 9, 10, 50256], [False, True, True, True]],
    ]
    (tmp_path / "train_sft_packed.bin").write_bytes(samples.tobytes()[:-4])
    with pytest.raises(SlmxError, match="no whole number of samples"):
        open_sft(tmp_path)
    samples[1, 1] = -100
    samples.tofile(tmp_path / "train_sft_packed.bin")
    with pytest.raises(EmptyMask, match="sample 1: nothing of it is learnt"):
        open_sft(tmp_path)


def test_wrong_sources_and_templates_are_told(tmp_path: Path, tokenizer: Tokenizer, write_lines: Write) -> None:
    good = write_lines("a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UsageError, match='no template "chatlm"'):
        prepare_sft(job(tmp_path, tokenizer, good, template="chatlm"))
    with pytest.raises(UsageError, match="has no chat template"):
        prepare_sft(job(tmp_path, tokenizer, good, template="chat"))
    with pytest.raises(SlmxError, match="There is no file"):
        prepare_sft(job(tmp_path, tokenizer, tmp_path / "absent.json"))
    with pytest.raises(SlmxError, match="1 of 2 rows"):
        prepare_sft(job(tmp_path, tokenizer, write_lines("b.jsonl", [{"question": "q", "answer": "a"}, "{cut"])))
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SlmxError, match="holds no rows"):
        prepare_sft(job(tmp_path, tokenizer, tmp_path / "empty.json"))
    with pytest.raises(SlmxError, match="nothing to learn from"):
        prepare_sft(
            job(tmp_path, tokenizer, write_lines("l.jsonl", [{"question": "q " * 40, "answer": "a"}]), max_tokens=9)
        )
