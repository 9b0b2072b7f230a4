from __future__ import annotations

from pathlib import Path

import pytest

from slmx import presets
from slmx.errors import UsageError
from slmx.presets import DatasetPreset, ModelPreset, ModePreset, RetrieverPreset
from slmx.registry import Registry


def test_a_name_is_imported_when_it_is_used() -> None:
    registry = Registry("thing", {"path": "pathlib:Path", "broken": "no_such_module:x"})
    assert registry.load("path") is Path
    with pytest.raises(ModuleNotFoundError):
        registry.load("broken")


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UsageError) as error:
        Registry("retriever", {"bm25": "x:y", "dense": "x:z"}).load("bm52")
    assert error.value.hint.startswith('Did you mean "bm25"?')


def test_installed_packages_add_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[slmx.gadgets]\nmine = pathlib:PurePath\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("gadget", {})
    assert registry.names() == ["mine"]
    assert registry.load("mine").__name__ == "PurePath"


@pytest.mark.parametrize("kind", presets.KINDS)
def test_the_built_in_presets_are_sound(kind: str) -> None:
    loaded = presets.load(kind)
    names = [name for own, preset in loaded.items() for name in (own, *preset.aliases)]
    assert len(names) == len(set(names))
    assert all(preset.about for preset in loaded.values())


@pytest.mark.parametrize(
    ("typed", "name"), [("smollm2_135m", "smollm2-135m"), ("qwen_0.6b", "qwen3-0.6b"), ("qwen3-4b", "qwen3-4b")]
)
def test_old_names_of_models_still_work(typed: str, name: str) -> None:
    assert presets.get(ModelPreset, typed)[0] == name


@pytest.mark.parametrize(
    ("typed", "name"),
    [("rag_nq", "nq"), ("local_nq", "nq"), ("local_simple_qa", "simple-qa"), ("simple_qa", "simple-qa")],
)
def test_old_names_of_datasets_still_work(typed: str, name: str) -> None:
    assert presets.get(DatasetPreset, typed)[0] == name


def test_the_old_names_of_modes_still_work() -> None:
    assert [presets.get(ModePreset, n)[0] for n in ("none", "oracle", "retriever")] == [
        "no_context",
        "oracle_context",
        "retriever_context",
    ]


def test_own_presets_add_to_the_built_in_ones_and_win(empty_folder: Path) -> None:
    Path("presets").mkdir()
    Path("presets/retrievers.yaml").write_text("mine: {retriever: bm25, k1: 0.9}\nbm25: {retriever: bm25, k1: 2.0}\n")
    assert presets.get(RetrieverPreset, "mine")[1].k1 == 0.9
    assert presets.get(RetrieverPreset, "bm25")[1].k1 == 2.0
    assert presets.get(RetrieverPreset, "hybrid")[1].parts == ("bm25", "dense")


def test_presets_of_the_home_folder_win_over_the_built_in_ones_and_lose_to_those_here(empty_folder: Path) -> None:
    home = empty_folder / ".config" / "slmx" / "presets"
    home.mkdir(parents=True)
    (home / "retrievers.yaml").write_text("bm25: {retriever: bm25, k1: 0.5}\nathome: {retriever: bm25, k1: 0.6}\n")
    assert presets.get(RetrieverPreset, "bm25")[1].k1 == 0.5
    Path("presets").mkdir()
    Path("presets/retrievers.yaml").write_text("bm25: {retriever: bm25, k1: 2.0}\n")
    assert presets.get(RetrieverPreset, "bm25")[1].k1 == 2.0
    assert presets.get(RetrieverPreset, "athome")[1].k1 == 0.6
    assert presets.get(RetrieverPreset, "hybrid")[1].parts == ("bm25", "dense")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mine: {retriever: bm25, kl: 1}", 'Did you mean "k1"'),
        ("mine: {retriever: bm26}", "retriever"),
        ("mine: {retriever: bm25, k1: -1}", "k1"),
        ("[1, 2]", "must map names"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [exit]", "not valid YAML"),
    ],
)
def test_trap_19_a_wrong_preset_is_one_clear_error(content: str, said: str, empty_folder: Path) -> None:
    Path("presets").mkdir()
    Path("presets/retrievers.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"presets/retrievers\.yaml") as error:
        presets.load("retrievers")
    assert said in str(error.value)
