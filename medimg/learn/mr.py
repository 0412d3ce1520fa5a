"""What a magnetic resonance scanner adds to a picture: uneven brightness, and noise of a magnitude."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from medimg.errors import TrainingError

__all__ = ["bias_fields", "coefficients_of", "with_rician_noise"]


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
