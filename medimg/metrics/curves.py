"""Curves of a classifier as numbers: ROC, precision-recall and reliability."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medimg.metrics._arrays import Flags, Floats, Integers
from medimg.metrics.calibration_error import N_BINS, bin_probabilities, expected_calibration_error
from medimg.metrics.classification import Support, find_curve_columns

__all__ = ["Curves", "Line", "Reliability", "compute_curves", "compute_reliability"]


@dataclass(frozen=True, eq=False)
class Line:
    """
    A curve.

    Attributes
    ----------
    x, y : ndarray of float64, shape (points,)
        ROC: false positive rate and sensitivity, ascending. Precision-recall: recall, ascending, and
        precision.
    thresholds : ndarray of float64, shape (points,)
        Probability from which on a unit counts as positive; infinite if none does.
    """

    x: Floats
    y: Floats
    thresholds: Floats

    def __repr__(self) -> str:
        return f"Line({len(self.x)} points)"


@dataclass(frozen=True, eq=False)
class Reliability:
    """
    Predicted probability and observed frequency in bins of equal width; empty bins are left out.

    Attributes
    ----------
    predicted : ndarray of float64, shape (bins,)
        Mean probability of the units in the bin, ascending.
    observed : ndarray of float64, shape (bins,)
        Fraction of them that are of the class (of the top probability: that are correct).
    n : ndarray of int64, shape (bins,)
        Number of units in the bin.
    """

    predicted: Floats
    observed: Floats
    n: Integers

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by ``n``."""
        return float(expected_calibration_error((self.observed - self.predicted) * self.n, self.n.sum()))


@dataclass(frozen=True, eq=False)
class Curves:
    """
    Curves of an evaluation, by name of the class.

    Attributes
    ----------
    roc, precision_recall : mapping of str to Line
        Each class against the rest, of two classes the second; without classes that have no positives or no
        negatives.
    reliability : mapping of str to Reliability
        Probability of each class; of two classes, of the second.
    confidence : Reliability or None
        Top probability, multiclass only: its ``ece`` is the metric of that name.
    """

    roc: Mapping[str, Line]
    precision_recall: Mapping[str, Line]
    reliability: Mapping[str, Reliability]
    confidence: Reliability | None = None

    def __repr__(self) -> str:
        return f"Curves({len(self.roc)} ROC, {len(self.reliability)} reliability)"


def compute_curves(truth: Flags, probabilities: Floats, support: Support) -> Curves:
    """
    Return the curves of units (n, K).

    >>> truth = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    >>> scores = np.array([[.9, .1], [.4, .6], [.3, .7], [.2, .8]])
    >>> compute_curves(truth, scores, Support.count(truth, "multiclass", ("no", "yes"))).roc["yes"].y
    array([0. , 0.5, 1. , 1. ])
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    roc: dict[str, Line] = {}
    precision_recall: dict[str, Line] = {}
    for k in find_curve_columns(support):
        name = support.classes[k]
        roc[name] = Line(*roc_curve(truth[:, k], probabilities[:, k]))
        precision, recall, thresholds = precision_recall_curve(truth[:, k], probabilities[:, k])
        precision_recall[name] = Line(recall[::-1], precision[::-1], np.append(thresholds, np.inf)[::-1])
    shown = range(1, 2) if support.is_binary else range(len(support.classes))
    confidence = None
    if support.task == "multiclass":
        rows, top = np.arange(len(truth)), probabilities.argmax(axis=1)
        confidence = compute_reliability(truth[rows, top], probabilities[rows, top])
    return Curves(
        roc=roc,
        precision_recall=precision_recall,
        reliability={
            support.classes[k]: compute_reliability(truth[:, k], probabilities[:, k]) for k in shown
        },
        confidence=confidence,
    )


def compute_reliability(positive: Flags, probabilities: Floats, bins: int = N_BINS) -> Reliability:
    """
    Compare probabilities (n,) with observations (n,) in bins of equal width.

    >>> found = compute_reliability(np.array([False, True, True]), np.array([0.2, 0.9, 0.9]))
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
