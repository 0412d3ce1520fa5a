"""Scores on the validation data after each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = ["accuracy", "auroc", "balanced_accuracy", "f1", "validation_scores"]


def accuracy(labels: NDArray[np.generic], proba: NDArray[np.float64], task: str) -> float:
    """
    Return the share of right answers.

    Parameters
    ----------
    labels : numpy.ndarray
        (n,) class indices or (n, K) indicators.
    proba : numpy.ndarray
        (n, K).
    task : {"multiclass", "multilabel"}
        Compare the likeliest class; or all labels at a threshold of 0.5, of which none may be wrong.

    Returns
    -------
    float
    """
    right = (
        labels == proba.argmax(axis=1)
        if task == "multiclass"
        else ((labels.astype(np.float64) > 0.5) == (proba >= 0.5)).all(axis=1)
    )
    return float(np.mean(right))


def auroc(labels: NDArray[np.generic], proba: NDArray[np.float64], task: str) -> float | None:
    """
    Return the area under the ROC curve, averaged over the classes, each against the rest.

    Parameters
    ----------
    labels : numpy.ndarray
        (n,) class indices or (n, K) indicators.
    proba : numpy.ndarray
        (n, K).
    task : {"multiclass", "multilabel"}
        What the labels are.

    Returns
    -------
    float or None
        The mean over those classes that have both examples and counterexamples; None where none has.

    Examples
    --------
    >>> auroc(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), "multiclass")
    1.0
    """
    from sklearn.metrics import roc_auc_score

    outputs = proba.shape[1]
    truth = labels if task == "multilabel" else labels[:, None] == np.arange(outputs)
    truth = truth.astype(np.float64) > 0.5
    areas = [
        float(roc_auc_score(truth[:, k], proba[:, k]))
        for k in range(outputs)
        if truth[:, k].any() and not truth[:, k].all()
    ]
    return float(np.mean(areas)) if areas else None


def _decided(
    labels: NDArray[np.generic], proba: NDArray[np.float64], task: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return truth and decision as (n, K) indicators."""
    outputs = np.arange(proba.shape[1])
    if task == "multilabel":
        return labels.astype(np.float64) > 0.5, proba >= 0.5
    return labels[:, None] == outputs, proba.argmax(axis=1)[:, None] == outputs


def balanced_accuracy(labels: NDArray[np.generic], proba: NDArray[np.float64], task: str) -> float:
    """
    Return the mean recall of the classes that have examples; of labels, mean sensitivity and specificity.

    Parameters
    ----------
    labels, proba, task
        As for :func:`accuracy`.

    Returns
    -------
    float

    Examples
    --------
    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([[1.0, 0.0]] * 4), "multiclass")
    0.5
    """
    truth, decided = _decided(labels, proba, task)
    if task == "multilabel":
        truth, decided = np.hstack([truth, ~truth]), np.hstack([decided, ~decided])
    there = truth.any(axis=0)
    recall = (truth & decided).sum(axis=0)[there] / truth.sum(axis=0)[there]
    return float(recall.mean())


def f1(labels: NDArray[np.generic], proba: NDArray[np.float64], task: str) -> float:
    """
    Return the F1 score, averaged over the classes that are there or were predicted.

    Parameters
    ----------
    labels, proba, task
        As for :func:`accuracy`.

    Returns
    -------
    float
        Of each class 2 TP / (2 TP + FP + FN); 0 where no class is there or predicted.

    Examples
    --------
    >>> f1(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), "multiclass")
    0.3333333333333333
    """
    truth, decided = _decided(labels, proba, task)
    both = 2 * (truth & decided).sum(axis=0)
    total = truth.sum(axis=0) + decided.sum(axis=0)
    seen = total > 0
    return float((both[seen] / total[seen]).mean()) if seen.any() else 0.0


def validation_scores(
    labels: NDArray[np.generic], proba: NDArray[np.float64], task: str
) -> dict[str, float | None]:
    """Return the scores that training writes down after an epoch, by their names."""
    return {
        "val_accuracy": accuracy(labels, proba, task),
        "val_balanced_accuracy": balanced_accuracy(labels, proba, task),
        "val_f1": f1(labels, proba, task),
        "val_auroc": auroc(labels, proba, task),
    }
