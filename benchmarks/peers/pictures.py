"""Windowing, antialiased resizing and normalization by torch, for libraries that only read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from benchmarks.peers.job import CENTER, MEAN, STD, WIDTH

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

__all__ = ["PIECE", "brightness", "in_pieces", "normalized", "resized", "tensors_of"]

#: Slices that are resized at a time: the fastest here; all at once takes about twice as long.
PIECE = 8


def brightness(values: torch.Tensor, center: float = CENTER, width: float = WIDTH) -> torch.Tensor:
    """Window float32 values in place, to 0 (black) to 1 (white)."""
    return values.sub_(center - 0.5).div_(width - 1).add_(0.5).clamp_(0, 1)


def resized(planes: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (N, H, W) to (N, size, size), antialiased, whatever the aspect."""
    return F.interpolate(planes[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]


def normalized(planes: torch.Tensor) -> torch.Tensor:
    """Turn (N, H, W) from 0 to 1 into three equal channels, normalized: (N, 3, H, W)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (planes[:, None] - mean) / std


def tensors_of(values: np.ndarray[Any, Any], size: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Make pictures (N, 3, size, size) of a stack (N, H, W) in HU."""
    return in_pieces(torch.from_numpy(values), size, out)


def in_pieces(values: torch.Tensor, size: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Make pictures of a stack (N, H, W) in HU, some slices at a time."""
    if out is None:
        out = torch.empty(len(values), 3, size, size)
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE].to(torch.float32, copy=True)
        out[start : start + PIECE] = normalized(resized(brightness(piece), size))
    return out
