"""Simulated scanners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

__all__ = ["SCANNERS", "Scanner"]


@dataclass(frozen=True, slots=True)
class Scanner:
    """
    A simulated scanner; its effects are applied in the order of the attributes.

    Attributes
    ----------
    gamma : float
        Exponent of the intensity.
    blur : float
        Standard deviation of a Gaussian, in pixels.
    contrast : float
        Steepness of a sigmoid tone curve around 0.5; 0 for none.
    sharpening : float
        Share of the difference from an image blurred by 2 pixels that is added (unsharp masking).
    shading : float
        Loss of intensity from the left edge to the right one (heel effect).
    collimation : float
        Width of the black border, as a share of the image.
    inverted : bool
        Whether bright is dark.
    noise : float
        Standard deviation, where white is 1.
    """

    gamma: float = 1.0
    blur: float = 0.0
    contrast: float = 0.0
    sharpening: float = 0.0
    shading: float = 0.0
    collimation: float = 0.0
    inverted: bool = False
    noise: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return (n, H, W) images, 0 to 1, as this scanner makes them."""
        found = _blur(images.clamp(0, 1) ** self.gamma, self.blur)
        if self.contrast:
            curve = torch.sigmoid(self.contrast * (torch.stack([found, *_ends(found)]) - 0.5))
            found = (curve[0] - curve[1]) / (curve[2] - curve[1])
        if self.sharpening:
            found = found + self.sharpening * (found - _blur(found, 2.0))
        if self.shading:
            found = found * torch.linspace(1.0, 1.0 - self.shading, found.shape[-1])
        if self.collimation:
            found = found * _aperture(found, self.collimation)
        if self.inverted:
            found = 1 - found
        return (found + self.noise * torch.randn(found.shape, generator=generator)).clamp(0, 1)


def _ends(images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(images), torch.ones_like(images)


def _blur(images: Tensor, sigma: float) -> Tensor:
    if not sigma:
        return images
    kernel = 2 * int(np.ceil(3 * sigma)) + 1
    return gaussian_blur(images[:, None], [kernel, kernel], [sigma, sigma])[:, 0]


def _aperture(images: Tensor, share: float) -> Tensor:
    """Return 1 (H, W) where a collimator lets radiation pass, and 0 at the border."""
    opened = images.new_zeros(images.shape[-2:])
    rows, columns = (round(share * side) for side in opened.shape)
    opened[rows : opened.shape[0] - rows, columns : opened.shape[1] - columns] = 1.0
    return opened


#: Three sources, and the scanners of the targets.
SCANNERS: Final = {
    "plain": Scanner(),
    "soft": Scanner(gamma=1.2, blur=0.6),
    "hard": Scanner(gamma=0.85, noise=0.03),
    "inverted": Scanner(gamma=0.6, blur=1.0, noise=0.06, inverted=True),
    "processed": Scanner(contrast=8.0, sharpening=1.5, shading=0.5, collimation=0.08),
}
