"""The generator as a whole, on a tiny random model made here and on the real story model where it is at hand."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slmx.errors import SlmxError, UsageError
from slmx.events import Notice
from slmx.models.generators import open_generator
from slmx.models.transformers import TransformersGenerator
from slmx.records import Prompt, Question, Request

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She had a big red ball. One day",
    "The dog",
    "Tom and Sam went to the park to play. They saw a big tree and",
    "Question: who?\nAnswer:",
    "One day, a boy",
]


def requests(texts: Sequence[str]) -> list[Request]:
    return [
        Request(question=Question(question_id=f"q{i}", question="?", answers=[]), prompt=Prompt(text=text))
        for i, text in enumerate(texts)
    ]


def opened(folder: Path, **options: object) -> TransformersGenerator:
    generator = open_generator(str(folder), **{"device": "cpu", "dtype": "float32", **options})
    assert isinstance(generator, TransformersGenerator)
    return generator


def scripted(generator: TransformersGenerator, texts: Sequence[str]) -> None:
    """Put in the model's place one that writes these texts, then its end of text."""

    class Writer:
        def run(self, prompts, limit, done, _draw):
            new = []
            for row in range(len(prompts)):
                ids = generator._encoder._ids([texts[row]])[0] + [min(generator._eos)]
                new.append(next(ids[:n] for n in range(1, limit + 1) if n == limit or done(row, ids[:n])))
            return new

    generator._decoder = Writer()  # type: ignore[assignment]


