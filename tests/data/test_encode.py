from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as Backend, decoders, models, pre_tokenizers, trainers

from slmx.data.encode import Encoder, cuts_before_spaces, last_cut
from slmx.models.tokenizers import load_tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "the cat sat on the mat. It's 12 o'clock,\n\n so the cat  sleeps.\tДа, кот спит!",
    "a b c",
    "é\u0301 and e\u0301",
]


def made(folder: Path, before: pre_tokenizers.PreTokenizer) -> Path:
    """A small byte-level BPE tokenizer, trained here."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = before
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def before_of(name: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt2":
        return byte_level
    if name == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), bare])


@pytest.mark.parametrize("name", ["gpt2", "digits", "qwen"])
def test_stretches_give_the_very_ids_of_the_whole(tmp_path: Path, name: str) -> None:
    encoder = Encoder(load_tokenizer(made(tmp_path / name, before_of(name))))
    assert encoder.by_stretches
    plain = Backend.from_file(str(tmp_path / name / "tokenizer.json"))
    plain.encode_special_tokens = True

    @given(st.lists(st.text(alphabet="ab '.,s1\n\r\t\u00a0\u2003\u180e\x1c\x85éж\u0301<|endoftext|>", max_size=60)))
    @settings(max_examples=300, deadline=None)
    def same(texts: list[str]) -> None:
        expected = [array("H", plain.encode(text, add_special_tokens=False).ids).tobytes() for text in texts]
        assert encoder.encode(texts) == expected
        for text in texts:
            cut = last_cut(text)
            assert b"".join(encoder.encode([text[:cut], text[cut:]])) == encoder.encode([text])[0]

    same()


def test_control_tokens_in_a_text_stay_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(made(tmp_path / "t", before_of("gpt2")))
    ids = array("H", Encoder(tokenizer).encode(["a <|im_end|> b<|endoftext|>"])[0])
    assert not {0, 1} & set(ids)
    assert tokenizer.backend.decode(list(ids)) == "a <|im_end|> b<|endoftext|>"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"type": "Unigram"}),
        ("normalizer", {"type": "NFKC"}),
        ("normalizer", {"type": "Prepend", "prepend": "▁"}),
        ("pre_tokenizer", {"type": "Metaspace"}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated"}),
        ("added_tokens", [{"special": False, "lstrip": True, "rstrip": False, "content": "<x>"}]),
        ("added_tokens", [{"special": False, "lstrip": False, "rstrip": False, "content": "of the"}]),
    ],
)
def test_a_tokenizer_that_cuts_otherwise_is_run_as_it_is(part: str, value: object) -> None:
    good: dict[str, object] = {
        "model": {"type": "BPE"},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [{"special": True, "lstrip": True, "rstrip": False, "content": "<|endoftext|>"}],
    }
    assert cuts_before_spaces(good)
    assert not cuts_before_spaces({**good, part: value})


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "smollm2"])
def test_real_tokenizers_on_real_texts(test_data: Path, name: str) -> None:
    tokenizer = load_tokenizer(test_data / "tokenizers" / name)
    encoder = Encoder(tokenizer)
    assert encoder.by_stretches
    texts = [
        (test_data / "text/en/tinystories_sample_2MiB.txt").read_text()[:150_000],
        (test_data / "text/en/wikitext-2/valid.txt").read_text()[:100_000],
        (test_data / "text/ru/chekhov/Три сестры.txt").read_text()[:50_000],
    ]
    code = "H" if encoder.dtype == "uint16" else "I"
    expected = [array(code, e.ids).tobytes() for e in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]
    assert encoder.encode(texts) == expected
