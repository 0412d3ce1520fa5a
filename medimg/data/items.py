"""Items of a dataset: labels, patients and other facts that need no image."""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg._validation import did_you_mean
from medimg.data.class_names import find_class, number_classes
from medimg.data.patients import UNKNOWN
from medimg.errors import DatasetError, MedimgWarning, also
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
    "check_index",
    "check_indices",
    "choose_several",
    "encode_labels",
    "list_items",
    "make_policies",
    "warn_of_unknown_patients",
]


class ItemFacts:
    """Facts of each item of a dataset, and their sums."""

    classes: tuple[str, ...]
    task: Task
    unit: Unit
    skipped: tuple[Skipped, ...]
    preprocess: Preprocess
    _policies: Policies
    _items: Sequence[Item]
    _labeled: Sequence[LabeledSeries]
    _targets: npt.NDArray[Any]
    _read_elements: Mapping[int, AcquisitionElements]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def policies(self) -> Policies:
        """Policies and values that series are read with."""
        return self._policies

    @property
    def is_labeled(self) -> bool:
        """Whether the images have labels."""
        return self._labeled[0].label is not None

    @property
    def n_unknown_patients(self) -> int:
        """Number of series without a known patient; each counts as a patient of its own."""
        return sum(not self._labeled[n].patient for n in {item.source for item in self._items})

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Label of each item: (n,) int64, or (n, K) float32 for multilabel; -1 without labels."""
        return self._targets[[item.source for item in self._items]]

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item, for grouping only; an image without one counts as its own patient."""
        names = [item.patient or f"{UNKNOWN}{item.series.uid}" for item in self._labeled]
        return tuple(names[item.source] for item in self._items)

    @property
    def file_patients(self) -> tuple[str, ...]:
        """Patient ID of each item's file if it was compared with the table, else ""; for grouping only."""
        return tuple(self._labeled[item.source].file_patient for item in self._items)

    @property
    def labeled_series(self) -> tuple[LabeledSeries, ...]:
        """All series that the dataset was made from, also those without an item in this subset."""
        return tuple(self._labeled)

    @property
    def series(self) -> tuple[Series, ...]:
        """Series of each item."""
        return tuple(self._labeled[item.source].series for item in self._items)

    @property
    def image_indices(self) -> tuple[int | None, ...]:
        """Index of each item's image among those of its series; None if the item is the whole series."""
        return tuple(item.image for item in self._items)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modality of each item: "CT", "MR", …; "" if unknown."""
        return tuple(series.modality for series in self.series)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain of each item, such as a site or scanner, from the table; "" if there is none."""
        return tuple(self._labeled[item.source].domain for item in self._items)

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Series UID of each item."""
        return tuple(self._labeled[item.source].series.uid for item in self._items)

    @property
    def sources(self) -> tuple[str, ...]:
        """First file of each item's series."""
        return tuple(self._labeled[item.source].series.path for item in self._items)

    @property
    def read_elements(self) -> Mapping[int, AcquisitionElements]:
        """Header elements that the pass over headers did not give, by id of the series; they can identify."""
        return self._read_elements

    def class_counts(self) -> dict[str, int]:
        """Return the number of items of each class."""
        labels = self.labels
        if self.task == "multilabel":
            return {name: int(n) for name, n in zip(self.classes, np.sum(labels, axis=0), strict=True)}
        counts = Counter(int(n) for n in labels)
        return {name: counts[n] for n, name in enumerate(self.classes)}

    def summary(self) -> str:
        """Return a one-line summary of the dataset, without identifiers."""
        series = len({item.source for item in self._items})
        counts = ", ".join(f"{name} {n}" for name, n in self.class_counts().items()) or "no labels"
        noun = "series" if self.unit == "series" else "images"
        text = f"{len(self)} {noun} from {series} series of {len(set(self.patients))} patients ({counts})"
        return f"{text}; {len(self.skipped)} files skipped" if self.skipped else text


#: "slice" is another word for "image".
Unit: TypeAlias = Literal["image", "series", "slice"]
Task: TypeAlias = Literal["multiclass", "multilabel"]


@dataclass(frozen=True, slots=True)
class Item:
    """Index of a series, and of one of its images (None for all)."""

    source: int
    image: int | None


