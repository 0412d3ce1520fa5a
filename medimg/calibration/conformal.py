"""Split-conformal prediction sets, with patients as the units that are exchangeable."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from medimg._validation import check_number
from medimg.errors import MedimgWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["checked_coverage", "conformal_quantile", "conformal_quantiles", "prediction_set"]


def checked_coverage(coverage: object) -> float | None:
    """
    Return a coverage, if it is one.

    Raises
    ------
    TrainingError
        If it is no number between 0 and 1.
    """
    if coverage is None:
        return None
    return check_number("coverage", coverage, above=0, below=1, hint=", such as 0.9, or None")


def conformal_quantile(scores: NDArray[np.float64], patients: Sequence[str], coverage: float) -> float:
    """
    Return which score a new item of a new patient stays below, or at, with a probability of `coverage`.

    Parameters
    ----------
    scores : numpy.ndarray
        (n,) how unlike its label each item is.
    patients : sequence of str
        (n,).
    coverage : float
        1 - α.

    Returns
    -------
    float
        Infinite where there are fewer than (1 - α) / α patients.

    Notes
    -----
    Images of a patient are not exchangeable with those of others, patients are. With N patients, of whom
    patient k has n_k items, each item weighs 1 / ((N + 1) n_k), and an infinite score the rest, 1 / (N + 1);
    the result is the 1 - α quantile of that (Lee, Barber and Willett, Distribution-free inference with
    hierarchical data, 2023). With one item for each patient it is the score of rank ⌈(N + 1)(1 - α)⌉, as
    usual (Sadinle, Lei and Wasserman 2019; Angelopoulos and Bates 2023).

    Examples
    --------
    >>> conformal_quantile(np.arange(1.0, 10.0), [*"abcdefghi"], 0.9)
    9.0
    >>> conformal_quantile(np.arange(1.0, 9.0), [*"abcdefgh"], 0.9)
    inf
    """
    _, whose, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1.0 / ((len(counts) + 1) * counts[whose[order]]))
    first = int(np.searchsorted(reached, coverage - 1e-9))
    return float(scores[order[first]]) if first < len(scores) else math.inf


def conformal_quantiles(
    proba: NDArray[np.float64],
    truth: NDArray[np.bool_],
    patients: Sequence[str],
    task: str,
    coverage: float | None,
) -> tuple[float, ...]:
    """
    Return the highest 1 - probability that keeps a class in the set.

    Parameters
    ----------
    proba, truth : numpy.ndarray
        (n, K).
    patients : sequence of str
        (n,).
    task : str
        What the classes are.
    coverage : float or None
        None for no sets.

    Returns
    -------
    tuple of float
        One; or one for each label, of the items that have it. 1, which keeps everything, where there are too
        few patients, with a warning.
    """
    if coverage is None:
        return ()
    if task == "multiclass":
        found = [conformal_quantile(1 - proba[truth], patients, coverage)]
    else:
        names = np.asarray(patients)
        found = [
            conformal_quantile(1 - proba[there, k], names[there].tolist(), coverage)
            for k, there in enumerate(truth.T)
        ]
    missing = sum(map(math.isinf, found))
    if missing:
        least = math.ceil(coverage / (1 - coverage) - 1e-9)
        whose = "" if task == "multiclass" else f" with the label, for {missing} of {len(found)} labels"
        warnings.warn(
            f"sets of {coverage:.0%} coverage need at least {least} patients among the validation data"
            f"{whose}: with fewer, every set holds everything. Use more, or a lower coverage=",
            MedimgWarning,
            stacklevel=3,
        )
    return tuple(min(q, 1.0) for q in found)


def prediction_set(proba: NDArray[np.float64], quantiles: Sequence[float], task: str) -> NDArray[np.bool_]:
    """
    Return which classes can't be ruled out.

    Parameters
    ----------
    proba : numpy.ndarray
        (n, K).
    quantiles : sequence of float
        Of :func:`conformal_quantiles`.
    task : str
        Of exclusive classes the likeliest is always in the set, so that none is empty.

    Returns
    -------
    numpy.ndarray
        (n, K) bool.

    Examples
    --------
    >>> prediction_set(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]), [0.7], "multiclass").tolist()
    [[True, False, False], [True, True, False]]
    """
    kept = np.asarray(1 - proba <= np.asarray(quantiles))
    if task == "multiclass":
        kept[np.arange(len(kept)), proba.argmax(axis=1)] = True
    return kept
