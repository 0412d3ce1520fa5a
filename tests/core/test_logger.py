"""What medimg logs without a configuration, and with an application's."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from tqdm import tqdm

import medimg
from medimg.core.logger import IN_TABLE, get_logger
from medimg.errors import MedimgError


class Unmanaged(logging.Logger):
    """A logger that :mod:`logging` does not know, so that levels are not forgotten by its manager."""

    def setLevel(self, level: int | str) -> None:
        super().setLevel(level)
        self.__dict__["_cache"].clear()


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger as in a new process, cut off from the root, which has the handlers of pytest."""
    logger = Unmanaged("medimg")
    logger.parent, logger.propagate = logging.getLogger(), False
    monkeypatch.setattr("medimg.core.logger._LOGGER", logger)
    return logger


def test_lines_are_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger().info("epoch %d", 3)
    get_logger().debug("a detail")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" medimg: epoch 3\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["", "medimg"])
def test_handlers_of_an_application_replace_the_default_one(
    capsys: pytest.CaptureFixture[str], own: logging.Logger, name: str
) -> None:
    get_logger().info("before")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    target = own if name else logging.getLogger()
    target.addHandler(handler)
    own.propagate = name == ""
    own.info("kept from a second line")
    get_logger().info("of the application's level, WARNING")
    get_logger().warning("shown")
    target.removeHandler(handler)
    assert capsys.readouterr().err.count("\n") == 1
    assert stream.getvalue() == "kept from a second line\nshown\n"


def test_a_level_that_was_set_stays(capsys: pytest.CaptureFixture[str], own: logging.Logger) -> None:
    own.setLevel(logging.WARNING)
    get_logger().info("hidden")
    get_logger().warning("shown")
    assert "shown" in (shown := capsys.readouterr().err)
    assert "hidden" not in shown


@pytest.mark.parametrize(("verbosity", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_verbosity(capsys: pytest.CaptureFixture[str], verbosity: Any, expected: int) -> None:
    medimg.set_verbosity(verbosity)
    for level in ("debug", "info", "warning", "error"):
        getattr(get_logger(), level)("a line")
    assert capsys.readouterr().err.count("\n") == expected


def test_verbosity_holds_with_an_application_too(own: logging.Logger) -> None:
    medimg.set_verbosity("info")
    stream = io.StringIO()
    own.addHandler(logging.StreamHandler(stream))
    get_logger().info("a line")
    assert stream.getvalue() == "a line\n"


@pytest.mark.parametrize("verbosity", ["Info", "loud", 20, None, ["info"]])
def test_other_verbosities_are_refused(verbosity: Any) -> None:
    with pytest.raises(MedimgError, match='verbosity must be "debug", "info", "warning" or "error"'):
        medimg.set_verbosity(verbosity)


def test_lines_are_written_above_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, desc="reading") as bar:
        bar.update()
        get_logger().info("a line")
    shown = capsys.readouterr().err
    line = next(part for part in shown.replace("\r", "\n").splitlines() if "a line" in part)
    assert line.endswith("medimg: a line")
    assert "reading" not in line


def test_rows_of_a_table_are_not_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger().info("a row", extra=IN_TABLE)
    assert capsys.readouterr().err == ""
