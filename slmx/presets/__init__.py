"""Presets are data: YAML read by a safe loader into checked models; nothing in it is run or imported.

Files of the same name in `./presets/`, then in `~/.config/slmx/presets/`, add to the built-in ones and win over them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slmx.errors import UsageError
from slmx.registry import nearest, unknown_name

_PLACES = re.compile(r"\{\w+\}")


class Preset(BaseModel):
    """What every preset has. `about` is one line for lists and completion."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str = ""
    aliases: tuple[str, ...] = ()


class ModelPreset(Preset):
    """A generator by name. `generator` is a registered generator; `id` a Hub id or a folder, empty for baselines."""

    generator: str = "transformers"
    id: str = ""
    chat: bool | None = Field(default=None, description="use the chat template; unset: where the tokenizer has one")
    max_new_tokens: int = Field(default=48, ge=1)


class RetrieverPreset(Preset):
    """A retriever by name. `retriever` is a registered kind; the rest are its parameters."""

    retriever: Literal["oracle", "bm25", "dense", "hybrid"]
    model: str = Field(default="", description="dense: a sentence-transformers id or folder")
    package: str = Field(default="", description="dense: an installed package that carries the model's folder")
    query_prompt: str = ""
    passage_prompt: str = ""
    k1: float = Field(default=1.5, gt=0)
    b: float = Field(default=0.75, ge=0, le=1)
    language: Literal["auto", "english", "russian", "none"] = "auto"
    parts: tuple[str, ...] = Field(default=(), description="hybrid: the retrievers that are fused")
    rrf_k: int = Field(default=60, ge=1, description="hybrid: the constant of reciprocal rank fusion")


class DatasetPreset(Preset):
    """A dataset by name: the files under the data folder that hold it, the first that exists is taken."""

    files: tuple[str, ...]
    train: str = Field(default="", description="the file of its part for training")
    eval: str = Field(default="", description="the file of the other part")
    package: bool = Field(default=False, description="the files come with slmx")
    simple_qa: bool = Field(default=False, description="graded correct / incorrect / not attempted as well")


class ModePreset(Preset):
    """How a prompt of one mode is built. `{question}` and `{passages}` are replaced as plain text, nothing else is."""

    context: Literal["none", "oracle", "retrieved"]
    template: str
    passage: str = Field(default="{text}", description="one passage: {rank}, {title} and {text} are replaced")
    separator: str = "\n\n"
    max_samples: int | None = Field(default=None, description="a seeded sample of this size")


class QueryPreset(Preset):
    """How a model is asked for a query that a document answers; all of it is filled by plain replacement.

    `template` has a place for `{document}`, and one for `{examples}` where examples are shown. Without examples of its
    own, a preset that shows some takes them from the user's pairs.
    """

    template: str
    example: str = Field(default="", description="one example: {document} and {query} are replaced")
    separator: str = "\n\n"
    examples: tuple[dict[Literal["document", "query"], str], ...] = ()
    max_new_tokens: int = Field(default=48, ge=1)

    @model_validator(mode="after")
    def _places(self) -> QueryPreset:
        if "{document}" not in self.template:
            raise ValueError("the template has no {document}")
        if "{examples}" in self.template and not {"{document}", "{query}"} <= set(_PLACES.findall(self.example)):
            raise ValueError("the template shows {examples}, and example has no {document} and {query}")
        if any(set(one) != {"document", "query"} for one in self.examples):
            raise ValueError("an example is a document and a query")
        return self


class TransformerPreset(Preset):
    """The shape of a transformer that `slmx train lm` makes (slmx.train.transformer.Shape)."""

    vocab_size: int = Field(ge=2)
    dim: int = Field(ge=2)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1, description="grouped-query attention; unset: as many as heads")
    hidden: int = Field(ge=1, description="width of the MLP")
    context: int = Field(ge=2, description="tokens a window")
    activation: Literal["swiglu", "relu2"] = "swiglu"
    qk_norm: bool = False
    tied: bool = Field(default=True, description="the head is the embedding")
    rope_theta: float = Field(default=10_000, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    batch_tokens: int = Field(default=8192, ge=1, description="tokens a step, unless --batch-tokens says more")

    @model_validator(mode="after")
    def _fits(self) -> TransformerPreset:
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"dim {self.dim} must be an even number for each of {self.heads} heads")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


KINDS: dict[str, type[Preset]] = {
    "models": ModelPreset,
    "retrievers": RetrieverPreset,
    "datasets": DatasetPreset,
    "modes": ModePreset,
    "queries": QueryPreset,
    "transformers": TransformerPreset,
}
P = TypeVar("P", bound=Preset)


def folders() -> list[Path]:
    """Where presets are looked for, the strongest first."""
    return [Path("presets"), Path.home() / ".config" / "slmx" / "presets", Path(__file__).parent]


@lru_cache(maxsize=64)
def _load(path: Path, kind: str, _mtime: int) -> dict[str, Preset]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must map names to presets.")
    return {str(name): _check(KINDS[kind], path, str(name), value) for name, value in raw.items()}


def _check(model: type[Preset], path: Path, name: str, value: Any) -> Preset:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = nearest(where, model.model_fields)
            hint = (f'Did you mean "{near}"? ' if near else "") + f"Known: {', '.join(model.model_fields)}."
            raise UsageError(f'{path}: preset "{name}" has an unknown key "{where}".', hint=hint) from None
        raise UsageError(f'{path}: preset "{name}": {where}: {first["msg"]}.') from None


def load(kind: str) -> dict[str, Preset]:
    """All presets of a kind (a key of KINDS) by name, the user's own first in strength."""
    found: dict[str, Preset] = {}
    for folder in reversed(folders()):
        path = folder / f"{kind}.yaml"
        if path.is_file():
            found.update(_load(path, kind, path.stat().st_mtime_ns))
    return found


def find(kind: type[P], name: str) -> tuple[str, P] | None:
    """The preset that goes by `name`, an alias of it or the name with `_` for `-`, with its own name; else None."""
    label = next(k for k, model in KINDS.items() if model is kind)
    presets = load(label)
    for own, preset in presets.items():
        if name in (own, *preset.aliases) or name.replace("_", "-") == own.replace("_", "-"):
            assert isinstance(preset, kind)
            return own, preset
    return None


def get(kind: type[P], name: str, *, hint: str = "") -> tuple[str, P]:
    """As `find`, but UsageError with the nearest name when there is none."""
    found = find(kind, name)
    if found is None:
        label = next(k for k, model in KINDS.items() if model is kind)
        known = [n for own, preset in load(label).items() for n in (own, *preset.aliases)]
        raise unknown_name(label.removesuffix("s") + " preset", name, known, hint=hint)
    return found
