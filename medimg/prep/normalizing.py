"""Brightness into what a network takes: less the mean, in standard deviations."""

from __future__ import annotations

from functools import lru_cache
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
    torch.add(_shift(-mean / std, plane.device), plane, alpha=1.0 / std, out=out)


@lru_cache(maxsize=256)
def _shift(value: float, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.tensor(value, dtype=torch.float32, device=device)


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
    channels = planes.unbind(1)
    for channel, target in enumerate(out.unbind(1)):
        plane = channels[channel if len(channels) > 1 else 0]
        normalize_channel(target, plane, mean[channel], std[channel])
