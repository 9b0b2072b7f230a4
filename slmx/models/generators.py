"""What answers questions: the protocol of generators, their registry, and how a name becomes one.

Heavy libraries are imported by the implementations, and weights are loaded by `load()` or the first `generate`, so that
opening, planning and `--dry-run` stay cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from slmx.errors import UsageError
from slmx.events import Listener, nobody
from slmx.files import slug
from slmx.models.catalogue import is_hub_id
from slmx.records import Completion, Request
from slmx.registry import Registry, unknown_name

if TYPE_CHECKING:
    from slmx.presets import ModelPreset

GENERATORS = Registry(
    "generator",
    {
        "transformers": "slmx.models.transformers:TransformersGenerator",
        "extractive": "slmx.models.baselines:Extractive",
        "first-passage": "slmx.models.baselines:FirstPassage",
        "oracle-answer": "slmx.models.baselines:OracleAnswer",
    },
)
THINKING_TOKENS = 1024  # room for the thinking block, when the user asks for thinking and names no limit


class Window(Protocol):
    """How long a prompt may be. `budget` is in tokens: the model's context window less the tokens to be generated."""

    @property
    def budget(self) -> int:
        """Most tokens that a rendered prompt may have, the chat template's and the BOS among them."""
        ...

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each rendered prompt, the chat template's and the BOS among them."""
        ...


class Generator(Protocol):
    """Answers requests. The smallest complete one (register it as an entry point of the group `slmx.generators`):

    Example:
        >>> class Parrot:
        ...     def __init__(self, opening: Opening) -> None:
        ...         self.name = opening.name
        ...     def fingerprint(self) -> dict[str, Any]:
        ...         return {"generator": "parrot", "version": 1}
        ...     def describe(self) -> dict[str, str]:
        ...         return {}
        ...     def size_bytes(self) -> int:
        ...         return 0
        ...     def window(self) -> None:
        ...         return None
        ...     def load(self) -> float:
        ...         return 0.0
        ...     def plan(self, requests, batch_size):
        ...         return [[i] for i in range(len(requests))]
        ...     def generate(self, batch):
        ...         return [Completion(question_id=r.question.question_id, text=r.question.question) for r in batch]
        ...     def close(self) -> None:
        ...         pass
        >>> from slmx.records import Prompt, Question
        >>> request = Request(question=Question(question_id="1", question="why?", answers=[]), prompt=Prompt(text=""))
        >>> Parrot(Opening(name="parrot", source="")).generate([request])[0].text
        'why?'
    """

    name: str
    """The preset's name, the folder's, or the Hub id as one path segment; used in names of output folders."""

    def fingerprint(self) -> dict[str, Any]:
        """What the texts depend on, by content: hashes of weights, tokenizer and template, and the parameters.

        Never a name or a revision that can move; equal fingerprints mean equal texts for equal batches.
        """
        ...

    def describe(self) -> dict[str, str]:
        """What it really runs on, for a run's record: `device`, `dtype`, `quantisation`; empty without weights."""
        ...

    def size_bytes(self) -> int:
        """Bytes of the weights on disk; 0 without weights."""
        ...

    def window(self) -> Window | None:
        """The token budget of prompts; None: no limit, prompts are never cut."""
        ...

    def load(self) -> float:
        """Load what `generate` needs, unless it is loaded; returns the seconds that loading took."""
        ...

    def plan(self, requests: Sequence[Request], batch_size: int | None) -> list[list[int]]:
        """Indices of `requests` in batches, each index once; the same for the same requests and batch size.

        Decided once a cell from all its requests, so that a resumed run repeats whole batches. None: as many to a
        batch as suits the machine and the real lengths.
        """
        ...

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        """A completion for each request, in the batch's order.

        A request that cannot be answered gives `stop="failed"` with its `error`; when the engine fails, it raises.
        """
        ...

    def close(self) -> None:
        """Free weights and memory; the generator can be loaded again."""
        ...


@dataclass(frozen=True)
class GeneratorOptions:
    """How a model is run; baselines ignore all of it. Unset (None) means what the preset says, then the default.

    `thinking` asks a model to think first, whose chat template must know how; its block is taken out of the text.
    `stops` are the rules beside the end of the text and the token limit. `temperature` 0 is greedy; above it each text
    is drawn from `seed` and the question's id. `log_probs` asks for `Completion.log_prob`.
    """

    max_new_tokens: int | None = None
    chat: bool | None = None
    thinking: bool = False
    stops: tuple[Literal["line", "question"], ...] = ("line", "question")
    temperature: float = 0.0
    seed: int = 0
    log_probs: bool = False
    dtype: str = "auto"
    device: str = "auto"
    load_in_8bit: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 (greedy) or above, not {self.temperature}.")


@dataclass(frozen=True)
class Opening:
    """What a generator is made from: its name, where its weights are (a folder or Hub id), options, and who listens."""

    name: str
    source: str
    options: GeneratorOptions = GeneratorOptions()
    listen: Listener = nobody


def open_generator(name_or_path: str, *, listen: Listener = nobody, **options: Any) -> Generator:
    """The generator of a preset, a model's folder or a Hub id, in this order; nothing heavy is loaded yet.

    Args:
        name_or_path: such as "extractive", "smollm2-135m", "runs/my-model" or "Qwen/Qwen3-0.6B".
        listen: told what a person should know (a chat template is used, a download starts …).
        options: fields of `GeneratorOptions`.

    Raises:
        UsageError: an unknown name (with the nearest one) or option.
        SlmxError: a model that is not here and cannot be had, or is unsafe to load.
    """
    chosen = _checked(options)
    name, preset = _resolved(name_or_path)
    if preset is None:
        return cast(Generator, GENERATORS.load("transformers")(Opening(name, name_or_path, _filled(chosen), listen)))
    return cast(Generator, GENERATORS.load(preset.generator)(_from_preset(name, preset, chosen, listen)))


def name_of(name_or_path: str) -> str:
    """The name that `open_generator` would give, without opening or fetching anything; its UsageError, too."""
    return _resolved(name_or_path)[0]


def _resolved(name_or_path: str) -> tuple[str, ModelPreset | None]:
    from slmx.presets import ModelPreset, find, load

    found = find(ModelPreset, name_or_path)
    if found is not None:
        return found
    if Path(name_or_path).expanduser().is_dir():
        return slug(Path(name_or_path).expanduser().resolve().name), None
    if is_hub_id(name_or_path):
        return slug(name_or_path), None
    presets = cast("dict[str, ModelPreset]", load("models"))
    known = [n for own, preset in presets.items() for n in (own, *preset.aliases)]
    raise unknown_name("model", name_or_path, known, hint="A model's folder or a Hub id (owner/model) will do, too.")


def _checked(options: dict[str, Any]) -> GeneratorOptions:
    known = [field.name for field in fields(GeneratorOptions)]
    for name in options:
        if name not in known:
            raise unknown_name("option of generators", name, known)
    return GeneratorOptions(**options)


def _from_preset(name: str, preset: ModelPreset, options: GeneratorOptions, listen: Listener) -> Opening:
    chat = preset.chat if options.chat is None else options.chat
    return Opening(name, preset.id, _filled(replace(options, chat=chat), preset.max_new_tokens), listen)


def _filled(options: GeneratorOptions, max_new_tokens: int = 48) -> GeneratorOptions:
    if options.max_new_tokens is not None:
        return options
    return replace(options, max_new_tokens=max_new_tokens + (THINKING_TOKENS if options.thinking else 0))
