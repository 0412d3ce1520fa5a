"""
Intervals by resampling patients: images of one patient are not independent, patients are.

Each resample draws as many patients as there are, with replacement, and takes all units of each [1]_, within
strata [2]_: patients with the same set of classes. A resample is only a vector of how often each patient was
drawn; counts and ranks weighted by it give every metric for all resamples by matrix products, exactly as if
the units had been copied.

References
----------
.. [1] Field CA, Welsh AH. Bootstrapping clustered data. J R Stat Soc B 2007;69:369-390.
.. [2] Davison AC, Hinkley DV. Bootstrap methods and their application. Cambridge 1997, section 3.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medimg.metrics._weighted import Counts
from medimg.metrics.classification import Support, named_metrics
from medimg.metrics.units import ScoredUnits

__all__ = ["SMALL_STRATUM", "Estimate", "draw_patients", "interval", "resample", "strata_of"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SMALL_STRATUM = 5
"""Strata of fewer patients are put together: drawn by themselves, they would hardly vary."""

_CHUNK_ELEMENTS = 1_000_000
"""Weights, or sums, held at once, which bounds memory to a few times 8 MB."""


@dataclass(frozen=True)
class Estimate:
    """
    A metric with its interval.

    Attributes
    ----------
    value : float
        The metric on all units; NaN where undefined.
    low, high : float
        Ends of the interval; NaN where there is none (undefined in more than half of the resamples,
        or fewer than two patients).
    dropped : int
        Resamples left out because the metric was undefined in them (no unit of a class was drawn).
    method : str
        How the interval was found: ``"bootstrap"``, ``"delong"``, or ``"exact"`` (binomial).

    Examples
    --------
    >>> print(Estimate(0.9, 0.81, 0.953))
    0.900 (0.810–0.953)
    """

    value: float
    low: float
    high: float
    dropped: int = 0
    method: str = field(default="bootstrap", repr=False)

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined"
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def strata_of(units: ScoredUnits) -> Integers:
    """
    Group the patients by the set of classes that their units are of.

    Groups of fewer than five patients are put together, and with the smallest of the others if they still
    are so few.

    Parameters
    ----------
    units : ScoredUnits
        All units.

    Returns
    -------
    ndarray of int64, shape (P,)
        Stratum of each patient, counted from 0.
    """
    shows = np.zeros((units.n_patients, units.truth.shape[1]), dtype=bool)
    np.logical_or.at(shows, units.patient, units.truth)
    _, group, size = np.unique(shows, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    together = size < SMALL_STRATUM
    if together.any() and size[together].sum() < SMALL_STRATUM and not together.all():
        together[np.where(together, len(group) + 1, size).argmin()] = True
    merged = np.where(together, -1, np.arange(len(size)))[group]
    return np.unique(merged, return_inverse=True)[1].reshape(-1).astype(np.int64)


def draw_patients(strata: Integers, n_resamples: int, seed: int, columns: int) -> Iterator[Floats]:
    """
    Draw patients with replacement, as many of each stratum as it has.

    Parameters
    ----------
    strata : ndarray of int64, shape (P,)
        Stratum of each patient, counted from 0.
    n_resamples : int
        How many resamples.
    seed : int
        Same seed, same draws, whatever ``columns`` is.
    columns : int
        At most so many resamples at a time.

    Yields
    ------
    ndarray of float64, shape (P, at most columns)
        How often each patient was drawn.
    """
    n = len(strata)
    order = np.argsort(strata, kind="stable")
    size = np.bincount(strata)
    first = np.cumsum(size) - size
    size, first = (values[strata[order]] for values in (size, first))
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, columns):
        m = min(columns, n_resamples - start)
        place = generator.random((m, n))
        place *= size
        drawn = order[place.astype(np.int64) + first]
        drawn *= m
        drawn += np.arange(m)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * m).reshape(n, m).astype(np.float64)


def resample(units: ScoredUnits, support: Support, *, n_resamples: int, seed: int) -> dict[str, Floats]:
    """
    Compute every metric on resamples of the patients.

    Parameters
    ----------
    units : ScoredUnits
        All units.
    support : Support
        Their counts.
    n_resamples : int
        R, how many resamples.
    seed : int
        Of the draws.

    Returns
    -------
    dict of str to ndarray of float64, shape (R,)
        By name, as ``medimg.metrics.classification.named_metrics`` gives them; NaN where undefined.
    """
    counts = Counts.of(units, support)
    columns = max(1, _CHUNK_ELEMENTS // max(len(units), counts.sums.shape[0]))
    draws = draw_patients(strata_of(units), n_resamples, seed, columns)
    chunks = [named_metrics(counts.scores(drawn), support) for drawn in draws]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(
    value: float, samples: Floats, ci: float, *, n_patients: int | None = None, reflected: bool = False
) -> Estimate:
    """
    Take the percentile interval of resamples.

    Parameters
    ----------
    value : float
        The metric on all units.
    samples : ndarray of float64, shape (R,)
        The metric on the resamples; NaN where undefined, those are dropped and counted.
    ci : float
        Share of the resamples between the ends, such as 0.95.
    n_patients : int, optional
        With it, the share is the larger one that makes up for resamples varying too little where patients are
        few, as Student's distribution does [1]_.
    reflected : bool
        Of what is never negative and only grows by chance, as the calibration error: resamples lie above the
        value about as much as the value above the truth, so that the interval is reflected at the value [2]_.
        It is cut at 0 and 1, and reaches the value.

    Returns
    -------
    Estimate
        With NaN ends where the metric is undefined, itself or in more than half of the resamples.

    References
    ----------
    .. [1] Hesterberg TC. What teachers should know about the bootstrap. Am Stat 2015;69:371-386, section 5.3
       (expanded percentiles).
    .. [2] Davison AC, Hinkley DV. Bootstrap methods and their application. Cambridge 1997, section 5.2.

    Examples
    --------
    >>> import numpy as np
    >>> interval(0.5, np.array([0.0, 0.25, 0.5, np.nan, 0.75, 1.0]), 0.5)
    Estimate(value=0.5, low=0.25, high=0.75, dropped=1)
    """
    kept = samples[~np.isnan(samples)]
    dropped = len(samples) - len(kept)
    if np.isnan(value) or dropped > len(kept):
        return Estimate(value, float("nan"), float("nan"), dropped)
    tail = (1 - ci) / 2 if n_patients is None else _expanded_tail(ci, n_patients)
    low, high = np.quantile(kept, [tail, 1 - tail])
    if reflected:
        low, high = max(2 * value - high, 0.0), min(max(2 * value - low, value), 1.0)
    return Estimate(value, float(low), float(high), dropped)


def _expanded_tail(ci: float, n: int) -> float:
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - ci) / 2, n - 1)))
