"""What pictures look like, in a few numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from medimg.learn.loaders import LabeledImages

__all__ = ["STATISTICS", "picture_statistics", "statistics_of"]

#: Mean and standard deviation of the brightness (black 0, white 1); mean step from pixel to pixel, by the
#: contrast; noise as Immerkær estimates it.
STATISTICS: Final = ("brightness", "contrast", "sharpness", "noise")


def statistics_of(pictures: Tensor) -> Tensor:
    """
    Return numbers on pictures.

    The noise is ``sqrt(pi / 2) / 6`` times the mean absolute response to a mask that is blind to edges
    (Immerkær, Fast Noise Variance Estimation, 1996).

    Parameters
    ----------
    pictures : Tensor
        (N, H, W), black 0, white 1.

    Returns
    -------
    Tensor
        (N, 4): see :data:`STATISTICS`.

    Examples
    --------
    >>> statistics_of(torch.full((1, 8, 8), 0.5))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    brightness = pictures.mean(dim=(1, 2))
    contrast = pictures.std(dim=(1, 2), correction=0)
    steps = (pictures.diff(dim=1).abs().mean(dim=(1, 2)) + pictures.diff(dim=2).abs().mean(dim=(1, 2))) / 2
    mask = pictures.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    noise = (
        F.conv2d(pictures[:, None], mask[None, None]).abs().mean(dim=(1, 2, 3)) * math.sqrt(math.pi / 2) / 6
    )
    return torch.stack([brightness, contrast, steps / contrast.clamp_min(1e-6), noise], dim=1)


def picture_statistics(data: LabeledImages, indices: Sequence[int]) -> NDArray[np.float64]:
    """
    Return numbers on items of a data set; those of a bag are the mean over its slices.

    Parameters
    ----------
    data : ImageDataset
        The pictures.
    indices : sequence of int
        Which items.

    Returns
    -------
    numpy.ndarray
        (n, 4): see :data:`STATISTICS`.
    """
    recipe = data.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    rows = []
    for index in indices:
        image = data[index][0]
        light = (image * std + mean).mean(dim=-3)
        rows.append(statistics_of(light if light.ndim == 3 else light[None]).mean(dim=0))
    return torch.stack(rows).double().numpy()
