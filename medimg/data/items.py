"""What a data set is made of: labels as numbers, and which picture of which series each item is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg.errors import DatasetError, MedimgWarning
from medimg.io.series import Policies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from medimg.data.sources import LabeledSeries
    from medimg.prep import Preprocess

__all__ = [
    "Item",
    "Task",
    "Unit",
    "all_items",
    "checked_policies",
    "chosen_indices",
    "encoded",
    "warn_of_unknown_patients",
]

Unit: TypeAlias = Literal["slice", "series"]
Task: TypeAlias = Literal["multiclass", "multilabel"]


@dataclass(frozen=True, slots=True)
class Item:
    """Which series, and which of its pictures (None for all)."""

    source: int
    picture: int | None


def checked_policies(reading: Mapping[str, str] | None) -> Policies:
    """
    Return how series are read.

    Raises
    ------
    DatasetError
        If a name is none of the policies.
    ReadError
        If a policy is unknown.
    """
    known = {f.name for f in fields(Policies)}
    unknown = set(reading or ()) - known
    if unknown:
        raise DatasetError(f"reading has unknown names {sorted(unknown)}; expected {sorted(known)}")
    # what is none of the choices is refused there
    return Policies(**(reading or {}))  # type: ignore[arg-type]


def encoded(labeled: Sequence[LabeledSeries], classes: tuple[str, ...], task: Task) -> npt.NDArray[Any]:
    """
    Return the labels of series as numbers: (series,) int64, or (series, K) float32 for multilabel.

    Raises
    ------
    DatasetError
        If a label is none of the classes, or a class stands twice.
    """
    if task == "multilabel":
        return np.asarray([item.label for item in labeled], dtype=np.float32)
    if len(set(classes)) < len(classes):
        raise DatasetError(f"a class stands twice among {classes}")
    unknown = {str(item.label) for item in labeled} - set(classes)
    if unknown:
        raise DatasetError(f"labels {sorted(unknown)} are none of the classes {list(classes)}")
    return np.asarray([classes.index(str(item.label)) for item in labeled], dtype=np.int64)


def all_items(labeled: Sequence[LabeledSeries], recipe: Preprocess, unit: Unit) -> tuple[Item, ...]:
    """Return an item for each series, or for each picture that the recipe makes of it."""
    if unit == "series":
        return tuple(Item(n, None) for n in range(len(labeled)))
    return tuple(
        Item(n, picture) for n, item in enumerate(labeled) for picture in range(recipe.count(item.series))
    )


def chosen_indices(indices: Sequence[int] | npt.NDArray[np.integer], length: int) -> list[int]:
    """
    Return which of so many items are chosen, by indices or by a mask.

    Raises
    ------
    DatasetError
        If none is chosen, an index is out of range, or a mask has another length.
    """
    array = np.asarray(indices)
    if array.dtype == np.bool_ and array.shape == (length,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise DatasetError(
            f"a subset takes indices, or a mask of {length} booleans; "
            f"found {array.dtype} of shape {array.shape}"
        )
    chosen = [int(i) for i in array]
    if not chosen or min(chosen) < 0 or max(chosen) >= length:
        raise DatasetError(f"a subset needs indices from 0 to {length - 1}; found {chosen[:5]}")
    return chosen


def warn_of_unknown_patients(labeled: Sequence[LabeledSeries]) -> None:
    """Warn of what makes splits leak."""
    unknown = sum(not item.patient for item in labeled)
    if unknown:
        warnings.warn(
            f"{unknown} of {len(labeled)} images have no known patient, and each counts as one of "
            "its own: if some share a patient, splits leak. Pass patient=",
            MedimgWarning,
            stacklevel=4,
        )
