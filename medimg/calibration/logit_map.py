"""Maps from the logits of a model to calibrated logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["METHODS", "Curve", "LogitMap", "MapMethod", "count_temperatures", "find_margins"]

#: From the simplest to the most flexible.
MapMethod: TypeAlias = Literal["none", "temperature", "platt", "vector", "isotonic"]
METHODS: Final[tuple[MapMethod, ...]] = get_args(MapMethod)

#: Knots of a piecewise linear curve: margins, and logits of calibrated probabilities.
Curve: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class LogitMap:
    """
    Logits z become (z + offset) / temperature + bias; with curves, these map the margins of z + offset.

    `temperature` is one number or (K,); `offset` and `bias` are (K,), or empty for zeros; there is a curve
    for two exclusive classes, and else one for each class or label.
    """

    method: MapMethod
    temperature: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()

    def apply(self, logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
        """Return calibrated logits (n, K) of logits (n, K)."""
        moved = logits + np.array(self.offset) if self.offset else logits
        if self.curves:
            return _apply_curves(self.curves, moved, task)
        scaled = moved / np.array(self.temperature) if any(t != 1 for t in self.temperature) else moved
        return np.asarray(scaled + np.array(self.bias) if self.bias else scaled)


def count_temperatures(method: str, task: str, classes: int) -> int:
    """Return how many temperatures a map has."""
    return classes if task == "multilabel" or method == "vector" else 1


def find_margins(logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """
    Return the log-odds of each class against the rest, of logits (n, K).

    (n, 1) for two exclusive classes, of the second; (n, K) otherwise.

    >>> find_margins(np.array([[1.0, 3.0]]), "multiclass").tolist()
    [[2.0]]
    """
    from scipy.special import logsumexp

    if task == "multilabel":
        return logits
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    others = [logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(logits.shape[1])]
    return np.asarray(logits - np.stack(others, axis=1))


def _apply_curves(curves: tuple[Curve, ...], logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """Map margins by curves; probabilities of several exclusive classes are normalized to the sum 1."""
    margins = find_margins(logits, task)
    mapped = np.stack([_interpolate(c, m) for c, m in zip(curves, margins.T, strict=True)], axis=1)
    if task == "multilabel":
        return mapped
    if logits.shape[1] == 2:
        return np.column_stack([np.zeros(len(mapped)), mapped])
    return -np.logaddexp(0.0, -mapped)


def _interpolate(curve: Curve, x: NDArray[Any]) -> NDArray[np.float64]:
    """Interpolate linearly, and extend by the slope from the first to the last knot, so order stays."""
    knots, values = map(np.asarray, curve)
    span = knots[-1] - knots[0]
    slope = (values[-1] - values[0]) / span if span > 0 else 0.0
    inside = np.clip(x, knots[0], knots[-1])
    return np.asarray(np.interp(inside, knots, values) + slope * (x - inside))
