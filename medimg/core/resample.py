"""Resampling of volumes to another spacing, axis by axis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import numpy as np

from medimg._validation import check_choice
from medimg.core._separable import resample_axes
from medimg.core.kernels import Interpolation, is_unchanged, make_bands
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.core.geometry import Affine
    from medimg.core.volume import Volume

__all__ = [
    "ResampledAxis",
    "check_interpolation",
    "check_spacing",
    "choose_mask_interpolation",
    "compute_size",
    "plan_axes",
    "resample_affine",
    "resample_array",
    "resample_volume",
]

_MOST_VOXELS: Final = 2**31
_MOST_ALONG: Final = 2**17
_GREATEST: Final = float(np.finfo(np.float32).max)


class ResampledAxis(NamedTuple):
    """Old and new number of voxels of an axis, and its scale, new spacing over old."""

    size: int
    new_size: int
    scale: float

    @property
    def is_unchanged(self) -> bool:
        """Whether the axis is unchanged; a single slice always is."""
        return is_unchanged(*self)


def compute_size(size: int, scale: float) -> int:
    """Return the number of voxels of an axis at `scale` times the spacing; a single slice stays single."""
    return 1 if size == 1 else max(1, round(size / scale))


def check_spacing(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    """Return a spacing as three numbers (D, H, W); PreprocessError if it is not positive."""
    given: Any = (spacing,) * 3 if isinstance(spacing, float | int) else spacing
    try:
        wanted = () if isinstance(given, str) else tuple(float(v) for v in given)
    except (TypeError, ValueError):
        wanted = ()
    if len(wanted) != 3 or not all(np.isfinite(v) and v > 0 for v in wanted):
        raise PreprocessError(
            f"a spacing must be one or three positive millimeters (D, H, W); found {spacing!r}"
        )
    return wanted[0], wanted[1], wanted[2]


def plan_axes(
    shape: Sequence[int], spacing: Sequence[float], wanted: float | Sequence[float]
) -> tuple[ResampledAxis, ResampledAxis, ResampledAxis]:
    """
    Return the new axes (D, H, W) of a volume of `shape` (C, D, H, W); PreprocessError if unreasonably large.

    Examples
    --------
    >>> [axis.new_size for axis in plan_axes((1, 300, 512, 512), (1.25, 0.7, 0.7), 1.0)]
    [375, 358, 358]
    """
    new = check_spacing(wanted)
    scales = [n / old for n, old in zip(new, check_spacing(spacing), strict=True)]
    if not all(np.isfinite(s) and s > 0 for s in scales):
        raise PreprocessError(f"a spacing of {_format_spacing(new)} is out of all proportion to the image's")
    sizes = [int(n) for n in shape[1:]]
    sought = [n / s if n > 1 else 1.0 for n, s in zip(sizes, scales, strict=True)]
    changing = [max(n, m) for n, m in zip(sizes, sought, strict=True) if n != m]
    if shape[0] * np.prod(np.maximum(sought, 1.0)) > _MOST_VOXELS or max(changing, default=0) > _MOST_ALONG:
        raise PreprocessError(
            f"resampling {tuple(sizes)} to {_format_spacing(new)} would make "
            f"{'×'.join(f'{max(n, 1.0):.0f}' for n in sought)} voxels; choose a coarser spacing"
        )
    counts = [compute_size(n, s) for n, s in zip(sizes, scales, strict=True)]
    d, h, w = (ResampledAxis(*axis) for axis in zip(sizes, counts, scales, strict=True))
    return d, h, w


def _format_spacing(spacing: Sequence[float]) -> str:
    return f"{'×'.join(f'{v:g}' for v in spacing)} mm"


def resample_affine(affine: Affine, axes: Sequence[ResampledAxis]) -> Affine:
    """Return the affine of a resampled volume: the outer edges of its first voxel stay in place."""
    result = affine.copy()
    for number, axis in enumerate(axes):
        if not axis.is_unchanged:
            result[:3, 3] += result[:3, number] * (axis.scale - 1.0) / 2
            result[:3, number] *= axis.scale
    return result


def check_interpolation(interpolation: str) -> Interpolation:
    """Return the name of an interpolation; PreprocessError if unknown."""
    choices: tuple[Interpolation, ...] = get_args(Interpolation)
    return check_choice("interpolation", interpolation, choices, error=PreprocessError)


def resample_volume(
    volume: Volume,
    spacing: float | Sequence[float],
    *,
    interpolation: Interpolation = "linear",
    antialias: bool = True,
) -> Volume:
    """Resample a volume to another spacing; see :meth:`medimg.Volume.resample`."""
    axes = plan_axes(volume.shape, volume.spacing, spacing)
    array, padding = resample_array(
        volume.array, axes, padding=volume.padding, interpolation=interpolation, antialias=antialias
    )
    if volume.is_color:
        array /= np.float32(volume.white)
    return _replace_values(
        volume, array, padding, axes, _describe_step(spacing, interpolation, antialias=antialias)
    )


def resample_array(
    array: npt.NDArray[Any],
    axes: Sequence[ResampledAxis],
    *,
    padding: npt.NDArray[np.bool_] | None = None,
    interpolation: Interpolation = "linear",
    antialias: bool = True,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """
    Resample an array (C, D, H, W) to (C, D', H', W') float32, and its mask of padding.

    Padding and non-finite values count as the minimum of the others; new voxels of which they are more than
    half are padding. The mask is None if there are none.
    """
    kind = check_interpolation(interpolation)
    unusable = _find_unusable(array, padding)
    fill = 0.0 if unusable is None else _find_minimum(array, unusable)
    result = np.empty((array.shape[0], *(axis.new_size for axis in axes)), dtype=np.float32)
    weights = [make_bands(*axis, kind, antialias=antialias) for axis in axes]
    for channel, values in enumerate(array):
        mask = None if unusable is None else unusable[channel]
        resample_axes(values, weights, result[channel], mask=mask, fill=fill)
    if unusable is None:
        return result, None
    weights = [make_bands(*axis, choose_mask_interpolation(kind), antialias=antialias) for axis in axes]
    covered = np.empty(result.shape, dtype=np.bool_)
    for channel, mask in enumerate(unusable):
        resample_axes(mask, weights, covered[channel])
    return result, covered


def choose_mask_interpolation(interpolation: Interpolation) -> Interpolation:
    """Return the interpolation for the mask of padding, on which a spline would overshoot."""
    return "nearest" if interpolation == "nearest" else "linear"


def _describe_step(spacing: float | Sequence[float], interpolation: Interpolation, *, antialias: bool) -> str:
    """Describe the step for the report."""
    how = "" if interpolation == "linear" else f", {interpolation}"
    plain = "" if antialias or interpolation == "nearest" else ", not antialiased"
    return f"resampled to {_format_spacing(check_spacing(spacing))}{how}{plain}"


def _replace_values(
    volume: Volume,
    array: npt.NDArray[np.float32],
    padding: npt.NDArray[np.bool_] | None,
    axes: Sequence[ResampledAxis],
    step: str,
) -> Volume:
    per_slice_holds = axes[0].new_size == axes[0].size
    report = volume.report.then(step)
    return replace(
        volume,
        array=array,
        affine=resample_affine(volume.affine, axes),
        padding=padding,
        voi=volume.voi if len(volume.voi) <= 1 or per_slice_holds else (),
        report=replace(
            report,
            missing=report.missing if per_slice_holds else (),
            sop_instance_uids=report.sop_instance_uids if per_slice_holds else (),
            frame_numbers=report.frame_numbers if per_slice_holds else (),
        ),
    )


def _find_unusable(
    array: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_] | None:
    """Return the mask of padding and of values not finite in single precision, which would spread."""
    if not np.issubdtype(array.dtype, np.floating):
        return padding
    greatest = min(_GREATEST, float(np.finfo(array.dtype).max))
    planes = (plane for channel in array for plane in channel)
    if all(abs(float(plane.min())) <= greatest and abs(float(plane.max())) <= greatest for plane in planes):
        return padding
    unusable = ~(np.abs(array) <= greatest)
    return np.asarray(unusable if padding is None else padding | unusable)


def _find_minimum(array: npt.NDArray[Any], unusable: npt.NDArray[np.bool_]) -> float:
    """
    Return the minimum of the usable values, 0 if there is none.

    Padding is often far below any tissue, and would bleed into it.
    """
    planes = zip(array.reshape(-1, *array.shape[2:]), unusable.reshape(-1, *array.shape[2:]), strict=True)
    return float(min((plane[~mask].min() for plane, mask in planes if not mask.all()), default=0))
