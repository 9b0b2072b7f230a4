from __future__ import annotations

import json
from pathlib import Path

import pytest

from slmx import settings
from slmx.app import run
from slmx.config import dotenv_text
from slmx.errors import UsageError

REPOSITORY = Path(__file__).resolve().parent.parent


def value_and_source(name: str) -> tuple[str, str]:
    line = next(line for line in settings.show() if line.name == name)
    return line.value, line.source


def test_the_order_is_environment_dotenv_toml_default(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_and_source("eval.k") == ("5", "default")
    Path("slmx.toml").write_text("[eval]\nk = 6\n")
    assert value_and_source("eval.k") == ("6", "slmx.toml")
    Path(".env").write_text("SLMX_EVAL__K=7\nOTHER_TOOL=1\n")
    assert value_and_source("eval.k") == ("7", ".env")
    monkeypatch.setenv("SLMX_EVAL__K", "8")
    assert value_and_source("eval.k") == ("8", "environment")
    assert settings.load().eval.k == 8


def test_a_setting_of_one_source_does_not_hide_its_neighbours(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("slmx.toml").write_text('[eval]\nretriever = "dense"\n')
    monkeypatch.setenv("SLMX_EVAL__K", "8")
    assert (settings.load().eval.retriever, settings.load().eval.k) == ("dense", 8)


@pytest.mark.parametrize("source", ["environment", ".env", "slmx.toml"])
def test_trap_19_an_unknown_key_is_an_error_with_the_nearest_name(
    source: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        monkeypatch.setenv("SLMX_EVAL__RETREIVER", "bm25")
    elif source == ".env":
        Path(".env").write_text("SLMX_EVAL__RETREIVER=bm25\n")
    else:
        Path("slmx.toml").write_text('[eval]\nretreiver = "bm25"\n')
    with pytest.raises(UsageError) as error:
        settings.load()
    assert "retriever" in error.value.hint.lower()


def test_a_wrong_value_names_the_setting_and_its_source(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMX_EVAL__K", "0")
    with pytest.raises(UsageError, match=r"eval\.k \(from environment\)"):
        settings.load()


@pytest.mark.parametrize("source", ["environment", ".env"])
def test_secrets_are_never_shown(
    source: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if source == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_very$ecret@")
    else:
        Path(".env").write_text("HF_TOKEN='hf_very$ecret@'\n")
    assert value_and_source("hf_token") == ("********", source)
    loaded = settings.load()
    assert loaded.hf_token is not None
    assert loaded.hf_token.get_secret_value() == "hf_very$ecret@"
    assert run(["config", "show", "--json"]) == 0
    out = capsys.readouterr()
    assert "very$" not in out.out + out.err + repr(loaded) + str(loaded)


def test_a_password_in_an_address_is_never_shown(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLEARML_API_HOST", "https://me:pa/ss@w@clearml.lan:8008")
    Path("slmx.toml").write_text('[s3]\nendpoint = "http://me:pass@minio.lan:9000/x"\n')
    assert value_and_source("clearml.api_host") == ("https://********@clearml.lan:8008", "environment")
    assert value_and_source("s3.endpoint") == ("http://********@minio.lan:9000/x", "slmx.toml")
    assert run(["config", "show"]) == run(["config", "show", "--json"]) == 0
    assert "me:pa" not in capsys.readouterr().out


def test_a_secret_in_slmx_toml_is_refused(empty_folder: Path) -> None:
    Path("slmx.toml").write_text('hf_token = "abc"\n')
    with pytest.raises(UsageError, match="secret") as error:
        settings.load()
    assert "abc" not in str(error.value)


def test_broken_toml_is_named(empty_folder: Path) -> None:
    Path("slmx.toml").write_text("[eval\n")
    with pytest.raises(UsageError, match=r"slmx\.toml is not valid TOML"):
        settings.load()


def test_config_init_writes_files_that_load_and_change_nothing(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "init"]) == 0
    before = settings.show()
    assert all(line.source == "default" for line in before)
    assert run(["config", "init"]) == 4
    assert run(["config", "init", "--overwrite"]) == 0
    # every line that sets something, uncommented, is a setting that loads
    text = Path("slmx.toml").read_text()
    lines = [line.removeprefix("# ") if " = " in line and '"   #' not in line else line for line in text.splitlines()]
    Path("slmx.toml").write_text("\n".join(lines))
    assert [line.value for line in settings.show()] == [line.value for line in before]
    capsys.readouterr()


def test_config_show_as_json_lists_every_setting(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {line["name"] for line in shown} == {name for name, _ in settings.fields()}


def test_the_example_of_an_environment_is_up_to_date() -> None:
    assert (REPOSITORY / ".env.example").read_text() == dotenv_text()


def test_where_the_tests_find_their_data_is_no_setting(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMX_TEST_DATA", "/somewhere")
    assert settings.load().eval.k == 5


@pytest.mark.parametrize("source", ["environment", ".env", "slmx.toml"])
def test_an_empty_value_means_unset(source: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "environment":
        monkeypatch.setenv("SLMX_EVAL__BATCH_SIZE", "")
    elif source == ".env":
        Path(".env").write_text("SLMX_EVAL__BATCH_SIZE=\n")
    else:
        Path("slmx.toml").write_text('[eval]\nbatch_size = ""\n')
    assert value_and_source("eval.batch_size") == ("", "default")


def test_every_line_of_the_written_dotenv_loads_when_it_is_uncommented(empty_folder: Path) -> None:
    lines = [line.removeprefix("# ") if "=" in line else line for line in dotenv_text().splitlines()]
    Path(".env").write_text("\n".join(lines))
    assert settings.load().eval.k == 5


def test_another_file_is_read_when_it_is_named(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_file", None)
    Path("mine.toml").write_text("seed = 3\n")
    assert run(["config", "show", "--config", "mine.toml", "--json"]) == 0
    shown = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert (shown["seed"]["value"], shown["seed"]["source"]) == ("3", "mine.toml")
    assert run(["--config", "absent.toml", "config", "show"]) == 2
    assert run(["config", "show", "--config"]) == 2
