"""Repair of stacks: gaps interpolated, gantry tilt desheared onto a perpendicular grid."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg.core import geometry
from medimg.errors import GeometryError, MissingSlicesError

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.core.stacking import Stack
    from medimg.core.volume import Volume

__all__ = ["ShiftedSlices", "deshear_volume", "fill_gaps", "regrid_slices", "shift_slices"]

_ROUNDING: Final = 1e-6
#: Most that the last slice may be moved, in distances between slices.
_BEYOND: Final = 0.1


def _cast(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


def regrid_slices(
    array: npt.NDArray[Any], distances: npt.NDArray[np.float64], gap: float, *, empty: bool = False
) -> npt.NDArray[Any]:
    """
    Interpolate slices (C, D, H, W) at ascending `distances` (D,) linearly to a regular `gap`, in millimeters.

    A new slice within 1 % of an old one is that slice, unchanged; with `empty`, slices in between are 0.
    """
    # nothing is known beyond the last slice
    count = math.floor((distances[-1] - distances[0]) / gap + _BEYOND) + 1
    positions = distances[0] + gap * np.arange(count)
    upper = np.clip(np.searchsorted(distances, positions), 1, len(distances) - 1)
    weight = np.clip((positions - distances[upper - 1]) / (distances[upper] - distances[upper - 1]), 0, 1)
    weight[weight < 0.01] = 0.0
    weight[weight > 0.99] = 1.0
    result = np.empty((array.shape[0], count, *array.shape[2:]), dtype=array.dtype)
    for index, (above, w) in enumerate(zip(upper, weight, strict=True)):
        if empty and 0 < w < 1:
            result[:, index] = 0
            continue
        mixed = array[:, above - 1].astype(np.float64) * (1 - w) + array[:, above].astype(np.float64) * w
        result[:, index] = _cast(mixed, array.dtype)
    return result


class ShiftedSlices(NamedTuple):
    """Shifted slices (C, D, H', W'), the mask of uncovered pixels, the old index of the first pixel."""

    array: npt.NDArray[Any]
    outside: npt.NDArray[np.bool_]
    first_row: int
    first_column: int


def shift_slices(
    array: npt.NDArray[Any], rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> ShiftedSlices:
    """
    Shift each slice of (C, D, H, W) within its plane by (D,) rows and columns, linearly interpolated.

    The grid grows to hold all slices; uncovered pixels get the minimum.
    """
    first_row, height = _compute_extent(rows, array.shape[2])
    first_column, width = _compute_extent(columns, array.shape[3])
    shape = (*array.shape[:2], height, width)
    result, outside = np.empty(shape, array.dtype), np.zeros(shape, dtype=np.bool_)
    least = array.min()
    for d, (row, column) in enumerate(zip(rows, columns, strict=True)):
        values, beyond_rows = _shift(array[:, d].astype(np.float64), row - first_row, height, axis=1)
        values, beyond_columns = _shift(values, column - first_column, width, axis=2)
        uncovered = beyond_rows[:, None] | beyond_columns[None, :]
        result[:, d] = _cast(np.where(uncovered, least, values), array.dtype)
        outside[:, d] = uncovered
    return ShiftedSlices(result, outside, first_row, first_column)


def _compute_extent(shifts: npt.NDArray[np.float64], size: int) -> tuple[int, int]:
    """Return the first old index of the new grid, and its size; rounding errors add nothing."""
    first = min(0, math.floor(shifts.min() + _ROUNDING))
    return first, size + max(0, math.ceil(shifts.max() - _ROUNDING)) - first


def _shift(
    values: npt.NDArray[np.float64], by: float, size: int, axis: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    last = values.shape[axis] - 1
    position = np.arange(size) - by
    lower = np.floor(position).astype(np.int64)
    weight = (position - lower).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    below = np.take(values, np.clip(lower, 0, last), axis)
    above = np.take(values, np.clip(lower + 1, 0, last), axis)
    return below * (1 - weight) + above * weight, (position < -_ROUNDING) | (position > last + _ROUNDING)


#: Most that a repair may multiply the number of slices or pixels by.
_MOST_GROWTH: Final = 4
#: Most slices of a segmentation, whose empty frames are left out.
_MOST_EMPTY: Final = 4096


def fill_gaps(stack: Stack, volume: Volume) -> Volume:
    """Interpolate missing slices, empty ones in a segmentation; MissingSlicesError if far too many."""
    extent = stack.distances[-1] - stack.distances[0]
    empty = volume.modality == "SEG"
    if extent / stack.gap > (_MOST_EMPTY if empty else _MOST_GROWTH * len(stack.distances)):
        raise MissingSlicesError(
            f"{len(stack.distances)} slices {stack.gap:.4g} mm apart spread over {extent:.4g} mm: "
            "too few to interpolate the rest; a position may be damaged"
        )
    array = regrid_slices(volume.array, stack.distances, stack.spacing, empty=empty)
    padding = None
    if volume.padding is not None:
        padding = regrid_slices(volume.padding.astype(np.uint8), stack.distances, stack.spacing) > 0
    how = "filled with empty slices" if empty else "interpolated"
    report = volume.report.then(f"{how} from {volume.shape[1]} to {array.shape[1]} slices")
    return replace(
        volume,
        array=array,
        padding=padding,
        voi=volume.voi if len(volume.voi) == 1 else (),
        report=replace(report, sop_instance_uids=(), frame_numbers=()),
    )


def deshear_volume(volume: Volume) -> Volume:
    """
    Shift each slice within its plane so that the slices are stacked perpendicularly.

    The field of view grows by the shifts; uncovered pixels become padding. GeometryError if it grows
    fourfold.
    """
    affine = volume.affine
    x, y = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (2, 1))
    across_rows, across_columns = affine[:3, 0] @ y, affine[:3, 0] @ x
    _, row_spacing, column_spacing = geometry.spacing_of(affine)
    d = np.arange(volume.shape[1])
    rows, columns = d * across_rows / row_spacing, d * across_columns / column_spacing
    if np.ptp(rows) > _MOST_GROWTH * volume.shape[2] or np.ptp(columns) > _MOST_GROWTH * volume.shape[3]:
        raise GeometryError("the slices are sheared by more than four times their own size")
    moved = shift_slices(volume.array, rows, columns)
    padding = moved.outside
    if volume.padding is not None:
        padding = padding | (shift_slices(volume.padding.astype(np.uint8), rows, columns).array > 0)
    straight = affine.copy()
    straight[:3, 0] -= across_rows * y + across_columns * x
    straight[:3, 3] += moved.first_row * affine[:3, 1] + moved.first_column * affine[:3, 2]
    report = volume.report.then("desheared onto a perpendicular grid")
    return replace(volume, array=moved.array, affine=straight, padding=padding, report=report)
