"""How often intervals of few patients contain the true value, at worst: a table of simulated studies."""

from __future__ import annotations

from typing import Final

__all__ = ["METRICS", "find_worst_coverage"]

#: Metrics of the table; those of a class are named by the two classes of the simulation.
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
