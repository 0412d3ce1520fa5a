"""
Metrics of a classifier, by counts: for a set of units, and for thousands of resamples of it at once.

The same counts fill :class:`ClassScores` for an estimate and for its resamples; :func:`named_metrics` turns
them into the metrics of the report, so an estimate and its interval cannot mean different things.

Definitions
-----------
Each class is scored against the rest. With TP, FP, FN and TN the counts of that class, n their sum, p the
probability of the class and y whether a unit is of it (0 or 1):

- recall (sensitivity) TP/(TP+FN), specificity TN/(TN+FP), precision TP/(TP+FP), F1 2·TP/(2·TP+FP+FN);
- AUROC: the probability that a random positive scores above a random negative, ties counting one half [1]_;
- AUPRC: average precision, Σ (Rᵢ - Rᵢ₋₁)·Pᵢ over the distinct probabilities from the highest down, with
  recall R and precision P of the units at or above each; nothing is interpolated [2]_;
- Brier score: mean of (p - y)². Overall, the mean over all classes: the sum that Brier defined [3]_, divided
  by K, so that with two classes it is the usual score of the second one;
- ECE: expected calibration error, Σ n_b/n·|mean p - share of y| over 15 bins of equal width, each without its
  lower and with its upper end [4]_ [5]_. Overall, of the top probability against whether it is right
  (multilabel: mean of the labels); the mean of the classes' own is ``ece_macro`` [6]_;
- Matthews correlation (MCC): correlation of prediction and truth, overall as Gorodkin defined it for K
  classes [7]_ (multilabel: mean of the labels), 0 where everything is predicted alike;
- Cohen's kappa: (o - e)/(1 - e), with the accuracy o, and e what chance would give [8]_.

Balanced accuracy is the mean recall of the classes [9]_. "Macro" is the mean over the classes, "weighted" the
mean weighted by their size, "micro" counts all labels together (multilabel; in a multiclass task recall,
precision and F1 are then the accuracy, as is the weighted recall).

- A class that is never predicted has precision 0.
- A class that does not occur among the true labels has no recall, precision, F1, AUROC, AUPRC, MCC or kappa:
  they are NaN, and the averages run over the classes that do occur. Brier score and ECE have a value.
- One that everything is of has no specificity, AUROC, AUPRC, MCC or kappa; where only one class occurs, there
  is no overall MCC or kappa.
- In a resample that lacks a class the whole set has, an average over the classes is undefined.

References
----------
.. [1] Hanley JA, McNeil BJ. The meaning and use of the area under a receiver operating characteristic (ROC)
   curve. Radiology 1982;143:29-36.
.. [2] Davis J, Goadrich M. The relationship between precision-recall and ROC curves. ICML 2006:233-240.
.. [3] Brier GW. Verification of forecasts expressed in terms of probability. Mon Weather Rev 1950;78:1-3.
.. [4] Naeini MP, Cooper GF, Hauskrecht M. Obtaining well calibrated probabilities using Bayesian binning.
   AAAI 2015:2901-2907.
.. [5] Guo C, Pleiss G, Sun Y, Weinberger KQ. On calibration of modern neural networks. ICML 2017:1321-1330.
.. [6] Kull M et al. Beyond temperature scaling: obtaining well-calibrated multiclass probabilities with
   Dirichlet calibration. NeurIPS 2019.
.. [7] Gorodkin J. Comparing two K-category assignments by a K-category correlation coefficient. Comput Biol
   Chem 2004;28:367-374.
.. [8] Cohen J. A coefficient of agreement for nominal scales. Educ Psychol Meas 1960;20:37-46.
.. [9] Brodersen KH et al. The balanced accuracy and its posterior distribution. ICPR 2010:3121-3124.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "N_BINS",
    "ClassScores",
    "Support",
    "bin_probabilities",
    "curve_columns",
    "named_metrics",
]

Floats = NDArray[np.float64]

N_BINS = 15
"""Bins of the expected calibration error."""

_PER_CLASS = ("recall", "specificity", "precision", "f1")
_PER_CLASS_OF_MANY = ("auroc", "auprc", "mcc", "kappa", "brier", "ece")
"""With two classes, those of one are those of the other, or lie among the overall ones."""


@dataclass(frozen=True, eq=False)
class ClassScores:
    """
    Scores of each class against the rest; ``...`` is empty for an estimate, (R,) for R resamples.

    Attributes
    ----------
    accuracy : ndarray, shape (...)
        Share of units of which everything is right.
    confidence_ece : ndarray, shape (...)
        Expected calibration error of the top probability; multiclass only.
    mcc_overall, kappa_overall : ndarray, shape (...)
        Of all classes together; multiclass only.
    hits, true, predicted : ndarray, shape (..., K)
        Counts of true positives, positives, and units predicted positive.
    recall, specificity, precision, f1, auroc, auprc, mcc, kappa, brier, ece : ndarray, shape (..., K)
        NaN where undefined.
    """

    accuracy: Floats
    confidence_ece: Floats
    mcc_overall: Floats
    kappa_overall: Floats
    hits: Floats
    true: Floats
    predicted: Floats
    recall: Floats
    specificity: Floats
    precision: Floats
    f1: Floats
    auroc: Floats
    auprc: Floats
    mcc: Floats
    kappa: Floats
    brier: Floats
    ece: Floats


@dataclass(frozen=True)
class Support:
    """
    What the whole set holds, which fixes what the averages run over.

    Attributes
    ----------
    task : str
        ``"multiclass"`` or ``"multilabel"``.
    classes : tuple of str
        Names, K of them.
    positives, negatives : tuple of int
        Units of each class, and units that are not of it.
    """

    task: str
    classes: tuple[str, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    @classmethod
    def of(cls, truth: NDArray[np.bool_], task: str, classes: tuple[str, ...]) -> "Support":
        """
        Count the classes.

        Parameters
        ----------
        truth : ndarray of bool, shape (n, K)
            Indicators of the true classes.
        task : {"multiclass", "multilabel"}
            The task.
        classes : tuple of str
            Names of the classes.

        Returns
        -------
        Support
            The counts.
        """
        positives = truth.sum(axis=0)
        return cls(task, classes, tuple(positives.tolist()), tuple((len(truth) - positives).tolist()))

    @property
    def binary(self) -> bool:
        """Whether there are just two classes, of which the second is the positive one."""
        return self.task == "multiclass" and len(self.classes) == 2

    @property
    def has_positives(self) -> NDArray[np.bool_]:
        """Classes that occur, shape (K,)."""
        return np.array(self.positives) > 0

    @property
    def has_negatives(self) -> NDArray[np.bool_]:
        """Classes that not every unit is of, shape (K,)."""
        return np.array(self.negatives) > 0


def curve_columns(support: Support) -> tuple[int, ...]:
    """
    Say which classes have a ROC: both kinds must occur, and two classes share one curve.

    Parameters
    ----------
    support : Support
        Counts of the whole set.

    Returns
    -------
    tuple of int
        Columns of the probabilities.

    Examples
    --------
    >>> curve_columns(Support("multiclass", ("no", "yes"), (3, 4), (4, 3)))
    (1,)
    >>> curve_columns(Support("multiclass", ("a", "b", "c"), (3, 4, 0), (4, 3, 7)))
    (0, 1)
    """
    both = np.flatnonzero(support.has_positives & support.has_negatives)
    return tuple(int(k) for k in both if not support.binary or k == 1)


def bin_probabilities(probabilities: Floats, bins: int = N_BINS) -> NDArray[np.int64]:
    """
    Say in which bin of equal width each probability lies; a bin holds its upper end, the first also 0.

    Parameters
    ----------
    probabilities : ndarray of float
        From 0 to 1.
    bins : int
        How many.

    Returns
    -------
    ndarray of int64
        From 0 to ``bins - 1``.

    Examples
    --------
    >>> bin_probabilities(np.array([0.0, 0.2, 0.21, 1.0]), 5)
    array([0, 0, 1, 4])
    """
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(edges, probabilities, side="left").astype(np.int64)


def named_metrics(scores: ClassScores, support: Support) -> dict[str, Floats]:
    """
    Average the scores of the classes and give every metric its name.

    Parameters
    ----------
    scores : ClassScores
        Of one set, or of R resamples of it.
    support : Support
        Counts of the whole set, never those of a resample.

    Returns
    -------
    dict of str to ndarray of shape (...)
        ``accuracy``; ``balanced_accuracy`` (multiclass); ``sensitivity`` and ``specificity`` (two classes; of
        the second one); ``auroc`` and ``auprc`` (two classes: of the second; else the mean over the classes);
        ``recall_macro``, ``specificity_macro`` (multilabel), ``precision_macro``, ``f1_macro``; weighted and
        pooled averages; ``mcc``, ``kappa``, ``brier``, ``ece``; then ``recall[class]`` and so on for each
        class.
    """
    occurs, varies = support.has_positives, support.has_negatives
    curves = np.isin(np.arange(len(support.classes)), curve_columns(support))
    several = support.task == "multilabel"
    result = {"accuracy": scores.accuracy}
    if not several:
        result["balanced_accuracy"] = _mean(scores.recall, occurs)
    if support.binary:
        result["sensitivity"] = scores.recall[..., 1]
        result["specificity"] = scores.specificity[..., 1]
    result["auroc"] = _mean(scores.auroc, curves)
    result["auprc"] = _mean(scores.auprc, curves)
    result["recall_macro"] = _mean(scores.recall, occurs)
    if several:
        result["specificity_macro"] = _mean(scores.specificity, varies)
    result["precision_macro"] = _mean(scores.precision, occurs)
    result["f1_macro"] = _mean(scores.f1, occurs)
    result |= _weighted(scores, occurs, None if support.binary else curves)
    if several:
        result |= _pooled(scores)
    result["mcc"] = _mean(scores.mcc, occurs & varies) if several else scores.mcc_overall
    result["kappa"] = _mean(scores.kappa, occurs & varies) if several else scores.kappa_overall
    result["brier"] = scores.brier.mean(axis=-1)
    result["ece"] = scores.ece.mean(axis=-1) if several else scores.confidence_ece
    if not several and not support.binary:
        result["ece_macro"] = scores.ece.mean(axis=-1)
    kinds = _PER_CLASS if support.binary else _PER_CLASS + _PER_CLASS_OF_MANY
    for k, name in enumerate(support.classes):
        result |= {f"{kind}[{name}]": getattr(scores, kind)[..., k] for kind in kinds}
    return result


def _weighted(
    scores: ClassScores, occurs: NDArray[np.bool_], curves: NDArray[np.bool_] | None
) -> dict[str, Floats]:
    """Averages weighted by the size of the classes; of the recall that would be the recall of all labels."""
    result = (
        {}
        if curves is None
        else {
            f"{kind}_weighted": _mean(getattr(scores, kind), curves, scores.true)
            for kind in ("auroc", "auprc")
        }
    )
    for kind in ("precision", "f1"):
        result[f"{kind}_weighted"] = _mean(getattr(scores, kind), occurs, scores.true)
    return result


def _pooled(scores: ClassScores) -> dict[str, Floats]:
    hits, true, predicted = (counts.sum(axis=-1) for counts in (scores.hits, scores.true, scores.predicted))
    nothing = true == 0
    return {
        "recall_micro": np.where(nothing, np.nan, hits / np.maximum(true, 1)),
        "precision_micro": np.where(nothing, np.nan, hits / np.maximum(predicted, 1)),
        "f1_micro": np.where(nothing, np.nan, 2 * hits / np.maximum(true + predicted, 1)),
    }


def _mean(values: Floats, over: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Mean over the classes chosen; NaN when one of them is undefined, or when none was chosen."""
    if not over.any():
        return np.full(values.shape[:-1], np.nan)
    chosen = values[..., over]
    if weights is None:
        return np.asarray(chosen.mean(axis=-1), dtype=np.float64)
    shares = weights[..., over]
    return np.asarray((chosen * shares).sum(axis=-1) / np.maximum(shares.sum(axis=-1), 1), dtype=np.float64)


Flags = NDArray[np.bool_]
