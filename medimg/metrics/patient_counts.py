"""
Metrics from counts per patient: of a set of units, and of any number of weightings of its patients at once.

Sums over units are one product of a sparse matrix, with a column for each patient, and the weights of the
patients. For ROC and precision-recall curves, units are sorted only once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.metrics._arrays import Flags, Floats, Integers
from medimg.metrics.calibration_error import N_BINS, bin_probabilities, expected_calibration_error
from medimg.metrics.classification import (
    ClassScores,
    Support,
    compute_ratio,
    find_curve_columns,
    name_metrics,
)
from medimg.metrics.units import ScoredUnits

__all__ = ["PatientCounts", "Ranking", "compute_class_scores", "compute_metrics", "compute_weighted_areas"]


def compute_metrics(
    truth: Flags, predicted: Flags, probabilities: Floats, support: Support
) -> dict[str, float]:
    """
    Return every metric of units (n, K) by name; NaN if undefined.

    >>> truth = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    >>> scores = np.array([[.9, .1], [.4, .6], [.3, .7], [.2, .8]])
    >>> decided = np.eye(2, dtype=bool)[scores.argmax(1)]
    >>> found = compute_metrics(truth, decided, scores, Support.count(truth, "multiclass", ("no", "yes")))
    >>> found["accuracy"], found["sensitivity"], found["specificity"], found["auroc"]
    (0.75, 1.0, 0.5, 1.0)
    """
    scores = compute_class_scores(truth, predicted, probabilities, support)
    return {name: float(value[0]) for name, value in name_metrics(scores, support).items()}


def compute_class_scores(
    truth: Flags, predicted: Flags, probabilities: Floats, support: Support
) -> ClassScores:
    """Score each class of units (n, K) against the rest; arrays are (1,) and (1, K)."""
    together = np.zeros(len(truth), dtype=np.int64)
    counts = PatientCounts.count(truth, predicted, probabilities, support, patient=together, n_patients=1)
    return counts.scores(np.ones((1, 1)))


def compute_weighted_areas(positive: Flags, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """
    Return AUROC and average precision of n units under R weightings (R, n): (R,) each.

    Ties count one half in the AUROC and are one threshold in the average precision; NaN if no positive or no
    negative has any weight.

    >>> positive, scores = np.array([False, False, True]), np.array([0.2, 0.6, 0.6])
    >>> auroc, auprc = compute_weighted_areas(positive, scores, np.array([[1.0, 1, 1], [3, 1, 2], [1, 1, 0]]))
    >>> auroc, auprc.round(3)
    (array([0.75 , 0.875,   nan]), array([0.5  , 0.667,   nan]))
    """
    ranking = Ranking.sort(positive, scores, np.arange(len(scores)), len(scores))
    return ranking.areas(np.ascontiguousarray(np.asarray(weights, dtype=np.float64).T))


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Units of a class and others, sorted by score once for all weightings of P patients."""

    positives: Any  # sparse (G, P): of each patient at each of the G scores that a positive has, ascending
    negatives: Any  # sparse (2·G+1, P): below the first of these scores, at it, between it and the next, …

    @classmethod
    def sort(cls, positive: Flags, scores: Floats, patient: Integers, n_patients: int) -> "Ranking":
        """Rank units (n,), each of a patient (n,)."""
        levels, level = np.unique(scores[positive], return_inverse=True)
        below = np.searchsorted(levels, scores[~positive], side="left")
        not_above = np.searchsorted(levels, scores[~positive], side="right")
        return cls(
            positives=_build_sums(level, patient[positive], None, (len(levels), n_patients)),
            negatives=_build_sums(
                below + not_above, patient[~positive], None, (2 * len(levels) + 1, n_patients)
            ),
        )

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return AUROC and average precision (R,) under weights of the patients (P, R); NaN if undefined."""
        hits: Floats = self.positives @ weights
        lower: Floats = self.negatives @ weights
        np.cumsum(lower, axis=0, out=lower)
        n_hits, n_others = hits.sum(axis=0), lower[-1].copy()
        won = np.einsum("gr,gr->r", hits, lower[:-1:2]) + np.einsum("gr,gr->r", hits, lower[1::2])
        # how many positives, and how many units at all, score at or above each level
        found = np.cumsum(hits[::-1], axis=0)[::-1]
        called = n_others - lower[:-1:2]
        called += found
        np.maximum(called, 1, out=called)
        np.divide(found, called, out=found)
        summed = np.einsum("gr,gr->r", hits, found)
        auroc = compute_ratio(won, 2 * n_hits * n_others)
        return auroc, np.where(n_others > 0, compute_ratio(summed, n_hits), np.nan)


@dataclass(frozen=True, eq=False, kw_only=True)
class PatientCounts:
    """
    Sums over the units of each of P patients; those of any weighting of the patients are one product.

    The rows of `sums` are: units; units predicted entirely correctly; of each class true positives,
    positives, predicted positives and squared errors; truth minus probability in each bin of each class's
    probability, and of the top one.
    """

    sums: Any  # sparse (rows, P)
    rankings: dict[int, Ranking]  # of the classes that have a ROC curve
    support: Support  # of the whole set

    @classmethod
    def of(cls, units: ScoredUnits, support: Support) -> "PatientCounts":
        """Count the units of each patient."""
        return cls.count(
            units.truth,
            units.predicted,
            units.probabilities,
            support,
            patient=units.patient,
            n_patients=units.n_patients,
        )

    @classmethod
    def count(
        cls,
        truth: Flags,
        predicted: Flags,
        probabilities: Floats,
        support: Support,
        *,
        patient: Integers,
        n_patients: int,
    ) -> "PatientCounts":
        """Count units (n, K), each of a patient (n,)."""
        from scipy.sparse import vstack

        n, k = truth.shape
        top = probabilities.argmax(axis=1)
        rows = np.arange(n)
        excess = truth - probabilities
        bins = bin_probabilities(probabilities) + np.arange(k) * N_BINS
        top_bins = bin_probabilities(probabilities[rows, top])
        of_class = np.tile(np.arange(k), n)
        by_class = (truth & predicted, truth, predicted, excess**2)
        blocks = [
            (np.zeros(n, dtype=np.int64), np.ones(n), 1),
            (np.zeros(n, dtype=np.int64), (truth == predicted).all(axis=1), 1),
            *((of_class, values.ravel(), k) for values in by_class),
            (bins.ravel(), excess.ravel(), k * N_BINS),
            (top_bins, excess[rows, top], N_BINS),
        ]
        # one after the other: of many classes all at once would take gigabytes
        sums = [
            _build_sums(row, np.repeat(patient, len(row) // n), values, (size, n_patients))
            for row, values, size in blocks
        ]
        rankings = {
            column: Ranking.sort(truth[:, column], probabilities[:, column], patient, n_patients)
            for column in find_curve_columns(support)
        }
        return cls(sums=vstack(sums, format="csr"), rankings=rankings, support=support)

    def scores(self, weights: Floats) -> ClassScores:
        """Score patients under weights (P, R), how often each is included: (R,) and (R, K)."""
        k, n_resamples = len(self.support.classes), weights.shape[1]
        sums = np.ascontiguousarray((self.sums @ weights).T)
        total, right = sums[:, :1], sums[:, 1]
        hits, true, predicted, error = np.moveaxis(sums[:, 2 : 2 + 4 * k].reshape(n_resamples, 4, k), 1, 0)
        excess = sums[:, 2 + 4 * k :].reshape(n_resamples, k + 1, N_BINS)
        ece = expected_calibration_error(excess, total)
        precision = compute_ratio(hits, np.maximum(predicted, 1))  # never predicted: no hits, so 0
        auroc, auprc = (np.full((n_resamples, k), np.nan) for _ in range(2))
        for column, ranking in self.rankings.items():
            auroc[:, column], auprc[:, column] = ranking.areas(weights)
        missed = total - true - predicted + hits
        # counts of a class and of the rest
        pairs = (np.stack([counts, total - counts], axis=-1) for counts in (true, predicted))
        mcc, kappa = _compute_agreement(hits + missed, *pairs)
        overall = np.full((2, n_resamples), np.nan)
        if self.support.task == "multiclass":
            overall[:] = _compute_agreement(right, true, predicted)
        return ClassScores(
            accuracy=right / total[:, 0],
            confidence_ece=ece[:, -1],
            mcc_overall=overall[0],
            kappa_overall=overall[1],
            hits=hits,
            true=true,
            predicted=predicted,
            recall=compute_ratio(hits, true),
            specificity=compute_ratio(missed, total - true),
            precision=np.where(true > 0, precision, np.nan),
            f1=np.where(true > 0, compute_ratio(2 * hits, true + predicted), np.nan),
            auroc=auroc,
            auprc=auprc,
            mcc=mcc,
            kappa=kappa,
            brier=error / total,
            ece=ece[:, :-1],
        )


def _compute_agreement(right: Floats, true: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """
    Return Gorodkin's correlation and Cohen's kappa (...) from correct units (...) and classes (..., K).

    NaN if only one class occurs; the correlation is 0 if only one is predicted.

    >>> _compute_agreement(np.array([8.0]), np.array([[5.0, 5.0]]), np.array([[5.0, 5.0]]))
    (array([0.6]), array([0.6]))
    """
    total = true.sum(axis=-1)
    chance = (true * predicted).sum(axis=-1)
    spread = total**2 - (true**2).sum(axis=-1)
    excess = right * total - chance
    scale = np.sqrt(spread * (total**2 - (predicted**2).sum(axis=-1)))
    mcc = np.divide(excess, scale, out=np.zeros_like(excess), where=scale > 0)
    kappa = compute_ratio(excess, total**2 - chance)
    return np.where(spread > 0, mcc, np.nan), np.where(spread > 0, kappa, np.nan)


def _build_sums(row: Integers, patient: Integers, values: NDArray[Any] | None, shape: tuple[int, int]) -> Any:
    """Return a sparse matrix in which values, or ones, of the same row and patient are added."""
    from scipy.sparse import coo_array

    if values is None:
        return coo_array((np.ones(len(row)), (row, patient)), shape=shape).tocsr()
    there = np.flatnonzero(values)
    return coo_array((values[there].astype(np.float64), (row[there], patient[there])), shape=shape).tocsr()
