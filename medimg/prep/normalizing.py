"""Brightness into what a network takes: less the mean, in standard deviations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["normalize_channel", "normalize_into"]


def normalize_channel(out: torch.Tensor, plane: torch.Tensor, mean: float, std: float) -> None:
    """
    Write ``(plane - mean) / std`` into `out`, as one multiply-add that is rounded once.

    Parameters
    ----------
    out, plane : torch.Tensor
        Any one shape, float32, on one device.
    mean, std : float
        Of the channel.
    """
    shift = torch.tensor(-mean / std, dtype=torch.float32, device=plane.device)
    torch.add(shift, plane, alpha=1.0 / std, out=out)


def normalize_into(
    out: torch.Tensor, planes: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> None:
    """
    Normalize pictures.

    Parameters
    ----------
    out : torch.Tensor
        (N, 3, H, W) float32, overwritten.
    planes : torch.Tensor
        (N, 1 or 3, H, W) float32, 0 to 1: one for all channels, or one for each.
    mean, std : sequence of 3 floats
        Of the channels.
    """
    for channel in range(3):
        plane = planes[:, channel if planes.shape[1] > 1 else 0]
        normalize_channel(out[:, channel], plane, mean[channel], std[channel])
