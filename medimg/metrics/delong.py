"""
The variance of the AUROC, and of differences of it, where units are independent: one of each patient.

For a positive, the share of the negatives that score lower, and for a negative, that of the positives that
score higher, ties counting one half, have the AUROC as their mean; their covariances give its own [1]_. Both
shares come from ranks [2]_.

References
----------
.. [1] DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more correlated receiver
   operating characteristic curves. Biometrics 1988;44:837-845.
.. [2] Sun X, Xu W. Fast implementation of DeLong's algorithm for comparing the areas under correlated
   receiver operating characteristic curves. IEEE Signal Process Lett 2014;21:1389-1393.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from medimg.metrics.bootstrap import Estimate
from medimg.metrics.classification import Support, curve_columns
from medimg.metrics.units import ScoredUnits

__all__ = ["delong", "delong_columns", "delong_interval"]

Floats = NDArray[np.float64]


def delong(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """
    Compute the AUROC of several scores of the same units, and its covariances.

    Parameters
    ----------
    positive : ndarray of bool, shape (n,)
        Which units are positive; at least two, and at least two not.
    scores : ndarray of float, shape (M, n)
        One row for each model; higher for more probably positive.

    Returns
    -------
    auroc : ndarray of float64, shape (M,)
        The areas.
    covariance : ndarray of float64, shape (M, M)
        Of the areas.

    Examples
    --------
    >>> auroc, covariance = delong(np.array([0, 0, 1, 1], bool), np.array([[0.1, 0.4, 0.35, 0.8]]))
    >>> auroc, covariance
    (array([0.75]), array([[0.125]]))
    """
    from scipy.stats import rankdata

    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    among_all = rankdata(scores, axis=1)
    of_positives = among_all[:, positive] - rankdata(scores[:, positive], axis=1)
    of_negatives = among_all[:, ~positive] - rankdata(scores[:, ~positive], axis=1)
    n_positives, n_negatives = of_positives.shape[1], of_negatives.shape[1]
    won = of_positives / n_negatives
    lost = 1 - of_negatives / n_positives
    covariance = np.cov(won) / n_positives + np.cov(lost) / n_negatives
    return won.mean(axis=1), np.atleast_2d(covariance)


def delong_columns(units: ScoredUnits, support: Support) -> dict[str, int]:
    """
    Say of which metrics the interval can be DeLong's.

    Parameters
    ----------
    units : ScoredUnits
        What is scored.
    support : Support
        Its counts.

    Returns
    -------
    dict of str to int
        Column of the probabilities by name of the metric, for the AUROC of single classes with two positives
        and two negatives or more; empty where a patient has several units.
    """
    if len(units) != units.n_patients:
        return {}
    enough = [k for k in curve_columns(support) if support.positives[k] > 1 and support.negatives[k] > 1]
    single = {"auroc": enough[0]} if enough and len(curve_columns(support)) == 1 else {}
    return single if support.binary else single | {f"auroc[{support.classes[k]}]": k for k in enough}


def delong_interval(value: float, variance: float, ci: float) -> Estimate:
    """
    Give the interval of a normal distribution, cut at 0 and 1.

    Parameters
    ----------
    value : float
        The AUROC.
    variance : float
        Of it.
    ci : float
        Probability between the ends.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> print(delong_interval(0.9, 0.0004, 0.95))
    0.900 (0.861–0.939)
    """
    half = NormalDist().inv_cdf((1 + ci) / 2) * math.sqrt(max(variance, 0.0))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), method="delong")
