"""Progress: a bar in a terminal or if asked for, log lines elsewhere, nothing if not wanted."""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import medimg
from medimg.core import progress as module
from medimg.core.progress import LoggedProgress, Progress, is_notebook, progress_bar, shows_bars
from medimg.errors import MedimgError


def test_a_bar_that_was_asked_for_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("abc", desc="reading", unit="file", progress=True, total=3)) == list("abc")
    assert "reading" in capsys.readouterr().err


def test_other_bars_are_not_written_to_files(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medimg")
    for progress in (False, "auto", None):
        with progress_bar(desc="reading", unit="file", progress=progress, total=5, initial=2) as bar:
            bar.update()
        assert list(progress_bar(range(3), desc="reading", unit="file", progress=progress)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert caplog.text == "", "short tasks have no line"


def test_items_found_before_count(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(desc="embedding", unit="item", progress=True, total=4, initial=2) as bar:
        bar.update(2)
    assert "4/4" in capsys.readouterr().err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test moves."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_long_tasks_are_logged_where_there_is_no_terminal(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medimg")

    def items() -> Iterator[int]:
        for n in range(1200):
            clock.now += 0.25
            yield n

    assert (
        len(list(progress_bar(items(), desc="embedding", unit="batch", progress="auto", total=1200))) == 1200
    )
    seconds = [int(message.rsplit(", ", 1)[1].removesuffix(" s")) for message in caplog.messages]
    assert seconds[:3] == [10, 20, 30], "often at first"
    assert [later - earlier for earlier, later in itertools.pairwise(seconds)] == [10] * 11 + [30] * 6
    assert caplog.messages[0] == "embedding: 40 of 1,200 batches, 10 s"
    assert caplog.messages[-1] == "embedding: 1,200 of 1,200 batches, 300 s"


def test_a_task_that_is_left_says_how_far_it_came(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medimg")
    bar: LoggedProgress[int] = LoggedProgress(None, desc="scanning", unit="series", total=None)
    with bar:
        clock.now += 11
        bar.update(5)
        bar.update(2)
    bar.close()
    assert caplog.messages == ["scanning: 5 series, 11 s", "scanning: 7 series, 11 s"]


@pytest.mark.parametrize("progress", ["yes", "Auto", 1, 0, [], "none"])
def test_other_choices_are_refused(progress: Any) -> None:
    with pytest.raises(MedimgError, match=r'progress must be "auto", True or False; found') as caught:
        progress_bar(desc="reading", unit="file", progress=progress)
    assert isinstance(caught.value, ValueError)


def test_bars_are_shown_in_terminals_and_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [shows_bars(choice) for choice in ("auto", None, True, False)] == [False, False, True, False]
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert [shows_bars(choice) for choice in ("auto", None, True, False)] == [True, True, True, False]
    monkeypatch.setattr(sys, "stderr", None)
    assert not shows_bars("auto")
    ipython = ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for shell, expected in [(None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)]:
        monkeypatch.setattr(ipython, "get_ipython", lambda shell=shell: shell, raising=False)
        assert is_notebook() is shows_bars("auto") is expected


def list_functions() -> Iterator[tuple[str, Any]]:
    """All public functions and methods."""
    for name in (*medimg.__all__, *(f"phantom.{n}" for n in medimg.phantom.__all__)):
        value: Any = medimg
        for part in name.split("."):
            value = getattr(value, part)
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{n}", one) for n, one in inspect.getmembers(value, callable) if n[0] != "_")


def test_the_policy_is_the_same_everywhere() -> None:
    found = {}
    for name, function in list_functions():
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        if "progress" in parameters:
            found[name] = (parameters["progress"].default, parameters["progress"].annotation)
    assert len(found) > 15
    # annotations are texts or types, by module
    assert set(found.values()) <= {("auto", "Progress"), ("auto", Progress)}, found
