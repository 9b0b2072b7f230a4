"""The fan of trackers, and who is chosen by settings and options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slmx import settings
from slmx.errors import SlmxError, UsageError
from slmx.events import Notice, Progress
from slmx.track.trackers import TRACKERS, TrackedRun, Trackers, TrackOptions, chosen_trackers, open_trackers

RUN = TrackedRun("run", Path(), "training", {})


class Book:
    """A tracker that writes its calls down."""

    def __init__(self, options: Any = None, listen: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.calls.append((name, *given))


class Full(Book):
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device")


def test_every_tracker_gets_every_call() -> None:
    books = {"a": Book(), "b": Book()}
    trackers = Trackers(books)
    with trackers.run(RUN):
        trackers.scalars(1, {"loss": 2.0})
    trackers.finish()
    expected = [("start", RUN), ("scalars", 1, {"loss": 2.0}), ("close", "done"), ("finish",)]
    assert books["a"].calls == books["b"].calls == expected


def test_a_tracker_that_cannot_write_is_left_out_with_one_warning() -> None:
    heard: list[Progress | Notice] = []
    book = Book()
    trackers = Trackers({"full": Full(), "good": book}, heard.append)
    for step in (1, 2):
        trackers.scalars(step, {})
    assert [type(event) for event in heard] == [Notice]
    assert isinstance(heard[0], Notice) and "full is left out" in heard[0].text and heard[0].level == "warning"
    assert len(book.calls) == 2


def test_a_programming_error_is_not_swallowed() -> None:
    with pytest.raises(AttributeError):
        Trackers({"none": object()}).scalars(1, {})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "stopped"), (SlmxError("x", code=143), "stopped"), (SlmxError("x"), "failed")],
)
def test_how_a_run_ended_is_told(error: BaseException, status: str) -> None:
    book = Book()
    trackers = Trackers({"book": book})
    with pytest.raises(type(error)), trackers.run(RUN):
        raise error
    assert book.calls[-1] == ("close", status)


def test_trackers_are_finished_when_the_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book()
    monkeypatch.setattr(TRACKERS, "load", lambda _name: lambda _options, _listen: book)
    with pytest.raises(ValueError), open_trackers(TrackOptions(("book",))):
        raise ValueError
    assert book.calls == [("finish",)]


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(UsageError, match='no tracker "clearmel"'), open_trackers(TrackOptions(("clearmel",))):
        pass


# ------------------------------ who is chosen


def names(clearml: bool | None = None, tensorboard: bool | None = None, **other: Any) -> tuple[str, ...]:
    return tuple(chosen_trackers(settings.load(), clearml=clearml, tensorboard=tensorboard, **other).names)


def test_without_a_server_nothing_is_tracked(empty_folder: Path) -> None:
    assert names() == ()
    assert names(default_tensorboard=True) == ("tensorboard",)
    assert names(default_tensorboard=True, tensorboard=False) == ()


@pytest.mark.parametrize("how", ["host", "file", "home", ".env"])
def test_clearml_counts_as_configured(how: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "host":
        monkeypatch.setenv("CLEARML_API_HOST", "https://api.example.org")
    elif how == "file":
        monkeypatch.setenv("CLEARML_CONFIG_FILE", "mine.conf")
    elif how == "home":
        (empty_folder / "clearml.conf").write_text("api {}")
    else:
        (empty_folder / ".env").write_text(
            "CLEARML_API_HOST=https://api.example.org\nCLEARML_API_SECRET_KEY=a-s$cret\n"
        )
    assert names() == ("clearml",)
    assert names(clearml=False) == ()


def test_clearml_without_a_server_is_refused_and_never_goes_to_the_default_one(empty_folder: Path) -> None:
    with pytest.raises(UsageError, match="No ClearML server is configured") as caught:
        names(clearml=True)
    assert "CLEARML_API_HOST" in caught.value.hint


def test_offline_needs_no_server(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    options = chosen_trackers(settings.load(), clearml=True, tensorboard=None)
    assert options.names == ("clearml",) and options.offline


def test_secrets_of_dotenv_reach_the_library_and_no_repr(empty_folder: Path) -> None:
    lines = ["CLEARML_API_HOST=https://x", "CLEARML_API_SECRET_KEY=a-s$cret", "CLEARML_S3_SECRET_KEY=t$p"]
    (empty_folder / ".env").write_text("\n".join(lines))
    options = chosen_trackers(settings.load(), clearml=None, tensorboard=None)
    assert options.environment["CLEARML_API_SECRET_KEY"] == "a-s$cret"
    assert options.secrets == ("a-s$cret", "t$p")
    assert "s$cret" not in repr(options) and "t$p" not in repr(options)


def test_trackers_of_other_packages(empty_folder: Path) -> None:
    (empty_folder / "slmx.toml").write_text('[track]\nalso = ["mlflow"]\ntensorboard = true\n')
    assert names() == ("tensorboard", "mlflow")
