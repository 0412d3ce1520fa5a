"""Pictures to a fixed size: antialiased, in physical aspect, padded or cropped about the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import torch
from torch.nn import functional as F

from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Fit", "fitted_size", "resize"]

Fit: TypeAlias = Literal["pad", "crop", "stretch"]

# Small enough for a core's cache, and the reason why memory does not grow with the number of slices
_CHUNK: Final = 8
_MOST_PIXELS: Final = 2**26


def fitted_size(
    shape: Sequence[int], spacing: Sequence[float], size: tuple[int, int], fit: Fit
) -> tuple[int, int]:
    """
    Return the size that a picture is resized to before it is padded or cropped to `size`.

    Parameters
    ----------
    shape : sequence of 2 ints
        Rows and columns of the picture.
    spacing : sequence of 2 floats
        Distance between its rows and between its columns, in any one unit.
    size : tuple of 2 ints
        Rows and columns wanted.
    fit : {"pad", "crop", "stretch"}
        "pad": all of the picture is inside; "crop": it covers all; "stretch": exactly `size`.

    Returns
    -------
    tuple of 2 ints
        Rows and columns, each at least 1.

    Examples
    --------
    >>> fitted_size((512, 256), (1.0, 1.0), (224, 224), "pad")
    (224, 112)
    >>> fitted_size((100, 100), (2.0, 1.0), (224, 224), "crop")
    (448, 224)
    """
    if fit == "stretch":
        return size
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scales = (size[0] / height, size[1] / width)
    scale = min(scales) if fit == "pad" else max(scales)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(
    planes: torch.Tensor, spacing: Sequence[float], size: tuple[int, int], fit: Fit, fill: float
) -> torch.Tensor:
    """
    Resize pictures with an antialiasing bilinear filter.

    Parameters
    ----------
    planes : torch.Tensor
        (N, C, H, W) float32.
    spacing : sequence of 2 floats
        Distance between rows and between columns, in millimeters.
    size : tuple of 2 ints
        Rows and columns of the result.
    fit : {"pad", "crop", "stretch"}
        See :func:`fitted_size`.
    fill : float
        The value of what the picture does not cover.

    Returns
    -------
    torch.Tensor
        (N, C, *size) float32. Each picture is computed independently of the others in the batch, so that
        one alone gives the same bits.
    """
    n, c, h, w = planes.shape
    inner = fitted_size((h, w), spacing, size, fit)
    if inner[0] * inner[1] > _MOST_PIXELS:
        raise PreprocessError(
            f"a picture of {h}×{w} pixels of {spacing[0]:.3g}×{spacing[1]:.3g} mm would grow to {inner}; "
            'use fit="pad", or look at its spacing'
        )
    result = planes.new_full((n * c, *size), fill)
    target, source = _centered(inner, size)
    flat = planes.reshape(n * c, h, w)
    for start in range(0, n * c, _CHUNK):
        chunk = flat[None, start : start + _CHUNK]
        if inner != (h, w):
            chunk = F.interpolate(chunk, size=inner, mode="bilinear", antialias=True, align_corners=False)
        result[start : start + _CHUNK, target[0], target[1]] = chunk[0, :, source[0], source[1]]
    return result.reshape(n, c, *size)


def _centered(
    inner: tuple[int, int], outer: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the middle of an inner size goes in the outer one, and which part of it."""
    target, source = [], []
    for have, want in zip(inner, outer, strict=True):
        length = min(have, want)
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
    return (target[0], target[1]), (source[0], source[1])
