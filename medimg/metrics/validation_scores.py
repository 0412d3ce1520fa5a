"""Scores of the validation data after each epoch of training, by the metrics of the report."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.metrics._arrays import Flags, Floats
from medimg.metrics.classification import Support, compute_ratio, find_curve_columns, name_metrics
from medimg.metrics.patient_counts import compute_class_scores, compute_weighted_areas
from medimg.metrics.units import decide, to_indicators

__all__ = ["mean_auroc", "validation_scores"]


def validation_scores(labels: NDArray[Any], probabilities: Floats, task: str) -> dict[str, float | None]:
    """
    Return the scores of labels (n,) or (n, K) and probabilities (n, K) by name.

    ``val_accuracy``: fraction predicted entirely correctly. ``val_balanced_accuracy``: mean recall of the
    classes that occur; of labels, mean sensitivity and specificity. ``val_f1``: mean over the classes that
    occur or were predicted, 0 if none was. ``val_auroc``: see :func:`mean_auroc`.

    >>> validation_scores(np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 4), "multiclass")
    {'val_accuracy': 0.75, 'val_balanced_accuracy': 0.5, 'val_f1': 0.42857142857142855, 'val_auroc': 0.5}
    """
    truth = to_indicators(labels, task, probabilities.shape[1])
    support = _count_support(truth, task)
    scores = compute_class_scores(truth, decide(probabilities, task), probabilities, support)
    f1 = compute_ratio(2 * scores.hits, scores.true + scores.predicted)
    recalls = np.append(scores.recall, scores.specificity) if task == "multilabel" else scores.recall
    area = float(name_metrics(scores, support)["auroc"][0])
    return {
        "val_accuracy": float(scores.accuracy[0]),
        "val_balanced_accuracy": float(np.nanmean(recalls)),
        "val_f1": 0.0 if np.isnan(f1).all() else float(np.nanmean(f1)),
        "val_auroc": None if np.isnan(area) else area,
    }


def mean_auroc(labels: NDArray[Any], probabilities: Floats, task: str) -> float | None:
    """
    Return the mean AUROC of the classes with positives and negatives, of two that of the second, or None.

    >>> mean_auroc(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), "multiclass")
    1.0
    """
    truth = to_indicators(labels, task, probabilities.shape[1])
    once = np.ones((1, len(truth)))
    columns = find_curve_columns(_count_support(truth, task))
    areas = [compute_weighted_areas(truth[:, k], probabilities[:, k], once)[0][0] for k in columns]
    return float(np.mean(areas)) if areas else None


def _count_support(truth: Flags, task: str) -> Support:
    return Support.count(truth, task, tuple(map(str, range(truth.shape[1]))))
