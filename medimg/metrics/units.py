"""What is scored: truth, decision and probabilities of images, series or patients."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLD", "ScoredUnits", "decide"]

THRESHOLD = 0.5
"""A label of a multilabel task is predicted if its probability reaches this."""


@dataclass(frozen=True, eq=False)
class ScoredUnits:
    """
    The rows that are scored.

    Attributes
    ----------
    truth : ndarray of bool, shape (n, K)
        True where the unit belongs to the class (multiclass: one per row).
    predicted : ndarray of bool, shape (n, K)
        The decision: the most probable class, or every label with a probability of 0.5 or more; by the
        model's operating points where it has them.
    probabilities : ndarray of float64, shape (n, K)
        Mean over the unit's images.
    patient : ndarray of int64, shape (n,)
        Patient of each unit, numbered in the order of the dataset.
    item_unit : ndarray of int64, shape (items,)
        Unit of each item of the dataset.
    item_probabilities : ndarray of float64, shape (items, K)
        Probabilities of the items.
    patient_names : tuple of str
        The patients' identifiers, only for hashing.
    """

    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    probabilities: NDArray[np.float64]
    patient: NDArray[np.int64]
    item_unit: NDArray[np.int64]
    item_probabilities: NDArray[np.float64]
    patient_names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"ScoredUnits({len(self)} units of {self.n_patients} patients, {len(self.item_unit)} items)"

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def n_patients(self) -> int:
        """How many patients there are."""
        return len(self.patient_names)

    @property
    def first_item(self) -> NDArray[np.int64]:
        """Position in the dataset of the first item of each unit, shape (n,)."""
        return np.unique(self.item_unit, return_index=True)[1].astype(np.int64)

    @property
    def n_items(self) -> NDArray[np.int64]:
        """How many items each unit has, shape (n,)."""
        return np.bincount(self.item_unit, minlength=len(self)).astype(np.int64)

    def part(self, chosen: NDArray[np.bool_]) -> "ScoredUnits":
        """
        Give some of the units, with their patients and items.

        Parameters
        ----------
        chosen : ndarray of bool, shape (n,)
            Which.

        Returns
        -------
        ScoredUnits
        """
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


def decide(
    probabilities: NDArray[np.float64], task: str, thresholds: tuple[float, ...] | None = None
) -> NDArray[np.bool_]:
    """
    Return the decision as indicators (n, K): the most probable class, or every label that reaches 0.5.

    With thresholds: the second of two classes, or every label, that reaches its own.
    """
    if task == "multilabel":
        return probabilities >= (THRESHOLD if thresholds is None else np.array(thresholds))
    if thresholds is not None:
        found = probabilities[:, 1] >= thresholds[0]
        return np.column_stack([~found, found])
    best = probabilities.argmax(axis=1)
    return cast("NDArray[np.bool_]", best[:, None] == np.arange(probabilities.shape[1]))
