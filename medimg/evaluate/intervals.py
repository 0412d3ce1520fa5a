"""Every metric of a set of units, with its interval."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medimg.errors import DatasetError
from medimg.evaluate.bootstrap import Estimate, interval, resample
from medimg.evaluate.delong import delong, delong_columns, delong_interval
from medimg.evaluate.estimates import estimate
from medimg.evaluate.exact import with_exact
from medimg.evaluate.metrics import Support
from medimg.evaluate.units import Units

__all__ = ["IntervalMethod", "check_independent", "check_intervals", "estimates", "resampled"]

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
    from medimg.data.split import checked_seed

    checked_seed(seed)
    if not isinstance(ci, float | np.floating) or not 0 < ci < 1:
        raise DatasetError(f"ci={ci!r} was asked for; expected a number between 0 and 1, such as 0.95.")
    whole = isinstance(n_resamples, int | np.integer) and not isinstance(n_resamples, bool)
    if not whole or n_resamples < 1:
        raise DatasetError(
            f"n_resamples={n_resamples!r} was asked for; expected a whole number, at least 1, better 1000 or "
            "more."
        )
    if method not in get_args(IntervalMethod):
        known = ", ".join(map(repr, get_args(IntervalMethod)))
        raise DatasetError(f"ci_method={method!r} is unknown; expected one of {known}.")


def check_independent(units: Units, method: str) -> None:
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
    units: Units, support: Support, *, ci: float, n_resamples: int, seed: int, method: str = "auto"
) -> dict[str, Estimate]:
    """
    Compute every metric and its interval.

    Parameters
    ----------
    units : Units
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
    found = with_exact(resampled(values, samples, ci, units.n_patients), units, support, ci)
    if method != "bootstrap":
        for name, k in delong_columns(units, support).items():
            _, variance = delong(units.truth[:, k], units.probabilities[:, k])
            found[name] = delong_interval(values[name], float(variance[0, 0]), ci)
    return found


def resampled(
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
