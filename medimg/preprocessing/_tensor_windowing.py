"""Windows and resizes slices by torch, on its devices."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg.preprocessing.array_intensity import to_float32
from medimg.preprocessing.intensity import compute_luma, write_intensity
from medimg.preprocessing.resize import Resizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from medimg.core.window import Voi
    from medimg.preprocessing._slice_renderer import PixelContent, SliceChannel
    from medimg.preprocessing.resize_plan import ResizePlan

__all__ = ["TensorWindowing"]

_TORCH_DTYPES: Final = frozenset(map(np.dtype, ("u1", "i1", "u2", "i2", "i4", "f4")))


class TensorWindowing:
    """Makes tensors of slices, in batches that stay in cache, in a buffer that is used again."""

    def __init__(self, plan: ResizePlan, fill: float, device: torch.device) -> None:
        self._size, self._fill, self._device = plan.size, fill, device
        self._resizer = Resizer(plan, device=device)
        self._buffer: torch.Tensor | None = None
        #: Most slices at once.
        self.at_once = self._resizer.at_once

    def __call__(
        self, channels: Iterable[SliceChannel], *, inverted: bool, luma: bool, content: PixelContent
    ) -> torch.Tensor:
        """Return slices as (n, 1 or 3, H, W), 0 to 1; with `luma`, one channel of the three."""
        several = list(channels)
        count = len(several[0].values)
        if self._buffer is None or self._buffer.shape[1] != len(several):
            shape = (self.at_once, len(several), *self._size)
            self._buffer = torch.full(shape, self._fill, dtype=torch.float32, device=self._device)
        images = self._buffer[:count]
        for c, one in enumerate(several):
            load = partial(
                _load_rows,
                values=_to_tensor(one.values, self._device),
                voi=one.voi,
                padding=None if one.padding is None else _to_tensor(one.padding, self._device),
                inverted=inverted,
                content=content,
            )
            self._resizer(load, images[:, c])
            content.add(one.values, one.padding)
        images.clamp_(0.0, 1.0)
        return compute_luma(images) if luma else images

    @staticmethod
    def reverse(images: torch.Tensor) -> torch.Tensor:
        """Return images in reverse order."""
        return images.flip(0)


def _load_rows(
    rows: slice,
    buffer: torch.Tensor,
    *,
    values: torch.Tensor,
    voi: Voi | float,
    padding: torch.Tensor | None,
    inverted: bool,
    content: PixelContent,
) -> float:
    """Write rows as intensity above black into a buffer, and return their scale; a float is a white."""
    part = values[:, rows]
    if isinstance(voi, float):
        buffer.copy_(part)
        scale = 1.0 / voi
    else:
        scale = write_intensity(buffer, part, voi, inverted=inverted)
    # a sum is twenty times faster than a mask, and few images need the mask
    if part.is_floating_point() and not math.isfinite(float(part.sum())):
        finite = torch.isfinite(part)
        content.has_finite = content.has_finite or bool(finite.any())
        buffer.masked_fill_(~finite, 0.0)
    else:
        content.has_finite = True
    if padding is None:
        content.has_unpadded = True
    else:
        content.has_unpadded = content.has_unpadded or not bool(padding[:, rows].all())
        # the same as masked_fill_ for what is finite, ten times faster
        buffer.addcmul_(buffer, padding[:, rows].to(torch.float32), value=-1.0)
    return scale


def _to_tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a read-only tensor, without copying if device and dtype allow."""
    if array.dtype == np.uint16 and device.type != "cpu":
        # few operations on devices take uint16
        return _to_tensor(array.view(np.int16), device).to(torch.int32).bitwise_and_(0xFFFF)
    if array.dtype not in _TORCH_DTYPES or not array.dtype.isnative or min(array.strides) < 0:
        array = to_float32(array)
    return torch.from_numpy(np.asarray(_Readable(array))).to(device, non_blocking=True)


class _Readable:
    """A read-only array that claims to be writable, since torch warns of read-only ones."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
