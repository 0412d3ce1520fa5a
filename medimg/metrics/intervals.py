"""Every metric of a set of units, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medimg._validation import check_choice, check_number, check_seed, check_whole_number
from medimg.errors import DatasetError
from medimg.metrics.bootstrap import Estimate, interval, resample
from medimg.metrics.classification import Support
from medimg.metrics.delong import delong, delong_columns, delong_interval
from medimg.metrics.estimate import estimate
from medimg.metrics.units import ScoredUnits

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "IntervalMethod",
    "check_independent",
    "check_intervals",
    "estimates",
    "exact_interval",
    "resample_metrics",
    "with_exact",
]


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
    found: Mapping[str, Estimate], units: ScoredUnits, support: Support, ci: float
) -> dict[str, Estimate]:
    """
    Replace the intervals of accuracy, recall, specificity and precision where these are 0 or 1.

    As many independent ones are counted as patients have a unit that counts: fewer than images, so that the
    interval is too wide rather than too narrow.

    Parameters
    ----------
    found : mapping of str to Estimate
        By name of the metric.
    units : ScoredUnits
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


def _shares(units: ScoredUnits, support: Support) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield metrics that are shares, and of which units."""
    yield "accuracy", np.ones(len(units), dtype=bool)
    if support.binary:
        yield "sensitivity", units.truth[:, 1]
        yield "specificity", ~units.truth[:, 1]
    for k, name in enumerate(support.classes):
        yield f"recall[{name}]", units.truth[:, k]
        yield f"specificity[{name}]", ~units.truth[:, k]
        yield f"precision[{name}]", units.predicted[:, k]


IntervalMethod = Literal["auto", "bootstrap", "delong"]


def check_intervals(ci: float, n_resamples: int, method: str = "auto", seed: int = 0) -> None:
    """
    Refuse settings that give no interval.

    Parameters
    ----------
    ci : float
        Share between the ends.
    n_resamples : int
        How many resamples.
    method : str
        One of ``IntervalMethod``.
    seed : int
        Of the resamples.

    Raises
    ------
    DatasetError
        If one is no number, or out of range.
    """
    check_seed(seed)
    check_number("ci", ci, above=0, below=1, hint=", such as 0.95", error=DatasetError)
    check_whole_number("n_resamples", n_resamples, least=1, hint=", better 1000", error=DatasetError)
    check_choice("ci_method", method, get_args(IntervalMethod), error=DatasetError)


def check_independent(units: ScoredUnits, method: str) -> None:
    """
    Refuse DeLong's intervals for units that are not independent.

    Raises
    ------
    DatasetError
        If a patient has several units.
    """
    if method == "delong" and len(units) != units.n_patients:
        raise DatasetError(
            f"ci_method='delong' takes independent units, and here are {len(units)} of {units.n_patients} "
            "patients: the intervals would be too narrow. Use ci_method='bootstrap', or unit='patient'."
        )


def estimates(
    units: ScoredUnits, support: Support, *, ci: float, n_resamples: int, seed: int, method: str = "auto"
) -> dict[str, Estimate]:
    """
    Compute every metric and its interval.

    Parameters
    ----------
    units : ScoredUnits
        What is scored.
    support : Support
        Its counts.
    ci : float
        Share of the resamples between the ends of each interval.
    n_resamples : int
        How many resamples of the patients.
    seed : int
        Of the resamples.
    method : {"auto", "bootstrap", "delong"}
        Of the AUROC of a class where each patient has one unit; everything else is resampled, but for shares
        of 0 or 1, whose intervals are exact binomial ones.

    Returns
    -------
    dict of str to Estimate
        By name; without ends where there are fewer than two patients.

    Raises
    ------
    DatasetError
        If the method is DeLong's, and a patient has several units.
    """
    check_independent(units, method)
    values = estimate(units.truth, units.predicted, units.probabilities, support)
    if units.n_patients < 2:  # every resample would be the same patient
        return {name: Estimate(value, float("nan"), float("nan")) for name, value in values.items()}
    samples = resample(units, support, n_resamples=n_resamples, seed=seed)
    found = with_exact(resample_metrics(values, samples, ci, units.n_patients), units, support, ci)
    if method != "bootstrap":
        for name, k in delong_columns(units, support).items():
            _, variance = delong(units.truth[:, k], units.probabilities[:, k])
            found[name] = delong_interval(values[name], float(variance[0, 0]), ci)
    return found


def resample_metrics(
    values: Mapping[str, float], samples: Mapping[str, NDArray[np.float64]], ci: float, n_patients: int
) -> dict[str, Estimate]:
    """
    Give each metric the interval of its resamples.

    Parameters
    ----------
    values : mapping of str to float
        The metrics on all units.
    samples : mapping of str to ndarray of float64, shape (R,)
        The metrics on the resamples.
    ci : float
        Share of the resamples between the ends.
    n_patients : int
        How many patients there are; two at least.

    Returns
    -------
    dict of str to Estimate
        By name.
    """
    return {
        name: interval(value, samples[name], ci, n_patients=n_patients, reflected=name.startswith("ece"))
        for name, value in values.items()
    }
