"""Windows and lookup tables of arrays, in single precision and without torch."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._native.painting import Curve, Intensity
from medimg.core.window import LookupTable, Voi, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = [
    "describe_curve",
    "describe_ramp",
    "fits_float32",
    "has_curve",
    "list_normalization",
    "round_down_to_float32",
    "to_float32",
    "write_array_intensity",
]

#: Range of widths and centers of windows that single precision can hold, whatever the values.
_LEAST: Final = 1e-30
_MOST: Final = 1e30


def write_array_intensity(
    shown: npt.NDArray[np.float32], values: npt.NDArray[Any], voi: Voi | float, *, inverted: bool = False
) -> float:
    """
    Write the intensity above black of `values` into the buffer `shown`, and return its scale.

    The same steps as :func:`medimg.preprocessing.intensity.write_intensity` of tensors; a float is the value
    of white.
    """
    if isinstance(voi, LookupTable):
        table = 1.0 - voi.normalized() if inverted else voi.normalized()
        shown[...] = table.astype(np.float32)[_index_table(values, voi)]
        return 1.0
    ramp = describe_ramp(voi, inverted=inverted)
    if ramp is not None:
        shown[...] = values
        # in two steps if black is not a float32: a narrow window may be far from 0
        for black in ramp.black:
            if black:
                shown -= np.float32(black)
        np.clip(shown, np.float32(ramp.low), np.float32(ramp.high), out=shown)
        return ramp.scale
    assert not isinstance(voi, float)  # which has a ramp
    if not fits_float32(voi):
        shown[...] = _apply_in_float64(values, voi)
        if inverted:
            np.subtract(1.0, shown, out=shown)
        return 1.0
    shown[...] = values
    if voi.is_step:
        # the only float32 threshold that separates float32 values as the window does
        compare = np.less_equal if inverted else np.greater
        shown[...] = compare(shown, np.float32(round_down_to_float32(voi.threshold)))
        return 1.0
    whole = float(np.float32(round(voi.center)))
    shown -= np.float32(whole)
    shown -= np.float32(voi.center - whole)
    shown *= np.float32(math.copysign(4.0 / voi.width, -1.0 if inverted else 1.0))
    shown[...] = _apply_sigmoid(shown)
    return 1.0


def describe_ramp(voi: Voi | float, *, inverted: bool) -> Intensity | None:
    """Return the steps of :func:`write_array_intensity` if they are linear; a float is the value of white."""
    if isinstance(voi, float):
        return Intensity((0.0, 0.0), -math.inf, math.inf, 1.0 / voi)
    if isinstance(voi, LookupTable) or not fits_float32(voi) or voi.is_step or voi.function == "SIGMOID":
        return None
    slope, low, width = _measure_ramp(voi)
    black = low + width if inverted else low
    whole = float(np.float32(round(black)))
    if inverted:
        return Intensity((whole, black - whole), -width, 0.0, -slope)
    return Intensity((whole, black - whole), 0.0, width, slope)


def has_curve(dtype: np.dtype[Any]) -> bool:
    """Whether a type has few enough values to describe the intensity of each."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


@lru_cache(maxsize=8)
def describe_curve(voi: Voi, dtype: np.dtype[Any], *, inverted: bool) -> Curve:
    """Return what :func:`write_array_intensity` makes of each value of a type that has a curve."""
    types = np.iinfo(dtype)
    values = np.arange(types.min, types.max + 1, dtype=np.int32)
    shown = np.empty(values.shape, np.float32)
    shown *= write_array_intensity(shown, values, voi, inverted=inverted)
    return Curve(np.clip(shown, 0.0, 1.0, out=shown))


def fits_float32(window: Window) -> bool:
    """Whether single precision distinguishes the window's black from its white, and holds both."""
    width = window.width - (window.function == "LINEAR" and not window.is_step)
    return _LEAST <= width <= _MOST and abs(window.center) <= _MOST


def round_down_to_float32(value: float) -> float:
    """Return the largest float32 that is not above a number."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))


def list_normalization(mean: Sequence[float], std: Sequence[float]) -> list[tuple[float, float]]:
    """Return factor and offset by which each channel is normalized, as the compiled core takes them."""
    return [(1.0 / s, -m / s) for m, s in zip(mean, std, strict=True)]


def to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert an array to float32; values beyond its range become the largest number."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.ascontiguousarray(array, np.float32)
        # a sum is faster than a mask, and few images need the mask
        if array.dtype.itemsize > 4 and not math.isfinite(float(single.sum())):
            beyond = np.isinf(single) & np.isfinite(array)
            single[beyond] = np.copysign(np.finfo(np.float32).max, single[beyond])
    return single


def _measure_ramp(window: Window) -> tuple[float, float, float]:
    """Return slope, black and width of a linear window."""
    slope, _ = window.ramp()
    if window.function == "LINEAR":
        return slope, window.center - 0.5 - (window.width - 1.0) / 2, window.width - 1.0
    return slope, window.center - window.width / 2, window.width


def _apply_in_float64(values: npt.NDArray[Any], window: Window) -> npt.NDArray[np.float64]:
    """Return the intensity, 0 to 1, in float64: slower, but without overflow."""
    x = values.astype(np.float64)
    if window.is_step:
        return np.asarray(x > window.threshold, np.float64)
    linear = window.function == "LINEAR"
    away = (x - (window.center - 0.5 * linear)) / (window.width - linear)
    return _apply_sigmoid(4.0 * away) if window.function == "SIGMOID" else np.clip(away + 0.5, 0.0, 1.0)


def _apply_sigmoid(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-values)), values.dtype)


def _index_table(values: npt.NDArray[Any], table: LookupTable) -> npt.NDArray[np.int64]:
    """Return the table indices of values."""
    last = table.entries.size - 1
    if values.dtype.kind == "f":
        # clamped first, since values far outside, or not finite, are not int64
        whole = np.nan_to_num(np.floor(values.astype(np.float32)))
        values = np.clip(whole, table.first, table.first + last)
    return np.clip(values.astype(np.int64) - table.first, 0, last)
