"""Items whose predictions are scored without a dataset: labels, patients, series and images of each."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medimg.core.content_hash import content_hash
from medimg.core.display import render
from medimg.core.volume import Volume
from medimg.data.patients import UNKNOWN, check_exact, normalize_patient
from medimg.errors import DatasetError
from medimg.evaluation._prediction_arrays import is_missing, read_values
from medimg.evaluation.report.example_images import to_pixels
from medimg.io.read import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medimg.data.protocols import Recipe
    from medimg.evaluation._prediction_arrays import Predictions
    from medimg.evaluation.report.example_images import GetPixels

__all__ = ["ScoredItems", "describe_copies", "is_dataset", "render_image"]

_DATASET: tuple[str, ...] = ("preprocess", "patients", "series_uids", "sources", "unit", "__getitem__")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredItems:
    """The part of a dataset that scores need; `series` is None if there are no headers."""

    labels: NDArray[Any]
    classes: tuple[str, ...]
    task: str
    patients: tuple[str, ...] = field(repr=False)
    series_uids: tuple[str, ...]
    sources: tuple[str, ...] = field(repr=False)
    unit: str = "image"
    preprocess: Recipe | None = None
    n_unknown_patients: int = 0
    series: tuple[Any, ...] | None = None
    modalities: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    skipped: tuple[Any, ...] | None = None
    labeled_series: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_arrays(cls, found: Predictions, *, patients: object, series: object) -> ScoredItems:
        """Take patients and series from lists; an unknown patient is one of its own."""
        n = len(found.labels)
        names = [""] * n if patients is None else _read_names("patients", patients, n)
        uids = [""] * n if series is None else _read_names("series", series, n)
        # the images of a series are of one patient
        own = [f"{UNKNOWN}{uid or f'row {row}'}" for row, uid in enumerate(uids)]
        return cls(
            labels=found.labels,
            classes=found.classes,
            task=found.task,
            patients=tuple(name or unknown for name, unknown in zip(names, own, strict=True)),
            series_uids=tuple(uids),
            sources=tuple(f"row {row}" for row in range(n)),
            n_unknown_patients=sum(not name or name.startswith(UNKNOWN) for name in names),
        )

    @classmethod
    def of_dataset(cls, found: Predictions, data: Any, *, patients: object, series: object) -> ScoredItems:
        """Take all that is not given from a dataset, whose labels must be those given."""
        _check_same_labels(found, data)
        given = cls.of_arrays(found, patients=patients, series=series)
        names = {one.name for one in fields(cls)} - {"labels", "classes", "task"}
        names -= set() if patients is None else {"patients", "n_unknown_patients"}
        names -= set() if series is None else {"series_uids"}
        values = {name: getattr(data, name) for name in names if hasattr(data, name)}
        values.setdefault("skipped", ())
        if patients is None:
            values.setdefault("n_unknown_patients", 0)
        unchanged = {one.name: getattr(given, one.name) for one in fields(cls)}
        return cls(**(unchanged | values))


def is_dataset(images: object) -> bool:
    """Whether images are a dataset rather than a list."""
    return all(hasattr(images, member) for member in _DATASET)


def make_getter(images: Any, count: int) -> GetPixels:
    """Return a function that gives the pixels of an item of a dataset, or of a list of images."""
    if is_dataset(images):
        return lambda item: to_pixels(images[item][0], images.preprocess)
    several = images.tolist() if hasattr(images, "tolist") and not hasattr(images, "shape") else images
    if isinstance(several, str | bytes | os.PathLike) or not hasattr(several, "__len__"):
        raise DatasetError(
            f"images must be a list with one image for each row, or an ImageDataset; found a "
            f"{type(images).__name__}"
        )
    if hasattr(several, "iloc"):
        several = several.tolist()
    if len(several) != count:
        raise DatasetError(
            f"there are {len(several):,} images for {count:,} rows of y_prob; expected as many"
        )
    return lambda item: render_image(several[item])


def render_image(image: Any) -> NDArray[np.uint8]:
    """
    Return an image as (H, W) or (H, W, 3) uint8, of a stack the middle slice.

    Arrays and tensors have the axes (H, W), (H, W, 3), (1 or 3, H, W), (D, H, W) or (C, D, H, W); from 0 to 1
    they are shown as they are, otherwise from their lowest to their highest value. Other images are read.
    """
    if not _is_array(image):
        return render(image if isinstance(image, Volume) else read(image))
    array = _as_array(image)
    if array.ndim == 4:
        array = array[0] if len(array) in (1, 3) else array[len(array) // 2]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] not in (1, 3):
        array = array[len(array) // 2]
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.ndim not in (2, 3) or not array.size:
        raise DatasetError(
            f"an image has the shape {tuple(image.shape)}; expected (H, W), (H, W, 3), (1 or 3, H, W) or "
            "(D, H, W)"
        )
    return array if array.dtype == np.uint8 else _scale(array)


def describe_copies(images: Any, patients: Sequence[str]) -> list[str]:
    """Describe arrays that are those of another patient too, as the patients are then not independent."""
    if is_dataset(images) or not len(images) or not all(map(_is_array, images)):
        return []
    owners: dict[str, set[str]] = defaultdict(set)
    digests = []
    for image, patient in zip(images, patients, strict=True):
        array = np.ascontiguousarray(_as_array(image))
        digests.append(content_hash([f"{array.shape} {array.dtype}", array.tobytes()]))
        # constant images, such as empty slices, are nobody's
        if array.size and array.min() < array.max():
            owners[digests[-1]].add(patient)
    count = sum(len(owners[digest]) > 1 for digest in digests)
    if not count:
        return []
    return [
        f"{count:,} images have the same pixels as an image of another patient: if these are one patient, "
        "there are fewer patients than reported here, and the intervals are too narrow."
    ]


def _read_names(name: str, values: object, count: int) -> list[str]:
    """Return the names of patients or series, normalized; "" if one is missing."""
    found = read_values(name, values)
    array = found.array.ravel() if found.array.ndim == 2 and found.array.shape[1] == 1 else found.array
    if array.ndim != 1 or len(array) != count:
        raise DatasetError(
            f"{name} has the shape {found.array.shape}; expected ({count},), one for each row of y_prob"
        )
    cells = array.tolist()
    if name == "series":
        return ["" if is_missing(cell) else str(cell).strip() for cell in cells]
    check_exact(cells)
    return [
        cell if isinstance(cell, str) and cell.startswith(UNKNOWN) else normalize_patient(cell)
        for cell in cells
    ]


def _check_same_labels(found: Predictions, data: Any) -> None:
    if len(data) != len(found.labels):
        raise DatasetError(
            f"images has {len(data):,} items, y_prob {len(found.labels):,} rows; expected one row "
            "for each item"
        )
    if not getattr(data, "is_labeled", True) or tuple(data.classes) != found.classes:
        return
    labels = np.asarray(data.labels)
    if labels.shape != found.labels.shape or (labels != found.labels).any():
        raise DatasetError(
            "y_true differs from the labels of the dataset given as images; expected the same, in the order "
            "of the dataset: pass dataset.labels, or another dataset"
        )


def _is_array(image: object) -> bool:
    return isinstance(image, np.ndarray) or (hasattr(image, "detach") and hasattr(image, "dtype"))


def _as_array(image: Any) -> NDArray[Any]:
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    return cast("NDArray[Any]", image)


def _scale(array: NDArray[Any]) -> NDArray[np.uint8]:
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.asarray(np.rint(np.where(finite, values, 0).clip(0, 1) * 255), np.uint8)
