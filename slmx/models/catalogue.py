"""Where a model's weights are, without loading any: a folder, the local Hub cache, or the Hub.

Everything here looks at files alone; what a model is made of is named by the content of those files, never by a name or
a revision that can move.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from slmx.errors import SlmxError, UsageError
from slmx.events import Listener, Notice, nobody
from slmx.files import hash_bytes, hash_file, read_json

INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
# What loading needs: weights, configurations, tokenizers, chat templates, and the modules of sentence-transformers.
WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
UNWANTED = ["onnx/*", "openvino/*", "original/*", "consolidated*", "runs/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LFS_NAME = re.compile(r"[0-9a-f]{64}")


def is_hub_id(name: str) -> bool:
    """Does `name` look like `owner/model`?"""
    return _HUB_ID.fullmatch(name) is not None


def find_weights(id_or_path: str | Path) -> Path | None:
    """The folder on this machine that holds a model: the path itself if it is a folder, else the Hub cache's snapshot.

    A snapshot counts when the configuration and all weight files are there. None: it would have to be downloaded.
    """
    path = Path(id_or_path).expanduser()
    if path.is_dir():
        return path
    if not is_hub_id(str(id_or_path)):
        return None
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=str(id_or_path), repo_type="model")
    main = cache / "refs" / "main"
    if not main.is_file():
        return None
    snapshot = cache / "snapshots" / main.read_text(encoding="ascii").strip()
    files = weight_files(snapshot)
    complete = (snapshot / "config.json").is_file() and bool(files) and all(file.is_file() for file in files)
    return snapshot if complete else None


def fetch_weights(id_or_path: str | Path, listen: Listener = nobody) -> Path:
    """As `find_weights`, but what is not here is downloaded from the Hub: safetensors and text files, nothing else.

    Raises:
        SlmxError: the Hub cannot be reached, does not know the model, or wants a token; says what to type.
    """
    found = find_weights(id_or_path)
    if found is not None:
        return found
    name = str(id_or_path)
    if not is_hub_id(name):
        raise UsageError(f"There is no folder {name}.", hint="Give a folder, a preset or a Hub id (owner/model).")
    from huggingface_hub import errors, snapshot_download

    listen(Notice(f"Downloading {name} from the Hugging Face Hub."))
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except errors.GatedRepoError:
        raise SlmxError(
            f"{name} is gated on the Hugging Face Hub.",
            hint=f"Accept its terms at https://huggingface.co/{name} and set HF_TOKEN.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise SlmxError(
            f"The Hugging Face Hub knows no model {name}.", hint="Check the spelling; a private model needs HF_TOKEN."
        ) from None
    except (OSError, errors.HfHubHTTPError) as error:  # offline mode and connection errors are OSErrors
        raise SlmxError(
            f"{name} is not on this machine and the Hugging Face Hub cannot be reached ({type(error).__name__}).",
            hint=f"With a network: hf download {name}. Without: copy the model's folder here and give its path.",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`, sorted; shards by the index, missing ones included.

    The modules of sentence-transformers in subfolders such as `2_Dense` belong to it.
    """
    if (folder / INDEX).is_file():
        files = {folder / name for name in read_json(folder / INDEX)["weight_map"].values()}
    elif (folder / "model.safetensors").is_file():
        files = {folder / "model.safetensors"}
    else:
        files = {file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated")}
    return sorted(files | set(folder.glob("[0-9]*_*/*.safetensors")))


def require_weight_files(folder: Path) -> list[Path]:
    """As `weight_files`, but SlmxError when there are none (named: pickled weights are refused) or one is missing."""
    files = weight_files(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SlmxError(f"{folder} lacks {', '.join(missing)}.", hint="Copy or download the model again.")
    if files:
        return files
    pickled = _first(file for pattern in PICKLED for file in sorted(folder.glob(pattern)))
    if pickled is not None:
        raise SlmxError(
            f"{folder} holds pickled weights ({pickled.name}), which can run code when they are loaded.",
            hint="Convert them to safetensors where you trust them (model.save_pretrained writes safetensors).",
        )
    raise SlmxError(f"{folder} holds no weights (*.safetensors).", hint="Give the folder that save_pretrained wrote.")


def hash_weights(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's weight files. Raises as `require_weight_files`."""
    parts: list[str] = []
    for file in require_weight_files(folder):
        blob = file.resolve().name
        # The Hub's cache names large files by their SHA-256, so gigabytes need not be read again.
        digest = blob if file.is_symlink() and _LFS_NAME.fullmatch(blob) else hash_file(file)
        parts += [file.relative_to(folder).as_posix(), digest]
    return hash_bytes(*parts)


def size_of_weights(folder: Path) -> int:
    """Bytes of a model's weight files. Raises as `require_weight_files`."""
    return sum(file.stat().st_size for file in require_weight_files(folder))


def _first(files: Iterable[Path]) -> Path | None:
    return next(iter(files), None)
