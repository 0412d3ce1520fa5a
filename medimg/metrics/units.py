"""From probabilities of images to probabilities of the units that are scored: images, series or patients."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["THRESHOLD", "ScoredUnits", "Unit"]

Unit = Literal["patient", "series", "image"]

THRESHOLD = 0.5
"""From this probability on, a label of a multilabel task counts as found."""


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
        return f"Units({len(self)} units of {self.n_patients} patients, {len(self.item_unit)} items)"

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
