"""The curves that a report draws, as numbers: ROC, precision against recall, and reliability."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimg.metrics.classification import N_BINS, Support, bin_probabilities, curve_columns

__all__ = ["Curves", "Line", "Reliability", "curves_of", "reliability_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """
    A curve.

    Attributes
    ----------
    x, y : ndarray of float64, shape (points,)
        ROC: false positive rate and sensitivity, ascending. Precision against recall: recall, ascending, and
        precision.
    thresholds : ndarray of float64, shape (points,)
        Probability from which on a unit counts as positive; infinite where none does.
    """

    x: Floats
    y: Floats
    thresholds: Floats

    def __repr__(self) -> str:
        return f"Line({len(self.x)} points)"


@dataclass(frozen=True, eq=False)
class Reliability:
    """
    What was predicted against what occurred, in bins of equal width; empty bins are left out.

    Attributes
    ----------
    predicted : ndarray of float64, shape (bins,)
        Mean probability of the units in the bin, ascending.
    observed : ndarray of float64, shape (bins,)
        Share of them that are of the class (of the top probability: that are right).
    n : ndarray of int64, shape (bins,)
        How many they are.
    """

    predicted: Floats
    observed: Floats
    n: NDArray[np.int64]

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by ``n``."""
        return float(np.abs(self.predicted - self.observed) @ self.n / self.n.sum())


@dataclass(frozen=True, eq=False)
class Curves:
    """
    The curves of an evaluation, by name of the class.

    Attributes
    ----------
    roc, precision_recall : mapping of str to Line
        Each class against the rest, of two classes the second; without classes of which nothing, or
        everything, is.
    reliability : mapping of str to Reliability
        The probability of each class; of two classes, of the second.
    confidence : Reliability or None
        The top probability, multiclass only: its ``ece`` is the metric of that name.
    """

    roc: Mapping[str, Line]
    precision_recall: Mapping[str, Line]
    reliability: Mapping[str, Reliability]
    confidence: Reliability | None = None

    def __repr__(self) -> str:
        return f"Curves({len(self.roc)} ROC, {len(self.reliability)} reliability)"


def curves_of(truth: NDArray[np.bool_], probabilities: Floats, support: Support) -> Curves:
    """
    Compute the curves of a set of units.

    Parameters
    ----------
    truth : ndarray of bool, shape (n, K)
        Indicators of the true classes.
    probabilities : ndarray of float, shape (n, K)
        Scores of the classes.
    support : Support
        Counts of the set.

    Returns
    -------
    Curves

    Examples
    --------
    >>> truth = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    >>> scores = np.array([[.9, .1], [.4, .6], [.3, .7], [.2, .8]])
    >>> found = curves_of(truth, scores, Support.of(truth, "multiclass", ("no", "yes")))
    >>> found.roc["yes"].y
    array([0. , 0.5, 1. , 1. ])
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    roc: dict[str, Line] = {}
    precision_recall: dict[str, Line] = {}
    for k in curve_columns(support):
        roc[support.classes[k]] = Line(*roc_curve(truth[:, k], probabilities[:, k]))
        precision, recall, thresholds = precision_recall_curve(truth[:, k], probabilities[:, k])
        precision_recall[support.classes[k]] = Line(
            recall[::-1], precision[::-1], np.append(thresholds, np.inf)[::-1]
        )
    shown = range(1, 2) if support.binary else range(len(support.classes))
    return Curves(
        roc=roc,
        precision_recall=precision_recall,
        reliability={support.classes[k]: reliability_of(truth[:, k], probabilities[:, k]) for k in shown},
        confidence=_confidence(truth, probabilities) if support.task == "multiclass" else None,
    )


def reliability_of(positive: NDArray[np.bool_], probabilities: Floats, bins: int = N_BINS) -> Reliability:
    """
    Compare probabilities with what occurred.

    Parameters
    ----------
    positive : ndarray of bool, shape (n,)
        What occurred.
    probabilities : ndarray of float, shape (n,)
        What was predicted.
    bins : int
        How many bins of equal width.

    Returns
    -------
    Reliability

    Examples
    --------
    >>> found = reliability_of(np.array([False, True, True]), np.array([0.2, 0.9, 0.9]))
    >>> found.predicted, found.observed, found.n
    (array([0.2, 0.9]), array([0., 1.]), array([1, 2]))
    """
    numbers = bin_probabilities(probabilities, bins)
    n = np.bincount(numbers, minlength=bins)
    filled = n > 0
    sums = (
        np.bincount(numbers, weights=values, minlength=bins)[filled] for values in (probabilities, positive)
    )
    predicted, observed = (values / n[filled] for values in sums)
    return Reliability(predicted, observed, n[filled].astype(np.int64))


def _confidence(truth: NDArray[np.bool_], probabilities: Floats) -> Reliability:
    top = probabilities.argmax(axis=1)
    rows = np.arange(len(top))
    return reliability_of(truth[rows, top], probabilities[rows, top])
