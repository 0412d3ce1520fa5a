"""Stacks with gaps or a tilt, interpolated onto a regular, perpendicular grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Desheared", "deshear", "regular_grid"]

_ROUNDING: Final = 1e-6
#: How far, in distances between slices, the last one may be moved.
_BEYOND: Final = 0.1


def _cast(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


def regular_grid(
    array: npt.NDArray[Any], distances: npt.NDArray[np.float64], gap: float, *, empty: bool = False
) -> npt.NDArray[Any]:
    """
    Interpolate slices linearly onto regular places.

    Parameters
    ----------
    array : numpy.ndarray
        (C, D, H, W).
    distances : numpy.ndarray
        (D,) ascending places of the slices, in millimeters.
    gap : float
        Distance between the new slices, which start at the first place.
    empty : bool
        Whether slices between the old ones are 0, rather than interpolated.

    Returns
    -------
    numpy.ndarray
        (C, D', H, W) of the same type; a new slice within 1 % of an old one is that slice, unchanged.
    """
    # beyond the last slice, nothing is known
    count = math.floor((distances[-1] - distances[0]) / gap + _BEYOND) + 1
    places = distances[0] + gap * np.arange(count)
    upper = np.clip(np.searchsorted(distances, places), 1, len(distances) - 1)
    weight = np.clip((places - distances[upper - 1]) / (distances[upper] - distances[upper - 1]), 0, 1)
    weight[weight < 0.01] = 0.0
    weight[weight > 0.99] = 1.0
    result = np.empty((array.shape[0], count, *array.shape[2:]), dtype=array.dtype)
    for place, (above, w) in enumerate(zip(upper, weight, strict=True)):
        if empty and 0 < w < 1:
            result[:, place] = 0
            continue
        mixed = array[:, above - 1].astype(np.float64) * (1 - w) + array[:, above].astype(np.float64) * w
        result[:, place] = _cast(mixed, array.dtype)
    return result


class Desheared(NamedTuple):
    """
    Slices that were moved within their planes.

    Attributes
    ----------
    array : numpy.ndarray
        (C, D, H', W'), large enough for all; the least value comes in at the borders.
    outside : numpy.ndarray
        (C, D, H', W') bool: pixels that no slice covers.
    first_row, first_column : int
        The old row and column that the new first pixel lies at, 0 or less.
    """

    array: npt.NDArray[Any]
    outside: npt.NDArray[np.bool_]
    first_row: int
    first_column: int


def deshear(
    array: npt.NDArray[Any], rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> Desheared:
    """
    Shift each slice within its plane, linearly interpolated.

    Parameters
    ----------
    array : numpy.ndarray
        (C, D, H, W).
    rows, columns : numpy.ndarray
        (D,) how far each slice lies towards higher rows and columns, in pixels.

    Returns
    -------
    Desheared
    """
    first_row, height = _extent(rows, array.shape[2])
    first_column, width = _extent(columns, array.shape[3])
    shape = (*array.shape[:2], height, width)
    result, outside = np.empty(shape, array.dtype), np.zeros(shape, dtype=np.bool_)
    least = array.min()
    for d, (row, column) in enumerate(zip(rows, columns, strict=True)):
        values, beyond_rows = _shifted(array[:, d].astype(np.float64), row - first_row, height, axis=1)
        values, beyond_columns = _shifted(values, column - first_column, width, axis=2)
        gone = beyond_rows[:, None] | beyond_columns[None, :]
        result[:, d] = _cast(np.where(gone, least, values), array.dtype)
        outside[:, d] = gone
    return Desheared(result, outside, first_row, first_column)


def _extent(shifts: npt.NDArray[np.float64], size: int) -> tuple[int, int]:
    """Return the first old index of the new grid, and its size; shifts by rounding errors add nothing."""
    first = min(0, math.floor(shifts.min() + _ROUNDING))
    return first, size + max(0, math.ceil(shifts.max() - _ROUNDING)) - first


def _shifted(
    values: npt.NDArray[np.float64], by: float, size: int, axis: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    last = values.shape[axis] - 1
    place = np.arange(size) - by
    lower = np.floor(place).astype(np.int64)
    weight = (place - lower).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    below = np.take(values, np.clip(lower, 0, last), axis)
    above = np.take(values, np.clip(lower + 1, 0, last), axis)
    return below * (1 - weight) + above * weight, (place < -_ROUNDING) | (place > last + _ROUNDING)
