"""Random numbers for whole batches that are the same on every device."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

__all__ = ["draw_seeds", "normal_pairs"]

# of SplitMix64, as signed numbers; multiplication wraps around
_STEP: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = 0xBF58476D1CE4E5B9 - 2**64
_SECOND: Final = 0x94D049BB133111EB - 2**64


def draw_seeds(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a seed for each sample: (count,) int64, on the CPU."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


def normal_pairs(seeds: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """
    Return two fields of independent standard normal numbers for each seed, made where the seeds lie.

    torch's own generators give other numbers on each kind of device, and to draw on the CPU and copy would
    hold up a GPU. Here each pixel's number is a function of seed and place: SplitMix64 (Steele, Lea and
    Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) counts the pixels, and its two halves
    become a pair by the method of Box and Muller (1958).

    Parameters
    ----------
    seeds : Tensor
        (B,) int64.
    height, width : int
        Of the fields.

    Returns
    -------
    first, second : Tensor
        (B, 1, height, width) float32; on two devices they differ by rounding alone.

    Examples
    --------
    >>> first, second = normal_pairs(draw_seeds(2, torch.Generator().manual_seed(0)), 64, 64)
    >>> tuple(first.shape), abs(float(first.mean())) < 0.05, abs(float(second.std()) - 1) < 0.05
    ((2, 1, 64, 64), True, True)
    """
    pixels = torch.arange(1, height * width + 1, device=seeds.device)
    bits = (pixels * _STEP).view(1, 1, height, width) + seeds.view(-1, 1, 1, 1)
    bits = bits.bitwise_xor_(_shifted(bits, 30)).mul_(_FIRST)
    bits = bits.bitwise_xor_(_shifted(bits, 27)).mul_(_SECOND)
    bits = bits.bitwise_xor_(_shifted(bits, 31))
    # 24 bits are what float32 holds; half a step keeps the logarithm finite
    radius = _shifted(bits, 40).float().add_(0.5).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = bits.bitwise_and_(2**24 - 1).float().mul_(2.0 * math.pi * 2.0**-24)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shift to the right as if there were no sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)
