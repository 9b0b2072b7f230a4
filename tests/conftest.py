"""What all tests share: no network, no settings of whoever runs them, an empty folder to stand in, tiny encoders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slmx import console
from slmx.files import hash_value
from slmx.records import Passage, Question

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell that starts us in the background ignores Ctrl-C for us, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real public data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("SLMX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the real data: set SLMX_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def own_manner(monkeypatch: pytest.MonkeyPatch) -> None:
    """--quiet and --json of one test are not those of the next."""
    monkeypatch.setattr(console, "manner", console.Manner())


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the current one, without any setting from outside."""
    for name in list(os.environ):
        if name.startswith(("SLMX_", "CLEARML_", "AWS_")) or name in ("HF_TOKEN", "NO_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------ a small corpus, and tiny encoders with random weights for tests that need no quality

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


# ------------------------------------------------------ training folders of forms that more than one room's tests read


@pytest.fixture
def msmarco_folder(tmp_path: Path) -> Path:
    """Six passages, three queries, two mining systems; scores as a teacher's pickle of numpy numbers."""
    import gzip
    import json
    import pickle

    import numpy as np

    folder = tmp_path / "msmarco"
    (folder / "queries").mkdir(parents=True)
    passages = [f"{title}: {text} ({number})" for number in range(2) for title, text in list(TEXTS.values())[:3]]
    (folder / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(passages)), "utf-8")
    queries = {10: "who kept the lamp", 11: "what ran on oil", 12: "where is the tower"}
    lines = "".join(f"{qid}\t{text}\n" for qid, text in queries.items())
    (folder / "queries" / "queries.train.tsv").write_text(lines, "utf-8")
    rows = [
        {"qid": 10, "pos": [0], "neg": {"bm25": [3, 1, 2], "dense": [4, 1]}},
        {"qid": 11, "pos": [1, 4], "neg": {"bm25": [0, 5], "dense": [1, 2]}},
        {"qid": 12, "pos": [2], "neg": {"bm25": [5]}},
    ]
    with gzip.open(folder / "msmarco-hard-negatives.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    scores = {
        10: {0: 9.0, 3: 8.5, 1: 1.0, 2: -2.0, 4: 6.0},
        11: {1: 7.0, 4: 5.0, 0: 2.0, 5: 2.5, 2: -1.0},
        12: {2: 6.0, 5: 5.5},
    }
    small = {qid: {pid: np.float32(score) for pid, score in own.items()} for qid, own in scores.items()}
    with gzip.open(folder / "cross-encoder-ms-marco-MiniLM-L-6-v2-scores.pkl.gz", "wb") as out:
        pickle.dump(small, out)
    return folder


@pytest.fixture
def unarxive_folder(tmp_path: Path) -> Path:
    """Five papers, and four sentences that cite papers, one of them a paper that is not there."""
    import json

    folder = tmp_path / "unarxive"
    folder.mkdir()
    papers = [("0704.1", "Lamps", "Of oil and light.", "cs"), ("0704.2", "Ships", "Of engines.", "cs")]
    papers.append(("0704.3", "Towers", "", "cs"))
    papers += [("0704.4", "Harbours", "Of stone.", "cs"), ("0704.5", "Rivers", "Of water.", "cs")]
    (folder / "collection.tsv").write_text("".join("\t".join(paper) + "\n" for paper in papers), "utf-8")
    contexts = [
        {"text": "Lamps and ships were studied [1, 2].", "cited_ids": ["0704.1", "0704.2"]},
        {"text": "All of these [1-3] matter.", "cited_ids": ["0704.1", "0704.3", "0704.2"]},
        {"text": "See also elsewhere.", "cited_ids": ["9999.9"]},
        {"text": "Harbours lie on rivers [4, 5].", "cited_ids": ["0704.4", "0704.5"]},
    ]
    (folder / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contexts), "utf-8")
    return folder


# ---------- a tiny causal model with random weights and a byte-level tokenizer; and the real one, where it is at hand


@pytest.fixture(scope="session")
def shared(test_data: Path) -> Callable[[str], Path]:
    """Gives a path of the real data, or skips the test where it is not."""

    def path(name: str) -> Path:
        found = test_data / name
        if not found.exists():
            pytest.skip(f"{found} is not here")
        return found

    return path


@pytest.fixture(scope="session")
def stories(shared: Callable[[str], Path]) -> Path:
    """The real 260K-parameter story model."""
    return shared("models/stories260K-hf")


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Makes a tokenizer."""
    return make_tokenizer


def make_tokenizer():
    """256 bytes, three special tokens and two that are added but not special, as Qwen3 has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False), "  "])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Llama with random weights: for what does not depend on sense."""
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture
def another_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Makes more of them: another name, seed, chat template or settings."""
    return lambda name="tiny-random", **how: make_tiny(tmp_path / name, **how)


def make_tiny(folder: Path, *, seed: int = 0, template: str = "", **generation: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    if template:
        tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
