"""A table in a notebook that grows, with a line of progress below it. IPython is imported on use."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Any, Final

from medimg.plotting.html_repr import table_html

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LiveTable"]

#: Seconds between two updates of the line of progress.
_INTERVAL: Final = 0.5


class LiveTable:
    """Rows of text under column names; shown when the first row or progress is."""

    def __init__(self) -> None:
        self._columns: Sequence[str] = ()
        self._rows: list[tuple[Sequence[str], bool]] = []
        self._status: tuple[str, int, int] | None = None
        self._handle: Any = None
        self._updated = 0.0

    def set_rows(self, columns: Sequence[str], rows: list[tuple[Sequence[str], bool]]) -> None:
        """Replace the rows, each with whether it is emphasized."""
        self._columns, self._rows = columns, rows
        self._show()

    def set_progress(self, text: str, done: int, total: int) -> None:
        """Show how far a task is."""
        now = time.monotonic()
        if self._status is None or now - self._updated >= _INTERVAL:
            self._status, self._updated = (text, done, total), now
            self._show()

    def end_progress(self) -> None:
        """Remove the line of progress."""
        if self._status is not None:
            self._status = None
            self._show()

    def _show(self) -> None:
        if self._handle is not None:
            self._handle.update(self)
            return
        from IPython.display import display

        self._handle = display(self, display_id=True)

    def __repr__(self) -> str:
        """Return what a front end without HTML shows."""
        widths = [
            max(len(name), *(len(row[n]) for row, _ in self._rows), 0) for n, name in enumerate(self._columns)
        ]
        lines = [self._columns, *(row for row, _ in self._rows)]
        text = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        if self._status is not None:
            text.append(self._status[0])
        return "\n".join(text).strip("\n")

    def _repr_html_(self) -> str:
        emphasized = [number for number, (_, is_emphasized) in enumerate(self._rows) if is_emphasized]
        table = table_html(self._columns, [row for row, _ in self._rows], emphasized=emphasized)
        if self._status is None:
            return table
        text, done, total = self._status
        return f'{table}<div><progress value="{done}" max="{total}"></progress> {escape(text)}</div>'
