"""How often intervals of few patients contain the true value, at worst: a table of simulated studies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["METRICS", "find_worst_coverage"]

#: Metrics of the table.
METRICS: Final = (
    "auroc",
    "auprc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "f1_macro",
    "brier",
)

#: By the number of patients in the smaller of two classes: the lowest coverage of 95 % intervals of each
#: metric in simulated studies; see ``benchmarks/simulations/interval_coverage.py``.
_WORST: Final[dict[int, tuple[float, ...]]] = {
    3: (0.79, 0.89, 0.88, 0.79, 0.83, 0.81, 0.86, 0.67),
    5: (0.79, 0.81, 0.85, 0.82, 0.83, 0.83, 0.84, 0.81),
    10: (0.81, 0.84, 0.92, 0.85, 0.80, 0.86, 0.91, 0.84),
    20: (0.88, 0.88, 0.91, 0.91, 0.87, 0.89, 0.92, 0.92),
    40: (0.86, 0.85, 0.91, 0.91, 0.92, 0.90, 0.91, 0.91),
}
#: From so many patients on nothing is said: the simulated sizes end below.
_MOST: Final = 100
#: Coverage that is close enough to 95 %.
_ENOUGH: Final = 0.93


def find_worst_coverage(patients: int, names: Iterable[str]) -> dict[str, float]:
    """
    Return the lowest coverage of those metrics whose 95 % intervals can be too narrow, by name.

    `patients` are those of the smallest class; the table's next smaller number is taken.

    >>> find_worst_coverage(1000, METRICS)
    {}
    """
    if patients >= _MOST:
        return {}
    below = [size for size in _WORST if size <= patients] or [min(_WORST)]
    row = dict(zip(METRICS, _WORST[max(below)], strict=True))
    return {name: row[name] for name in names if row.get(name, 1.0) < _ENOUGH}
