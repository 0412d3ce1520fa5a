"""What was measured: rows of the table, and why a cell is empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

__all__ = ["Row", "Table", "Unit"]

Unit: TypeAlias = Literal["ms", "MB", ""]


@dataclass(slots=True)
class Row:
    """
    One kind of work.

    Attributes
    ----------
    key, title : str
        By which goals name it, and people.
    unit : {"ms", "MB", ""}
        Milliseconds, megabytes (10⁶ bytes), or the largest error.
    samples : dict
        Column → what each round gave.
    missing : dict
        Column → why there is nothing.
    """

    key: str
    title: str
    unit: Unit
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def value(self, column: str) -> float | None:
        """Return the median of a column; None where there is none."""
        found = self.samples.get(column)
        return median(found) if found else None


#: Key → row, in the order of the works.
Table: TypeAlias = dict[str, Row]
