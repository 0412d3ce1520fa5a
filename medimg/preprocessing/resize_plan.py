"""How an image is resized to a fixed size, in physical aspect, and padded or cropped about the center."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from medimg._native.painting import Layout, Taps
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AxisTaps",
    "Fit",
    "ResizePlan",
    "compute_axis_taps",
    "compute_fitted_shape",
    "compute_fitted_size",
]

Fit: TypeAlias = Literal["pad", "crop", "stretch"]

_MOST_PIXELS: Final = 2**26


def compute_fitted_size(
    shape: Sequence[int], spacing: Sequence[float], size: tuple[int, int], fit: Fit
) -> tuple[int, int]:
    """
    Return the rows and columns an image is resized to, before it is padded or cropped to `size`.

    "pad": all of the image is inside `size`; "crop": it covers `size`; "stretch": exactly `size`. `spacing`
    is the distance between rows and between columns, in any one unit.

    Examples
    --------
    >>> compute_fitted_size((512, 256), (1.0, 1.0), (224, 224), "pad")
    (224, 112)
    >>> compute_fitted_size((100, 100), (2.0, 1.0), (224, 224), "crop")
    (448, 224)
    """
    height, width = compute_fitted_shape(shape, spacing, size, fit)
    return height, width


def compute_fitted_shape(
    shape: Sequence[int], spacing: Sequence[float], size: Sequence[int], fit: Fit
) -> tuple[int, ...]:
    """
    Return the shape of any number of axes before padding or cropping; see :func:`compute_fitted_size`.

    Examples
    --------
    >>> compute_fitted_shape((50, 512, 512), (5.0, 0.5, 0.5), (96, 96, 96), "pad")
    (94, 96, 96)
    """
    if fit == "stretch":
        return tuple(size)
    lengths = [n * step for n, step in zip(shape, spacing, strict=True)]
    scales = [n / length for n, length in zip(size, lengths, strict=True)]
    scale = min(scales) if fit == "pad" else max(scales)
    return tuple(max(1, round(length * scale)) for length in lengths)


class ResizePlan:
    """
    Weights by which images of one size are resized with a triangle filter.

    The filter interpolates linearly in enlarging, and is as wide as two steps of the result in shrinking.
    Weights are computed in float64.

    Images of `shape` are resized to `inner`, see :func:`compute_fitted_size`, and cropped or padded about the
    center to `size`; `flips` reverses rows and columns of the result.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        inner: tuple[int, int],
        size: tuple[int, int],
        flips: tuple[bool, bool] = (False, False),
    ) -> None:
        if inner[0] * inner[1] > _MOST_PIXELS:
            raise PreprocessError(
                f"an image of {shape[0]}×{shape[1]} pixels would grow to {inner[0]}×{inner[1]}; "
                'use fit="pad", or look at its spacing'
            )
        self.shape = shape
        self.size = size
        self.rows, self.columns = (
            compute_axis_taps(n, k, min(k, want), flip)
            for n, k, want, flip in zip(shape, inner, size, flips, strict=True)
        )
        kept = [min(k, want) for k, want in zip(inner, size, strict=True)]
        starts = [(want - k) // 2 for k, want in zip(kept, size, strict=True)]
        #: Where the resized image is in the result.
        self.target = slice(starts[0], starts[0] + kept[0]), slice(starts[1], starts[1] + kept[1])

    def describe(self, fill: float) -> Layout:
        """Return what the compiled painter has to know."""
        top, left = (part.start for part in self.target)
        return Layout(self.rows, self.columns, self.size, (top, left), fill)


@dataclass(frozen=True, slots=True, eq=False)
class AxisTaps(Taps):
    """Weights of one axis."""

    @property
    def count(self) -> int:
        """Size of the result."""
        return len(self.ends) - 1

    def bands(self, most: int) -> tuple[tuple[int, int, int, int], ...]:
        """Return parts of the result that need up to `most` inputs: (start, stop, first input, end)."""
        lows = np.minimum.reduceat(self.index, self.ends[:-1])
        highs = np.maximum.reduceat(self.index, self.ends[:-1]) + 1
        bands = []
        start = 0
        while start < self.count:
            low, high = np.minimum.accumulate(lows[start:]), np.maximum.accumulate(highs[start:])
            count = max(1, int(np.count_nonzero(high - low <= most)))
            bands.append((start, start + count, int(low[count - 1]), int(high[count - 1])))
            start += count
        return tuple(bands)


@lru_cache(maxsize=128)
def compute_axis_taps(size: int, count: int, kept: int, flip: bool) -> AxisTaps:
    """Return the weights that resize an axis to `count`, of which the middle `kept` are computed."""
    scale = size / count
    support = max(scale, 1.0)
    start = (count - kept) // 2
    center = (np.arange(start, start + kept) + 0.5) * scale - 0.5
    first = np.floor(center - support).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * support)) + 1)
    weights = np.clip(1.0 - np.abs(index - center[:, None]) / support, 0.0, None)
    weights[(index < 0) | (index >= size)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    used = weights > 0
    ends = np.append(0, np.cumsum(used.sum(axis=1)))
    kept_index = index[used]
    return AxisTaps(
        (size - 1 - kept_index if flip else kept_index).astype(np.int32),
        weights[used].astype(np.float32),
        ends.astype(np.int32),
    )
