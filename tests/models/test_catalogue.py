import json
from pathlib import Path

import pytest

from slmx.errors import SlmxError, UsageError
from slmx.models.catalogue import fetch_weights, find_weights, hash_weights, is_hub_id, size_of_weights, weight_files
from slmx.models.generators import name_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def model(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_a_folder_is_found_as_it_is(tmp_path: Path, cache: Path) -> None:
    assert find_weights(tmp_path) == tmp_path
    assert find_weights("nobody/nothing") is None
    assert find_weights("not-an-id") is None


@pytest.mark.parametrize(
    ("given", "name"),
    [("smollm2-360m", "smollm2-360m"), ("qwen_0.6b", "qwen3-0.6b"), ("owner/some-model", "owner-some-model")],
)
def test_a_name_is_told_without_looking_for_weights(given: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were looked for")

    for module in ("slmx.models.catalogue", "slmx.models.transformers"):
        for function in ("find_weights", "fetch_weights"):
            monkeypatch.setattr(f"{module}.{function}", refuse, raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert name_of(given) == name


def test_a_name_that_nothing_has_brings_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        name_of("smollm2-36m")
    assert "smollm2-360m" in caught.value.hint


def test_a_snapshot_counts_when_it_is_whole(cache: Path) -> None:
    repo = cache / "models--owner--name"
    snapshot = model(repo / "snapshots" / "abc")
    assert find_weights("owner/name") is None
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    assert find_weights("owner/name") == fetch_weights("owner/name") == snapshot
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    assert find_weights("owner/name") is None


def test_what_is_not_here_says_what_to_type(cache: Path) -> None:
    with pytest.raises(SlmxError, match="owner/name is not on this machine") as error:
        fetch_weights("owner/name")
    assert "hf download owner/name" in error.value.hint
    with pytest.raises(UsageError, match="no folder"):
        fetch_weights("nowhere")


def test_trap_15_a_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "other")
    (other / "README.md").write_text("another text")
    assert hash_weights(one) == hash_weights(other)
    assert hash_weights(one) != hash_weights(model(tmp_path / "third", b"weightz"))
    assert size_of_weights(one) == 7


def test_a_blob_of_the_hub_is_named_by_its_hash(tmp_path: Path) -> None:
    from hashlib import sha256

    plain, linked = model(tmp_path / "plain"), model(tmp_path / "linked")
    blob = tmp_path / sha256(b"weights").hexdigest()
    (linked / "model.safetensors").rename(blob)
    (linked / "model.safetensors").symlink_to(blob)
    assert hash_weights(plain) == hash_weights(linked)


def test_shards_and_modules_belong_to_a_model(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"dense")
    (folder / "extra.safetensors").write_bytes(b"extra")
    assert [f.relative_to(folder).as_posix() for f in weight_files(folder)] == [
        "2_Dense/model.safetensors",
        "model.safetensors",
    ]
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "lost.safetensors"}}')
    with pytest.raises(SlmxError, match=r"lost\.safetensors"):
        hash_weights(folder)


@pytest.mark.parametrize("name", ["owner/name", "HuggingFaceTB/SmolLM2-135M", "a/b.c_d-e"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)
    assert not any(is_hub_id(other) for other in (name + "/x", "/" + name, "../" + name, name.replace("/", ""), ""))
