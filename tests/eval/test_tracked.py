"""A cell of `slmx eval run` in its trackers, and its energy in results.json."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from slmx.app import run

ARGS = ["eval", "run", "--model", "extractive", "--mode", "oracle", "--dataset", "sample", "--max-samples", "30"]


@pytest.fixture
def cell(empty_folder: Path) -> Path:
    return empty_folder / "outputs" / "extractive_sample_oracle_context"


def test_a_cell_reports_its_results_to_clearml_and_tensorboard(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", "a-s$cret")
    assert run([*ARGS, "--clearml", "--tensorboard", "--quiet"]) == 0
    (path,) = cell.glob("logs/clearml-*.zip")
    with zipfile.ZipFile(path) as session:
        files = {name: session.read(name) for name in session.namelist()}
    task = json.loads(files["task.json"])
    assert task["name"] == cell.name and task["hyperparams"]["slmx"]["options/dataset"]["value"] == "sample"
    assert {one["key"] for one in task["execution"]["artifacts"]} == {"results", "predictions", "memory"}
    events = [event for line in files["metrics.jsonl"].splitlines() for event in json.loads(line)]
    results = json.loads((cell / "results.json").read_text())
    singles = {e["variant"]: e["value"] for e in events if e["metric"] == "Summary"}
    assert singles["token_recall"] == results["token_recall"] and singles["num_examples"] == 30
    assert {"metrics", "memory"} == {e["metric"] for e in events if e["type"] == "plot"}
    assert any(e["metric"] == "speed" and e["iter"] == 30 for e in events)
    assert sum(name.endswith(".html") for name in files) == 30
    log = b"".join(files["log.jsonl"].splitlines())
    assert b"Plan: 1 cells" in log
    assert not any(b"s$cret" in content for content in files.values())
    assert list((cell / "logs" / "runs").glob("events.out.tfevents.*"))


def test_without_trackers_nothing_of_them_is_there_or_loaded(cell: Path) -> None:
    import sys

    before = set(sys.modules)
    assert run([*ARGS, "--no-clearml", "--quiet"]) == 0
    assert not (cell / "logs").exists()
    assert not {name for name in set(sys.modules) - before if name.startswith(("clearml", "tensorboard"))}


def test_clearml_without_a_server_is_refused_before_anything_runs(
    cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ARGS, "--clearml"]) == 2
    assert "No ClearML server is configured" in capsys.readouterr().err
    assert not cell.exists()


def test_energy_and_phases_stand_in_the_files(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl = cell.parents[1] / "powercap" / "intel-rapl:0"
    rapl.mkdir(parents=True)
    (rapl / "max_energy_range_uj").write_text("1000000000")
    (rapl / "energy_uj").write_text("0")
    readings = iter(range(10**6))

    def counting(path: Path, *_: object, **__: object) -> str:  # a counter that grows by 3 joules a reading
        return str(next(readings) * 3_000_000 % 10**9) if path.name == "energy_uj" else real(path)

    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", counting)
    monkeypatch.setattr("slmx.track.energy.POWERCAP", rapl.parent)
    assert run([*ARGS, "--quiet"]) == 0
    monkeypatch.undo()
    results = json.loads((cell / "results.json").read_text())
    assert results["energy_source"] == "cpu" and results["energy_joules"] > 0
    assert results["energy_joules_per_question"] == pytest.approx(results["energy_joules"] / 30, abs=1e-4)
    memory = json.loads((cell / "memory_usage.json").read_text())
    operations = [line["operation"] for line in memory["detailed_log"]]
    begin, end = operations.index("before_generate"), operations.index("after_generate")
    assert operations.index("before_retrieve") < operations.index("after_retrieve") < begin < end
    joules = [line["energy_joules"] for line in memory["detailed_log"]]
    assert joules[end] > joules[begin]
