"""Windows, lookup tables and normalization of tensors; those of arrays are in `array_intensity`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from medimg.core.window import LookupTable, Voi, Window
from medimg.preprocessing.array_intensity import describe_ramp, fits_float32, round_down_to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medimg._native.painting import Intensity

__all__ = [
    "apply_voi",
    "compute_luma",
    "normalize_channel",
    "normalize_into",
    "write_intensity",
]

#: Pixels of a channel that one thread normalizes.
_SMALL: Final = 2**18


def apply_voi(values: torch.Tensor, voi: Voi) -> torch.Tensor:
    """Map modality values of any shape to 0..1 in float32, as :meth:`medimg.Window.apply` does in float64."""
    shown = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    scale = write_intensity(shown, values, voi)
    return shown.mul_(scale).clamp_(0.0, 1.0)


def write_intensity(shown: torch.Tensor, values: torch.Tensor, voi: Voi, *, inverted: bool = False) -> float:
    """
    Write the intensity above black of `values` into the float32 buffer `shown`, and return its scale.

    Multiplied by the scale, white is 1; black is exactly 0 before. Linear windows are left in modality units,
    clamped, with black subtracted, which is exact for whole numbers; the multiplication by the slope can wait
    until images are small. The result for non-finite values is undefined.
    """
    if isinstance(voi, LookupTable):
        table = 1.0 - voi.normalized() if inverted else voi.normalized()
        entries = torch.from_numpy(table).to(values.device, torch.float32)
        shown.copy_(entries[_index_table(values, voi)])
        return 1.0
    if not fits_float32(voi):
        shown.copy_(_apply_in_float64(values, voi))
        if inverted:
            shown.neg_().add_(1.0)
        return 1.0
    shown.copy_(values)
    if voi.is_step:
        # the only float32 threshold that separates float32 values as the window does
        compare: Callable[..., torch.Tensor] = torch.le if inverted else torch.gt
        shown.copy_(compare(shown, round_down_to_float32(voi.threshold)))
        return 1.0
    if voi.function == "SIGMOID":
        whole = float(np.float32(round(voi.center)))
        shown.sub_(whole).sub_(voi.center - whole)
        shown.mul_(math.copysign(4.0 / voi.width, -1.0 if inverted else 1.0)).sigmoid_()
        return 1.0
    ramp = describe_ramp(voi, inverted=inverted)
    assert ramp is not None  # all other windows are above
    return _apply_ramp(shown, ramp)


def _apply_in_float64(values: torch.Tensor, window: Window) -> torch.Tensor:
    """Return the intensity, 0 to 1, in float64: slower, but without overflow."""
    # not all devices have float64
    x = values.cpu().to(torch.float64)
    if window.is_step:
        return (x > window.threshold).to(torch.float32)
    linear = window.function == "LINEAR"
    away = (x - (window.center - 0.5 * linear)) / (window.width - linear)
    shown = torch.sigmoid(4.0 * away) if window.function == "SIGMOID" else (away + 0.5).clamp_(0.0, 1.0)
    return shown.to(torch.float32)


def _apply_ramp(shown: torch.Tensor, ramp: Intensity) -> float:
    # in two steps if black is not a float32: a narrow window may be far from 0
    for black in ramp.black:
        if black:
            shown.sub_(black)
    shown.clamp_(ramp.low, ramp.high)
    return ramp.scale


def _index_table(values: torch.Tensor, table: LookupTable) -> torch.Tensor:
    """Return the table indices of values."""
    last = table.entries.size - 1
    if values.is_floating_point():
        # clamped first, since values far outside, or not finite, are not int64
        whole = torch.nan_to_num(values.to(torch.float32).floor()).clamp_(table.first, table.first + last)
        return whole.to(torch.int64).sub_(table.first).clamp_(0, last)
    return values.to(torch.int64).sub_(table.first).clamp_(0, last)


def compute_luma(colors: torch.Tensor) -> torch.Tensor:
    """Return the luma (N, 1, H, W) of colors (N, 3, H, W), ITU-R BT.601; equal channels stay exact."""
    red, green, blue = colors.unbind(1)
    return (green + (red - green).mul_(0.299) + (blue - green).mul_(0.114)).unsqueeze(1)


def normalize_channel(out: torch.Tensor, image: torch.Tensor, mean: float, std: float) -> None:
    """Write ``image * (1 / std) - mean / std`` into `out`, each step rounded, as on any processor."""
    if out.device.type == "cpu" and out.numel() <= _SMALL and out.dtype == image.dtype == torch.float32:
        # torch shares it out among its threads, which takes ten times as long if other cores are busy
        values = np.multiply(image.numpy(), np.float32(1.0 / std), out=out.numpy())
        np.add(values, np.float32(-mean / std), out=values)
        return
    torch.mul(image, 1.0 / std, out=out)
    out.add_(-mean / std)


def normalize_into(
    out: torch.Tensor, images: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Normalize images (N, 1 or C, *size), 0 to 1, into `out` (N, C, *size) float32."""
    channels = images.unbind(1)
    for channel, target in enumerate(out.unbind(1)):
        image = channels[channel if len(channels) > 1 else 0]
        normalize_channel(target, image, mean[channel], std[channel])
