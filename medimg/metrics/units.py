"""The units that are scored, images, series or patients: their truth, probabilities and predictions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.metrics._arrays import Flags, Floats, Integers

__all__ = ["THRESHOLD", "ScoredUnits", "decide", "to_indicators"]

#: A label of a multilabel task is predicted if its probability reaches this.
THRESHOLD = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredUnits:
    """The n rows that are scored, of K classes, and the items of the dataset that they consist of."""

    truth: Flags  # (n, K): whether the unit is of the class
    predicted: Flags  # (n, K)
    probabilities: Floats  # (n, K): mean over the unit's items
    patient: Integers  # (n,): numbered in the order of the dataset
    item_unit: Integers  # (items,): unit of each item
    item_probabilities: Floats  # (items, K)
    patient_names: tuple[str, ...]  # only for hashing

    def __repr__(self) -> str:
        return f"ScoredUnits({len(self)} units of {self.n_patients} patients, {len(self.item_unit)} items)"

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(self.patient_names)

    @property
    def first_item(self) -> Integers:
        """Index in the dataset of the first item of each unit, (n,)."""
        return np.unique(self.item_unit, return_index=True)[1].astype(np.int64)

    @property
    def n_items(self) -> Integers:
        """Number of items of each unit, (n,)."""
        return np.bincount(self.item_unit, minlength=len(self)).astype(np.int64)

    def part(self, chosen: Flags) -> "ScoredUnits":
        """Return the units of a mask (n,), with their patients and items."""
        patients, patient = np.unique(self.patient[chosen], return_inverse=True)
        items = chosen[self.item_unit]
        renumbered = np.cumsum(chosen) - 1
        return ScoredUnits(
            truth=self.truth[chosen],
            predicted=self.predicted[chosen],
            probabilities=self.probabilities[chosen],
            patient=patient.astype(np.int64),
            item_unit=renumbered[self.item_unit[items]].astype(np.int64),
            item_probabilities=self.item_probabilities[items],
            patient_names=tuple(self.patient_names[p] for p in patients),
        )


def to_indicators(labels: NDArray[Any], task: str, n_classes: int) -> Flags:
    """Return class indices (n,) or indicators (n, K) as indicators (n, K)."""
    if task == "multilabel":
        return np.asarray(labels.astype(np.float64) > 0.5)
    return np.asarray(labels[:, None] == np.arange(n_classes))


def decide(probabilities: Floats, task: str, thresholds: tuple[float, ...] | None = None) -> Flags:
    """
    Return predictions (n, K): the most probable class, or every label that reaches 0.5.

    With thresholds: the second of two classes, or every label, that reaches its own.
    """
    if task == "multilabel":
        return probabilities >= (THRESHOLD if thresholds is None else np.array(thresholds))
    if thresholds is not None:
        second = probabilities[:, 1] >= thresholds[0]
        return np.column_stack([~second, second])
    return to_indicators(probabilities.argmax(axis=1), task, probabilities.shape[1])
