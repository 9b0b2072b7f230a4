"""`slmx train tokenizer`: a byte-level BPE vocabulary from a bounded, seeded sample of a corpus.

No text is out of its reach: 256 of the types are the bytes. Digits stand alone and words keep the space before them, as
in SmolLM2's. The special tokens have the first ids: the end of a text, padding, and the marks of a chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from slmx import files
from slmx.data.convert import in_train
from slmx.data.encode import Encoder, last_cut
from slmx.data.sources import BadRow
from slmx.data.texts import END_MARK, PACKED, Splitting, find_texts, read_texts
from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, Progress, nobody
from slmx.models.tokenizers import CONFIG, FILE, load_tokenizer
from slmx.records import Record

if TYPE_CHECKING:
    from rich.console import RenderableType

PAD = "<|pad|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (END_MARK, PAD, TURN, TURN_END)
REPORT = "report.json"
_STRETCH = 1 << 16  # characters that are drawn, or not, together
_PACKED_AS = 4  # a compressed file holds about so many times its size
_JUDGED = 1 << 20  # characters a source that the report is made from


@dataclass(frozen=True)
class TokenizerOptions:
    """What tokenizer is wanted.

    Attributes:
        texts: files and folders.
        to: the folder to write, which transformers loads.
        vocab_size: all token types, special ones and the 256 bytes included.
        sample_mb: millions of characters to learn from, at most about.
        special: further special tokens.
    """

    texts: Sequence[Path]
    to: Path
    vocab_size: int = 8192
    sample_mb: float = 64.0
    special: Sequence[str] = ()
    how: Splitting = field(default_factory=Splitting)
    seed: int = 0
    overwrite: bool = False


class SourceReport(Record, frozen=True):
    """How well the tokenizer fits a source: from its first million characters that were drawn."""

    path: str
    characters: int
    bytes_per_token: float


class TokenizerReport(Record, frozen=True):
    """What was made, and from how much. `vocab_size` is smaller than asked for where the sample gave no more."""

    folder: str
    hash: str
    vocab_size: int
    special: list[str]
    sample_characters: int
    sample_share: float
    bytes_per_token: float
    sources: list[SourceReport]


def train_tokenizer(asked: TokenizerOptions, listen: Listener = nobody) -> TokenizerReport:
    """Learn a vocabulary and write the tokenizer's folder.

    Raises:
        UsageError: the vocabulary has no room for bytes and special tokens.
        RefusedError: the folder exists and is not to be overwritten, or is somebody else's.
        SlmxError: no text, or a file that is damaged or has another encoding.
    """
    special = list(dict.fromkeys((*SPECIAL, *asked.special)))
    least = 256 + len(special)
    if asked.vocab_size < least:
        raise UsageError(f"A vocabulary of {asked.vocab_size} has no room.", hint=f"Give --vocab-size {least} or more.")
    files.check_place(asked.to, marker=FILE, overwrite=asked.overwrite)
    sample = _Sample(asked, listen)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=asked.vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(iter(sample), trainer)
    if not sample.characters:
        raise SlmxError(f"There is no text in {', '.join(map(str, asked.texts[:4]))}.", hint="Look at the files.")
    with files.whole_folder(asked.to, marker=FILE, overwrite=asked.overwrite) as folder:
        backend.save(str(folder / FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_MARK,
            "pad_token": PAD,
            "additional_special_tokens": [token for token in special if token not in (END_MARK, PAD)],
            "clean_up_tokenization_spaces": False,
        }
        files.write_json(folder / CONFIG, config)
        report = _report(asked, folder, sample, special)
        files.write_json(folder / REPORT, report)
    if report.vocab_size < asked.vocab_size:
        said = f"The sample gives {report.vocab_size:,} token types, not {asked.vocab_size:,}: it is small."
        listen(Notice(said, "warning"))
    return report


class _Sample:
    """The texts to learn from: all, or a share of stretches that a hash with the seed chooses."""

    def __init__(self, asked: TokenizerOptions, listen: Listener) -> None:
        self._asked, self._listen = asked, listen
        self._found = [(path, find_texts([path])[0]) for path in asked.texts]
        size = sum(
            file.path.stat().st_size * (_PACKED_AS if file.path.suffix in PACKED else 1)
            for _, found in self._found
            for file in found
            if file.path.is_file()
        )
        self.share = min(1.0, asked.sample_mb * 1e6 / max(1, size))
        self.characters = 0
        self.judged: dict[Path, list[str]] = {path: [] for path in asked.texts}

    def __iter__(self) -> Iterator[str]:
        for path, text in self._drawn():
            self.characters += len(text)
            if sum(map(len, self.judged[path])) < _JUDGED:
                self.judged[path].append(text)
            self._listen(Progress("Learning", self.characters, None, "characters"))
            if self.characters > 2e6 * self._asked.sample_mb:  # a compressed file was larger than it looked
                return
            yield text

    def _drawn(self) -> Iterator[tuple[Path, str]]:
        for path, found in self._found:
            for file in found:
                for piece in read_texts(file, self._asked.how):
                    if isinstance(piece, BadRow):
                        continue
                    for text in _stretches(piece.text):
                        if self.share >= 1 or in_train(files.hash_bytes(text), self.share, self._asked.seed):
                            yield path, text


def _stretches(text: str) -> Iterator[str]:
    while len(text) > _STRETCH:
        cut = last_cut(text[:_STRETCH]) or _STRETCH
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def _report(asked: TokenizerOptions, folder: Path, sample: _Sample, special: list[str]) -> TokenizerReport:
    tokenizer = load_tokenizer(folder)
    encoder = Encoder(tokenizer)
    rows, all_bytes, all_tokens = [], 0, 0
    for path, texts in sample.judged.items():
        size = sum(len(text.encode()) for text in texts)
        tokens = sum(map(len, encoder.encode(texts))) // (2 if encoder.dtype == "uint16" else 4)
        all_bytes, all_tokens = all_bytes + size, all_tokens + tokens
        characters = sum(map(len, texts))
        rows.append(SourceReport(path=str(path), characters=characters, bytes_per_token=_ratio(size, tokens)))
    return TokenizerReport(
        folder=str(asked.to),
        hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        special=special,
        sample_characters=sample.characters,
        sample_share=round(sample.share, 4),
        bytes_per_token=_ratio(all_bytes, all_tokens),
        sources=rows,
    )


def _ratio(size: int, tokens: int) -> float:
    return round(size / tokens, 3) if tokens else 0.0


def render_report(report: TokenizerReport) -> RenderableType:
    """The report as tables."""
    from rich.console import Group

    from slmx import console

    share = "all" if report.sample_share >= 1 else f"{100 * report.sample_share:.1f} % of it"
    facts = [
        ("token types", f"{report.vocab_size:,}"),
        ("special", " ".join(f"{number} {token}" for number, token in enumerate(report.special))),
        ("learnt from", f"{report.sample_characters:,} characters ({share})"),
        ("bytes a token", f"{report.bytes_per_token:.2f}"),
        ("hash", report.hash[:16]),
        ("folder", report.folder),
    ]
    sources = [(row.path, f"{row.characters:,}", f"{row.bytes_per_token:.2f}") for row in report.sources]
    return Group(
        console.table("Tokenizer", ("", ""), facts),
        console.table("", ("source", "characters judged", "bytes a token"), sources),
    )
