"""
Intervals by resampling patients: images of one patient are not independent, patients are.

Each resample draws as many patients as there are, with replacement, and takes all units of each [1]_. Here a
resample is only a vector of how often each patient was drawn; counts and ranks weighted by it give every
metric for all resamples by matrix products, exactly as if the units had been copied.

References
----------
.. [1] Field CA, Welsh AH. Bootstrapping clustered data. J R Stat Soc B 2007;69:369-390.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimg.evaluate.metrics import ClassScores, Support, auroc_columns, named
from medimg.evaluate.units import Units

__all__ = ["Estimate", "draw_patients", "interval", "resample", "weighted_auroc"]

Floats = NDArray[np.float64]

_CHUNK_ELEMENTS = 2_000_000
"""Weights held at once, which bounds memory to a few of 16 MB each."""


@dataclass(frozen=True)
class Estimate:
    """
    A metric with its interval.

    Attributes
    ----------
    value : float
        The metric on all units; NaN where undefined.
    low, high : float
        Ends of the interval; NaN where there is none (see :func:`interval`; also with fewer than two
        patients).
    dropped : int
        Resamples left out because the metric was undefined in them (no unit of a class was drawn).

    Examples
    --------
    >>> print(Estimate(0.9, 0.81, 0.953))
    0.900 (0.810–0.953)
    """

    value: float
    low: float
    high: float
    dropped: int = 0

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined"
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def draw_patients(n_patients: int, n_resamples: int, seed: int, rows: int) -> Iterator[NDArray[np.float64]]:
    """
    Draw patients with replacement.

    Parameters
    ----------
    n_patients : int
        P, how many there are, and how many each resample draws.
    n_resamples : int
        How many resamples.
    seed : int
        Same seed, same draws, whatever ``rows`` is.
    rows : int
        At most so many resamples at a time.

    Yields
    ------
    ndarray of float64, shape (at most rows, P)
        How often each patient was drawn.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, rows):
        n = min(rows, n_resamples - start)
        drawn = generator.integers(n_patients, size=(n, n_patients))
        flat = (drawn + np.arange(n)[:, None] * n_patients).ravel()
        yield np.bincount(flat, minlength=n * n_patients).reshape(n, n_patients).astype(np.float64)


