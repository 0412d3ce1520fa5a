"""Arrays to labeled series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._validation import check_texts
from medimg.core.array_volume import as_numbers, check_colors
from medimg.core.volume import Volume
from medimg.data._labels import LabeledSeries
from medimg.data.class_names import sort_classes
from medimg.data.patients import check_exact, normalize_number, normalize_patient, patient_key
from medimg.errors import DatasetError, MedimgError
from medimg.io.memory_series import array_series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from medimg.data.items import Task
    from medimg.io.series import Series

__all__ = ["label_arrays"]

#: Axes that may be named, N aside: the order in which volumes have them.
_AXES: Final = "CDHW"
#: Sizes up to this may be channels.
_MOST_CHANNELS: Final = 4
_COLORS: Final = 3
_NAMED: Final = 'name the axes: axes="NHWC" (colors last), "NCHW" (channels first) or "NDHW" (slices)'
_LABELS: Final = (
    "expected one label for each image, a class name or an index, or a row of 0 and 1 with one for each class"
)


def label_arrays(
    images: object,
    labels: object,
    *,
    patients: Sequence[object] | None = None,
    domains: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
    axes: str | None = None,
    color: bool | None = None,
    facts: Mapping[str, Any] | None = None,
    name: str,
) -> tuple[list[LabeledSeries], Sequence[str], Task]:
    """Return the series of each image with its label, patient and domain, the classes, and the task."""
    classes = None if classes is None else check_texts("classes", classes, error=DatasetError)
    try:
        several = _make_series(images, axes, color, facts or {}, name)
    except DatasetError:
        raise
    except MedimgError as error:
        raise DatasetError(f"images: {error}") from None
    count = len(several)
    named = _encode_labels(labels, count, classes)
    known = _check_length("patients", patients, count)
    check_exact(known)
    where = [normalize_number(domain) for domain in _check_length("domains", domains, count)]
    # patients that differ only in case get one spelling
    spelled: dict[str, str] = {}
    known = [spelled.setdefault(patient_key(patient), normalize_patient(patient)) for patient in known]
    labeled = [LabeledSeries(*item) for item in zip(several, named, known, where, strict=True)]
    label = named[0]
    if isinstance(label, tuple):
        return labeled, classes or [str(n) for n in range(len(label))], "multilabel"
    return labeled, classes or sort_classes({str(one) for one in named if one is not None}), "multiclass"


def _check_length(name: str, values: Sequence[object] | None, count: int) -> list[Any]:
    """Return a value for each image, "" without values."""
    if values is None:
        return [""] * count
    given = [] if isinstance(values, str) else list(values)
    if len(given) != count:
        raise DatasetError(f"{name} must have one entry for each of {count} images; found {len(given)}")
    return given


def _make_series(
    images: object, axes: str | None, color: bool | None, facts: Mapping[str, Any], name: str
) -> list[Series]:
    is_list = isinstance(images, list | tuple)
    items: Iterable[Any] = (
        images if isinstance(images, list | tuple) else _iter_stack(images, axes, color, facts)
    )
    found: list[Series] = []
    for number, item in enumerate(items):
        title = f"{name}[{number}]"
        try:
            volume, array = item if not is_list else (_as_volume(item, axes, color, facts), None)
            found.append(array_series(volume, title, array))
        except MedimgError as error:
            raise DatasetError(f"{title}: {error}") from None
    if not found:
        raise DatasetError("a dataset needs at least one image; found none")
    return found


def _iter_stack(
    images: object, axes: str | None, color: bool | None, facts: Mapping[str, Any]
) -> Iterator[tuple[Volume, npt.NDArray[Any]]]:
    """Yield the volume of the first image of a stack, and the values (C, D, H, W) of each."""
    stack = as_numbers(images, copy=False)
    if stack.ndim < 3 or 0 in stack.shape:
        raise DatasetError(
            "images must be a list, or an array of several images, (N, H, W) at least; found the shape "
            f"{stack.shape}"
        )
    order = _find_axes(stack.shape, axes)
    first = _make_volume(stack[0], order, color, facts)
    if first.is_color:
        check_colors(stack)
    for image in stack:
        yield first, _move_axes(image, order)


def _as_volume(item: object, axes: str | None, color: bool | None, facts: Mapping[str, Any]) -> Volume:
    """Return a volume of an entry of a list."""
    if isinstance(item, Volume):
        return item
    if hasattr(item, "getbands"):
        raise DatasetError(
            "it is a PIL image, whose values may be numbers of a palette; pass an array instead, such as "
            'np.asarray(image.convert("L")) or np.asarray(image.convert("RGB"))'
        )
    array = as_numbers(item, copy=False)
    volume = _make_volume(array, _find_axes((1, *array.shape), axes), color, facts)
    if volume.is_color:
        check_colors(array)
    return volume


def _find_axes(shape: tuple[int, ...], axes: str | None) -> str:
    """Return the axes of an image, such as "HWC", by name or by the shape (N, ...) of several."""
    if axes is not None:
        known = isinstance(axes, str) and set("NHW") <= set(axes) <= {"N", *_AXES} and axes[0] == "N"
        if not known or len(set(axes)) < len(axes):
            raise DatasetError(
                f"axes must name each axis by one of N (images), C (channels), D (slices), H and W, N first, "
                f'such as "NHW", "NHWC" or "NDHW"; found {axes!r}'
            )
        if len(axes) != len(shape):
            raise DatasetError(f"axes={axes!r} has {len(axes)} axes; the images have the shape {shape}")
        return axes[1:]
    first, last = shape[1], shape[-1]
    if len(shape) == 3:
        return "HW"
    if len(shape) == 4 and last in (1, _COLORS) and first > _MOST_CHANNELS:
        return "HWC"
    if len(shape) == 4 and last > _MOST_CHANNELS and (first > _MOST_CHANNELS or first == 1):
        return "DHW"
    if len(shape) == 5 and last in (1, _COLORS) and first > _MOST_CHANNELS:
        return "DHWC"
    if len(shape) == 5 and last > _MOST_CHANNELS and first == 1:
        return "CDHW"
    raise DatasetError(
        f"images of the shape {shape} can be channels or slices; {_NAMED}"
        if len(shape) in (4, 5)
        else f"images have the shape {shape}; expected (N, H, W), (N, H, W, 3) or (N, D, H, W)"
    )


def _move_axes(image: npt.NDArray[Any], order: str) -> npt.NDArray[Any]:
    """Return an image as (C, D, H, W), without a copy."""
    there = [order.index(axis) for axis in _AXES if axis in order]
    return image.transpose(there)[tuple(slice(None) if axis in order else None for axis in _AXES)]


def _make_volume(image: npt.NDArray[Any], order: str, color: bool | None, facts: Mapping[str, Any]) -> Volume:
    values = _move_axes(image, order)
    channels = values.shape[0]
    if color is None and channels == _COLORS and order[-1] != "C" and values.dtype != np.uint8:
        raise DatasetError(
            f"three channels of {values.dtype}, which are not last, can be colors or not; pass color=True or "
            "color=False"
        )
    is_color = channels == _COLORS if color is None else color
    volume = Volume.from_array(values, copy=False, **facts)
    if not is_color:
        return volume
    if channels != _COLORS:
        raise DatasetError(f"color=True needs three channels; found {channels}")
    return replace(volume, photometric="RGB", channels=("R", "G", "B"), display_range=None)


def _encode_labels(
    labels: object, count: int, classes: Sequence[str] | None
) -> list[str | tuple[float, ...] | None]:
    """Return the name of each image's class, or its indicators; None without labels."""
    if labels is None:
        if classes:
            raise DatasetError("classes were given without labels; pass both, or none of them")
        return [None] * count
    try:
        given = np.asarray(labels)
    # rows of unequal length, a tensor on a GPU
    except Exception as error:
        raise DatasetError(f"labels can't be made an array ({type(error).__name__}); {_LABELS}") from None
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim not in (1, 2) or len(given) != count:
        raise DatasetError(f"{count} images have labels of the shape {given.shape}; {_LABELS}")
    if given.ndim == 2:
        return _encode_indicators(given, classes)
    return list(_name_labels(given, classes))


