"""
Variance of the AUROC, and of its differences, for independent units: one unit per patient; score intervals.

For a positive, the fraction of the negatives that score lower, and for a negative, that of the positives that
score higher, ties counting one half, have the AUROC as their mean; their covariances give its own [1]_. Both
fractions come from ranks [2]_. Of an AUROC of 0 or 1 this variance is 0; its interval is Newcombe's [3]_.

References
----------
.. [1] DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more correlated receiver
   operating characteristic curves. Biometrics 1988;44:837-845.
.. [2] Sun X, Xu W. Fast implementation of DeLong's algorithm for comparing the areas under correlated
   receiver operating characteristic curves. IEEE Signal Process Lett 2014;21:1389-1393.
.. [3] Newcombe RG. Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part
   2: asymptotic methods and evaluation. Stat Med 2006;25:559-573.
"""

import math
from statistics import NormalDist

import numpy as np

from medimg.metrics._arrays import Flags, Floats
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.classification import Support, find_curve_columns
from medimg.metrics.units import ScoredUnits

__all__ = [
    "compute_delong",
    "compute_delong_interval",
    "compute_newcombe_interval",
    "find_delong_columns",
    "name_areas",
]


def compute_delong(positive: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """
    Return the AUROC (M,) of several scores (M, n) of the same units, and its covariances (M, M).

    At least two units are positive (n,), and at least two are not.

    >>> auroc, covariance = compute_delong(np.array([0, 0, 1, 1], bool), np.array([[0.1, 0.4, 0.35, 0.8]]))
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


def find_delong_columns(units: ScoredUnits, support: Support) -> dict[str, int]:
    """
    Return the column of the probabilities by name of each metric whose interval can be DeLong's.

    These are AUROC of single classes with two positives and two negatives or more; none if a patient has
    several units.
    """
    if len(units) != units.n_patients:
        return {}
    return {
        name: k
        for name, k in name_areas(support).items()
        if min(support.positives[k], support.negatives[k]) > 1
    }


def name_areas(support: Support) -> dict[str, int]:
    """Return the column of the probabilities by name of each metric that is the AUROC of a single class."""
    columns = find_curve_columns(support)
    single = {"auroc": columns[0]} if len(columns) == 1 else {}
    return single if support.is_binary else single | {f"auroc[{support.classes[k]}]": k for k in columns}


def compute_delong_interval(value: float, variance: float, ci: float) -> Estimate:
    """
    Return the interval of a normal distribution, clipped to 0 and 1.

    >>> print(compute_delong_interval(0.9, 0.0004, 0.95))
    0.900 (0.861–0.939)
    """
    half = NormalDist().inv_cdf((1 + ci) / 2) * math.sqrt(max(variance, 0.0))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), method="delong")


def compute_newcombe_interval(value: float, positives: int, negatives: int, *, ci: float) -> Estimate:
    """
    Return Newcombe's score interval (method 5) of an AUROC of 0 or 1, of so many patients of either kind.

    >>> print(compute_newcombe_interval(1.0, 20, 30, ci=0.95))
    1.000 (0.916–1.000)
    """
    from scipy.optimize import brentq

    z2 = NormalDist().inv_cdf((1 + ci) / 2) ** 2
    n = (positives + negatives) / 2 - 1

    def excess(area: float) -> float:
        # (1 - area)² - z² · variance(area), divided by 1 - area
        spread = 1 + n * (1 - area) / (2 - area) + n * area / (1 + area)
        return 1 - area - z2 * area * spread / (positives * negatives)

    reach = float(brentq(excess, 0.0, 1.0))
    low, high = (reach, 1.0) if value else (0.0, 1.0 - reach)
    return Estimate(value, low, high, method="newcombe")
