"""Operating points: thresholds on the probabilities of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg._validation import check_fields, check_number, check_text, check_whole_number
from medimg.errors import CheckpointError, MedimgError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Criterion", "OperatingPoint", "check_criterion", "operating_point", "operating_points"]

#: Criterion for an operating point.
Criterion: TypeAlias = Literal["youden"] | Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """
    A threshold, with sensitivity and specificity on the data that it was chosen on.

    Attributes
    ----------
    label : str
        Class that is predicted if its probability reaches the threshold.
    threshold : float
        Threshold on the calibrated probability.
    sensitivity, specificity : float
        Values on the validation data; expect lower ones on other data.
    positives, negatives : int
        Number of items with and without the class.
    """

    label: str
    threshold: float
    sensitivity: float
    specificity: float
    positives: int
    negatives: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "operating point") -> OperatingPoint:
        """
        Restore an operating point from a mapping of its attributes.

        Raises
        ------
        CheckpointError
            If a field is missing, unknown or invalid.
        """
        check_fields(name, values, [f.name for f in fields(cls)], error=CheckpointError)
        label = check_text(f"{name}.label", values["label"], error=CheckpointError)
        threshold, sensitivity, specificity = (
            # the threshold of a class that is never predicted is above 1
            check_number(f"{name}.{key}", values[key], least=0, below=below, error=CheckpointError)
            for key, below in (("threshold", 1.1), ("sensitivity", None), ("specificity", None))
        )
        positives, negatives = (
            check_whole_number(f"{name}.{key}", values[key], error=CheckpointError)
            for key in ("positives", "negatives")
        )
        return cls(label, threshold, sensitivity, specificity, positives, negatives)


def check_criterion(
    criterion: Any, name: str = "operating_point", *, error: type[MedimgError] = TrainingError
) -> Criterion:
    """Return a criterion for operating points with its number as a float."""
    if criterion is None or (isinstance(criterion, str) and criterion == "youden"):
        return criterion  # type: ignore[return-value]  # None or "youden"
    if isinstance(criterion, Mapping) and len(criterion) == 1:
        ((key, value),) = criterion.items()
        if key == "sensitivity":
            return {key: check_number(f"{name}[{key!r}]", value, above=0, most=1, error=error)}
        if key == "cost":
            return {key: check_number(f"{name}[{key!r}]", value, above=0, error=error)}
    raise error(
        f'{name} must be None, "youden", {{"sensitivity": 0.95}} (at least that, up to 1) or {{"cost": 10}} '
        f"(false positives that are as bad as one false negative); found {criterion!r}"
    )


def operating_points(
    proba: NDArray[np.float64],
    truth: NDArray[np.bool_],
    classes: Sequence[str],
    task: str,
    criterion: Criterion,
) -> tuple[OperatingPoint, ...]:
    """
    Choose a threshold for each class (n, K) against the rest; of two exclusive classes, for the second.

    Raises TrainingError if a class has no positives or no negatives.
    """
    if criterion is None:
        return ()
    called = [1] if task == "multiclass" and len(classes) == 2 else range(len(classes))
    return tuple(operating_point(classes[k], proba[:, k], truth[:, k], criterion) for k in called)


def operating_point(
    label: str, scores: NDArray[np.float64], truth: NDArray[np.bool_], criterion: Criterion
) -> OperatingPoint:
    """
    Choose a threshold on the scores (n,) of one class with truth (n,).

    Thresholds are halfway between neighboring scores, as all values in between are equivalent on these data.
    Of equally good ones the more sensitive is chosen; of those that are sensitive enough, the most specific.

    >>> scores, truth = np.array([0.1, 0.3, 0.6, 0.8]), np.array([False, True, False, True])
    >>> found = operating_point("nodule", scores, truth, {"sensitivity": 1.0})
    >>> found.threshold, found.sensitivity, found.specificity
    (0.2, 1.0, 0.5)
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        missing = "positives" if not positives else "negatives"
        raise TrainingError(
            f"class {label!r} has no {missing} in the validation data, so that no operating point can be "
            "chosen: use other validation data, or operating_point=None"
        )
    values, where = np.unique(scores, return_inverse=True)
    # by thresholds from the highest score down, after one that predicts nothing
    hits = np.append(0, np.cumsum(np.bincount(where, truth, len(values))[::-1]))
    alarms = np.append(0, np.cumsum(np.bincount(where, ~truth, len(values))[::-1]))
    chosen = _choose_threshold(hits, alarms, positives, negatives, criterion)
    return OperatingPoint(
        label,
        _place_threshold(values[::-1], chosen),
        float(hits[chosen] / positives),
        float(1 - alarms[chosen] / negatives),
        positives,
        negatives,
    )


def _choose_threshold(
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


def _place_threshold(descending: NDArray[np.float64], count: int) -> float:
    """Return a threshold that the first `count` scores reach, and no other."""
    if count == 0:
        top = float(descending[0])
        return (top + 1) / 2 if top < 1 else math.nextafter(1.0, 2.0)
    upper = float(descending[count - 1])
    lower = float(descending[count]) if count < len(descending) else 0.0
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper
