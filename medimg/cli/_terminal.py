"""Output for people and for programs: tables that fit the terminal, JSON."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["clean_text", "print_facts", "print_json", "print_table"]

_GAP = 2
_NARROWEST = 6


def clean_text(text: str, *, lines: bool = False) -> str:
    """Return a text without control characters, which could change what a terminal shows."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else "�" for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout; in a terminal, wide columns are cut so that each row is one line."""
    cells = [[clean_text(_show(value)) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(columns, *cells, strict=True)]
    if sys.stdout.isatty():
        import shutil

        widths = _fit(widths, shutil.get_terminal_size().columns)
    right = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(columns))]
    for row in ([*columns], *cells):
        padded = [_pad(c, w, right=r) for c, w, r in zip(row, widths, right, strict=True)]
        print((" " * _GAP).join(padded).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values on stdout, one on a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {clean_text(_show(value))}".rstrip())


def print_json(value: object) -> None:
    """Print a value on stdout as JSON; what is not a number is null."""
    import json

    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _show(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _width(text: str) -> int:
    """Return the number of columns of a text in a terminal."""
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fit(widths: list[int], available: int) -> list[int]:
    """Narrow the widest columns until all of them fit, down to a few characters."""
    widths = list(widths)
    while sum(widths) + _GAP * (len(widths) - 1) > available and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _pad(text: str, width: int, *, right: bool) -> str:
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _plain(value: Any) -> Any:
    """Return a value in types of JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
