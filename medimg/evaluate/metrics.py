"""
Metrics of a classifier: by scikit-learn for the estimate, by counts for thousands of resamples at once.

Both ways fill one :class:`ClassScores`, and :func:`named` turns that into the metrics of the report, so an
estimate and its interval cannot mean different things.

Definitions
-----------
Each class is scored against the rest. With TP, FP, FN and TN the counts of that class: recall (sensitivity)
TP/(TP+FN), specificity TN/(TN+FP), precision TP/(TP+FP), F1 2·TP/(2·TP+FP+FN). AUROC is the probability that
a random positive scores above a random negative, ties counting one half [1]_. Balanced accuracy is the mean
recall of the classes [2]_.

- A class that is never predicted has precision 0.
- A class that does not occur among the true labels has no recall, precision, F1 or AUROC: they are NaN, and
  the averages run over the classes that do occur.
- In a resample that lacks a class the whole set has, an average over the classes is undefined.

References
----------
.. [1] Hanley JA, McNeil BJ. The meaning and use of the area under a receiver operating characteristic (ROC)
   curve. Radiology 1982;143:29-36.
.. [2] Brodersen KH et al. The balanced accuracy and its posterior distribution. ICPR 2010:3121-3124.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassScores", "Support", "auroc_columns", "estimate", "named"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """
    Scores of each class against the rest; ``...`` is empty for an estimate, (R,) for R resamples.

    Attributes
    ----------
    accuracy : ndarray, shape (...)
        Share of units of which everything is right.
    recall, specificity, precision, f1, auroc : ndarray, shape (..., K)
        NaN where undefined.
    """

    accuracy: Floats
    recall: Floats
    specificity: Floats
    precision: Floats
    f1: Floats
    auroc: Floats


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


def auroc_columns(support: Support) -> tuple[int, ...]:
    """
    Say for which classes an AUROC is computed: both kinds must occur, and two classes share one curve.

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
    >>> auroc_columns(Support("multiclass", ("no", "yes"), (3, 4), (4, 3)))
    (1,)
    >>> auroc_columns(Support("multiclass", ("a", "b", "c"), (3, 4, 0), (4, 3, 7)))
    (0, 1)
    """
    both = np.flatnonzero(support.has_positives & support.has_negatives)
    return tuple(int(k) for k in both if not support.binary or k == 1)


def estimate(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_], probabilities: Floats, support: Support
) -> dict[str, float]:
    """
    Compute every metric of a set of units by scikit-learn.

    Parameters
    ----------
    truth, predicted : ndarray of bool, shape (n, K)
        Indicators of the true and the predicted classes.
    probabilities : ndarray of float, shape (n, K)
        Scores of the classes.
    support : Support
        Counts of the set.

    Returns
    -------
    dict of str to float
        By name; NaN where a metric is undefined.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
    >>> scores = np.array([[.9, .1], [.4, .6], [.3, .7], [.2, .8]])
    >>> decided = np.eye(2, dtype=bool)[scores.argmax(1)]
    >>> found = estimate(truth, decided, scores, Support.of(truth, "multiclass", ("no", "yes")))
    >>> found["accuracy"], found["sensitivity"], found["specificity"], found["auroc"]
    (0.75, 1.0, 0.5, 1.0)
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

    n_classes = truth.shape[1]
    table = {
        name: np.full(n_classes, np.nan) for name in ("recall", "specificity", "precision", "f1", "auroc")
    }
    for k in np.flatnonzero(support.has_positives):
        table["recall"][k] = recall_score(truth[:, k], predicted[:, k])
        table["precision"][k] = precision_score(truth[:, k], predicted[:, k], zero_division=0)
        table["f1"][k] = f1_score(truth[:, k], predicted[:, k])
    for k in np.flatnonzero(support.has_negatives):
        table["specificity"][k] = recall_score(~truth[:, k], ~predicted[:, k])
    for column in auroc_columns(support):
        table["auroc"][column] = roc_auc_score(truth[:, column], probabilities[:, column])
    accuracy = np.asarray(accuracy_score(truth, predicted), dtype=np.float64)
    scores = named(ClassScores(accuracy=accuracy, **table), support)
    return {name: float(value) for name, value in scores.items()}


def named(scores: ClassScores, support: Support) -> dict[str, Floats]:
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
        ``accuracy``, ``balanced_accuracy`` (multiclass), ``sensitivity`` and ``specificity`` (two classes; of
        the second one), ``auroc`` (two classes: of the second; else the mean over the classes),
        ``recall_macro``, ``specificity_macro`` (multilabel), ``precision_macro``, ``f1_macro``; then
        ``recall[class]`` and so on for each class.
    """
    occurs, varies = support.has_positives, support.has_negatives
    result = {"accuracy": scores.accuracy}
    if support.task == "multiclass":
        result["balanced_accuracy"] = _mean(scores.recall, occurs)
    if support.binary:
        result["sensitivity"] = scores.recall[..., 1]
        result["specificity"] = scores.specificity[..., 1]
    curves = np.isin(np.arange(len(support.classes)), auroc_columns(support))
    result["auroc"] = _mean(scores.auroc, curves)
    result["recall_macro"] = _mean(scores.recall, occurs)
    if support.task == "multilabel":
        result["specificity_macro"] = _mean(scores.specificity, varies)
    result["precision_macro"] = _mean(scores.precision, occurs)
    result["f1_macro"] = _mean(scores.f1, occurs)
    for k, name in enumerate(support.classes):
        result[f"recall[{name}]"] = scores.recall[..., k]
        result[f"specificity[{name}]"] = scores.specificity[..., k]
        result[f"precision[{name}]"] = scores.precision[..., k]
        result[f"f1[{name}]"] = scores.f1[..., k]
        if not support.binary:
            result[f"auroc[{name}]"] = scores.auroc[..., k]
    return result


def _mean(values: Floats, over: NDArray[np.bool_]) -> Floats:
    """Mean over the classes chosen; NaN when one of them is undefined, or when none was chosen."""
    if not over.any():
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values[..., over].mean(axis=-1), dtype=np.float64)
