"""The scores that training watches after an epoch, by the metrics of the report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.metrics._weighted import ratio, weighted_auroc
from medimg.metrics.classification import Support, curve_columns, named_metrics
from medimg.metrics.estimate import class_scores
from medimg.metrics.units import decide

__all__ = ["mean_auroc", "validation_scores"]

Floats = NDArray[np.float64]


def validation_scores(labels: NDArray[Any], probabilities: Floats, task: str) -> dict[str, float | None]:
    """
    Return the scores of an epoch by name.

    Parameters
    ----------
    labels : ndarray
        (n,) class indices or (n, K) indicators.
    probabilities : ndarray of float64
        (n, K).
    task : {"multiclass", "multilabel"}
        What the labels are.

    Returns
    -------
    dict of str to float or None
        ``val_accuracy``: fraction predicted entirely correctly. ``val_balanced_accuracy``: mean recall of the
        classes that occur; of labels, mean sensitivity and specificity. ``val_f1``: mean over the classes
        that occur or were predicted, 0 if none was. ``val_auroc``: see :func:`mean_auroc`.

    Examples
    --------
    >>> validation_scores(np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 4), "multiclass")
    {'val_accuracy': 0.75, 'val_balanced_accuracy': 0.5, 'val_f1': 0.42857142857142855, 'val_auroc': 0.5}
    """
    truth = _indicators(labels, task, probabilities.shape[1])
    support = _support(truth, task)
    scores = class_scores(truth, decide(probabilities, task), probabilities, support)
    f1 = ratio(2 * scores.hits, scores.true + scores.predicted)
    recalls = np.append(scores.recall, scores.specificity) if task == "multilabel" else scores.recall
    area = float(named_metrics(scores, support)["auroc"][0])
    return {
        "val_accuracy": float(scores.accuracy[0]),
        "val_balanced_accuracy": float(np.nanmean(recalls)),
        "val_f1": 0.0 if np.isnan(f1).all() else float(np.nanmean(f1)),
        "val_auroc": None if np.isnan(area) else area,
    }


def mean_auroc(labels: NDArray[Any], probabilities: Floats, task: str) -> float | None:
    """
    Return the AUROC, averaged over the classes that have both examples and counterexamples.

    Parameters
    ----------
    labels, probabilities, task
        As for :func:`validation_scores`.

    Returns
    -------
    float or None
        Each class against the rest; of two classes, that of the second. None if no class has both.

    Examples
    --------
    >>> mean_auroc(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), "multiclass")
    1.0
    """
    truth = _indicators(labels, task, probabilities.shape[1])
    once = np.ones((1, len(truth)))
    columns = curve_columns(_support(truth, task))
    areas = [weighted_auroc(truth[:, k], probabilities[:, k], once)[0] for k in columns]
    return float(np.mean(areas)) if areas else None


def _indicators(labels: NDArray[Any], task: str, n_classes: int) -> NDArray[np.bool_]:
    """Labels of either task as indicators (n, K)."""
    if task == "multilabel":
        return np.asarray(labels.astype(np.float64) > 0.5)
    return np.asarray(labels[:, None] == np.arange(n_classes))


def _support(truth: NDArray[np.bool_], task: str) -> Support:
    return Support.of(truth, task, tuple(map(str, range(truth.shape[1]))))
