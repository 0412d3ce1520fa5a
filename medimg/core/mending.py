"""Volumes with gaps or a tilt, mended: interpolated onto a regular, perpendicular grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core import geometry
from medimg.core.repair import deshear, regular_grid
from medimg.errors import GeometryError, MissingSlicesError

if TYPE_CHECKING:
    from medimg.core.stacking import Stack
    from medimg.core.volume import Volume

__all__ = ["desheared", "regularized"]

#: How many times as many slices, or pixels, as there are a repair may make.
_MOST_GROWTH: Final = 4


def regularized(stack: Stack, volume: Volume) -> Volume:
    """
    Interpolate slices so that none is missing; those that a segmentation leaves out are empty.

    Raises
    ------
    MissingSlicesError
        If more than four times as many slices would be needed.
    """
    extent = stack.distances[-1] - stack.distances[0]
    if extent / stack.gap > _MOST_GROWTH * len(stack.distances):
        raise MissingSlicesError(
            f"{len(stack.distances)} slices {stack.gap:.4g} mm apart spread over {extent:.4g} mm: "
            "too few to interpolate the rest; a position may be damaged"
        )
    empty = volume.modality == "SEG"
    array = regular_grid(volume.array, stack.distances, stack.spacing, empty=empty)
    padding = None
    if volume.padding is not None:
        padding = regular_grid(volume.padding.astype(np.uint8), stack.distances, stack.spacing) > 0
    done = "filled with empty slices" if empty else "interpolated"
    report = volume.report.then(f"{done} from {volume.shape[1]} to {array.shape[1]} slices")
    return replace(
        volume,
        array=array,
        padding=padding,
        voi=volume.voi if len(volume.voi) == 1 else (),
        report=replace(report, sop_instance_uids=(), frame_numbers=()),
    )


def desheared(volume: Volume) -> Volume:
    """
    Move each slice within its plane so that the slices lie exactly behind each other.

    The field of view grows by the way that they are moved; what no slice covers becomes padding.

    Raises
    ------
    GeometryError
        If it would grow more than fourfold.
    """
    affine = volume.affine
    x, y = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (2, 1))
    across_rows, across_columns = affine[:3, 0] @ y, affine[:3, 0] @ x
    _, row_spacing, column_spacing = geometry.spacing_of(affine)
    d = np.arange(volume.shape[1])
    rows, columns = d * across_rows / row_spacing, d * across_columns / column_spacing
    if np.ptp(rows) > _MOST_GROWTH * volume.shape[2] or np.ptp(columns) > _MOST_GROWTH * volume.shape[3]:
        raise GeometryError("the slices are sheared by more than four times their own size")
    moved = deshear(volume.array, rows, columns)
    padding = moved.outside
    if volume.padding is not None:
        padding = padding | (deshear(volume.padding.astype(np.uint8), rows, columns).array > 0)
    straight = affine.copy()
    straight[:3, 0] -= across_rows * y + across_columns * x
    straight[:3, 3] += moved.first_row * affine[:3, 1] + moved.first_column * affine[:3, 2]
    report = volume.report.then("desheared onto a perpendicular grid")
    return replace(volume, array=moved.array, affine=straight, padding=padding, report=report)
