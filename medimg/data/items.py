"""What a data set says of its items."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg.errors import DatasetError, MedimgWarning
from medimg.io.series import Policies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from medimg.core.read_report import Skipped
    from medimg.data._labels import LabeledSeries
    from medimg.io.dicom.header.acquisition import AcquisitionElements
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "Item",
    "ItemFacts",
    "Task",
    "Unit",
    "all_items",
    "checked_policies",
    "chosen_indices",
    "encoded",
    "warn_of_unknown_patients",
]


class ItemFacts:
    """Facts of each item, and their sums: the part of a data set that looks at no picture."""

    classes: tuple[str, ...]
    task: Task
    unit: Unit
    skipped: tuple[Skipped, ...]
    _items: Sequence[Item]
    _labeled: Sequence[LabeledSeries]
    _targets: npt.NDArray[Any]
    _read_elements: Mapping[int, AcquisitionElements]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def n_unknown_patients(self) -> int:
        """How many of the series have no known patient, and count as one of their own."""
        return sum(not self._labeled[n].patient for n in {item.source for item in self._items})

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Of each item: (n,) int64, or (n, K) float32 for multilabel."""
        return self._targets[[item.source for item in self._items]]

    @property
    def patients(self) -> tuple[str, ...]:
        """Of each item; for grouping, not for showing. An image without one counts as its own patient."""
        names = [item.patient or f"unknown: {item.series.uid}" for item in self._labeled]
        return tuple(names[item.source] for item in self._items)

    @property
    def file_patients(self) -> tuple[str, ...]:
        """Of each item: the Patient ID of its file where that counts beside the table; for grouping only."""
        return tuple(self._labeled[item.source].file_patient for item in self._items)

    @property
    def labeled_series(self) -> tuple[LabeledSeries, ...]:
        """All series that the dataset was made from, also those without an item in this subset."""
        return tuple(self._labeled)

    @property
    def series(self) -> tuple[Series, ...]:
        """Of each item: where it comes from."""
        return tuple(self._labeled[item.source].series for item in self._items)

    @property
    def pictures(self) -> tuple[int | None, ...]:
        """Of each item: which of the pictures that the recipe makes of its series; None for all of them."""
        return tuple(item.picture for item in self._items)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of each item: "CT", "MR", …; "" where the file does not say."""
        return tuple(series.modality for series in self.series)

    @property
    def domains(self) -> tuple[str, ...]:
        """Of each item: the site or scanner that the table names; "" where it names none."""
        return tuple(self._labeled[item.source].domain for item in self._items)

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Of each item."""
        return tuple(self._labeled[item.source].series.uid for item in self._items)

    @property
    def sources(self) -> tuple[str, ...]:
        """Of each item: the first file of its series."""
        return tuple(self._labeled[item.source].series.path for item in self._items)

    @property
    def read_elements(self) -> Mapping[int, AcquisitionElements]:
        """Header elements that the pass over headers did not give, by id of the series; they can identify."""
        return self._read_elements

    def class_counts(self) -> dict[str, int]:
        """Return how many items each class has."""
        labels = self.labels
        if self.task == "multilabel":
            return {name: int(n) for name, n in zip(self.classes, np.sum(labels, axis=0), strict=True)}
        counts = Counter(int(n) for n in labels)
        return {name: counts[n] for n, name in enumerate(self.classes)}

    def summary(self) -> str:
        """Return what is in the data set, in one line, without a word on who."""
        series = len({item.source for item in self._items})
        counts = ", ".join(f"{name} {n}" for name, n in self.class_counts().items())
        kind = "slices" if self.unit == "slice" else "series"
        text = f"{len(self)} {kind} from {series} series of {len(set(self.patients))} patients ({counts})"
        return f"{text}; {len(self.skipped)} files skipped" if self.skipped else text


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
