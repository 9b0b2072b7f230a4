"""The plan of a run: which model answers in which mode with which retriever, a cell each.

Several models, modes, retrievers and k make one plan: retrieve for all cells first, then load each model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from slmx import presets
from slmx.errors import UsageError
from slmx.files import slug
from slmx.presets import ModePreset
from slmx.records import Context, GoldLevel, Question, Record

CANONICAL: dict[Context, str] = {"none": "no_context", "oracle": "oracle_context", "retrieved": "retriever_context"}


class Cell(Record, frozen=True):
    """One experiment: a model, a mode and, in retriever mode, a retriever with its k.

    `mode` is the canonical name, `preset` the mode preset whose template is used.
    """

    model: str
    dataset: str
    mode: str
    context: Context
    preset: str
    retriever: str = ""
    k: int = 0

    @property
    def folder(self) -> str:
        """The name of the cell's folder under the output folder."""
        name = f"{slug(self.model)}_{slug(self.dataset)}_{self.mode}"
        return f"{name}_{slug(self.retriever)}_k{self.k}" if self.context == "retrieved" else name

    @property
    def shows(self) -> str:
        """What the cell shows the model, in a word or two."""
        return f"{self.retriever}, k={self.k}" if self.context == "retrieved" else self.context


class Plan(Record, frozen=True):
    """All cells of one command, grouped by model, and the questions they share: so many `of` the dataset's."""

    cells: list[Cell]
    dataset: str
    questions: int
    of: int
    oracle: GoldLevel
    output_dir: str


def mode_preset(name: str) -> tuple[str, ModePreset]:
    """A mode by name or alias: its own name and its preset; UsageError with the nearest name."""
    return presets.get(ModePreset, name)


def make_cells(
    models: Sequence[str], dataset: str, modes: Sequence[str], retrievers: Sequence[str], ks: Sequence[int]
) -> list[Cell]:
    """Every combination that makes sense, without repeats, grouped by model.

    Args:
        models: names as they appear in folders, in the order wanted.
        dataset: the dataset's name.
        modes: names or aliases.
        retrievers, ks: used by modes with retrieved context.

    Raises:
        UsageError: an unknown mode, or modes that ask for samples of different sizes.
    """
    cells: dict[Cell, None] = {}
    for model in models:
        for mode in modes:
            preset, settings = mode_preset(mode)
            context = settings.context
            base = Cell(model=model, dataset=dataset, mode=CANONICAL[context], context=context, preset=preset)
            if context == "retrieved":
                for retriever in retrievers:
                    for k in ks:
                        cells[msgspec.structs.replace(base, retriever=retriever, k=k)] = None
            elif context == "oracle":
                cells[msgspec.structs.replace(base, retriever="oracle")] = None
            else:
                cells[base] = None
    return list(cells)


def sample_size(modes: Sequence[str], max_samples: int | None) -> int | None:
    """How many questions are drawn: --max-samples, or what the modes ask for; every mode scores the same ids.

    Raises:
        UsageError: the modes want samples of different sizes, and --max-samples does not settle it.
    """
    if max_samples is not None:
        return max_samples
    wanted = {mode_preset(mode)[1].max_samples for mode in modes}
    if len(wanted) > 1:
        sizes = ", ".join("all" if size is None else str(size) for size in sorted(wanted, key=lambda s: s or 0))
        raise UsageError(
            f"The modes ask for different samples ({sizes}); all modes of a run score the same questions.",
            hint="Run them one by one, or give --max-samples N for all.",
        )
    return wanted.pop() if wanted else None


def sample(questions: Sequence[Question], size: int | None, seed: int) -> list[Question]:
    """A seeded sample in the dataset's own order; all questions where `size` is None or not smaller."""
    import random

    if size is None or size >= len(questions):
        return list(questions)
    kept = sorted(random.Random(seed).sample(range(len(questions)), size))
    return [questions[place] for place in kept]


def cell_folder(output_dir: Path, name: str, cell: Cell) -> Path:
    """Where a cell's files go; `name` puts a folder between."""
    return output_dir / slug(name) / cell.folder if name else output_dir / cell.folder
