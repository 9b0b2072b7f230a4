"""The one settings object: options > environment > .env > slmx.toml > defaults.

Options are passed by the commands themselves. In the environment and in .env the names start with `SLMX_`, nested ones
are joined by `__` (`SLMX_EVAL__K=10`); the names that other tools set (`HF_TOKEN`) are read as they are.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from slmx.errors import UsageError
from slmx.registry import nearest

PREFIX = "SLMX_"
DEFAULT_FILE = Path("slmx.toml")
ENV_FILE = Path(".env")


class EvalSettings(BaseModel):
    """Defaults of `slmx eval run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dataset: str = Field("nq", description="dataset when none is named")
    retriever: str = Field("bm25", description="retriever when none is named")
    k: int = Field(5, ge=1, description="passages given to the model in retriever mode")
    batch_size: int | None = Field(None, ge=1, description="questions a batch; unset: chosen for the device")
    max_new_tokens: int | None = Field(None, ge=1, description="tokens an answer may have; unset: the model preset's")


class PassageSettings(BaseModel):
    """How documents are cut into passages where a command needs them and has no option for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    words: int = Field(100, ge=10, description="words a passage, about")
    overlap: int = Field(0, ge=0, description="words that two neighbouring passages share")


class Settings(BaseSettings):
    """All settings. Add one here and it has an environment name, a line in `config show` and one in `config init`."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", frozen=True)
    data_dir: Path = Field(Path("data"), description="where datasets live")
    cache_dir: Path = Field(Path(".cache"), description="passages, indexes and vectors, by content; safe to delete")
    output_dir: Path = Field(Path("outputs"), description="where runs are written")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: str = Field("auto", description="auto, bfloat16, float16, float32")
    seed: int = Field(0, ge=0, description="of samples, splits and bootstrap intervals")
    eval: EvalSettings = EvalSettings()
    passages: PassageSettings = PassageSettings()
    hf_token: SecretStr | None = Field(
        None, validation_alias=AliasChoices("HF_TOKEN", "hf_token"), description="token of the Hugging Face Hub"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ours in place of the library's: slmx.toml is added, and .env may hold other tools' names."""
        return (init_settings, *(source for _, source in _sources(settings_cls)))


@dataclass(frozen=True)
class Setting:
    """One line of `slmx config show`."""

    name: str
    value: str
    source: str
    about: str


_file: Path | None = None


def use_file(path: Path) -> None:
    """Read this file instead of slmx.toml (`slmx --config FILE`); UsageError when it is absent."""
    global _file
    if not path.is_file():
        raise UsageError(f"There is no settings file {path}.", hint="`slmx config init` writes one.")
    _file = path


def _sources(model: type[BaseSettings]) -> list[tuple[str, PydanticBaseSettingsSource]]:
    file = _file or DEFAULT_FILE
    return [
        ("environment", EnvSettingsSource(model, env_ignore_empty=True)),
        (".env", _OwnNamesInDotEnv(model, env_file=ENV_FILE, env_ignore_empty=True)),
        (str(file), _WithoutEmpty(model, toml_file=file)),
    ]


class _OwnNamesInDotEnv(DotEnvSettingsSource):
    """Names in .env that are not ours are somebody else's: left alone."""

    def __call__(self) -> dict[str, Any]:
        ours = {*Settings.model_fields, *(env_name(name, field) for name, field in fields())}
        return {name: value for name, value in super().__call__().items() if name in ours or name.upper() in ours}


class _WithoutEmpty(TomlConfigSettingsSource):
    """`batch_size = ""` means unset, as in the environment."""

    def __call__(self) -> dict[str, Any]:
        return _filled(super().__call__())


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _filled(v) if isinstance(v, Mapping) else v for k, v in content.items() if v != ""}


def load() -> Settings:
    """The settings of this folder and environment; UsageError names an unknown or wrong one and where it stands."""
    _check_names()
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        place = _source_of(name)
        hint = f"Correct it in {'the environment' if place == 'environment' else place}, or take it out."
        raise UsageError(f"Setting {name} (from {place}): {first['msg']}.", hint=hint) from None


def load_with_hub_token() -> Settings:
    """As `load`, for commands that may fetch models: the Hub's own client reads the environment alone, not our .env."""
    settings = load()
    if settings.hf_token is not None:
        os.environ.setdefault("HF_TOKEN", settings.hf_token.get_secret_value())
    return settings


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting with its dotted name."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def env_name(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting: `eval.k` is SLMX_EVAL__K; names of other tools stay theirs."""
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return PREFIX + name.replace(".", "__").upper()


def show() -> list[Setting]:
    """Every setting with its value and where it comes from; secrets are masked."""
    settings = load()
    lines = []
    for name, field in fields():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        shown = "********" if isinstance(value, SecretStr) else "" if value is None else str(value)
        lines.append(Setting(name, shown, _source_of(name), field.description or ""))
    return lines


def _source_of(name: str) -> str:
    for label, source in _sources(Settings):
        try:
            value: Any = source()
        except Exception:  # a source that cannot be parsed is reported by load(); here only the place is asked for
            return label
        aliases = {"hf_token": "HF_TOKEN"}
        for part in name.split("."):
            if not isinstance(value, Mapping):
                break
            value = value.get(part, value.get(aliases.get(part, part)))
        if value is not None and not isinstance(value, Mapping):
            return label
    return "default"


def _check_names() -> None:
    known = {env_name(name, field): name for name, field in fields()}
    ours = set(known) | {PREFIX + name.split(".")[0].upper() for name, _ in fields() if "." in name}
    for place, names in (("the environment", list(os.environ)), (str(ENV_FILE), _dotenv_names())):
        for name in names:
            if name.upper().startswith(PREFIX) and name.upper() not in ours:
                raise _unknown(name, place, ours)
    path = _file or DEFAULT_FILE
    if path.is_file():
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}.") from None
        leaves = {name for name, _ in fields()} - {"hf_token"}
        for name in _flat(content):
            if name == "hf_token":
                raise UsageError(f"{path} holds a secret.", hint="Put HF_TOKEN into .env or the environment.")
            if name not in leaves:
                raise _unknown(name, str(path), leaves)


def _unknown(name: str, place: str, known: set[str]) -> UsageError:
    near = nearest(name, known)
    said = f'Did you mean "{near}"?' if near else f"Known: {', '.join(sorted(known))}."
    return UsageError(f'Unknown setting "{name}" in {place}.', hint=said)


def _dotenv_names() -> list[str]:
    if not ENV_FILE.is_file():
        return []
    from dotenv import dotenv_values

    return list(dotenv_values(ENV_FILE, interpolate=False))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