def make_policies(reading: Mapping[str, str] | None) -> Policies:
    """Return reading policies by name; DatasetError or ReadError if a name or value is unknown."""
    known = {f.name for f in fields(Policies)}
    unknown = set(reading or ()) - known
    if unknown:
        hint = did_you_mean(min(map(str, unknown)), known)
        raise also(DatasetError, KeyError)(
            f"reading has unknown names {sorted(unknown)}; expected {sorted(known)}{hint}"
        )
    # which checks the values
    return Policies(**(reading or {}))  # type: ignore[arg-type]


def encode_labels(labeled: Sequence[LabeledSeries], classes: tuple[str, ...], task: Task) -> npt.NDArray[Any]:
    """Return the labels of series as (n,) int64 class indices, or (n, K) float32 for multilabel."""
    if len(set(classes)) < len(classes):
        raise DatasetError(f"a class occurs twice in {classes}")
    lacking = sum(item.label is None for item in labeled)
    if lacking == len(labeled) and not classes:
        return np.full(len(labeled), -1, dtype=np.int64)
    if lacking or not classes:
        raise DatasetError(
            f"{lacking} of {len(labeled)} series have no label, with {len(classes)} classes; expected labels "
            "for all, or no labels and no classes"
        )
    if task == "multilabel":
        return np.asarray([item.label for item in labeled], dtype=np.float32)
    numbers = number_classes(classes)
    found = [numbers.get(str(item.label), numbers.get(find_class(str(item.label)))) for item in labeled]
    unknown = [n for n, number in enumerate(found) if number is None]
    if unknown:
        # labels are not quoted: those of a wrong column can be names
        raise DatasetError(
            f"{len(unknown)} of {len(labeled)} labels are not among the classes {list(classes)}, first in "
            f"row {unknown[0]}; check the column of labels, and classes="
        )
    return np.asarray(found, dtype=np.int64)


def list_items(labeled: Sequence[LabeledSeries], recipe: Preprocess, unit: Unit) -> tuple[Item, ...]:
    """Return an item for each series, or for each image that the recipe makes of it, in 3-D one."""
    if recipe.dims == 3:
        return tuple(Item(n, 0) for n in range(len(labeled)))
    if unit == "series":
        return tuple(Item(n, None) for n in range(len(labeled)))
    return tuple(
        Item(n, image) for n, item in enumerate(labeled) for image in range(recipe.count(item.series))
    )


def check_index(index: object) -> int:
    """Return the index of one item as an int; DatasetError for anything else."""
    try:
        return operator.index(index)  # type: ignore[arg-type]  # what has no __index__ is refused
    except TypeError:
        raise also(DatasetError, TypeError)(
            f"a dataset is indexed by the number of an item; found a {type(index).__name__}: several items "
            "are dataset[:3], dataset[[0, 2, 5]] or dataset[mask]"
        ) from None


def choose_several(index: object, length: int) -> Sequence[int] | npt.NDArray[np.integer] | None:
    """Return the indices that a slice, list, range or array (length,) stands for; None for anything else."""
    if isinstance(index, slice):
        try:
            return range(*index.indices(length))
        except (TypeError, ValueError):
            raise also(DatasetError, TypeError)(
                f"a slice of a dataset takes whole numbers, and no step of 0; found {index}"
            ) from None
    # tables' columns and tensors have axes, too; those of one number have none
    return index if isinstance(index, list | range) or getattr(index, "ndim", False) else None  # type: ignore[return-value]  # what has axes is an array


def check_indices(indices: Sequence[int] | npt.NDArray[np.integer], length: int) -> list[int]:
    """Return the indices of chosen items, given as indices or as a mask (length,)."""
    array = np.asarray(indices)
    if array.dtype == np.bool_ and array.shape == (length,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise DatasetError(
            f"a subset takes indices, or a mask of {length} booleans; "
            f"found {array.dtype} of shape {array.shape}"
        )
    chosen = [int(i) for i in array]
    if not chosen:
        raise DatasetError(f"a subset needs at least one of the {length} items; none was chosen")
    if min(chosen) < 0 or max(chosen) >= length:
        raise DatasetError(f"a subset needs indices from 0 to {length - 1}; found {chosen[:5]}")
    return chosen


def warn_of_unknown_patients(labeled: Sequence[LabeledSeries]) -> None:
    """Warn if series have no known patient."""
    unknown = sum(not item.patient for item in labeled)
    if unknown:
        warnings.warn(
            f"{unknown} of {len(labeled)} images have no known patient (no identifier, or a placeholder), "
            "and each counts as a patient of its own: if some share a patient, splits leak; pass patient=, "
            "or patients= with arrays",
            MedimgWarning,
            stacklevel=4,
        )
