"""Windows and resizes slices by NumPy and SciPy, for what the compiled core does not render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.preprocessing.array_intensity import to_float32, write_array_intensity

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from medimg.preprocessing._slice_renderer import PixelContent, SliceChannel
    from medimg.preprocessing.resize_plan import AxisTaps, ResizePlan

__all__ = ["ArrayWindowing"]


class ArrayWindowing:
    """Makes arrays of slices, one after the other."""

    #: Most slices at once.
    at_once: Final = 32

    def __init__(self, plan: ResizePlan, fill: float) -> None:
        self._plan, self._fill = plan, fill
        height, width = plan.shape
        self._rows, self._columns = _make_matrix(plan.rows, height), _make_matrix(plan.columns, width)

    def __call__(
        self, channels: Iterable[SliceChannel], *, inverted: bool, luma: bool, content: PixelContent
    ) -> npt.NDArray[np.float32]:
        """Return slices as (n, 1 or 3, H, W), 0 to 1; with `luma`, one channel of the three."""
        several = list(channels)
        shape = (len(several[0].values), len(several), *self._plan.size)
        images = np.full(shape, self._fill, np.float32)
        for c, one in enumerate(several):
            for n, values in enumerate(one.values):
                padding = None if one.padding is None else one.padding[n]
                images[n, c][self._plan.target] = self._resize(values, one, padding, inverted=inverted)
            content.add(one.values, one.padding)
        np.clip(images, 0.0, 1.0, out=images)
        return _compute_luma(images) if luma else images

    @staticmethod
    def reverse(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return images in reverse order."""
        return images[::-1]

    def _resize(
        self,
        values: npt.NDArray[Any],
        channel: SliceChannel,
        padding: npt.NDArray[Any] | None,
        *,
        inverted: bool,
    ) -> npt.NDArray[np.float32]:
        """Return a slice (H, W) as intensity, resized; padding and what is not finite is black."""
        if values.dtype.itemsize > 4:
            values = to_float32(values)
        shown = np.empty(values.shape, np.float32)
        with np.errstate(invalid="ignore"):
            scale = write_array_intensity(shown, values, channel.voi, inverted=inverted)
        black = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros((), np.bool_)
        if padding is not None:
            black = black | padding.astype(np.bool_)
        shown[np.broadcast_to(black, shown.shape)] = 0.0
        combined = self._columns @ np.ascontiguousarray((self._rows @ shown).T)
        return np.asarray(combined.T * np.float32(scale))


def _make_matrix(taps: AxisTaps, size: int) -> Any:
    """Return the weights of an axis as a sparse matrix (count, size), whose sums have a fixed order."""
    from scipy.sparse import csr_matrix

    return csr_matrix((taps.weights, taps.index, taps.ends), shape=(taps.count, size))


def _compute_luma(colors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the luma (N, 1, H, W) of colors (N, 3, H, W), ITU-R BT.601; equal channels stay exact."""
    red, green, blue = colors.transpose(1, 0, 2, 3)
    luma = green + (red - green) * np.float32(0.299) + (blue - green) * np.float32(0.114)
    return np.asarray(luma[:, None])
