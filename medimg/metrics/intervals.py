"""Every metric of a set of units with its interval: by bootstrap, DeLong's variance, exact, or Newcombe's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from medimg._validation import check_choice, check_number, check_seed, check_whole_number
from medimg.errors import DatasetError
from medimg.metrics.bootstrap import (
    ALL_AGREE,
    ONE_PATIENT,
    Estimate,
    compute_interval,
    has_width,
    resample_metrics,
)
from medimg.metrics.delong import (
    compute_delong,
    compute_delong_interval,
    compute_newcombe_interval,
    find_delong_columns,
    name_areas,
)
from medimg.metrics.patient_counts import compute_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medimg.metrics._arrays import Flags, Floats
    from medimg.metrics.classification import Support
    from medimg.metrics.units import ScoredUnits

__all__ = [
    "IntervalMethod",
    "check_independent",
    "check_intervals",
    "compute_exact_interval",
    "compute_intervals",
    "estimate_metrics",
]

IntervalMethod = Literal["auto", "bootstrap", "delong"]


def check_intervals(ci: float, n_resamples: int, method: str = "auto", seed: int = 0) -> None:
    """Raise DatasetError if a setting of intervals is invalid."""
    check_seed(seed)
    check_number("ci", ci, above=0, below=1, hint=", such as 0.95", error=DatasetError)
    check_whole_number("n_resamples", n_resamples, least=1, hint=", better 1000", error=DatasetError)
    check_choice("ci_method", method, get_args(IntervalMethod), error=DatasetError)


def check_independent(units: ScoredUnits, method: str) -> None:
    """Raise DatasetError if the method is DeLong's and a patient has several units."""
    if method == "delong" and len(units) != units.n_patients:
        raise DatasetError(
            f"ci_method='delong' needs independent units; found {len(units)} of {units.n_patients} patients, "
            "so that the intervals would be too narrow: use ci_method='bootstrap', or unit='patient'"
        )


def estimate_metrics(
    units: ScoredUnits, support: Support, *, ci: float, n_resamples: int, seed: int, method: str = "auto"
) -> dict[str, Estimate]:
    """
    Return every metric and its interval by name; without ends if there are fewer than two patients.

    The AUROC of a class has DeLong's interval if each patient has one unit, unless `method` is "bootstrap" or
    DeLong's variance is 0; all others are those of :func:`compute_intervals`.
    """
    check_independent(units, method)
    values = compute_metrics(units.truth, units.predicted, units.probabilities, support)
    if units.n_patients < 2:  # every resample would be the same patient
        nan = float("nan")
        return {
            name: Estimate(value, nan, nan, reason="" if np.isnan(value) else ONE_PATIENT)
            for name, value in values.items()
        }
    samples = resample_metrics(units, support, n_resamples=n_resamples, seed=seed)
    found = compute_intervals(values, samples, units, support, ci)
    if method != "bootstrap":
        for name, k in find_delong_columns(units, support).items():
            _, variance = compute_delong(units.truth[:, k], units.probabilities[:, k])
            delong = compute_delong_interval(values[name], float(variance[0, 0]), ci)
            if has_width(delong.low, delong.high):
                found[name] = delong
    return found


def compute_intervals(
    values: Mapping[str, float],
    samples: Mapping[str, Floats],
    units: ScoredUnits,
    support: Support,
    ci: float,
) -> dict[str, Estimate]:
    """
    Return each metric with the interval of its resamples (R,), for two patients or more.

    Accuracy, recall, specificity and precision have an exact interval instead if they are 0 or 1, or the
    same in all resamples; an AUROC of 0 or 1 has Newcombe's. As many independent observations are counted as
    patients have a unit that counts: fewer than images, so that the interval is too wide rather than too
    narrow. Other metrics that are the same in all resamples have no interval.
    """
    found = {
        name: compute_interval(
            value, samples[name], ci, n_patients=units.n_patients, reflected=name.startswith("ece")
        )
        for name, value in values.items()
    }
    for name, counted in _select_counted_units(units, support):
        if name in found and (found[name].value in (0.0, 1.0) or found[name].reason == ALL_AGREE):
            n = len(np.unique(units.patient[counted]))
            if n:
                low, high = compute_exact_interval(found[name].value, n, ci)
                found[name] = replace(found[name], low=low, high=high, dropped=0, method="exact", reason="")
    for name, k in name_areas(support).items():
        if found[name].value in (0.0, 1.0):
            sizes = (len(np.unique(units.patient[units.truth[:, k] == there])) for there in (True, False))
            found[name] = compute_newcombe_interval(found[name].value, *sizes, ci=ci)
    return found


def compute_exact_interval(value: float, n: int, ci: float) -> tuple[float, float]:
    """
    Return the exact binomial interval of a ratio of `n` observations.

    Clopper CJ, Pearson ES. Biometrika 1934;26:404-413.

    >>> [round(end, 3) for end in compute_exact_interval(1.0, 21, 0.95)]
    [0.839, 1.0]
    """
    from scipy.stats import beta

    hits, tail = value * n, (1 - ci) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0


def _select_counted_units(units: ScoredUnits, support: Support) -> Iterator[tuple[str, Flags]]:
    """Yield metrics that are ratios of units, and which units (n,) count in each."""
    yield "accuracy", np.ones(len(units), dtype=bool)
    if support.is_binary:
        yield "sensitivity", units.truth[:, 1]
        yield "specificity", ~units.truth[:, 1]
    for k, name in enumerate(support.classes):
        yield f"recall[{name}]", units.truth[:, k]
        yield f"specificity[{name}]", ~units.truth[:, k]
        yield f"precision[{name}]", units.predicted[:, k]
