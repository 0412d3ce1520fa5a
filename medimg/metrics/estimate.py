"""Estimate every metric of a set of units from its counts."""

import numpy as np

from medimg.metrics._weighted import Counts
from medimg.metrics.classification import ClassScores, Flags, Floats, Support, named_metrics

__all__ = ["class_scores", "estimate"]


def estimate(truth: Flags, predicted: Flags, probabilities: Floats, support: Support) -> dict[str, float]:
    """
    Compute every metric of a set of units.

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
    scores = class_scores(truth, predicted, probabilities, support)
    return {name: float(value[0]) for name, value in named_metrics(scores, support).items()}


def class_scores(truth: Flags, predicted: Flags, probabilities: Floats, support: Support) -> ClassScores:
    """Score each class of a set of units (n, K) against the rest; arrays are (1,) and (1, K)."""
    everything = np.zeros(len(truth), dtype=np.int64)
    counts = Counts.count(truth, predicted, probabilities, support, patient=everything, n_patients=1)
    return counts.scores(np.ones((1, 1)))
