"""Every metric of a set of units, by scikit-learn."""

import warnings

import numpy as np
from numpy.typing import NDArray

from medimg.evaluate.metrics import N_BINS, ClassScores, Support, bins_of, curve_columns, named

__all__ = ["estimate"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def estimate(truth: Flags, predicted: Flags, probabilities: Floats, support: Support) -> dict[str, float]:
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
    from sklearn.metrics import accuracy_score

    with warnings.catch_warnings():
        # of classes that are never predicted, or the only ones; what that gives is defined here
        warnings.simplefilter("ignore")
        scores = ClassScores(
            accuracy=np.asarray(accuracy_score(truth, predicted), dtype=np.float64),
            hits=(truth & predicted).sum(axis=0).astype(np.float64),
            true=truth.sum(axis=0).astype(np.float64),
            predicted=predicted.sum(axis=0).astype(np.float64),
            **_overall(truth, predicted, probabilities, support),
            **_by_class(truth, predicted, probabilities, support),
        )
    return {name: float(value) for name, value in named(scores, support).items()}


def _by_class(truth: Flags, predicted: Flags, probabilities: Floats, support: Support) -> dict[str, Floats]:
    from sklearn import metrics as sk

    kinds = ("recall", "specificity", "precision", "f1", "auroc", "auprc", "mcc", "kappa", "brier", "ece")
    table = {kind: np.full(truth.shape[1], np.nan) for kind in kinds}
    for k, (y, z, p) in enumerate(zip(truth.T, predicted.T, probabilities.T, strict=True)):
        table["brier"][k] = sk.mean_squared_error(y, p)
        table["ece"][k] = _ece(y, p)
        if support.positives[k]:
            table["recall"][k] = sk.recall_score(y, z)
            table["precision"][k] = sk.precision_score(y, z, zero_division=0)
            table["f1"][k] = sk.f1_score(y, z)
        if support.negatives[k]:
            table["specificity"][k] = sk.recall_score(~y, ~z)
        if support.positives[k] and support.negatives[k]:
            table["mcc"][k] = sk.matthews_corrcoef(y, z)
            table["kappa"][k] = sk.cohen_kappa_score(y, z)
        if k in curve_columns(support):
            table["auroc"][k] = sk.roc_auc_score(y, p)
            table["auprc"][k] = sk.average_precision_score(y, p)
    return table


def _overall(truth: Flags, predicted: Flags, probabilities: Floats, support: Support) -> dict[str, Floats]:
    from sklearn import metrics as sk

    names = ("mcc_overall", "kappa_overall", "confidence_ece")
    found = {name: np.asarray(np.nan) for name in names}
    if support.task == "multilabel":
        return found
    y, z, top = truth.argmax(axis=1), predicted.argmax(axis=1), probabilities.argmax(axis=1)
    found["confidence_ece"] = np.asarray(_ece(y == top, probabilities.max(axis=1)))
    if support.has_positives.sum() > 1:
        found["mcc_overall"] = np.asarray(sk.matthews_corrcoef(y, z))
        found["kappa_overall"] = np.asarray(sk.cohen_kappa_score(y, z))
    return found


def _ece(positive: Flags, probabilities: Floats) -> float:
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(positive.astype(int), probabilities, pos_label=1, n_bins=N_BINS)
    n = np.bincount(bins_of(probabilities), minlength=N_BINS)
    return float(np.abs(observed - predicted) @ n[n > 0] / len(probabilities))
