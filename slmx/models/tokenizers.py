"""Tokenizers as the training files need them: found by name, known by content, copied beside what they made.

>>> tokenizer = load_tokenizer("runs/tokenizer")      # a folder, a tokenizer.json, a model, a preset or a Hub id
>>> tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slmx.errors import SlmxError, UsageError
from slmx.files import hash_value, read_json, write_json

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
COPIED = (FILE, CONFIG, "special_tokens_map.json", "chat_template.jinja")
# What separates documents, by the custom of the model families; else the tokenizer's own end-of-sequence token.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|eot|>", "</s>", "<eos>", "[SEP]")
_MAPPING = ("normalizer", "pre_tokenizer", "model")  # the parts of tokenizer.json that decide a text's ids


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer and what its folder says of it.

    Attributes:
        name: as the user named it.
        folder: where its files are.
        backend: `tokenizers.Tokenizer`, without padding and truncation.
        config: the content of tokenizer_config.json; empty where there is none.
    """

    name: str
    folder: Path
    backend: Any
    config: dict[str, Any]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what decides the ids of a text: vocabulary, merges, normaliser, pre-tokenizer, added tokens.

        Two files that give the same ids have one hash, whoever saved them and whatever stands around a text.
        """
        content = self.content
        added = [[token["id"], token["content"], token.get("special", False)] for token in content["added_tokens"]]
        return hash_value([*(content.get(part) for part in _MAPPING), added])

    @cached_property
    def content(self) -> dict[str, Any]:
        """tokenizer.json as an object."""
        import msgspec

        content: dict[str, Any] = msgspec.json.decode(self.backend.to_str())
        return content

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return int(max(self.backend.get_vocab(with_added_tokens=True).values())) + 1

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that stands behind a document; None where the tokenizer has no such token."""
        for token in (*ENDS[:3], self.stated("eos_token"), *ENDS[3:]):
            found = self.backend.token_to_id(token) if token else None
            if found is not None:
                return int(found)
        return None

    def stated(self, key: str) -> str:
        """A special token that tokenizer_config.json states ("eos_token"); "" without one."""
        value = self.config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else ""

    def token(self, index: int) -> str:
        """The token of an id as it is stored."""
        return str(self.backend.id_to_token(index) or f"[{index}]")

    def copy_to(self, folder: Path) -> None:
        """Copy the files to a new folder, which transformers then loads; what it needs and they lack is added."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if not self.config:
            end = {"eos_token": self.token(self.end_of_text)} if self.end_of_text is not None else {}
            write_json(folder / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **end})


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a folder, of a tokenizer.json, of a folder of token files, of a model preset or a Hub id.

    Raises:
        UsageError: nothing goes by this name.
        SlmxError: the folder has no tokenizer.json, or it cannot be read.
    """
    folder = _folder_of(str(name))
    path = folder / FILE
    if not path.is_file():
        kept = "it holds " + ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if any(folder.iterdir()) else ""
        raise SlmxError(
            f"{folder} has no {FILE}" + (f" ({kept})." if kept else "."),
            hint="Give a folder that save_pretrained wrote, or make one: `slmx train tokenizer TEXT --to DIR`.",
        )
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise SlmxError(f"{path} is no tokenizer that can be read: {error}.", hint="Copy it again.") from None
    backend.no_padding()
    backend.no_truncation()
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return Tokenizer(str(name), folder, backend, config if isinstance(config, dict) else {})


def _folder_of(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file() and path.name == FILE:
        return path.parent
    if path.is_dir():
        inside = path / "tokenizer"  # a folder of token files carries its tokenizer there
        return inside if not (path / FILE).is_file() and (inside / FILE).is_file() else path
    from slmx.models.catalogue import find_weights, is_hub_id
    from slmx.presets import ModelPreset, find

    found = find(ModelPreset, name)
    wanted = found[1].id if found and found[1].id else name
    if not is_hub_id(wanted):
        raise UsageError(
            f"There is no tokenizer {name}.",
            hint="Give a folder with tokenizer.json, a preset or a Hub id; `slmx train tokenizer` makes one.",
        )
    here = find_weights(wanted)
    return here if here is not None else _fetched(wanted)


def _fetched(name: str) -> Path:
    """The tokenizer's files of a Hub id, from the cache or the Hub."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json", "*.jinja"]))
    except (OSError, errors.HfHubHTTPError, errors.RepositoryNotFoundError) as error:
        raise SlmxError(
            f"The tokenizer of {name} is not on this machine and the Hugging Face Hub gave none "
            f"({type(error).__name__}).",
            hint=f"With a network: hf download {name}. Without: copy the folder here and give its path.",
        ) from None
