"""Resampling to another spacing, axis by axis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.geometry import spacing_of
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.core.volume import Volume

__all__ = ["checked_spacing", "resample_axis", "resample_volume", "resampled_size"]

_MOST_VOXELS: Final = 2**31


def _taps(size: int, count: int, scale: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """
    Indices and weights (count, taps) of a triangle filter.

    The filter is as wide as two input steps, or two output steps where those are longer: linear
    interpolation when refining, area-weighted antialiasing when coarsening.
    """
    # beyond the whole axis, a wider filter would only repeat its mean
    support = min(max(scale, 1.0), max(float(size), 1.0))
    center = np.minimum((np.arange(count) + 0.5) * scale, size / 2 if count == 1 else np.inf) - 0.5
    first = np.floor(center - support).astype(np.int64) + 1
    taps = int(np.ceil(2 * support))
    index = first[:, None] + np.arange(taps)
    weights = np.clip(1.0 - np.abs(index - center[:, None]) / support, 0.0, None)
    weights[(index < 0) | (index >= size)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1), weights.astype(np.float32)


def resample_axis(array: npt.NDArray[Any], axis: int, count: int, scale: float) -> npt.NDArray[np.float32]:
    """
    Resample one axis with a triangle filter; the outer edge of the first voxel stays in place.

    Parameters
    ----------
    array : numpy.ndarray
        Any shape.
    axis : int
        Which axis.
    count : int
        Its new size.
    scale : float
        New spacing over old.

    Returns
    -------
    numpy.ndarray
        float32.
    """
    index, weights = _taps(array.shape[axis], count, scale)
    moved = np.moveaxis(np.asarray(array, dtype=np.float32), axis, 0)
    result = np.zeros((count, *moved.shape[1:]), dtype=np.float32)
    column = (-1,) + (1,) * (moved.ndim - 1)
    for tap in range(index.shape[1]):
        result += moved[index[:, tap]] * weights[:, tap].reshape(column)
    return np.moveaxis(result, 0, axis)


def resampled_size(size: int, scale: float) -> int:
    """
    Return how many voxels an axis has at a spacing that is `scale` times the old one.

    A single slice stays single: there is nothing to interpolate between.
    """
    return 1 if size == 1 else max(1, round(size / scale))


def checked_spacing(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    """
    Return a spacing as three numbers (D, H, W).

    Raises
    ------
    PreprocessError
        If it is not one or three positive numbers.
    """
    given: Any = (spacing,) * 3 if isinstance(spacing, float | int) else spacing
    try:
        wanted = () if isinstance(given, str) else tuple(float(v) for v in given)
    except (TypeError, ValueError):
        wanted = ()
    if len(wanted) != 3 or not all(np.isfinite(v) and v > 0 for v in wanted):
        raise PreprocessError(f"a spacing is one or three positive millimeters (D, H, W); found {spacing!r}")
    return wanted[0], wanted[1], wanted[2]


def _unusable(volume: Volume) -> npt.NDArray[np.bool_] | None:
    """Padding, and what is not finite and would spread."""
    if not np.issubdtype(volume.array.dtype, np.floating):
        return volume.padding
    finite = np.isfinite(volume.array)
    if finite.all():
        return volume.padding
    return np.asarray(~finite if volume.padding is None else volume.padding | ~finite)


def resample_volume(volume: Volume, spacing: float | Sequence[float]) -> Volume:
    """Return the volume at another spacing; see :meth:`medimg.Volume.resample`."""
    wanted = checked_spacing(spacing)
    shape = volume.array.shape[1:]
    scales = [new / old for new, old in zip(wanted, spacing_of(volume.affine), strict=True)]
    counts = [resampled_size(n, s) for n, s in zip(shape, scales, strict=True)]
    if np.prod([float(n) for n in (volume.shape[0], *counts)]) > _MOST_VOXELS:
        raise PreprocessError(
            f"resampling {shape} to {'×'.join(f'{v:g}' for v in wanted)} mm would make {counts} voxels; "
            "choose a coarser spacing"
        )
    values, padding = volume.array, _unusable(volume)
    if padding is not None:
        # padding often lies far below any tissue, and would bleed into it
        values = np.where(padding, values[~padding].min() if not padding.all() else 0, values)
    affine = volume.affine.copy()
    for axis, (count, scale) in enumerate(zip(counts, scales, strict=True)):
        if shape[axis] == 1 or (count == shape[axis] and scale == 1.0):
            continue
        values = resample_axis(values, axis + 1, count, scale)
        if padding is not None:
            padding = resample_axis(padding, axis + 1, count, scale) > 0.5
        affine[:3, 3] += affine[:3, axis] * (scale - 1.0) / 2
        affine[:3, axis] *= scale
    per_slice_holds = counts[0] == shape[0]
    report = volume.report.then(f"resampled to {'×'.join(f'{v:g}' for v in wanted)} mm")
    report = replace(
        report,
        sop_instance_uids=report.sop_instance_uids if per_slice_holds else (),
        frame_numbers=report.frame_numbers if per_slice_holds else (),
    )
    voi = volume.voi if len(volume.voi) <= 1 or per_slice_holds else ()
    array = np.asarray(values, dtype=np.float32)
    if volume.is_color:
        array = array / np.float32(volume.white)
    return replace(volume, array=array, affine=affine, padding=padding, voi=voi, report=report)
