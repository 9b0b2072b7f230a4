"""The one settings object: options > environment > .env > slmx.toml > defaults.

Options are passed by the commands themselves. In the environment and in .env the names start with `SLMX_`, nested ones
are joined by `__` (`SLMX_EVAL__K=10`); names that other tools set (`HF_TOKEN`, `CLEARML_S3_*`) are read as they are,
and `AWS_*` where nothing else is set.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from slmx.errors import UsageError
from slmx.registry import nearest

PREFIX = "SLMX_"
NOT_SETTINGS = frozenset({"SLMX_TEST_DATA"})  # where the tests and benchmarks find real data
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
DEFAULT_FILE = Path("slmx.toml")
ENV_FILE = Path(".env")
CREDENTIALS = frozenset({"s3.access_key", "s3.secret_key", "s3.session_token"})


class EvalSettings(BaseModel):
    """Defaults of `slmx eval run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dataset: str = Field("nq", description="dataset when none is named")
    retriever: str = Field("bm25", description="retriever when none is named")
    k: int = Field(5, ge=1, description="passages given to the model in retriever mode")
    batch_size: int | None = Field(None, ge=1, description="questions a batch; unset: chosen for the device")
    max_new_tokens: int | None = Field(None, ge=1, description="tokens an answer may have; unset: the model preset's")


class JudgeSettings(BaseModel):
    """The model that grades answers (`slmx eval rescore --judge URL`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    api_key: SecretStr | None = Field(None, description="key of the judge's server; no other tool's is taken")
    concurrency: int = Field(8, ge=1, le=256, description="answers graded at the same time")
    retries: int = Field(6, ge=0, le=20, description="times a failed request is sent again, with growing pauses")
    timeout: float = Field(120.0, gt=0, description="seconds that one try may take")


class PassageSettings(BaseModel):
    """How documents are cut into passages where a command needs them and has no option for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    words: int = Field(100, ge=10, description="words a passage, about")
    overlap: int = Field(0, ge=0, description="words that two neighbouring passages share")


def _named(*names: str) -> dict[str, Any]:
    """Environment names of other tools for a setting, in the order in which they are asked."""
    return {"names": names}


class S3Settings(BaseModel):
    """The bucket store. Keys are taken as a pair: AWS_* ones count only where no CLEARML_S3_* one is set."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    endpoint: str = Field(
        "",
        json_schema_extra=_named("CLEARML_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="address of the S3 server (https://host:port); empty: AWS",
    )
    bucket: str = Field("", json_schema_extra=_named("CLEARML_S3_BUCKET"), description="bucket of artifacts")
    data_bucket: str = Field(
        "", json_schema_extra=_named("SLMX_S3_DATA_BUCKET"), description="bucket of datasets; empty: the other one"
    )
    access_key: SecretStr | None = Field(
        None, json_schema_extra=_named("CLEARML_S3_ACCESS_KEY", "AWS_ACCESS_KEY_ID"), description="access key of S3"
    )
    secret_key: SecretStr | None = Field(
        None, json_schema_extra=_named("CLEARML_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"), description="secret key of S3"
    )
    session_token: SecretStr | None = Field(
        None, json_schema_extra=_named("AWS_SESSION_TOKEN"), description="session token that goes with AWS_* keys"
    )
    region: str = Field(
        "us-east-1",
        json_schema_extra=_named("CLEARML_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        description="region that requests are signed for",
    )
    path_style: bool | None = Field(
        None,
        json_schema_extra=_named("CLEARML_S3_PATH_STYLE"),
        description="true: host/bucket/key, false: bucket.host/key; unset: true except on AWS",
    )
    verify_ssl: Annotated[bool | Path, Field(union_mode="left_to_right")] = Field(
        True,
        json_schema_extra=_named("CLEARML_S3_VERIFY_SSL"),
        description="check the server's certificate: true, false, or the path of a CA bundle",
    )
    ca_bundle: Path | None = Field(
        None, json_schema_extra=_named("AWS_CA_BUNDLE"), description="CA bundle used when verify_ssl is true"
    )
    checksum_mode: Literal["auto", "when_supported", "when_required"] = Field(
        "auto", description="trailing checksums: auto (when_required except on AWS), when_supported, when_required"
    )
    backend: Literal["auto", "direct", "obstore", "boto3"] = Field(
        "auto", description="who reads objects: auto (the fastest that can), direct (slmx itself), obstore, boto3"
    )
    retries: int = Field(5, ge=0, le=20, description="times a failed request is sent again, with growing pauses")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection")
    read_timeout: float = Field(60.0, gt=0, description="seconds to wait for bytes")
    concurrency: int = Field(16, ge=1, le=256, description="requests in flight")


class ClearMLSettings(BaseModel):
    """The ClearML server, under the names of its own library."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    api_host: str = Field("", json_schema_extra=_named("CLEARML_API_HOST"), description="address of ClearML's API")
    web_host: str = Field("", json_schema_extra=_named("CLEARML_WEB_HOST"), description="address of ClearML's pages")
    files_host: str = Field(
        "", json_schema_extra=_named("CLEARML_FILES_HOST"), description="address of ClearML's file server"
    )
    config_file: Path | None = Field(
        None, json_schema_extra=_named("CLEARML_CONFIG_FILE"), description="clearml.conf, instead of the one at home"
    )
    access_key: SecretStr | None = Field(
        None, json_schema_extra=_named("CLEARML_API_ACCESS_KEY"), description="access key of ClearML"
    )
    secret_key: SecretStr | None = Field(
        None, json_schema_extra=_named("CLEARML_API_SECRET_KEY"), description="secret key of ClearML"
    )

    def configured(self) -> bool:
        """Is there a server? The library's own default is none of ours."""
        return bool(self.api_host or self.config_file or (Path.home() / "clearml.conf").is_file())


class TrackSettings(BaseModel):
    """Where the numbers of runs go beside their own files."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    clearml: bool | None = Field(None, description="send runs to ClearML; unset: if a server is configured")
    tensorboard: bool | None = Field(None, description="write TensorBoard files; unset: when training")
    also: list[str] = Field([], description="further trackers, of other packages, by name")
    project: str = Field("slmx", min_length=1, description="the project that runs are filed under")
    offline: bool = Field(
        False,
        json_schema_extra=_named("CLEARML_OFFLINE_MODE"),
        description="keep ClearML sessions in the run's folder instead of sending them",
    )
    wait_seconds: float = Field(60.0, ge=0, description="how long the end of a command waits for a slow tracker")


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
    judge: JudgeSettings = JudgeSettings()
    passages: PassageSettings = PassageSettings()
    s3: S3Settings = S3Settings()
    clearml: ClearMLSettings = ClearMLSettings()
    track: TrackSettings = TrackSettings()
    hf_token: SecretStr | None = Field(
        None, json_schema_extra=_named("HF_TOKEN"), description="token of the Hugging Face Hub"
    )

    def secrets(self) -> tuple[str, ...]:
        """The values of all secrets that are set, longest first: what must not stand in anything that is sent away."""
        found = []
        for name, field in fields():
            value: Any = self
            for part in name.split("."):
                value = getattr(value, part)
            if is_secret(field) and value is not None:
                found.append(value.get_secret_value())
        return tuple(sorted(filter(None, found), key=len, reverse=True))

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
    places = (("environment", dict(os.environ)), (str(ENV_FILE), _dotenv()))
    keys_are_ours = any(
        place.get(name) for _, place in places for name in ("CLEARML_S3_ACCESS_KEY", "CLEARML_S3_SECRET_KEY")
    )
    first = [
        (label, source)
        for label, place in places
        for source in (_PrefixedNames(model, place), _OtherNames(model, place, fallback=False))
    ]
    then = [
        (label, _OtherNames(model, place, fallback=True, without=CREDENTIALS if keys_are_ours else frozenset()))
        for label, place in places
    ]
    return [*first, *then, (str(file), _WithoutEmpty(model, toml_file=file))]


class _PrefixedNames(EnvSettingsSource):
    """`SLMX_*` of one place. Names in it that are not ours are somebody else's: left alone."""

    def __init__(self, model: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(model)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items() if value}


class _OtherNames(PydanticBaseSettingsSource):
    """Names that other tools set, as they are: a setting's first one, or the fallbacks behind it. Empty is unset."""

    def __init__(
        self,
        model: type[BaseSettings],
        variables: Mapping[str, str],
        *,
        fallback: bool,
        without: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(model)
        self._variables, self._fallback, self._without = variables, fallback, without

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value of the first name that is set."""
        if field_name in self._without:
            return None, field_name, False
        names = other_names(field)
        # A fallback of another tool (AWS_*) is one even where the setting has no name of ours before it.
        chosen = [name for name in names if name.startswith("AWS_") == self._fallback]
        return next((self._variables[name] for name in chosen if self._variables.get(name)), None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in fields():
            value, _, _ = self.get_field_value(field, name)
            if value is not None:
                head, _, leaf = name.rpartition(".")
                (found.setdefault(head, {}) if head else found)[leaf] = value
        return found


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
        place = source_of(name)
        hint = f"Correct it in {'the environment' if place == 'environment' else place}, or take it out."
        raise UsageError(f"Setting {name} (from {place}): {first['msg']}.", hint=hint) from None


def load_with_hub_token() -> Settings:
    """As `load`, for commands that may fetch models: the Hub's own client reads the environment alone, not our .env."""
    settings = load()
    if settings.hf_token is not None:
        os.environ.setdefault("HF_TOKEN", settings.hf_token.get_secret_value())
    return settings


def proxied() -> bool:
    """Does the environment name a proxy for HTTP?"""
    return any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES)


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting with its dotted name."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def env_name(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting: `eval.k` is SLMX_EVAL__K; names of other tools stay theirs."""
    return next(iter(other_names(field)), PREFIX + name.replace(".", "__").upper())


def other_names(field: FieldInfo) -> tuple[str, ...]:
    """The names of other tools that a setting is read from, in the order in which they are asked."""
    extra = field.json_schema_extra
    names = extra.get("names") if isinstance(extra, dict) else None
    return tuple(map(str, names)) if isinstance(names, tuple) else ()


def named_environment(model: BaseModel) -> dict[str, str]:
    """Settings under the names that ClearML's library and AWS's read, wherever they came from; without the unset."""
    found = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        text = value.get_secret_value() if isinstance(value, SecretStr) else "" if value is None else str(value)
        if text and (named := env_name(name, field)).startswith(("CLEARML_", "AWS_")):
            found[named] = text
    return found


def is_secret(field: FieldInfo) -> bool:
    """Is it a SecretStr? Those never stand in slmx.toml and are masked wherever settings are shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def show() -> list[Setting]:
    """Every setting with its value and where it comes from; secrets are masked, also a password in an address."""
    settings = load()
    lines = []
    for name, field in fields():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        shown = "********" if isinstance(value, SecretStr) else "" if value is None else str(value)
        shown = re.sub(r"(?<=://)\S*@", "********@", shown)
        lines.append(Setting(name, shown, source_of(name), field.description or ""))
    return lines


def source_of(name: str) -> str:
    """Where a setting's value comes from: "environment", ".env", the settings file or "default"."""
    for label, source in _sources(Settings):
        try:
            value: Any = source()
        except Exception:  # a source that cannot be parsed is reported by load(); here only the place is asked for
            return label
        for part in name.split("."):
            if not isinstance(value, Mapping):
                break
            value = value.get(part)
        if value is not None and not isinstance(value, Mapping):
            return label
    return "default"


def _check_names() -> None:
    known = {env_name(name, field): name for name, field in fields()}
    ours = set(known) | {PREFIX + name.split(".")[0].upper() for name, _ in fields() if "." in name}
    for place, names in (("the environment", list(os.environ)), (str(ENV_FILE), list(_dotenv()))):
        for name in names:
            if name.upper().startswith(PREFIX) and name.upper() not in ours | NOT_SETTINGS:
                raise _unknown(name, place, ours)
    path = _file or DEFAULT_FILE
    if path.is_file():
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid TOML: {error}.") from None
        secrets = {name: field for name, field in fields() if is_secret(field)}
        leaves = {name for name, _ in fields()} - set(secrets)
        for name in _flat(content):
            if name in secrets:
                variable = env_name(name, secrets[name])
                raise UsageError(f"{path} holds a secret.", hint=f"Put {variable} into .env or the environment.")
            if name not in leaves:
                raise _unknown(name, str(path), leaves)


def _unknown(name: str, place: str, known: set[str]) -> UsageError:
    near = nearest(name, known)
    said = f'Did you mean "{near}"?' if near else f"Known: {', '.join(sorted(known))}."
    return UsageError(f'Unknown setting "{name}" in {place}.', hint=said)


def _dotenv() -> dict[str, str]:
    """.env as it is: `$` is a letter there, for a secret may hold it."""
    if not ENV_FILE.is_file():
        return {}
    from dotenv import dotenv_values

    return {name: value for name, value in dotenv_values(ENV_FILE, interpolate=False).items() if value is not None}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