def _encode_indicators(
    given: npt.NDArray[Any], classes: Sequence[str] | None
) -> list[str | tuple[float, ...] | None]:
    if classes is not None and len(classes) != given.shape[1]:
        raise DatasetError(f"{len(classes)} classes for {given.shape[1]} columns of labels")
    if given.dtype.kind not in "biuf" or not np.isin(given, (0, 1)).all():
        raise DatasetError(
            "several columns of labels must hold 0 or 1, or False or True, whether an image is of each "
            "class; an uncertain or unknown label must be decided, or its image be left out"
        )
    return [tuple(row) for row in given.astype(np.float64).tolist()]


def _name_labels(given: npt.NDArray[Any], classes: Sequence[str] | None) -> Iterator[str]:
    """Return class names: texts as they are, numbers as indices into the classes if there are any."""
    if given.dtype.kind == "f" and (given == np.rint(given)).all():
        given = given.astype(np.int64)
    if given.dtype.kind in "OUS":
        texts = given.tolist()
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DatasetError(f"some labels are no text, or empty; {_LABELS}")
        return map(normalize_number, texts)
    if given.dtype.kind not in "biu":
        raise DatasetError(f"labels are of type {given.dtype}, or some are missing; {_LABELS}")
    if classes is None:
        return map(normalize_number, given.tolist())
    names = [normalize_number(name) for name in classes]
    if any(name.lstrip("-").isdecimal() and name != str(n) for n, name in enumerate(names)):
        raise DatasetError(
            "labels and classes are both numbers, and a label may be an index or a name; pass labels as text"
        )
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < len(names):
        raise DatasetError(
            f"labels are indices from {int(given.min())} to {int(given.max())} into {len(names)} classes; "
            f"expected 0 to {len(names) - 1}"
        )
    return (names[int(n)] for n in given)
