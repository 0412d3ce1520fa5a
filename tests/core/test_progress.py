"""Progress bars: shown if asked for, hidden if not, and by default only in an interactive terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medimg.core.progress import progress_bar

if TYPE_CHECKING:
    import pytest


def test_a_bar_that_was_asked_for_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("abc", desc="reading", unit="file", progress=True, total=3)) == list("abc")
    assert "reading" in capsys.readouterr().err


def test_other_bars_are_not_written_to_files(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (False, None):
        with progress_bar(desc="reading", unit="file", progress=progress, total=5, initial=2) as bar:
            bar.update()
        assert list(progress_bar(range(3), desc="reading", unit="file", progress=progress)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_items_found_before_count(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(desc="embedding", unit="item", progress=True, total=4, initial=2) as bar:
        bar.update(2)
    assert "4/4" in capsys.readouterr().err
