"""Logits into probabilities, and the few scores that training watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["accuracy", "auroc", "probabilities"]


def probabilities(logits: Tensor, task: str) -> NDArray[np.float64]:
    """
    Turn logits into probabilities, in float64.

    Parameters
    ----------
    logits : Tensor
        (n, K).
    task : {"multiclass", "multilabel"}
        Softmax over the classes, or a sigmoid of each.

    Returns
    -------
    numpy.ndarray
        (n, K) float64.

    Examples
    --------
    >>> import torch
    >>> probabilities(torch.zeros(1, 2), "multiclass").tolist()
    [[0.5, 0.5]]
    """
    scores = logits.detach().cpu().double()
    result: NDArray[np.float64] = (
        scores.softmax(dim=1) if task == "multiclass" else scores.sigmoid()
    ).numpy()
    return result


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
