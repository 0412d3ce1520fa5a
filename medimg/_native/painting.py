"""Calls of the compiled painter: slices to resized, normalized images."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["PAINTED_DTYPES", "Curve", "Intensity", "Layout", "Taps", "Target", "paint"]

#: Types that need no conversion, by their numbers in painting.cpp.
PAINTED_DTYPES: Final = {np.dtype(t): n for n, t in enumerate(("u1", "i1", "u2", "i2", "i4", "f4"))}


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Weights of one axis: those of result i, and their inputs, are at ``ends[i]`` to ``ends[i + 1]``."""

    index: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int32]


class Intensity(NamedTuple):
    """Intensity of a value: less `black` (in two steps), clamped from `low` to `high`, times `scale`."""

    black: tuple[float, float]
    low: float
    high: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Intensity, 0 to 1, of each value of an integer type of 8 or 16 bits, ascending."""

    entries: npt.NDArray[np.float32]


class Target(NamedTuple):
    """Address of a float32 image (height, width), which becomes intensity × factor + offset."""

    address: int
    factor: float
    offset: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Weights of rows and columns, the size of the images, and the place of the slice in them."""

    rows: Taps
    columns: Taps
    size: tuple[int, int]
    start: tuple[int, int]
    fill: float  # intensity of what is around the slice


_AS_IT_IS: Final = Intensity((0.0, 0.0), 0.0, 1.0, 1.0)


class _Taps(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class _Target(ctypes.Structure):
    _fields_ = (("image", ctypes.c_void_p), ("factor", ctypes.c_float), ("offset", ctypes.c_float))


class _Painting(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("value_strides", ctypes.c_int64 * 3),
        ("mask_strides", ctypes.c_int64 * 3),
        ("slices", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("curve", ctypes.c_void_p),
        ("curve_start", ctypes.c_int64),
        ("black", ctypes.c_float * 2),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("fill", ctypes.c_float),
        ("row_taps", _Taps),
        ("column_taps", _Taps),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("top", ctypes.c_int64),
        ("left", ctypes.c_int64),
        ("targets", ctypes.c_void_p),
        ("target_ends", ctypes.c_void_p),
        ("has_finite", ctypes.c_int32),
        ("has_unpadded", ctypes.c_int32),
    )


def paint(
    library: ctypes.CDLL,
    values: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None,
    *,
    intensity: Intensity | Curve,
    layout: Layout,
    targets: Sequence[Sequence[Target]],
    threads: int,
) -> tuple[bool, bool]:
    """
    Paint slices (n, H, W) of one of the :data:`PAINTED_DTYPES`, each to its targets.

    `mask` (n, H, W) of one byte is nonzero for padding, which is black, as is what is not finite. Returns
    whether a value of those that were used is finite, and whether one is no padding.
    """
    flat = [target for each in targets for target in each]
    ends = np.cumsum([len(each) for each in targets], dtype=np.int64)
    marked = values if mask is None else mask
    curve, start = None, 0
    if isinstance(intensity, Curve):
        types = np.iinfo(values.dtype)
        curve, start = intensity.entries, int(types.min)
        if len(curve) != types.max - start + 1:
            raise ValueError(f"{len(curve)} intensities of {values.dtype}")
        intensity = _AS_IT_IS
    painting = _Painting(
        values.ctypes.data,
        None if mask is None else mask.ctypes.data,
        (ctypes.c_int64 * 3)(*(step // values.itemsize for step in values.strides)),
        (ctypes.c_int64 * 3)(*(step // marked.itemsize for step in marked.strides)),
        *values.shape,
        PAINTED_DTYPES[values.dtype],
        None if curve is None else curve.ctypes.data,
        start,
        (ctypes.c_float * 2)(*intensity.black),
        intensity.low,
        intensity.high,
        intensity.scale,
        layout.fill,
        _convert_taps(layout.rows),
        _convert_taps(layout.columns),
        *layout.size,
        *layout.start,
        ctypes.cast((_Target * len(flat))(*(_Target(*t) for t in flat)), ctypes.c_void_p),
        ends.ctypes.data,
    )
    _declare(library)
    if library.medimg_paint(ctypes.byref(painting), threads):
        raise MemoryError
    return bool(painting.has_finite), bool(painting.has_unpadded)


def _convert_taps(taps: Taps) -> _Taps:
    return _Taps(taps.index.ctypes.data, taps.weights.ctypes.data, taps.ends.ctypes.data, len(taps.ends) - 1)


@cache
def _declare(library: ctypes.CDLL) -> None:
    """State the types of the function of a library, once."""
    function = library.medimg_paint
    function.restype, function.argtypes = ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int64]
