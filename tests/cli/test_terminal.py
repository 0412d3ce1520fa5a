"""Tables and JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from medimg.cli._terminal import clean_text, print_facts, print_json, print_table

ROWS = [(1, "short", "x" * 60), (20, "a longer one, with\x1b[2J", None)]


def set_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


@pytest.mark.parametrize("columns", [24, 40, 79])
def test_a_table_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_terminal(monkeypatch, columns)
    print_table(("#", "name", "text"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= columns
    assert "…" in lines[1]
    assert [line[:2] for line in lines] == [" #", " 1", "20"]


def test_a_table_is_whole_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("#", "name", "text"), ROWS)
    out = capsys.readouterr().out
    assert "x" * 60 in out
    assert "\x1b" not in out
    assert out.splitlines()[2].endswith("–")


def test_wide_characters_count_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_terminal(monkeypatch, 14)
    print_table(("name", "n"), [("胸部正面像", 1), ("é" * 10, 2)])
    assert capsys.readouterr().out.splitlines()[1:] == ["胸部正面像  1", "éééééééééé  2"]


def test_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": (np.float32(0.5), float("nan"), np.int64(3)), "b": [None, True, "é"]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [0.5, None, 3], "b": [None, True, "é"]}
    assert "é" in out


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"a": 1.23456, "long": False, "c": None})
    assert capsys.readouterr().out == "a     1.235\nlong  no\nc     –\n"


def test_lines_are_kept_where_they_are_meant() -> None:
    assert clean_text("a\nb\r") == "a�b�"
    assert clean_text("a\nb\r", lines=True) == "a\nb�"
