"""Interpolation weights of one axis: linear, cubic B-spline and nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["HALF", "Band", "Interpolation", "interpolation_taps", "is_unchanged", "make_bands"]

Interpolation: TypeAlias = Literal["linear", "bspline", "nearest"]

#: Fraction of a voxel above which a mask covers it: a half, rounding aside.
HALF: Final = 0.5 + 1e-5
#: New samples of one small matrix product: fewer are slow, more multiply by zeros.
_BAND: Final = 32
#: Of the poles of the cubic B-spline filter, the one inside the unit circle.
_POLE: Final = np.sqrt(3.0) - 2.0
#: Reach of the cardinal spline to each side, in samples: beyond, it is less than 2e-8.
_REACH: Final = 14
_ROUNDING: Final = 1e-6


def interpolation_taps(
    size: int, count: int, scale: float, interpolation: Interpolation = "linear", *, antialias: bool = True
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """
    Return the old samples of each new one (count, taps) int64, and their weights (count, taps) float64.

    New sample `i` is at ``(i + 0.5) * scale - 0.5`` in old samples: the outer edge of the first stays.
    "linear": a triangle, truncated at the ends. "bspline": the cardinal cubic spline, which interpolates as
    B-splines of order 3 do, with samples mirrored about the first and the last one (Unser, IEEE Signal
    Processing Magazine 16(6), 1999). "nearest": one sample. With `antialias`, a triangle or a spline is
    widened to the new spacing if that is coarser.

    Examples
    --------
    >>> index, weights = interpolation_taps(4, 2, 2.0, antialias=False)
    >>> index.tolist(), weights.tolist()
    ([[0, 1], [2, 3]], [[0.5, 0.5], [0.5, 0.5]])
    """
    center = (np.arange(count) + 0.5) * scale - 0.5
    if count == 1:
        center = np.minimum(center, size / 2 - 0.5)
    if interpolation == "nearest":
        index = np.clip(np.floor(center + 0.5).astype(np.int64), 0, size - 1)[:, None]
        return index, np.ones(index.shape)
    # beyond the whole axis, a wider filter would only repeat its mean
    widening = min(max(scale, 1.0), float(size)) if antialias else 1.0
    reach = widening * (1 if interpolation == "linear" else _REACH)
    first = np.floor(center - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * reach)))
    distance = np.abs(index - center[:, None]) / widening
    if interpolation == "linear":
        weights = np.clip(1.0 - distance, 0.0, None)
        weights[(index < 0) | (index >= size)] = 0.0
        index = np.clip(index, 0, size - 1)
    else:
        weights = _evaluate_cardinal_spline(distance)
        period = max(2 * (size - 1), 1)
        index = np.abs(index) % period
        index = np.minimum(index, period - index) if size > 1 else np.zeros_like(index)
    return index, weights / weights.sum(axis=1, keepdims=True)


def _evaluate_cardinal_spline(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate the cubic spline that is 1 at 0 and 0 at all other integers, at distances of 0 or more."""
    result = np.zeros_like(distance)
    nearest = np.floor(distance)
    for step in (-1, 0, 1, 2):
        knot = nearest + step
        # the coefficients of the B-splines of which a single 1 among zeros is the sum
        coefficient = np.sqrt(3.0) * np.power(_POLE, np.abs(knot))
        away = np.abs(distance - knot)
        inner = 2 / 3 - away**2 * (2 - away) / 2
        outer = np.clip(2 - away, 0, None) ** 3 / 6
        result += coefficient * np.where(away < 1, inner, outer)
    return result


class Band(NamedTuple):
    """Neighboring new samples [start, stop) of an axis, and the old ones [first, last) that make them."""

    start: int
    stop: int
    first: int
    last: int
    weights: npt.NDArray[np.float32] | None


def is_unchanged(size: int, count: int, scale: float) -> bool:
    """Whether an axis is unchanged but for rounding; a single sample always is."""
    return size == 1 or (count == size and abs(scale - 1.0) * size < _ROUNDING)


def make_bands(
    size: int, count: int, scale: float, interpolation: Interpolation = "linear", *, antialias: bool = True
) -> list[Band]:
    """Cut the matrix that resamples an axis into small dense blocks that cover all new samples."""
    step = max(1, round(_BAND / max(scale, 1.0)))
    ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
    if is_unchanged(size, count, scale):
        return [Band(start, stop, start, stop, None) for start, stop in ranges]
    index, weights = interpolation_taps(size, count, scale, interpolation, antialias=antialias)
    return [_make_band(start, index[start:stop], weights[start:stop]) for start, stop in ranges]


def _make_band(start: int, index: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> Band:
    first, last = int(index.min()), int(index.max()) + 1
    dense = np.zeros((len(index), last - first))
    np.add.at(dense, (np.arange(len(index))[:, None], index - first), weights)
    return Band(start, start + len(index), first, last, dense.astype(np.float32))
