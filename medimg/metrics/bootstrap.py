"""
Bootstrap intervals that resample patients, as images of one patient are not independent.

Each resample draws as many patients as there are, with replacement, and takes all units of each [1]_,
within strata [2]_: patients with the same set of classes. A resample is a vector of how often each patient
was drawn; counts and ranks weighted by it give every metric for all resamples by matrix products, exactly as
if the units had been copied.

References
----------
.. [1] Field CA, Welsh AH. Bootstrapping clustered data. J R Stat Soc B 2007;69:369-390.
.. [2] Davison AC, Hinkley DV. Bootstrap methods and their application. Cambridge 1997, section 3.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from medimg.metrics._arrays import Floats, Integers
from medimg.metrics.classification import Support, name_metrics
from medimg.metrics.patient_counts import PatientCounts
from medimg.metrics.units import ScoredUnits

__all__ = [
    "ALL_AGREE",
    "ONE_PATIENT",
    "SMALL_STRATUM",
    "Estimate",
    "compute_interval",
    "describe_ends",
    "draw_patients",
    "find_strata",
    "has_width",
    "resample_metrics",
]

#: Strata of fewer patients are merged: resampled by themselves, they would hardly vary.
SMALL_STRATUM = 5
#: Reasons why there is no interval.
ONE_PATIENT = "fewer than two patients"
ALL_AGREE = "all resamples have this value"
_MOSTLY_UNDEFINED = "undefined in more than half of the resamples"
#: Below this, a difference is rounding.
_LEAST_WIDTH = 1e-12
_DIGITS = range(3, 9)
#: Weights, or sums, held at once, which bounds memory to a few times 8 MB.
_CHUNK_ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """
    A metric with its interval.

    Attributes
    ----------
    value : float
        The metric on all units; NaN if undefined.
    low, high : float
        Ends of the interval, which differ; NaN if there is none.
    dropped : int
        Number of resamples left out because the metric is undefined in them (no unit of a class was drawn).
    method : str
        Method of the interval: ``"bootstrap"``, ``"delong"``, ``"exact"`` (binomial) or ``"newcombe"`` (of an
        AUROC of 0 or 1).
    reason : str
        Why there is no interval; "" if there is one, or the metric is undefined.

    Examples
    --------
    >>> print(Estimate(0.9, 0.81, 0.953))
    0.900 (0.810–0.953)
    >>> print(Estimate(0.5, float("nan"), float("nan"), reason="fewer than two patients"))
    0.500 (no interval: fewer than two patients)
    """

    value: float
    low: float
    high: float
    dropped: int = 0
    method: str = field(default="bootstrap", repr=False)
    reason: str = field(default="", repr=False)

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined"
        if np.isnan(self.low):
            return f"{self.value:.3f}" + (f" (no interval: {self.reason})" if self.reason else "")
        return f"{self.value:.3f} ({'–'.join(describe_ends(self.low, self.high))})"


def has_width(low: float, high: float) -> bool:
    """Whether the ends of an interval differ by more than rounding; not if they are NaN."""
    return high - low > _LEAST_WIDTH


def describe_ends(low: float, high: float, sign: str = "") -> tuple[str, str]:
    """
    Format the ends of an interval with three decimals, or as many as they need to differ.

    >>> describe_ends(0.8, 0.9), describe_ends(0.00012, 0.00034)
    (('0.800', '0.900'), ('0.0001', '0.0003'))
    """
    pairs = ((f"{low:{sign}.{n}f}", f"{high:{sign}.{n}f}") for n in _DIGITS)
    return next((pair for pair in pairs if pair[0] != pair[1]), (f"{low:{sign}.3g}", f"{high:{sign}.3g}"))


def find_strata(units: ScoredUnits) -> Integers:
    """
    Return the stratum of each patient, (P,): patients whose units are of the same set of classes.

    Strata of fewer than five patients are merged, and with the smallest of the others if they still are so
    few.
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
    Draw patients with replacement, as many of each stratum as it has; yield how often each, (P, ≤ columns).

    The draws depend on the seed only, not on `columns`, the number of resamples at a time.
    """
    n = len(strata)
    order = np.argsort(strata, kind="stable")
    size = np.bincount(strata)
    first = np.cumsum(size) - size
    size, first = (values[strata[order]] for values in (size, first))
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, columns):
        m = min(columns, n_resamples - start)
        index = generator.random((m, n))
        index *= size
        drawn = order[index.astype(np.int64) + first]
        drawn *= m
        drawn += np.arange(m)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * m).reshape(n, m).astype(np.float64)


def resample_metrics(
    units: ScoredUnits, support: Support, *, n_resamples: int, seed: int
) -> dict[str, Floats]:
    """Return every metric on R resamples of the patients, (R,), by name; NaN if undefined."""
    counts = PatientCounts.of(units, support)
    columns = max(1, _CHUNK_ELEMENTS // max(len(units), counts.sums.shape[0]))
    draws = draw_patients(find_strata(units), n_resamples, seed, columns)
    chunks = [name_metrics(counts.scores(drawn), support) for drawn in draws]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def compute_interval(
    value: float, samples: Floats, ci: float, *, n_patients: int | None = None, reflected: bool = False
) -> Estimate:
    """
    Return the percentile interval of resamples (R,), of which undefined ones are dropped and counted.

    There is none, with its reason, if more than half are undefined, or if all have the same value.

    With `n_patients` the percentiles are expanded, as resamples vary too little if patients are few
    (Hesterberg TC, Am Stat 2015;69:371-386, section 5.3). `reflected` is for metrics that are never negative
    and only increase by chance, as the calibration error: resamples exceed the value about as much as the
    value exceeds the truth, so that the interval is reflected at the value (Davison and Hinkley, section
    5.2), clipped to 0 and 1, and extended to the value.

    >>> compute_interval(0.5, np.array([0.0, 0.25, 0.5, np.nan, 0.75, 1.0]), 0.5)
    Estimate(value=0.5, low=0.25, high=0.75, dropped=1)
    """
    kept = samples[~np.isnan(samples)]
    dropped = len(samples) - len(kept)
    nan = float("nan")
    if np.isnan(value) or dropped > len(kept):
        return Estimate(value, nan, nan, dropped, reason="" if np.isnan(value) else _MOSTLY_UNDEFINED)
    tail = (1 - ci) / 2 if n_patients is None else _expand_tail(ci, n_patients)
    low, high = np.quantile(kept, [tail, 1 - tail])
    if reflected:
        low, high = max(min(2 * value - high, value), 0.0), min(max(2 * value - low, value), 1.0)
    if not has_width(low, high):
        return Estimate(value, nan, nan, dropped, reason=ALL_AGREE)
    return Estimate(value, float(low), float(high), dropped)


@cache
def _expand_tail(ci: float, n: int) -> float:
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - ci) / 2, n - 1)))
