"""Split-conformal prediction sets, with patients as the exchangeable units."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from medimg._validation import check_number
from medimg.errors import MedimgError, MedimgWarning, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["check_coverage", "conformal_quantile", "conformal_quantiles", "prediction_set"]


def check_coverage(
    coverage: object, name: str = "coverage", *, error: type[MedimgError] = TrainingError
) -> float | None:
    """Return a coverage above 0 and below 1 as a float, or None."""
    if coverage is None:
        return None
    return check_number(name, coverage, above=0, below=1, hint=", such as 0.9, or None", error=error)


def conformal_quantile(scores: NDArray[np.float64], patients: Sequence[str], coverage: float) -> float:
    """
    Return the quantile of nonconformity scores (n,) that a new patient's item reaches with probability 1 - α.

    The coverage is 1 - α; the quantile is infinite for fewer than (1 - α) / α patients (n,).
    Patients are exchangeable, images of one patient are not. With N patients, of whom patient k has n_k
    items, each item has weight 1 / ((N + 1) n_k), and an infinite score the rest, 1 / (N + 1); the result is
    the 1 - α quantile of these (Lee, Barber and Willett, Distribution-free inference with hierarchical data,
    2023). With one item per patient it is the score of rank ⌈(N + 1)(1 - α)⌉, as usual (Sadinle, Lei and
    Wasserman 2019; Angelopoulos and Bates 2023).

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
    Return the highest 1 - probability (n, K) with which a class is in the set: one, or one for each label.

    It is 1, which keeps every class, with a warning, if there are too few patients; without a coverage there
    is none.
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
            f"{whose}: with fewer, every set contains all classes; use more data, or a lower coverage=",
            MedimgWarning,
            stacklevel=3,
        )
    return tuple(min(q, 1.0) for q in found)


def prediction_set(proba: NDArray[np.float64], quantiles: Sequence[float], task: str) -> NDArray[np.bool_]:
    """
    Return which classes are in the prediction set, (n, K) bool.

    Of exclusive classes the most probable is always in the set, so that none is empty.

    >>> prediction_set(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]), [0.7], "multiclass").tolist()
    [[True, False, False], [True, True, False]]
    """
    kept = np.asarray(1 - proba <= np.asarray(quantiles))
    if task == "multiclass":
        kept[np.arange(len(kept)), proba.argmax(axis=1)] = True
    return kept
