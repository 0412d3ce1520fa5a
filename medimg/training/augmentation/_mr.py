"""What a magnetic resonance scanner adds to a picture: uneven brightness, and noise of a magnitude."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medimg.errors import TrainingError

__all__ = ["bias_fields", "coefficients_of", "draw_seeds", "normal_pairs", "with_rician_noise"]


def coefficients_of(degree: int) -> int:
    """Return how many coefficients a field of so high a degree has."""
    return (degree + 1) * (degree + 2) // 2


def bias_fields(coefficients: Tensor, height: int, width: int) -> Tensor:
    """
    Return smooth fields that brightness is multiplied by, as uneven coils make it.

    The logarithm of a field is a sum of Legendre polynomials, ``c[i, j] P_i(row) P_j(column)`` with j at most
    i and coordinates from -1 to 1 (Van Leemput et al., Automated model-based bias field correction of MR
    images of the brain, IEEE TMI 1999; the order of terms is that of MONAI's RandBiasField).

    Parameters
    ----------
    coefficients : Tensor
        (B, 10) for degree 3: of (i, j) = (0, 0), (1, 0), (1, 1), (2, 0), ...; (B, 3) for degree 1, and so on.
    height, width : int
        Of the pictures.

    Returns
    -------
    Tensor
        (B, 1, height, width) float32, positive, on the device of the coefficients.

    Raises
    ------
    TrainingError
        If there is no degree with so many coefficients.

    Examples
    --------
    >>> fields = bias_fields(torch.full((2, 10), 0.05), 32, 48)
    >>> tuple(fields.shape), round(float(fields[0, 0, -1, -1].log()), 4)
    ((2, 1, 32, 48), 0.5)
    """
    count = coefficients.shape[1]
    degree = (math.isqrt(8 * count + 1) - 3) // 2
    if degree < 1 or coefficients_of(degree) != count:
        raise TrainingError(f"a bias field has 3, 6, 10, 15, … coefficients; found {count}")
    rows, columns = (_legendre(side, degree).to(coefficients.device) for side in (height, width))
    logarithm = coefficients.new_zeros((len(coefficients), height, width), dtype=torch.float32)
    start = 0
    for i in range(degree + 1):
        # no matrix product: GPUs may round these to fewer digits
        along = sum(coefficients[:, start + j, None].float() * columns[j] for j in range(i + 1))
        assert isinstance(along, Tensor)
        logarithm.addcmul_(rows[i].view(1, -1, 1), along.unsqueeze(1))
        start += i + 1
    return logarithm.exp_().unsqueeze(1)


def _legendre(side: int, degree: int) -> Tensor:
    """Return the polynomials along a side: (degree + 1, side) float32."""
    values = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, side), degree)
    return torch.from_numpy(np.ascontiguousarray(values.T, dtype=np.float32))


def with_rician_noise(pictures: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """
    Return the magnitude of a signal with noise in both of its parts.

    ``sqrt((signal + first)^2 + second^2)`` (Gudbjartsson and Patz, The Rician distribution of noisy MRI data,
    MRM 1995).

    Parameters
    ----------
    pictures : Tensor
        The signal, of any shape.
    first, second : Tensor
        Gaussian noise of the real and the imaginary part, that broadcasts.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> with_rician_noise(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([4.0]))
    tensor([5.])
    """
    return torch.hypot(pictures + first, second.expand_as(pictures))


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
