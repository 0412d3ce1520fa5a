"""One number that makes probabilities as sure as they are right: the temperature of the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["CalibrationData", "fit_temperature"]

#: Within these, or as many times the logits' size, the temperature is looked for: what ends at the lower one
#: is not told by the data.
_LOWEST: Final = 0.05
_HIGHEST: Final = 50.0
_TINY: Final = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """
    Logits of items whose labels are known.

    Attributes
    ----------
    logits : numpy.ndarray
        (m, K) float64: a row for each item, or for each slice of it where these are scored apart.
    starts : numpy.ndarray
        (n,) int64: the first row of each item.
    labels : numpy.ndarray
        (n,) class indices or (n, K) indicators.
    task : str
        ``"multiclass"`` or ``"multilabel"``.
    """

    logits: NDArray[np.float64]
    starts: NDArray[np.int64]
    labels: NDArray[Any]
    task: str

    def probabilities(self, temperature: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        """Return (n, K): the mean of the probabilities of an item's rows."""
        from scipy.special import expit, softmax

        scaled = self.logits / temperature
        rows = softmax(scaled, axis=1) if self.task == "multiclass" else expit(scaled)
        if len(self.starts) == len(rows):
            return np.asarray(rows)
        counts = np.diff(np.append(self.starts, len(rows)))
        return np.asarray(np.add.reduceat(rows, self.starts) / counts[:, None])

    def truth(self) -> NDArray[np.bool_]:
        """Return (n, K): which classes are there."""
        if self.task == "multilabel":
            return np.asarray(self.labels, dtype=np.float64) > 0.5
        found: NDArray[np.bool_] = np.asarray(self.labels)[:, None] == np.arange(self.logits.shape[1])
        return found

    def losses(self, temperature: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        """Return mean negative log likelihoods: of the class (1,), or of each label (K,)."""
        proba, truth = self.probabilities(temperature), self.truth()
        if self.task == "multiclass":
            return np.array([-np.log(np.maximum(proba[truth], _TINY)).mean()])
        # of what is not there, 1 - p would be rounded to 0 before p is 1
        mirrored = CalibrationData(-self.logits, self.starts, self.labels, self.task).probabilities(
            temperature
        )
        return np.asarray(-np.log(np.maximum(np.where(truth, proba, mirrored), _TINY)).mean(axis=0))


def fit_temperature(judged: CalibrationData) -> NDArray[np.float64]:
    """
    Return what to divide logits by for the lowest negative log likelihood.

    Parameters
    ----------
    judged : CalibrationData
        Of images that were not trained on.

    Returns
    -------
    numpy.ndarray
        (1,), or (K,) for several labels. 1 where nothing is gained: where no loss is lower than without,
        where all labels are the same, and where the loss only falls as the temperature goes to 0, as it does
        if every item is on its right side: then the data don't tell how sure to be.

    Notes
    -----
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The loss is convex in the inverse of the
    temperature where items have one row, so that a search on a line finds the minimum.

    Examples
    --------
    >>> logits = np.array([[4.0, 0.0]] * 4 + [[0.0, 4.0]] * 4)
    >>> labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    >>> fitted = fit_temperature(CalibrationData(logits, np.arange(8), labels, "multiclass"))
    >>> round(float(fitted[0]), 3)  # three of four are right: log(3) is the logit for that
    3.641
    """
    if judged.task == "multiclass":
        size = _size(judged.logits - judged.logits.mean(axis=1, keepdims=True))
        return np.array([_minimum(lambda t: float(judged.losses(t)[0]), size)])
    found = []
    for label in range(judged.logits.shape[1]):
        column = slice(label, label + 1)
        one = CalibrationData(judged.logits[:, column], judged.starts, judged.labels[:, column], "multilabel")
        varied = 0 < int(one.truth().sum()) < len(one.labels)
        size = _size(one.logits)
        found.append(_minimum(lambda t, one=one: float(one.losses(t)[0]), size) if varied else 1.0)  # type: ignore[misc]  # of a default
    return np.array(found)


def _size(logits: NDArray[np.float64]) -> float:
    """Return how far logits lie from 0 on average; 1 where all are 0."""
    return float(np.abs(logits).mean()) or 1.0


def _minimum(loss: Callable[[float], float], size: float) -> float:
    from scipy.optimize import minimize_scalar

    lowest, highest = _LOWEST * min(1.0, size), _HIGHEST * max(1.0, size)
    bounds = math.log(lowest), math.log(highest)
    found = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    fitted = math.exp(float(found.x))
    only_falls = loss(lowest) <= loss(fitted)
    return fitted if not only_falls and loss(fitted) < loss(1.0) else 1.0
