"""Antialiased resizing to a fixed size, in physical aspect, padded or cropped about the center."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from medimg._native.painting import Layout, Taps
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

__all__ = [
    "Fit",
    "Resizer",
    "compute_fitted_shape",
    "compute_fitted_size",
    "fit_about_center",
    "resize",
    "resize_depth",
]

Fit: TypeAlias = Literal["pad", "crop", "stretch"]

_MOST_PIXELS: Final = 2**26
# float32 values that fit in the caches of two cores with their results; GPUs are faster with more
_AT_ONCE_CPU: Final = 3 * 2**19
_AT_ONCE_DEVICE: Final = 2**26


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


def resize(
    images: torch.Tensor, spacing: Sequence[float], size: tuple[int, int], fit: Fit, fill: float
) -> torch.Tensor:
    """
    Resize images (N, C, H, W) float32 to (N, C, *size) with an antialiasing bilinear filter.

    Each image is computed independently of the batch, so that one alone gives identical bits.
    """
    n, c, h, w = images.shape
    resizer = Resizer((h, w), compute_fitted_size((h, w), spacing, size, fit), size, device=images.device)
    flat = images.reshape(n * c, h, w)
    result = images.new_full((n * c, *size), fill)
    for start in range(0, n * c, resizer.at_once):
        chunk = flat[start : start + resizer.at_once]

        def load(rows: slice, buffer: torch.Tensor, chunk: torch.Tensor = chunk) -> float:
            buffer.copy_(chunk[:, rows])
            return 1.0

        resizer(load, result[start : start + len(chunk)])
    return result.reshape(n, c, *size)


def resize_depth(values: torch.Tensor, count: int) -> torch.Tensor:
    """Resize the first axis of contiguous values (D, ...) float32 to `count` with the same filter."""
    taps = _compute_taps(len(values), count, count, flip=False)
    index, offsets, weights = (t.to(values.device) for t in taps.bags(1, len(values), 0, count, 0))
    rows = F.embedding_bag(
        index,
        values.view(len(values), -1),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )
    return rows.view(count, *values.shape[1:])


def fit_about_center(values: torch.Tensor, size: Sequence[int], fill: float) -> torch.Tensor:
    """Crop or pad the last axes of values about the center to `size`; a view if nothing is padded."""
    axes = range(-len(size), 0)
    kept = [min(values.shape[axis], want) for axis, want in zip(axes, size, strict=True)]
    for axis, count in zip(axes, kept, strict=True):
        values = values.narrow(axis, (values.shape[axis] - count) // 2, count)
    if kept == list(size):
        return values
    result = values.new_full((*values.shape[: -len(size)], *size), fill)
    target = result
    for axis, count, want in zip(axes, kept, size, strict=True):
        target = target.narrow(axis, (want - count) // 2, count)
    target.copy_(values)
    return result


class Resizer:
    """
    Resizes images of one size with a triangle filter.

    The filter interpolates linearly in enlarging, and is as wide as two steps of the result in shrinking.
    Rows are combined first, then columns, as sums of few weighted rows (an embedding bag, which all devices
    have in vectorized form); the order of additions is fixed, so that an image gives the same bits in every
    batch. Weights are computed in float64.

    Images of `shape` are resized to `inner`, see :func:`compute_fitted_size`, and cropped or padded about the
    center to `size`; `flips` reverses rows and columns of the result.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        inner: tuple[int, int],
        size: tuple[int, int],
        flips: tuple[bool, bool] = (False, False),
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if inner[0] * inner[1] > _MOST_PIXELS:
            raise PreprocessError(
                f"an image of {shape[0]}×{shape[1]} pixels would grow to {inner[0]}×{inner[1]}; "
                'use fit="pad", or look at its spacing'
            )
        self.shape = shape
        self._size = size
        self.device = torch.device(device)
        self._rows, self._columns = (
            _compute_taps(n, k, min(k, want), flip)
            for n, k, want, flip in zip(shape, inner, size, flips, strict=True)
        )
        kept = [min(k, want) for k, want in zip(inner, size, strict=True)]
        starts = [(want - k) // 2 for k, want in zip(kept, size, strict=True)]
        self._target = tuple(slice(a, a + k) for a, k in zip(starts, kept, strict=True))
        self._pitch = _round_to_odd_pitch(shape[1]), _round_to_odd_pitch(kept[0])
        budget = _AT_ONCE_CPU if self.device.type == "cpu" else _AT_ONCE_DEVICE
        rows = shape[0] * self._pitch[0] + shape[1] * self._pitch[1]
        #: Most images that are resized at once
        self.at_once = max(1, min(256, budget // rows))
        self._bands = self._rows.bands(max(1, budget // self._pitch[0])) if self.at_once == 1 else None
        self._buffers: dict[str, torch.Tensor] = {}
        self._bags: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}

    def __call__(self, load: Callable[[slice, torch.Tensor], float], result: torch.Tensor) -> None:
        """
        Resize n images, at most `at_once`, into `result` (n, *size) float32.

        ``load(rows, buffer)`` writes these rows of all images into a buffer (n, rows, W) float32, and returns
        the constant factor of the result.
        """
        n = len(result)
        height, width = self.shape
        scale = 1.0
        middle = self._get_buffer("middle", (n, width, self._pitch[1]))
        bands = self._bands or ((0, self._rows.count, 0, height),)
        for start, stop, first, last in bands:
            values = self._get_buffer("values", (n, last - first, self._pitch[0]))
            scale = load(slice(first, last), values[..., :width])
            rows = self._combine(self._rows, values, (start, stop, first))
            middle[..., start:stop].copy_(rows[..., :width].transpose(1, 2))
        columns = self._combine(self._columns, middle, (0, self._columns.count, 0))
        target = result[:, self._target[0], self._target[1]]
        torch.mul(columns[..., : self._rows.count].transpose(1, 2), scale, out=target)

    def describe(self, fill: float) -> Layout:
        """Return what the compiled painter has to know."""
        top, left = (part.start for part in self._target)
        return Layout(self._rows, self._columns, self._size, (top, left), fill)

    def _get_buffer(self, name: str, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return a part of a reused buffer; its gaps between columns are never NaN."""
        count = shape[0] * shape[1] * shape[2]
        held = self._buffers.get(name)
        if held is None or held.numel() < count:
            held = self._buffers[name] = torch.zeros(count, dtype=torch.float32, device=self.device)
        return held[:count].view(shape)

    def _combine(self, taps: _Taps, values: torch.Tensor, part: tuple[int, int, int]) -> torch.Tensor:
        """Return weighted sums of rows, (n, rows wanted, pitch), of values (n, rows, pitch)."""
        n, height, pitch = values.shape
        key = (id(taps), n, height, *part)
        if key not in self._bags:
            self._bags[key] = tuple(t.to(self.device) for t in taps.bags(n, height, *part))
        index, offsets, weights = self._bags[key]
        sums = F.embedding_bag(
            index,
            values.view(n * height, pitch),
            offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        return sums.view(n, part[1] - part[0], pitch)


@dataclass(frozen=True, slots=True, eq=False)
class _Taps(Taps):
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

    def bags(self, n: int, height: int, start: int, stop: int, first: int) -> tuple[torch.Tensor, ...]:
        """Return index, offsets and weights of the results of n images, whose inputs start at `first`."""
        part = slice(self.ends[start], self.ends[stop])
        index = self.index[part] - first
        ends = self.ends[start : stop + 1] - self.ends[start]
        every = np.arange(n, dtype=np.int32)[:, None]
        offsets = np.append((ends[:-1] + every * ends[-1]).ravel(), np.int32(n * ends[-1]))
        arrays: tuple[npt.NDArray[Any], ...] = (
            (index + every * np.int32(height)).ravel(),
            offsets,
            np.tile(self.weights[part], n),
        )
        with torch.inference_mode(mode=False):
            return tuple(torch.from_numpy(a) for a in arrays)


@lru_cache(maxsize=128)
def _compute_taps(size: int, count: int, kept: int, flip: bool) -> _Taps:
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
    return _Taps(
        (size - 1 - kept_index if flip else kept_index).astype(np.int32),
        weights[used].astype(np.float32),
        ends.astype(np.int32),
    )


def _round_to_odd_pitch(count: int) -> int:
    """Return a row length whose columns do not all compete for the same few cache lines."""
    lines = -(-count // 16)
    return 16 * (lines + 1 - lines % 2)
