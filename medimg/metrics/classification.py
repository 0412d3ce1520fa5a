"""
Definitions of the classification metrics, and the names under which they are reported.

:class:`ClassScores` holds the scores of an estimate, or of thousands of resamples; :func:`name_metrics` turns
either into the metrics of the report, so that an estimate and its interval are the same quantity.

Definitions
-----------
Each class is scored against the rest. With TP, FP, FN and TN the counts of that class, n their sum, p the
probability of the class and y the truth (0 or 1):

- recall (sensitivity) TP/(TP+FN), specificity TN/(TN+FP), precision TP/(TP+FP), F1 2·TP/(2·TP+FP+FN);
- AUROC: the probability that a random positive scores above a random negative, ties counting one half [1]_;
- AUPRC: average precision, Σ (Rᵢ - Rᵢ₋₁)·Pᵢ over the distinct probabilities in descending order, with
  recall R and precision P of the units at or above each, without interpolation [2]_;
- Brier score: mean of (p - y)². Overall, the mean over all classes: the sum that Brier defined [3]_, divided
  by K, so that with two classes it is the usual score of the second one;
- ECE: expected calibration error, Σ n_b/n·|mean p - fraction of y| over 15 bins of equal width, each without
  its lower and with its upper end [4]_ [5]_. Overall, of the top probability against its correctness
  (multilabel: mean of the labels); the mean over the classes is ``ece_macro`` [6]_;
- Matthews correlation (MCC): correlation of prediction and truth, overall as Gorodkin defined it for K
  classes [7]_ (multilabel: mean of the labels), 0 if all predictions are the same;
- Cohen's kappa: (o - e)/(1 - e), with the accuracy o, and e the agreement expected by chance [8]_.

Balanced accuracy is the mean recall of the classes [9]_. "Macro" is the mean over the classes, "weighted" the
mean weighted by their size, "micro" counts all labels together (multilabel; in a multiclass task recall,
precision and F1 are then the accuracy, as is the weighted recall).

- A class that is never predicted has precision 0.
- A class that does not occur among the true labels has no recall, precision, F1, AUROC, AUPRC, MCC or kappa:
  they are NaN, and the averages run over the classes that do occur. Brier score and ECE have a value.
- A class of all units has no specificity, AUROC, AUPRC, MCC or kappa; if only one class occurs, there is no
  overall MCC or kappa.
- In a resample that lacks a class of the whole set, averages over the classes are undefined.

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

from medimg.metrics._arrays import Flags, Floats

__all__ = [
    "ClassScores",
    "Support",
    "compute_ratio",
    "find_curve_columns",
    "name_metrics",
]

_PER_CLASS = ("recall", "specificity", "precision", "f1")
#: With two classes, those of one are those of the other, or are among the overall ones.
_PER_CLASS_OF_MANY = ("auroc", "auprc", "mcc", "kappa", "brier", "ece")


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassScores:
    """Scores of each class against the rest; ``...`` is (R,) for R resamples. NaN if undefined."""

    accuracy: Floats  # (...): fraction of units predicted entirely correctly
    confidence_ece: Floats  # (...): of the top probability; multiclass only
    mcc_overall: Floats  # (...): of all classes together; multiclass only
    kappa_overall: Floats
    hits: Floats  # (..., K): true positives
    true: Floats  # (..., K): positives
    predicted: Floats  # (..., K): predicted positives
    recall: Floats  # (..., K), as all that follow
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
    """Units of each class in the whole set, which determine the classes that averages include."""

    task: str
    classes: tuple[str, ...]
    positives: tuple[int, ...]  # (K,): units of each class
    negatives: tuple[int, ...]  # (K,): units not of it

    @classmethod
    def count(cls, truth: Flags, task: str, classes: tuple[str, ...]) -> "Support":
        """Count the classes of indicators (n, K)."""
        positives = truth.sum(axis=0)
        return cls(task, classes, tuple(positives.tolist()), tuple((len(truth) - positives).tolist()))

    @property
    def is_binary(self) -> bool:
        """Whether there are two exclusive classes, of which the second is the positive one."""
        return self.task == "multiclass" and len(self.classes) == 2

    @property
    def has_positives(self) -> Flags:
        """Which classes occur, (K,)."""
        return np.array(self.positives) > 0

    @property
    def has_negatives(self) -> Flags:
        """Which classes have units that are not of them, (K,)."""
        return np.array(self.negatives) > 0


def find_curve_columns(support: Support) -> tuple[int, ...]:
    """
    Return the classes that have a ROC curve: with positives and negatives; two classes share one curve.

    >>> find_curve_columns(Support("multiclass", ("no", "yes"), (3, 4), (4, 3)))
    (1,)
    >>> find_curve_columns(Support("multiclass", ("a", "b", "c"), (3, 4, 0), (4, 3, 7)))
    (0, 1)
    """
    both = np.flatnonzero(support.has_positives & support.has_negatives)
    return tuple(int(k) for k in both if not support.is_binary or k == 1)


def compute_ratio(part: Floats, whole: Floats) -> Floats:
    """Return the quotient, NaN where `whole` is 0."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def name_metrics(scores: ClassScores, support: Support) -> dict[str, Floats]:
    """
    Average the scores of the classes and return every metric (...) by name.

    ``accuracy``; ``balanced_accuracy`` (multiclass); ``sensitivity`` and ``specificity`` (two classes: of the
    second); ``auroc`` and ``auprc`` (two classes: of the second; else the mean over the classes);
    ``recall_macro``, ``specificity_macro`` (multilabel), ``precision_macro``, ``f1_macro``; weighted and
    micro averages; ``mcc``, ``kappa``, ``brier``, ``ece``; then ``recall[class]`` and so on for each class.
    The support is always that of the whole set, never that of a resample.
    """
    occurs, varies = support.has_positives, support.has_negatives
    curves = np.isin(np.arange(len(support.classes)), find_curve_columns(support))
    multilabel = support.task == "multilabel"
    result = {"accuracy": scores.accuracy}
    if not multilabel:
        result["balanced_accuracy"] = _average_classes(scores.recall, occurs)
    if support.is_binary:
        result["sensitivity"] = scores.recall[..., 1]
        result["specificity"] = scores.specificity[..., 1]
    result["auroc"] = _average_classes(scores.auroc, curves)
    result["auprc"] = _average_classes(scores.auprc, curves)
    result["recall_macro"] = _average_classes(scores.recall, occurs)
    if multilabel:
        result["specificity_macro"] = _average_classes(scores.specificity, varies)
    result["precision_macro"] = _average_classes(scores.precision, occurs)
    result["f1_macro"] = _average_classes(scores.f1, occurs)
    # weighted by the size of the classes; the weighted recall would be the recall of all labels
    if not support.is_binary:
        result["auroc_weighted"] = _average_classes(scores.auroc, curves, scores.true)
        result["auprc_weighted"] = _average_classes(scores.auprc, curves, scores.true)
    result["precision_weighted"] = _average_classes(scores.precision, occurs, scores.true)
    result["f1_weighted"] = _average_classes(scores.f1, occurs, scores.true)
    if multilabel:
        result |= _pool_labels(scores)
    result["mcc"] = _average_classes(scores.mcc, occurs & varies) if multilabel else scores.mcc_overall
    result["kappa"] = _average_classes(scores.kappa, occurs & varies) if multilabel else scores.kappa_overall
    result["brier"] = scores.brier.mean(axis=-1)
    result["ece"] = scores.ece.mean(axis=-1) if multilabel else scores.confidence_ece
    if not multilabel and not support.is_binary:
        result["ece_macro"] = scores.ece.mean(axis=-1)
    metrics = _PER_CLASS if support.is_binary else _PER_CLASS + _PER_CLASS_OF_MANY
    for k, name in enumerate(support.classes):
        result |= {f"{metric}[{name}]": getattr(scores, metric)[..., k] for metric in metrics}
    return result


def _pool_labels(scores: ClassScores) -> dict[str, Floats]:
    """Return metrics of all labels counted together, (...)."""
    hits, true, predicted = (counts.sum(axis=-1) for counts in (scores.hits, scores.true, scores.predicted))
    ratios = {
        "recall_micro": compute_ratio(hits, true),
        "precision_micro": compute_ratio(hits, np.maximum(predicted, 1)),
        "f1_micro": compute_ratio(2 * hits, true + predicted),
    }
    return {name: np.where(true == 0, np.nan, ratio) for name, ratio in ratios.items()}


def _average_classes(values: Floats, over: Flags, weights: Floats | None = None) -> Floats:
    """Return the mean (...) over the chosen classes; NaN if one of them is undefined, or none was chosen."""
    if not over.any():
        return np.full(values.shape[:-1], np.nan)
    chosen = values[..., over]
    if weights is None:
        return np.asarray(chosen.mean(axis=-1), dtype=np.float64)
    shares = weights[..., over]
    return np.asarray((chosen * shares).sum(axis=-1) / np.maximum(shares.sum(axis=-1), 1), dtype=np.float64)