def test_trap_7_texts_of_a_batch_are_the_texts_one_by_one(stories: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    generator = opened(stories, max_new_tokens=20, stops=())
    together = generator.generate(requests(TEXTS))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories), AutoTokenizer.from_pretrained(stories)
    for text, completion in zip(TEXTS, together, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert completion.text == tokenizer.decode(out, skip_special_tokens=True).strip()
        assert completion.prompt_tokens == inputs["input_ids"].shape[1]
    assert [c.question_id for c in together] == [f"q{i}" for i in range(len(TEXTS))]


def test_a_real_model_tells_a_story(stories: Path) -> None:
    (completion,) = opened(stories).generate(requests([TEXTS[0]]))
    assert len(completion.text.split()) > 5
    assert (completion.stop, completion.new_tokens) == ("length", 48)


def test_trap_9_penalties_of_the_model_are_not_used(tiny: Path, another_tiny: Callable[..., Path]) -> None:
    strict = another_tiny(repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, temperature=9.0)
    assert "no_repeat_ngram_size" in (strict / "generation_config.json").read_text()
    plain = opened(tiny, max_new_tokens=12).generate(requests(TEXTS))
    assert opened(strict, max_new_tokens=12).generate(requests(TEXTS)) == plain


def test_trap_10_an_invented_next_question_is_not_answered(tiny: Path) -> None:
    generator = opened(tiny)
    scripted(generator, ["\n\n Paris\n\nQuestion: x\nAnswer: y", " Rome Question: z", " St. Louis"])
    first, second, third = generator.generate(requests(["a", "b", "c"]))
    assert (first.text, first.stop, first.new_tokens) == ("Paris", "line", 9)
    assert (second.text, second.stop) == ("Rome", "question")
    assert (third.text, third.stop) == ("St. Louis", "eos")


def test_trap_14_thinking_is_taken_out_and_kept(tiny: Path) -> None:
    generator = opened(tiny, max_new_tokens=40)
    scripted(
        generator, ["<think>\nOne.\nTwo.\n</think>\n\nParis\nmore", "<think>\n" + "on and on " * 20, "a <think> b"]
    )
    first, second, third = generator.generate(requests(["a", "b", "c"]))
    assert (first.text, first.thinking, first.stop) == ("Paris", "One.\nTwo.", "line")
    assert (second.text, second.stop, second.new_tokens) == ("", "length", 40)
    assert second.thinking.startswith("on and on")
    assert (third.text, third.thinking) == ("a <think> b", "")


def test_thinking_has_room_unless_a_limit_is_given(another_tiny: Callable[..., Path], chatml: str) -> None:
    folder = another_tiny(template=chatml)
    assert opened(folder, thinking=True).fingerprint()["max_new_tokens"] == 48 + 1024
    assert opened(folder, thinking=True, max_new_tokens=9).fingerprint()["max_new_tokens"] == 9
    with pytest.raises(UsageError, match="no room"):
        opened(folder, thinking=True).window()


def test_thinking_needs_a_template_that_can_ask_for_it(
    tiny: Path, another_tiny: Callable[..., Path], chatml: str
) -> None:
    without_switch = chatml.replace("enable_thinking", "something_else")
    always = without_switch + "<think>\n"
    assert opened(another_tiny("always", template=always), thinking=True)
    cannot = [(tiny, None), (another_tiny("mute", template=without_switch), None)]
    cannot += [(another_tiny("switch", template=chatml), False)]
    for folder, chat in cannot:
        with pytest.raises(UsageError, match="cannot be asked to think") as caught:
            opened(folder, thinking=True, chat=chat)
        assert "--thinking" in caught.value.hint


@pytest.mark.parametrize(
    ("device", "kind"), [("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:1", "cuda"), ("mps", "mps"), ("cpu", "cpu")]
)
def test_a_fingerprint_has_the_kind_of_device_and_not_its_number(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, device: str, kind: str
) -> None:
    monkeypatch.setattr("slmx.models.transformers.pick_device", torch.device)
    generator = opened(tiny, device=device)
    assert generator.fingerprint()["device"] == kind
    assert generator.describe() == {"device": device, "dtype": "float32"}


def test_what_it_runs_on_names_the_quantisation(tiny: Path) -> None:
    assert opened(tiny, load_in_8bit=True).describe()["quantisation"] == "bitsandbytes-int8"
    assert open_generator("extractive").describe() == {}


def test_trap_15_a_fingerprint_is_of_content(tiny: Path, tmp_path: Path, another_tiny: Callable[..., Path]) -> None:
    copy = shutil.copytree(tiny, tmp_path / "renamed")
    mark = opened(tiny).fingerprint()
    assert opened(copy).fingerprint() == mark
    assert str(tiny) not in str(mark) and "main" not in mark
    others = [
        opened(another_tiny("seeded", seed=1)),
        opened(tiny, max_new_tokens=7),
        opened(tiny, dtype="bfloat16"),
        opened(tiny, stops=("line",)),
        opened(tiny, temperature=0.5),
        opened(tiny, temperature=0.5, seed=1),
        opened(tiny, load_in_8bit=True),
    ]
    marks = [str(mark), *(str(other.fingerprint()) for other in others)]
    assert len(set(marks)) == len(marks)


def test_trap_17_batches_are_sized_by_real_lengths(tiny: Path) -> None:
    generator = opened(tiny, max_new_tokens=4)
    asked = requests(["x" * (1 + i % 50) for i in range(150)])
    plan = generator.plan(asked, None)
    assert [len(batch) for batch in plan] == [64, 64, 22]
    assert sorted(i for batch in plan for i in batch) == list(range(150))
    lengths = [len(asked[i].prompt.text) for batch in plan for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert plan == opened(tiny, max_new_tokens=4).plan(asked, None)
    assert [len(batch) for batch in generator.plan(asked, 40)] == [40, 40, 40, 30]
    assert generator.plan([], None) == []


def test_trap_17_long_prompts_make_small_batches(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = 2 * 2 * 8 * 2 * 4  # layers × heads × size × (keys and values) × bytes
    monkeypatch.setattr("slmx.models.transformers.CACHE_BYTES", {"cpu": 300 * token})
    plan = opened(tiny, max_new_tokens=4).plan(requests(["x" * 96] * 3 + ["y" * 6] * 40), None)
    assert [len(batch) for batch in plan] == [3, 30, 10]


def test_trap_21_greedy_is_the_default_and_draws_are_seeded(tiny: Path) -> None:
    asked = requests(TEXTS)
    greedy = opened(tiny, max_new_tokens=8).generate(asked)
    assert greedy == opened(tiny, max_new_tokens=8, seed=7).generate(asked)
    drawn = opened(tiny, max_new_tokens=8, temperature=2.0, seed=7)
    texts = drawn.generate(asked)
    assert texts != greedy
    assert texts == opened(tiny, max_new_tokens=8, temperature=2.0, seed=7).generate(asked)
    assert texts != opened(tiny, max_new_tokens=8, temperature=2.0, seed=8).generate(asked)
    assert [drawn.generate([one])[0] for one in asked] == texts
    assert {"temperature": 2.0, "seed": 7}.items() <= drawn.fingerprint().items()


def test_trap_22_one_prompt_fails_alone_and_an_engine_fails_aloud(tiny: Path) -> None:
    generator = opened(tiny, max_new_tokens=8)
    good, long, empty = generator.generate(requests(["abc", "x" * 300, ""]))
    assert good.stop != "failed" and not good.error
    assert (long.stop, long.text) == ("failed", "") and "300 tokens" in long.error
    assert (empty.stop, empty.text) == ("failed", "") and "0 tokens" in empty.error

    def broken(*_: object) -> list[list[int]]:
        raise RuntimeError("the engine is broken")

    generator._decoder.run = broken  # type: ignore[union-attr,method-assign,assignment]
    with pytest.raises(RuntimeError, match="broken"):
        generator.generate(requests(["abc"]))


def test_memory_that_does_not_suffice_halves_the_batch_and_says_so(tiny: Path) -> None:
    told: list[str] = []
    generator = open_generator(
        str(tiny), device="cpu", dtype="float32", max_new_tokens=4, listen=lambda event: told.append(event.text)
    )
    asked = requests(TEXTS)
    whole = generator.generate(asked)
    run = generator._decoder.run

    def small(prompts, *rest):
        if len(prompts) > 2:
            raise torch.cuda.OutOfMemoryError
        return run(prompts, *rest)

    generator._decoder.run = small
    assert generator.generate(asked) == whole
    assert len(told) == 2 and "going on with 3" in told[0]
    generator._decoder.run = lambda *_: small([1, 2, 3])
    with pytest.raises(SlmxError, match="GPU memory"):
        generator.generate(asked[:1])


def test_the_window_leaves_room_for_the_answer(tiny: Path) -> None:
    window = opened(tiny, max_new_tokens=56).window()
    assert window is not None
    assert window.budget == 200
    assert window.count(["abc", ""]) == [3, 0]
    with pytest.raises(UsageError, match="no room"):
        opened(tiny, max_new_tokens=256).window()


def test_a_chat_template_is_used_and_told_or_left_out(another_tiny: Callable[..., Path], chatml: str) -> None:
    folder = another_tiny(template=chatml)
    told: list[object] = []
    chat = open_generator(str(folder), listen=told.append)
    assert [type(event) for event in told] == [Notice] and "--no-chat" in told[0].text
    assert chat.window().count(["abc"]) == [3 + 25]
    assert chat._eos == {256, 258}  # the end of text, and the end of a turn
    plain = open_generator(str(folder), chat=False, listen=told.append)
    assert len(told) == 1 and plain.window().count(["abc"]) == [3]
    assert plain.fingerprint() != chat.fingerprint()


def test_bf16_runs(tiny: Path) -> None:
    generator = opened(tiny, dtype="bf16", max_new_tokens=6)
    assert generator.fingerprint()["dtype"] == "bfloat16"
    assert len(generator.generate(requests(TEXTS))) == len(TEXTS)
    assert generator._decoder._model.dtype == torch.bfloat16


def test_eight_bits_where_they_cannot_be_had(tiny: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(SlmxError, match="8 bits") as error:
            opened(tiny, load_in_8bit=True).load()
        assert "pip install bitsandbytes accelerate" in error.value.hint
    else:
        assert opened(tiny, load_in_8bit=True, max_new_tokens=4).generate(requests(["abc"]))[0].new_tokens


def test_weights_are_loaded_late_once_and_freed(tiny: Path) -> None:
    generator = opened(tiny, max_new_tokens=4)
    assert generator._decoder is None
    generator.plan(requests(TEXTS), None)
    assert generator._decoder is None
    seconds = generator.load()
    assert seconds > 0 and generator.load() == seconds
    assert generator.size_bytes() == (tiny / "model.safetensors").stat().st_size
    generator.close()
    assert generator._decoder is None


def test_pickled_weights_and_other_folders_are_refused(tiny: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(tiny, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(SlmxError, match="pickled"):
        opened(pickled)
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(SlmxError, match="no weights"):
        opened(pickled)
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(SlmxError, match="no model"):
        opened(other)


def test_log_probs_are_those_of_the_model_itself(tiny: Path) -> None:
    """Checked against transformers: the whole text is read at once, and the chances of the new ids are looked up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["one prompt", "a longer prompt than that"]
    options = {"dtype": "float32", "device": "cpu", "chat": False, "max_new_tokens": 6, "stops": ()}
    requests = [
        Request(question=Question(question_id=t, question="", answers=[]), prompt=Prompt(text=t)) for t in texts
    ]
    for temperature in (0.0, 0.7):
        generator = open_generator(str(tiny), log_probs=True, temperature=temperature, **options)
        generator.load()
        drawn = _watched(generator._decoder)  # type: ignore[attr-defined]
        found = {c.question_id: c.log_prob for c in generator.generate(requests)}
        model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
        for text, new in zip(sorted(texts, key=len, reverse=True), drawn, strict=True):
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                chances = model(torch.tensor([prompt + new])).logits[0].log_softmax(-1)
            own = [float(chances[len(prompt) - 1 + place, token]) for place, token in enumerate(new)]
            assert found[text] == pytest.approx(sum(own) / len(own), abs=1e-4)
    plain = open_generator(str(tiny), **options).generate(requests)
    assert all(completion.log_prob is None for completion in plain)


def _watched(decoder: Any) -> list[list[int]]:
    """The new ids of what the decoder will decode next."""
    drawn: list[list[int]] = []
    run = decoder.run

    def watched(*how: Any) -> list[list[int]]:
        drawn.extend(run(*how))
        return drawn

    decoder.run = watched
    return drawn