def resample(units: Units, support: Support, *, n_resamples: int, seed: int) -> dict[str, Floats]:
    """
    Compute every metric on resamples of the patients.

    Parameters
    ----------
    units : Units
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
        By name, as ``medimg.evaluate.metrics.named`` gives them; NaN where undefined.
    """
    counts = _PatientCounts.of(units)
    rankings = {k: _Ranking.of(units, k) for k in auroc_columns(support)}
    rows = max(1, _CHUNK_ELEMENTS // max(len(units), units.n_patients))
    chunks = []
    for drawn in draw_patients(units.n_patients, n_resamples, seed, rows):
        auroc = np.full((len(drawn), len(support.classes)), np.nan)
        for k, ranking in rankings.items():
            auroc[:, k] = ranking.auroc(drawn)
        chunks.append(named(counts.scores(drawn, auroc), support))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(value: float, samples: Floats, ci: float) -> Estimate:
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

    Returns
    -------
    Estimate
        With NaN ends where the metric is undefined, itself or in more than half of the resamples.

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
    low, high = np.quantile(kept, [(1 - ci) / 2, (1 + ci) / 2])
    return Estimate(value, float(low), float(high), dropped)


def weighted_auroc(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """
    Compute the AUROC of weighted units, ties counting one half.

    Parameters
    ----------
    positive : ndarray of bool, shape (n,)
        Which units are positive.
    scores : ndarray of float, shape (n,)
        Higher for more probably positive.
    weights : ndarray of float, shape (R, n)
        One row per resample: how often each unit is in it.

    Returns
    -------
    ndarray of float64, shape (R,)
        NaN where no positive or no negative has any weight.

    Examples
    --------
    >>> import numpy as np
    >>> positive, scores = np.array([False, False, True]), np.array([0.2, 0.6, 0.6])
    >>> weighted_auroc(positive, scores, np.array([[1.0, 1, 1], [3, 1, 2], [1, 1, 0]]))
    array([0.75 , 0.875,   nan])
    """
    ranking = _Ranking.sort(positive, scores, np.arange(len(scores)))
    return ranking.auroc(np.asarray(weights, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class _PatientCounts:
    """Counts per patient, from which those of any resample are one matrix product."""

    right: Floats
    """Units of which everything is right, (P,)."""
    total: Floats
    """Units, (P,)."""
    hits: Floats
    """Units of the class that are predicted so, (P, K)."""
    true: Floats
    """Units of the class, (P, K)."""
    predicted: Floats
    """Units predicted to be of the class, (P, K)."""

    @classmethod
    def of(cls, units: Units) -> "_PatientCounts":
        def per_patient(values: NDArray[np.bool_]) -> Floats:
            sums = np.zeros((units.n_patients, *values.shape[1:]))
            np.add.at(sums, units.patient, values)
            return sums

        return cls(
            right=per_patient((units.truth == units.predicted).all(axis=1)),
            total=per_patient(np.ones(len(units), dtype=bool)),
            hits=per_patient(units.truth & units.predicted),
            true=per_patient(units.truth),
            predicted=per_patient(units.predicted),
        )

    def scores(self, drawn: Floats, auroc: Floats) -> ClassScores:
        """Scores of resamples that drew patients so often, (R, P)."""
        total = (drawn @ self.total)[:, None]
        hits, true, predicted = drawn @ self.hits, drawn @ self.true, drawn @ self.predicted
        precision = _ratio(hits, np.maximum(predicted, 1))  # never predicted: no hits, so 0
        return ClassScores(
            accuracy=(drawn @ self.right) / total[:, 0],
            recall=_ratio(hits, true),
            specificity=_ratio(total - true - predicted + hits, total - true),
            precision=np.where(true > 0, precision, np.nan),
            f1=np.where(true > 0, _ratio(2 * hits, true + predicted), np.nan),
            auroc=auroc,
        )


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Positives and negatives of a class sorted by score, once for all resamples."""

    positives: NDArray[np.int64]
    """Column of the weights for each positive, (n+,)."""
    negatives: NDArray[np.int64]
    """The same for the negatives in ascending order of score, (n-,)."""
    below: NDArray[np.int64]
    """Negatives that score below each positive, (n+,)."""
    not_above: NDArray[np.int64]
    """Negatives that score below each positive or equal to it, (n+,)."""

    @classmethod
    def of(cls, units: Units, k: int) -> "_Ranking":
        return cls.sort(units.truth[:, k], units.probabilities[:, k], units.patient)

    @classmethod
    def sort(cls, positive: NDArray[np.bool_], scores: Floats, column: NDArray[np.int64]) -> "_Ranking":
        order = np.argsort(scores[~positive], kind="stable")
        sorted_negatives = scores[~positive][order]
        return cls(
            positives=column[positive],
            negatives=column[~positive][order],
            below=np.searchsorted(sorted_negatives, scores[positive], side="left"),
            not_above=np.searchsorted(sorted_negatives, scores[positive], side="right"),
        )

    def auroc(self, weights: Floats) -> Floats:
        """Share of the pairs of a positive and a negative that are in order, per row of the weights."""
        cumulated = np.zeros((len(weights), len(self.negatives) + 1))
        np.cumsum(weights[:, self.negatives], axis=1, out=cumulated[:, 1:])
        weight = weights[:, self.positives]
        won = (weight * (cumulated[:, self.below] + cumulated[:, self.not_above])).sum(axis=1) / 2
        return _ratio(won, weight.sum(axis=1) * cumulated[:, -1])


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Quotient, NaN where the whole is nothing."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
