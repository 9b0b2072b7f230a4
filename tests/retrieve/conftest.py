"""A tiny encoder and cross-encoder with random weights, and a small corpus, for tests that need no quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmx.files import hash_value
from slmx.records import Passage, Question

WORDS = ["the", "a", "of", "harbour", "lighthouse", "engine", "tower", "stone", "builder", "water", "river", "keeper"]
WORDS += ["lamp", "oil", "ship", "captain"]
TEXTS = {
    "p1": ("Lighthouse", "The lighthouse keeper filled the lamp with oil."),
    "p2": ("Engine", "The engine of the ship ran on oil and water."),
    "p3": ("Tower", "A tower of stone above the river."),
    "p4": ("Маяк", "Смотритель маяка зажигал лампу каждый вечер."),
    "p5": ("Столица", "Жители столицы гордятся старыми башнями."),
}


class Passages:
    """A corpus in memory that counts how often it is walked through."""

    def __init__(self) -> None:
        self.texts = dict(TEXTS)
        self.walks = 0

    @property
    def corpus_hash(self) -> str:
        return hash_value(list(self.texts.items()))

    def passages(self) -> Iterator[Passage]:
        self.walks += 1
        for passage_id, (title, text) in self.texts.items():
            yield Passage(passage_id=passage_id, title=title, text=text)


@pytest.fixture
def corpus() -> Passages:
    return Passages()


@pytest.fixture
def ask() -> Callable[..., list[Question]]:
    def make(*texts: str) -> list[Question]:
        return [Question(question_id=f"q{n}", question=text, answers=[]) for n, text in enumerate(texts, 1)]

    return make


def save_bert(folder: Path, *, seed: int, labels: int | None = None) -> None:
    """A BERT of two layers with random weights; `labels` makes it a classifier. In transformers' own layout."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    pieces += [*"абвгдежзийклмнопрстуфхцчшщъыьэюя", *(f"##{c}" for c in "абвгдежзийклмнопрстуфхцчшщъыьэюя"), "."]
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        **({"num_labels": labels} if labels else {}),
    )
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config) if labels else BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # wider than the usual start, so that texts differ
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def save_encoder(folder: Path, *, seed: int = 0, pooling: str = "mean", prompts: dict[str, str] | None = None) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    save_bert(folder / "bert", seed=seed)
    transformer = Transformer(str(folder / "bert"))
    modules = [transformer, Pooling(32, pooling_mode=pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers model with random weights."""
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves another tiny encoder; see `save_encoder`."""
    return lambda **settings: save_encoder(tmp_path_factory.mktemp("encoder"), **settings)


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder with random weights: its order means nothing, its plumbing is that of a real one."""
    folder = tmp_path_factory.mktemp("reranker") / "tiny-random-reranker"
    save_bert(folder, seed=7, labels=1)
    return folder


@pytest.fixture(scope="session")
def two_label_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "two-labels"
    save_bert(folder, seed=8, labels=2)
    return folder
