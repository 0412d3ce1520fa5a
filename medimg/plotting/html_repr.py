"""HTML of objects in a notebook: a small table. All text is escaped."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = ["facts_html", "format_size", "join_names", "replace_controls", "rows_html", "table_html"]

_LONGEST: Final = 200
#: Control characters, and those that reorder text.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CELL: Final = ' style="text-align:left"'
_BOLD: Final = ' style="font-weight:bold"'


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """
    Return a table of facts by name; those that are None or "" are left out.

    >>> facts_html("Series", {"modality": "<CT>", "units": ""}).count("&lt;CT&gt;")
    1
    """
    rows = "".join(
        f"<tr><th{_CELL}>{_escape(name)}</th><td{_CELL}>{_show(value)}</td></tr>"
        for name, value in facts.items()
        if value is not None and value != ""
    )
    return f"<div><b>{_escape(title)}</b><table><tbody>{rows}</tbody></table></div>"


def rows_html(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    notes: Iterable[str] = (),
    emphasized: Collection[int] = (),
) -> str:
    """Return a table with a title, some of its rows in bold, and notes below it."""
    below = "".join(f"<div><small>{_escape(note)}</small></div>" for note in notes)
    table = table_html(columns, rows, emphasized=emphasized)
    return f"<div><b>{_escape(title)}</b>{table}{below}</div>"


def table_html(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, emphasized: Collection[int] = ()
) -> str:
    """Return a table, some of its rows in bold; nothing if there are no rows."""
    head = "".join(f"<th{_CELL}>{_escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr{_BOLD if number in emphasized else ''}>"
        + "".join(f"<td{_CELL}>{_show(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def format_size(numbers: Iterable[float]) -> str:
    """
    Format a shape or a spacing.

    >>> format_size((2.5, 0.70312, 512))
    '2.5×0.703×512'
    """
    return "×".join(f"{number:.3g}" if isinstance(number, float) else str(number) for number in numbers)


def join_names(names: Sequence[str], most: int = 20) -> str:
    """
    Join the first names, and tell how many more there are.

    >>> join_names(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _show(value: object) -> str:
    text = str(value)
    return _escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def _escape(text: str) -> str:
    return escape(replace_controls(text))


def replace_controls(text: str) -> str:
    r"""
    Replace control characters, and those that reorder text.

    >>> replace_controls("a\x1b[31m") == "a\ufffd[31m"
    True
    """
    return _CONTROL.sub("\ufffd", text)
