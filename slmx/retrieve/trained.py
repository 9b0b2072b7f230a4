"""What a retriever was trained on, as far as its folder says: questions that it has seen say little about it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from slmx.errors import SlmxError
from slmx.files import read_json
from slmx.retrieve.retrievers import RETRIEVERS, find_preset

TRAINING_IDS = "training_ids.json"  # beside the weights: ids of the training queries, by dataset


def seen_in_training(retriever: str, ids: Collection[str]) -> dict[str, int]:
    """How many of these question ids stand among a retriever's training ids, by training set; none: not named.

    A hybrid has seen what its parts have. Ids are compared as they are, so short ones may meet by chance.

    Raises:
        SlmxError: the file with the ids is there and cannot be read.
    """
    if retriever in RETRIEVERS.names() and retriever not in ("dense", "hybrid"):
        return {}
    preset = find_preset(retriever)[1]
    if preset.parts:
        found = [seen_in_training(part, ids) for part in preset.parts]
        return {name: max(one.get(name, 0) for one in found) for name in dict.fromkeys(n for one in found for n in one)}
    known = _training_ids(Path(preset.model).expanduser()) if preset.model else {}
    asked = set(ids)
    met = {name: len(asked.intersection(own)) for name, own in known.items()}
    return {name: count for name, count in met.items() if count}


def _training_ids(folder: Path) -> dict[str, list[str]]:
    path = folder / TRAINING_IDS
    if not path.is_file():
        return {}
    try:
        return msgspec.convert(read_json(path), dict[str, list[str]])
    except msgspec.ValidationError as error:
        raise SlmxError(
            f"{path} cannot be read: {error}.", hint="It holds a list of ids for each training set."
        ) from None
