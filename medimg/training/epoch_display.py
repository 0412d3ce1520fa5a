"""Feedback of a training: a log line per epoch, a bar in a terminal, a table that grows in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from medimg.core.logger import IN_TABLE, get_logger
from medimg.core.progress import LoggedProgress, check_progress, is_notebook, progress_bar
from medimg.plotting.live_table import LiveTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medimg.core.progress import Progress, ProgressBar

__all__ = ["EpochDisplay", "describe_epoch", "format_value", "list_columns"]

#: Seconds between two log lines within an epoch.
_INTERVAL: Final = 300.0
#: Not shown: `monitor` is a name, and the epoch that it selects is marked.
_HIDDEN: Final = ("epoch", "phase", "monitor", "seconds")


class EpochDisplay:
    """Shows the epochs of a training of `total` epochs and, if it has a bar of its own, their steps."""

    def __init__(self, progress: Progress, total: int, *, own_bar: bool = True) -> None:
        self.progress: Progress = check_progress(progress)
        self._total = total
        self._own_bar = own_bar
        self._table = LiveTable() if is_notebook() and self.progress is not False else None
        self._bar: ProgressBar[Any] | None = None
        self._text, self._steps, self._done = "", 0, 0

    def start_epoch(self, phase: str, epoch: int, steps: int) -> None:
        """Begin to count the steps of an epoch, those of validation included."""
        self.close()
        self._text, self._steps, self._done = f"{phase} phase, epoch {epoch}/{self._total}", steps, 0
        if not self._own_bar:
            return
        if self._table is not None:
            self._table.set_progress(self._text, 0, steps)
            return
        bar = progress_bar(desc=self._text, unit="batch", progress=self.progress, total=steps)
        if isinstance(bar, LoggedProgress):
            bar.close()
            # the epoch has a line of its own
            bar = LoggedProgress(
                None, desc=self._text, unit="batch", total=steps, interval=_INTERVAL, has_end=False
            )
        else:
            bar.leave = False
        self._bar = bar

    def step(self) -> None:
        """Count one step."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._table is not None and self._own_bar:
            text = f"{self._text}, batch {self._done}/{self._steps}"
            self._table.set_progress(text, self._done, self._steps)

    def end_epoch(self, rows: Sequence[Mapping[str, Any]], best: int) -> None:
        """Show the last row of a history; `best` is the number of the best epoch so far."""
        self.close()
        self.show_rows(rows, best)
        get_logger().info(
            "%s", describe_epoch(rows[-1], self._total, best), extra=None if self._table is None else IN_TABLE
        )

    def show_rows(self, rows: Sequence[Mapping[str, Any]], best: int) -> None:
        """Show all rows in the table of a notebook."""
        if self._table is None or not rows:
            return
        columns = list_columns(rows)
        cells = [[format_value(name, row[name]) for name in columns] for row in rows]
        self._table.set_rows(
            columns, [(row, values["epoch"] == best) for row, values in zip(cells, rows, strict=True)]
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._table is not None:
            self._table.end_progress()


def list_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a history that have a value, but for the name of the monitored score."""
    return [name for name in rows[0] if name != "monitor" and any(row[name] is not None for row in rows)]


def format_value(name: str, value: object) -> str:
    """
    Format a value of the history.

    >>> [format_value(*pair) for pair in [("epoch", 3), ("lr", 1e-5), ("val_f1", 0.51), ("val_auroc", None)]]
    ['3', '1e-05', '0.510', '']
    """
    if value is None or not isinstance(value, float):
        return "" if value is None else str(value)
    if name == "seconds":
        return f"{value:.1f}"
    if name == "lr":
        return f"{value:.3g}"
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.3f}"


def describe_epoch(row: Mapping[str, Any], total: int, best: int) -> str:
    """
    Describe an epoch in one line.

    >>> describe_epoch({"epoch": 2, "phase": "full", "train_loss": 0.5, "lr": 1e-3, "seconds": 2.0}, 3, 2)
    'full phase, epoch 2/3: train_loss 0.5000, lr 0.001, 2.0 s, best so far'
    """
    values = [f"{n} {format_value(n, v)}" for n, v in row.items() if n not in _HIDDEN and v is not None]
    values.append(f"{format_value('seconds', row['seconds'])} s")
    if row["epoch"] == best:
        values.append("best so far")
    return f"{row['phase']} phase, epoch {row['epoch']}/{total}: {', '.join(values)}"
