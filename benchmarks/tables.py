"""The table as plain text and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.goals import GOALS
from benchmarks.peers import COMMON, NOT_ITS_WORK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.measured import Row, Table

__all__ = ["END", "START", "filled", "goal_rows", "markdown", "plain", "reasons"]

#: What stands before and after the part of the page that is written by the benchmarks.
START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"
_EMPTY = "-"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 or value == 0 else f"{value:.1g}"


def _cell(row: Row, column: str) -> str:
    """Return a number, and how many times that of medimg it is."""
    value, own = row.value(column), row.value("medimg")
    if value is None:
        return _EMPTY
    if row.unit != "ms" or column == "medimg" or not own:
        return _number(value)
    return f"{_number(value)} ({_number(value / own)}×)"


def _cells(table: Table, columns: Sequence[str]) -> list[list[str]]:
    head = ["", "unit", *columns]
    rows = [[row.title, row.unit or _EMPTY, *(_cell(row, c) for c in columns)] for row in table.values()]
    return [head, *rows]


def goal_rows(table: Table) -> list[list[str]]:
    """Return what was meant to be reached, what was, and "met" or "missed"; without what was not measured."""
    rows = []
    for goal in GOALS:
        value = goal.measured(table)
        if value is not None:
            word = "met" if goal.met(table) else "missed"
            rows.append([goal.text, f"{goal.sense} {_number(goal.bound)}", _number(value), word])
    return rows


def reasons(table: Table, columns: Sequence[str]) -> list[str]:
    """Return why cells are empty, one line for each column, where it is not for other work of the library."""
    lines = []
    for column in columns:
        why: dict[str, list[str]] = {}
        for row in table.values():
            if row.missing.get(column, NOT_ITS_WORK) != NOT_ITS_WORK:
                why.setdefault(row.missing[column], []).append(row.key)
        if why:
            lines.append(
                f"{column}: " + "; ".join(f"{', '.join(keys)}: {text}" for text, keys in why.items())
            )
    return lines


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    padded = [
        [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def plain(table: Table, columns: Sequence[str]) -> str:
    """Return the table, the goals, and why cells are empty, for a terminal."""
    parts = [_aligned(_cells(table, columns))]
    goals = goal_rows(table)
    if goals:
        parts.append(_aligned([["goal", "bound", "measured", ""], *goals]))
    missing = reasons(table, columns)
    if missing:
        parts.append("\n".join(["-, because:", *missing]))
    return "\n\n".join(parts)


def _piped(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def markdown(table: Table, columns: Sequence[str], made_with: Mapping[str, str]) -> str:
    """
    Return what stands between the markers of the page.

    Parameters
    ----------
    table : dict
        What was measured.
    columns : sequence of str
        Who took part.
    made_with : mapping
        What the machine and the versions are.
    """
    goals = goal_rows(table)
    lines = ["", *(f"- {name}: {value}" for name, value in made_with.items()), ""]
    lines += _piped(_cells(table, columns))
    if goals:
        lines += ["", "### Goals", "", *_piped([["goal", "bound", "measured", ""], *goals])]
    missing = reasons(table, [c for c in columns if c not in COMMON])
    if missing:
        lines += ["", "### Empty cells", "", *(f"- {line}" for line in missing)]
    return "\n".join([*lines, ""])


def filled(page: str, text: str) -> str:
    """
    Put a text between the markers of a page.

    Raises
    ------
    ValueError
        If a marker is missing, or stands twice.
    """
    if page.count(START) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs {START} and {END}, each once")
    head, rest = page.split(START)
    return f"{head}{START}\n{text}\n{END}{rest.split(END)[1]}"
