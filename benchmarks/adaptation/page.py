"""Tables of the results, printed and in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.adaptation.gains import Choice, Gain, compute_choices, compute_gains, current_runs
from benchmarks.adaptation.runs import Run
from benchmarks.adaptation.shifts import SHIFTS
from benchmarks.pages import list_table, write_part

__all__ = ["PAGE", "summarize", "write_page"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "domain_adaptation.rst"
_HEAD: Final = ["Method", "Seeds", "AUROC, target", "Gain (95 % interval)", "AUROC, source", ""]


def summarize(runs: Sequence[Run], shift: str, *, tuning: bool = False) -> str:
    """Return the gains on one shift as lines of text."""
    rows = [_format_gain(gain) for gain in compute_gains(current_runs(runs, shift, tuning=tuning))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, _WIDTHS, strict=True)) for row in rows
    )


_WIDTHS: Final = (26, 3, 6, 26, 6, 14)


def write_page(runs: Sequence[Run], page: Path = PAGE) -> None:
    """Write the tables of the documentation from the store."""
    found = {name: current_runs(runs, name) for name in SHIFTS}
    parts = []
    for name, own in found.items():
        gains = compute_gains(own)
        table = list_table([_HEAD, *(_format_gain(gain) for gain in gains)]) if gains else "Not measured yet."
        parts.append(f'Shift "{name}":\n\n{table}')
    write_part(page, "adaptation gains", "\n\n".join(parts))
    write_part(page, "adaptation choices", _format_choices(compute_choices(list(found.values()))))


def _format_gain(gain: Gain) -> list[str]:
    interval = "" if np.isnan(gain.low) else f" ({gain.low:+.3f} to {gain.high:+.3f})"
    baseline = gain.method.startswith("source only") and gain.gain == 0
    return [
        gain.method,
        str(gain.seeds),
        f"{gain.target:.3f}",
        "–" if baseline else f"{gain.gain:+.3f}{interval}",
        f"{gain.source:.3f}",
        "" if baseline else gain.verdict,
    ]


def _format_choices(choices: Sequence[Choice]) -> str:
    if not choices:
        return "Not measured yet: no seed has all candidates."
    head = ["Choice by", "Trainings", "Mean gain", "Better than source only", "Worse"]
    rows = [
        [c.criterion, str(c.trials), f"{c.gain:+.3f}", f"{c.better} of {c.trials}", str(c.worse)]
        for c in choices
    ]
    return list_table([head, *rows])
