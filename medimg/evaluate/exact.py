"""Intervals of shares of 0 or 1, which resampling can't give: all resamples are alike."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from medimg.evaluate.bootstrap import Estimate
    from medimg.evaluate.metrics import Support
    from medimg.evaluate.units import Units

__all__ = ["exact_interval", "with_exact"]


def exact_interval(value: float, n: int, ci: float) -> tuple[float, float]:
    """
    Return the exact binomial interval of a share that is 0 or 1.

    Parameters
    ----------
    value : float
        0 or 1.
    n : int
        How many independent ones it is a share of.
    ci : float
        Coverage, at least.

    Returns
    -------
    tuple of 2 floats
        Clopper CJ, Pearson ES. Biometrika 1934;26:404-413.

    Examples
    --------
    >>> [round(end, 3) for end in exact_interval(1.0, 21, 0.95)]
    [0.839, 1.0]
    """
    reach = ((1 - ci) / 2) ** (1 / n)
    return (reach, 1.0) if value else (0.0, 1 - reach)


def with_exact(
    found: Mapping[str, Estimate], units: Units, support: Support, ci: float
) -> dict[str, Estimate]:
    """
    Replace the intervals of accuracy, recall, specificity and precision where these are 0 or 1.

    As many independent ones are counted as patients have a unit that counts: fewer than images, so that the
    interval is too wide rather than too narrow.

    Parameters
    ----------
    found : mapping of str to Estimate
        By name of the metric.
    units : Units
        What was scored; two patients at least.
    support : Support
        Its counts.
    ci : float
        Coverage.

    Returns
    -------
    dict of str to Estimate
        With "exact" for the method where it was replaced.
    """
    result = dict(found)
    for name, counted in _shares(units, support):
        if name not in result or result[name].value not in (0.0, 1.0):
            continue
        n = len(np.unique(units.patient[counted]))
        if n:
            low, high = exact_interval(result[name].value, n, ci)
            result[name] = replace(result[name], low=low, high=high, dropped=0, method="exact")
    return result


def _shares(units: Units, support: Support) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield metrics that are shares, and of which units."""
    yield "accuracy", np.ones(len(units), dtype=bool)
    if support.binary:
        yield "sensitivity", units.truth[:, 1]
        yield "specificity", ~units.truth[:, 1]
    for k, name in enumerate(support.classes):
        yield f"recall[{name}]", units.truth[:, k]
        yield f"specificity[{name}]", ~units.truth[:, k]
        yield f"precision[{name}]", units.predicted[:, k]
