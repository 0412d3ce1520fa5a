"""Rows that were measured, in a file, so that a run that is cut off can go on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measured import Row

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.measured import Table

__all__ = ["load_table", "store_table"]

_DIGITS: Final = 4


def load_table(path: Path, environment: Mapping[str, str]) -> tuple[Table, list[str]]:
    """
    Return the stored rows, and the days on which they were measured.

    Rows of another machine or of other versions can't stand in one table with new ones: they are left out.
    """
    if not path.exists():
        return {}, []
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if {**stored["made_with"], "date": ""} != {**environment, "date": ""}:
        return {}, []
    table = {key: Row(key=key, **row) for key, row in stored["rows"].items()}
    return table, stored["made_with"]["date"].split(" to ")


def store_table(path: Path, table: Table, environment: Mapping[str, str]) -> None:
    """Store rows, with the machine and the versions."""
    rows = {key: _rounded(row) for key, row in table.items()}
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"made_with": dict(environment), "rows": rows}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _rounded(row: Row) -> dict[str, Any]:
    samples = {
        column: [float(f"{value:.{_DIGITS}g}") for value in values] for column, values in row.samples.items()
    }
    found = {**asdict(row), "samples": samples}
    del found["key"]
    return found
