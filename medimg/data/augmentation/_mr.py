"""Artifacts of MR images: bias field and Rician noise."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medimg.errors import TrainingError

__all__ = ["add_rician_noise", "bias_fields", "count_coefficients", "draw_seeds", "normal_pairs"]


def count_coefficients(degree: int) -> int:
    """Return the number of coefficients of a bias field of some degree."""
    return (degree + 1) * (degree + 2) // 2


def bias_fields(coefficients: Tensor, height: int, width: int) -> Tensor:
    """
    Return bias fields (B, 1, height, width) float32 from coefficients: (B, 10) of degree 3, (B, 3) of 1, ...

    The logarithm of a field is a sum of Legendre polynomials, ``c[i, j] P_i(row) P_j(column)`` with j <= i
    and coordinates from -1 to 1 (Van Leemput et al., IEEE TMI 1999; in the order of MONAI's RandBiasField).
    """
    count = coefficients.shape[1]
    degree = (math.isqrt(8 * count + 1) - 3) // 2
    if degree < 1 or count_coefficients(degree) != count:
        raise TrainingError(f"a bias field must have 3, 6, 10, 15, … coefficients; found {count}")
    rows, columns = (_evaluate_legendre(side, degree).to(coefficients.device) for side in (height, width))
    logarithm = coefficients.new_zeros((len(coefficients), height, width), dtype=torch.float32)
    start = 0
    for i in range(degree + 1):
        # no matrix product, which GPUs may compute with lower precision
        along = sum(coefficients[:, start + j, None].float() * columns[j] for j in range(i + 1))
        assert isinstance(along, Tensor)
        logarithm.addcmul_(rows[i].view(1, -1, 1), along.unsqueeze(1))
        start += i + 1
    return logarithm.exp_().unsqueeze(1)


def _evaluate_legendre(side: int, degree: int) -> Tensor:
    """Return Legendre polynomials (degree + 1, side) float32 along a side."""
    values = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, side), degree)
    return torch.from_numpy(np.ascontiguousarray(values.T, dtype=np.float32))


def add_rician_noise(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """
    Return images with Gaussian noise in the real and the imaginary part: Rician noise.

    ``sqrt((signal + first)^2 + second^2)`` (Gudbjartsson and Patz, MRM 1995).

    >>> add_rician_noise(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([4.0]))
    tensor([5.])
    """
    return torch.hypot(images + first, second.expand_as(images))


# of SplitMix64, as signed numbers; multiplication wraps around
_STEP: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = 0xBF58476D1CE4E5B9 - 2**64
_SECOND: Final = 0x94D049BB133111EB - 2**64


def draw_seeds(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw seeds (count,) int64 on the CPU."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


def normal_pairs(seeds: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """
    Return two standard normal fields (B, 1, height, width) float32 for seeds (B,) int64, on their device.

    torch's generators differ between devices. Here each pixel is a function of seed and position: SplitMix64
    (Steele, Lea and Flood, OOPSLA 2014), whose halves become a pair by the method of Box and Muller (1958).
    """
    pixels = torch.arange(1, height * width + 1, device=seeds.device)
    bits = (pixels * _STEP).view(1, 1, height, width) + seeds.view(-1, 1, 1, 1)
    bits = bits.bitwise_xor_(_shift_right(bits, 30)).mul_(_FIRST)
    bits = bits.bitwise_xor_(_shift_right(bits, 27)).mul_(_SECOND)
    bits = bits.bitwise_xor_(_shift_right(bits, 31))
    # 24 bits are what float32 holds; half a step keeps the logarithm finite
    radius = _shift_right(bits, 40).float().add_(0.5).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = bits.bitwise_and_(2**24 - 1).float().mul_(2.0 * math.pi * 2.0**-24)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift unsigned integers to the right."""
    return (bits >> count).bitwise_and_((1 << (64 - count)) - 1)
