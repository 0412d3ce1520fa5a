"""Temperature scaling of logits (Guo et al., ICML 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from medimg.calibration.logit_map import LogitMap

__all__ = ["CalibrationData", "find_highest", "fit_temperature", "measure_size"]

#: Bounds of the search, times the size of the logits; at the lower one the temperature is not identifiable.
_LOWEST: Final = 0.05
_HIGHEST: Final = 50.0
_TINY: Final = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """Logits and labels of the validation data."""

    #: (m, K): a row for each item, or for each slice if these are scored separately.
    logits: NDArray[np.float64]
    starts: NDArray[np.int64]  # (n,): first row of each item
    labels: NDArray[Any]  # (n,) class indices or (n, K) indicators
    task: str

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows of each item, (n,)."""
        return np.diff(self.starts, append=len(self.logits))

    def probabilities(self, temperature: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        """Return probabilities (n, K), the mean over the rows of each item."""
        from scipy.special import expit, softmax

        scaled = self.logits / temperature
        rows = softmax(scaled, axis=1) if self.task == "multiclass" else expit(scaled)
        if len(self.starts) == len(rows):
            return np.asarray(rows)
        return np.asarray(np.add.reduceat(rows, self.starts) / self.sizes[:, None])

    def select(self, items: NDArray[np.bool_]) -> CalibrationData:
        """Return some items (n,)."""
        sizes = self.sizes
        rows, kept = np.repeat(items, sizes), sizes[items]
        return CalibrationData(
            self.logits[rows], np.cumsum(kept) - kept, np.asarray(self.labels)[items], self.task
        )

    def mapped(self, fitted: LogitMap) -> CalibrationData:
        """Return the same items with calibrated logits."""
        return replace(self, logits=fitted.apply(self.logits, self.task))

    def pair(self, label: int) -> CalibrationData:
        """Return absence and presence of a label as two exclusive classes."""
        column = self.logits[:, label]
        labels = self.truth()[:, label].astype(np.int64)
        return CalibrationData(
            np.column_stack([np.zeros(len(column)), column]), self.starts, labels, "multiclass"
        )

    def truth(self) -> NDArray[np.bool_]:
        """Return the labels as indicators (n, K)."""
        if self.task == "multilabel":
            return np.asarray(self.labels, dtype=np.float64) > 0.5
        found: NDArray[np.bool_] = np.asarray(self.labels)[:, None] == np.arange(self.logits.shape[1])
        return found

    def losses(self, temperature: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        """Return the mean negative log likelihood (1,), or that of each label (K,)."""
        return np.asarray(self._losses(temperature).mean(axis=0))

    def item_losses(self) -> NDArray[np.float64]:
        """Return the negative log likelihood of each item, (n,), the mean over its labels."""
        return np.asarray(self._losses(1.0).mean(axis=1))

    def _losses(self, temperature: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return the negative log likelihood of each item, (n, 1), or of each of its labels, (n, K)."""
        proba, truth = self.probabilities(temperature), self.truth()
        if self.task == "multiclass":
            return np.asarray(-np.log(np.maximum(proba[truth], _TINY))[:, None])
        # 1 - p of an absent label would be rounded to 0 before p is 1
        mirrored = CalibrationData(-self.logits, self.starts, self.labels, self.task).probabilities(
            temperature
        )
        return np.asarray(-np.log(np.maximum(np.where(truth, proba, mirrored), _TINY)))


def fit_temperature(data: CalibrationData) -> NDArray[np.float64]:
    """
    Return the temperature (1,), or of each label (K,), with the lowest negative log likelihood.

    It is 1 if the loss is not lower than without scaling, if all labels are the same, or if the data are
    perfectly separated, so that the temperature is not identifiable. The loss is convex in the inverse of the
    temperature if items have one row, so that a line search finds the minimum.

    >>> logits = np.array([[4.0, 0.0]] * 4 + [[0.0, 4.0]] * 4)
    >>> labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    >>> fitted = fit_temperature(CalibrationData(logits, np.arange(8), labels, "multiclass"))
    >>> round(float(fitted[0]), 3)  # three of four are correct, which is a logit of log(3)
    3.641
    """
    if data.task == "multiclass":
        if len(np.unique(data.labels)) < 2:
            return np.ones(1)
        size = measure_size(data.logits - data.logits.mean(axis=1, keepdims=True))
        return np.array([_minimize(lambda t: float(data.losses(t)[0]), size)])
    found = []
    for label in range(data.logits.shape[1]):
        column = slice(label, label + 1)
        one = CalibrationData(data.logits[:, column], data.starts, data.labels[:, column], "multilabel")
        varied = 0 < int(one.truth().sum()) < len(one.labels)
        size = measure_size(one.logits)
        found.append(_minimize(lambda t, one=one: float(one.losses(t)[0]), size) if varied else 1.0)  # type: ignore[misc]  # of a default
    return np.array(found)


def measure_size(logits: NDArray[np.float64]) -> float:
    """Return the mean absolute logit; 1 if all are 0."""
    return float(np.abs(logits).mean()) or 1.0


def find_highest(size: float) -> float:
    """Return the temperature that counts as the upper bound of the search, for logits of a size."""
    return 0.99 * _HIGHEST * max(1.0, size)


def _minimize(loss: Callable[[float], float], size: float) -> float:
    from scipy.optimize import minimize_scalar

    lowest, highest = _LOWEST * min(1.0, size), _HIGHEST * max(1.0, size)
    bounds = math.log(lowest), math.log(highest)
    found = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    fitted = math.exp(float(found.x))
    only_falls = loss(lowest) <= loss(fitted)
    return fitted if not only_falls and loss(fitted) < loss(1.0) else 1.0
