"""Antialiased resizing to a fixed size, in physical aspect, padded or cropped about the center."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F

from medimg.preprocessing.resize_plan import AxisTaps, ResizePlan, compute_axis_taps, compute_fitted_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medimg.preprocessing.resize_plan import Fit

__all__ = [
    "Resizer",
    "fit_about_center",
    "resize",
    "resize_depth",
]

# float32 values that fit in the caches of two cores with their results; GPUs are faster with more
_AT_ONCE_CPU: Final = 3 * 2**19
_AT_ONCE_DEVICE: Final = 2**26


def resize(
    images: torch.Tensor, spacing: Sequence[float], size: tuple[int, int], fit: Fit, fill: float
) -> torch.Tensor:
    """
    Resize images (N, C, H, W) float32 to (N, C, *size) with an antialiasing bilinear filter.

    Each image is computed independently of the batch, so that one alone gives identical bits.
    """
    n, c, h, w = images.shape
    plan = ResizePlan((h, w), compute_fitted_size((h, w), spacing, size, fit), size)
    resizer = Resizer(plan, device=images.device)
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
    taps = compute_axis_taps(len(values), count, count, flip=False)
    index, offsets, weights = _make_bags(taps, 1, len(values), (0, count, 0), values.device)
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
    Resizes tensors by a plan.

    Rows are combined first, then columns, as sums of few weighted rows (an embedding bag, which all devices
    have in vectorized form); the order of additions is fixed, so that an image gives the same bits in every
    batch.
    """

    def __init__(self, plan: ResizePlan, *, device: torch.device | str = "cpu") -> None:
        self._plan = plan
        self.device = torch.device(device)
        shape = plan.shape
        kept = plan.target[0].stop - plan.target[0].start
        self._pitch = _round_to_odd_pitch(shape[1]), _round_to_odd_pitch(kept)
        budget = _AT_ONCE_CPU if self.device.type == "cpu" else _AT_ONCE_DEVICE
        rows = shape[0] * self._pitch[0] + shape[1] * self._pitch[1]
        #: Most images that are resized at once
        self.at_once = max(1, min(256, budget // rows))
        self._bands = plan.rows.bands(max(1, budget // self._pitch[0])) if self.at_once == 1 else None
        self._buffers: dict[str, torch.Tensor] = {}
        self._bags: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}

    def __call__(self, load: Callable[[slice, torch.Tensor], float], result: torch.Tensor) -> None:
        """
        Resize n images, at most `at_once`, into `result` (n, *size) float32.

        ``load(rows, buffer)`` writes these rows of all images into a buffer (n, rows, W) float32, and returns
        the constant factor of the result.
        """
        n = len(result)
        plan, (height, width) = self._plan, self._plan.shape
        scale = 1.0
        middle = self._get_buffer("middle", (n, width, self._pitch[1]))
        bands = self._bands or ((0, plan.rows.count, 0, height),)
        for start, stop, first, last in bands:
            values = self._get_buffer("values", (n, last - first, self._pitch[0]))
            scale = load(slice(first, last), values[..., :width])
            rows = self._combine(plan.rows, values, (start, stop, first))
            middle[..., start:stop].copy_(rows[..., :width].transpose(1, 2))
        columns = self._combine(plan.columns, middle, (0, plan.columns.count, 0))
        target = result[:, plan.target[0], plan.target[1]]
        torch.mul(columns[..., : plan.rows.count].transpose(1, 2), scale, out=target)

    def _get_buffer(self, name: str, shape: tuple[int, int, int]) -> torch.Tensor:
        """Return a part of a reused buffer; its gaps between columns are never NaN."""
        count = shape[0] * shape[1] * shape[2]
        held = self._buffers.get(name)
        if held is None or held.numel() < count:
            held = self._buffers[name] = torch.zeros(count, dtype=torch.float32, device=self.device)
        return held[:count].view(shape)

    def _combine(self, taps: AxisTaps, values: torch.Tensor, part: tuple[int, int, int]) -> torch.Tensor:
        """Return weighted sums of rows, (n, rows wanted, pitch), of values (n, rows, pitch)."""
        n, height, pitch = values.shape
        key = (id(taps), n, height, *part)
        if key not in self._bags:
            self._bags[key] = _make_bags(taps, n, height, part, self.device)
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


def _make_bags(
    taps: AxisTaps, n: int, height: int, part: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Return index, offsets and weights of a part (start, stop, first input) of the results of n images."""
    start, stop, first = part
    used = slice(taps.ends[start], taps.ends[stop])
    ends = taps.ends[start : stop + 1] - taps.ends[start]
    with torch.inference_mode(mode=False):
        # those of one image are copied, and repeated on the device
        index, offsets, weights = (
            torch.from_numpy(array).to(device)
            for array in (taps.index[used] - first, ends, taps.weights[used])
        )
        every = torch.arange(n, dtype=torch.int32, device=device)[:, None]
        many = (index + every * height).flatten()
        starts = (offsets[:-1] + every * len(index)).flatten()
        return many, torch.cat([starts, starts.new_full((1,), len(many))]), weights.repeat(n)


def _round_to_odd_pitch(count: int) -> int:
    """Return a row length whose columns do not all compete for the same few cache lines."""
    lines = -(-count // 16)
    return 16 * (lines + 1 - lines % 2)
