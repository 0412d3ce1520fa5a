"""
Metrics of weighted units, for many weightings at once: as if each were there as often as its weight says.

Whatever is a sum over units becomes one product of a sparse matrix, with a column for each patient, and the
weights of the patients. For ROC and precision against recall, units are sorted once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.metrics.classification import (
    N_BINS,
    ClassScores,
    Support,
    bin_probabilities,
    curve_columns,
)
from medimg.metrics.units import ScoredUnits

__all__ = ["Counts", "Ranking", "weighted_auprc", "weighted_auroc"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


def weighted_auroc(positive: Flags, scores: Floats, weights: Floats) -> Floats:
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
    return _areas(positive, scores, weights)[0]


def weighted_auprc(positive: Flags, scores: Floats, weights: Floats) -> Floats:
    """
    Compute the average precision of weighted units; equal scores are one threshold.

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
    >>> weighted_auprc(positive, scores, np.array([[1.0, 1, 1], [1, 3, 1], [1, 1, 0]]))
    array([0.5 , 0.25,  nan])
    """
    return _areas(positive, scores, weights)[1]


def _areas(positive: Flags, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    ranking = Ranking.sort(positive, scores, np.arange(len(scores)), len(scores))
    return ranking.areas(np.ascontiguousarray(np.asarray(weights, dtype=np.float64).T))


@dataclass(frozen=True, eq=False)
class Ranking:
    """
    Units of a class and others, sorted by score once for all weightings.

    Attributes
    ----------
    positives : sparse matrix, shape (G, P)
        Positives of each patient at each of the G scores that a positive has, ascending.
    negatives : sparse matrix, shape (2·G+1, P)
        Negatives of each patient below the first of these scores, at it, between it and the next, and so on.
    """

    positives: Any
    negatives: Any

    @classmethod
    def sort(cls, positive: Flags, scores: Floats, patient: Integers, n_patients: int) -> "Ranking":
        """Rank units of which each belongs to a patient."""
        levels, level = np.unique(scores[positive], return_inverse=True)
        below = np.searchsorted(levels, scores[~positive], side="left")
        not_above = np.searchsorted(levels, scores[~positive], side="right")
        return cls(
            positives=_sums(level, patient[positive], None, (len(levels), n_patients)),
            negatives=_sums(below + not_above, patient[~positive], None, (2 * len(levels) + 1, n_patients)),
        )

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """
        Compute AUROC and average precision.

        Parameters
        ----------
        weights : ndarray of float64, shape (P, R)
            How often each patient is there.

        Returns
        -------
        tuple of ndarray of float64, shape (R,)
            NaN where no positive or no negative has any weight.
        """
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
        auroc = ratio(won, 2 * n_hits * n_others)
        return auroc, np.where(n_others > 0, ratio(summed, n_hits), np.nan)


@dataclass(frozen=True, eq=False)
class Counts:
    """
    Sums over the units of each patient, from which those of any weighting are one product.

    Attributes
    ----------
    sums : sparse matrix, shape (rows, P)
        Units; units of which everything is right; of each class the hits, the positives, the predicted
        positives and the squared errors; excess of what is true over what was predicted in each bin of each
        class's probability, and of the top one.
    rankings : mapping of int to Ranking
        Of the classes that have a ROC.
    support : Support
        Counts of the whole set.
    """

    sums: Any
    rankings: dict[int, Ranking]
    support: Support

    @classmethod
    def of(cls, units: ScoredUnits, support: Support) -> "Counts":
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
    ) -> "Counts":
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
            _sums(row, np.repeat(patient, len(row) // n), values, (size, n_patients))
            for row, values, size in blocks
        ]
        rankings = {
            column: Ranking.sort(truth[:, column], probabilities[:, column], patient, n_patients)
            for column in curve_columns(support)
        }
        return cls(vstack(sums, format="csr"), rankings, support)

    def scores(self, weights: Floats) -> ClassScores:
        """
        Score weighted patients.

        Parameters
        ----------
        weights : ndarray of float64, shape (P, R)
            How often each patient is there.

        Returns
        -------
        ClassScores
            Of R resamples.
        """
        k, n_resamples = len(self.support.classes), weights.shape[1]
        sums = np.ascontiguousarray((self.sums @ weights).T)
        total, right = sums[:, :1], sums[:, 1]
        hits, true, predicted, error = np.moveaxis(sums[:, 2 : 2 + 4 * k].reshape(n_resamples, 4, k), 1, 0)
        gaps = np.abs(sums[:, 2 + 4 * k :]).reshape(n_resamples, k + 1, N_BINS).sum(axis=-1) / total
        precision = ratio(hits, np.maximum(predicted, 1))  # never predicted: no hits, so 0
        auroc, auprc = (np.full((n_resamples, k), np.nan) for _ in range(2))
        for column, ranking in self.rankings.items():
            auroc[:, column], auprc[:, column] = ranking.areas(weights)
        missed = total - true - predicted + hits
        mcc, kappa = agreement(hits + missed, _both(true, total), _both(predicted, total))
        overall = np.full((2, n_resamples), np.nan)
        if self.support.task == "multiclass":
            overall[:] = agreement(right, true, predicted)
        return ClassScores(
            accuracy=right / total[:, 0],
            confidence_ece=gaps[:, -1],
            mcc_overall=overall[0],
            kappa_overall=overall[1],
            hits=hits,
            true=true,
            predicted=predicted,
            recall=ratio(hits, true),
            specificity=ratio(missed, total - true),
            precision=np.where(true > 0, precision, np.nan),
            f1=np.where(true > 0, ratio(2 * hits, true + predicted), np.nan),
            auroc=auroc,
            auprc=auprc,
            mcc=mcc,
            kappa=kappa,
            brier=error / total,
            ece=gaps[:, :-1],
        )


def agreement(right: Floats, true: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """
    Compute Gorodkin's correlation and Cohen's kappa from counts.

    Parameters
    ----------
    right : ndarray of float64, shape (...)
        Units predicted as they are.
    true, predicted : ndarray of float64, shape (..., K)
        Units of each class, and units predicted to be of it.

    Returns
    -------
    tuple of ndarray of float64, shape (...)
        NaN where only one class occurs; a correlation of 0 where only one is predicted.

    Examples
    --------
    >>> agreement(np.array([8.0]), np.array([[5.0, 5.0]]), np.array([[5.0, 5.0]]))
    (array([0.6]), array([0.6]))
    """
    total = true.sum(axis=-1)
    chance = (true * predicted).sum(axis=-1)
    spread = total**2 - (true**2).sum(axis=-1)
    excess = right * total - chance
    scale = np.sqrt(spread * (total**2 - (predicted**2).sum(axis=-1)))
    mcc = np.divide(excess, scale, out=np.zeros_like(excess), where=scale > 0)
    kappa = ratio(excess, total**2 - chance)
    return np.where(spread > 0, mcc, np.nan), np.where(spread > 0, kappa, np.nan)


def ratio(part: Floats, whole: Floats) -> Floats:
    """Quotient, NaN where the whole is nothing."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _both(counts: Floats, total: Floats) -> Floats:
    """Counts of a class and of the rest."""
    return np.stack([counts, total - counts], axis=-1)


def _sums(row: Integers, patient: Integers, values: NDArray[Any] | None, shape: tuple[int, int]) -> Any:
    """Sparse matrix of sums: values, or ones, of the same row and patient are added."""
    from scipy.sparse import coo_array

    if values is None:
        return coo_array((np.ones(len(row)), (row, patient)), shape=shape).tocsr()
    there = np.flatnonzero(values)
    return coo_array((values[there].astype(np.float64), (row[there], patient[there])), shape=shape).tocsr()
