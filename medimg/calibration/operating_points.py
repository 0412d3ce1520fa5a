"""Operating points: from which probability on something is called."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Criterion", "OperatingPoint", "checked_criterion", "operating_point", "operating_points"]

#: How an operating point is chosen.
Criterion: TypeAlias = Literal["youden"] | Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """
    A threshold, and what it did on the data that it was chosen on.

    Attributes
    ----------
    label : str
        The class that is called where its probability is not below the threshold.
    threshold : float
        On calibrated probabilities.
    sensitivity, specificity : float
        On the validation data; on others expect less.
    positives, negatives : int
        How many items these are shares of.
    """

    label: str
    threshold: float
    sensitivity: float
    specificity: float
    positives: int
    negatives: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OperatingPoint:
        """
        Take it from a file.

        Raises
        ------
        ValueError, TypeError
            If a field is missing, one too many, or of another type.
        """
        found = cls(**values)
        rates = (found.threshold, found.sensitivity, found.specificity)
        counts = (found.positives, found.negatives)
        if not all(type(v) is float and v >= 0 for v in rates) or not all(type(n) is int for n in counts):
            raise ValueError
        return found


def checked_criterion(criterion: Any) -> Criterion:
    """
    Return a way to choose operating points, if it is one.

    Raises
    ------
    TrainingError
        If it is none.
    """
    if criterion is None or (isinstance(criterion, str) and criterion == "youden"):
        return criterion  # type: ignore[return-value]  # None or "youden"
    if isinstance(criterion, Mapping) and len(criterion) == 1:
        (name, value), *_ = criterion.items()
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        # of a whole number beyond all floats, isfinite is an error
        if number and abs(value) <= sys.float_info.max:
            if name == "sensitivity" and 0 < value <= 1:
                return {"sensitivity": float(value)}
            if name == "cost" and value > 0:
                return {"cost": float(value)}
    raise TrainingError(
        'operating_point is None, "youden", {"sensitivity": 0.95} (at least that, 0 to 1) or {"cost": 10} (a '
        f"miss is as bad as so many false alarms); found {criterion!r}"
    )


def operating_points(
    proba: NDArray[np.float64],
    truth: NDArray[np.bool_],
    classes: Sequence[str],
    task: str,
    criterion: Criterion,
) -> tuple[OperatingPoint, ...]:
    """
    Choose a threshold for each class against the rest; of two exclusive classes, for the second.

    Parameters
    ----------
    proba, truth : numpy.ndarray
        (n, K).
    classes : sequence of str
        (K,).
    task : str
        What the classes are.
    criterion : Criterion
        How to choose; None for no points.

    Raises
    ------
    TrainingError
        If a class has no example, or nothing but examples.
    """
    if criterion is None:
        return ()
    called = [1] if task == "multiclass" and len(classes) == 2 else range(len(classes))
    return tuple(operating_point(classes[k], proba[:, k], truth[:, k], criterion) for k in called)


def operating_point(
    label: str, scores: NDArray[np.float64], truth: NDArray[np.bool_], criterion: Criterion
) -> OperatingPoint:
    """
    Choose a threshold for one class.

    Thresholds lie halfway between neighboring scores, as all in between do the same on these data. Between
    equally good ones the more sensitive is taken; of those that are sensitive enough, the most specific.

    Parameters
    ----------
    label : str
        The class.
    scores, truth : numpy.ndarray
        (n,) probability, and whether it is there.
    criterion : Criterion
        "youden": the highest sensitivity + specificity (Youden 1950). {"sensitivity": x}: the highest
        specificity with a sensitivity of at least x. {"cost": c}: the lowest c · misses + false alarms.

    Examples
    --------
    >>> scores, truth = np.array([0.1, 0.3, 0.6, 0.8]), np.array([False, True, False, True])
    >>> found = operating_point("nodule", scores, truth, {"sensitivity": 1.0})
    >>> found.threshold, found.sensitivity, found.specificity
    (0.2, 1.0, 0.5)
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        what = "no example" if not positives else "nothing but examples"
        raise TrainingError(
            f"class {label!r} has {what} among the validation data, so that no operating point can be "
            "chosen: use other validation data, or operating_point=None"
        )
    values, where = np.unique(scores, return_inverse=True)
    # of the thresholds from the highest score down, after one that calls nothing
    hits = np.append(0, np.cumsum(np.bincount(where, truth, len(values))[::-1]))
    alarms = np.append(0, np.cumsum(np.bincount(where, ~truth, len(values))[::-1]))
    chosen = _chosen(hits, alarms, positives, negatives, criterion)
    return OperatingPoint(
        label,
        _between(values[::-1], chosen),
        float(hits[chosen] / positives),
        float(1 - alarms[chosen] / negatives),
        positives,
        negatives,
    )


def _chosen(
    hits: NDArray[np.float64],
    alarms: NDArray[np.float64],
    positives: int,
    negatives: int,
    criterion: Criterion,
) -> int:
    if isinstance(criterion, Mapping) and "sensitivity" in criterion:
        enough = hits >= criterion["sensitivity"] * positives - 1e-9 * positives
        loss = np.where(enough, alarms, np.inf)
    elif isinstance(criterion, Mapping):
        loss = criterion["cost"] * (positives - hits) + alarms
    else:
        # whole numbers, so that equals are equal: -(sensitivity - false alarm rate)
        loss = alarms * positives - hits * negatives
    # the last of the lowest is the most sensitive
    return len(loss) - 1 - int(np.argmin(loss[::-1]))


def _between(descending: NDArray[np.float64], count: int) -> float:
    """Return a threshold that the first so many scores reach, and no other."""
    if count == 0:
        top = float(descending[0])
        return (top + 1) / 2 if top < 1 else math.nextafter(1.0, 2.0)
    upper = float(descending[count - 1])
    lower = float(descending[count]) if count < len(descending) else 0.0
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper
