"""Volumes of a fixed size, from slices that are rendered one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.geometry import display_code, reorient
from medimg.errors import PreprocessError
from medimg.preprocessing.display_orientation import DisplayOrientation
from medimg.preprocessing.resize_plan import compute_fitted_shape

if TYPE_CHECKING:
    import torch

    from medimg.core.volume import Volume
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["VolumeFit", "reorient_upright"]

#: Orientation of every displayed volume: slices from the feet to the head, each as radiologists view it.
_UPRIGHT: Final = "SPL"
_MOST_VOXELS: Final = 2**30
_MOST_PIXELS: Final = 16384


@dataclass(frozen=True, slots=True)
class VolumeFit:
    """
    How the slices of a volume, in display order, become a volume (C, *size) of the output.

    `slices` is the recipe that renders them, (D, C, rows, columns); `depth` their number after resizing.
    `axes` has the axis of the slices (0 D, 1 rows, 2 columns) of each axis of the output, `flips` whether it
    is reversed.
    """

    slices: Preprocess
    depth: int
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    size: tuple[int, ...]
    fill: float

    @classmethod
    def of(cls, image: Volume | Series, recipe: Preprocess) -> VolumeFit:
        """Return the fit of an image of the recipe's spacing; PreprocessError if it would grow too large."""
        axes, flips = _find_upright_axes(image, recipe)
        rows, between = DisplayOrientation.of(image, recipe).grid(image)
        shape, spacing = (image.shape[1], *rows), (image.spacing[0], *between)
        size = recipe.image_shape[1:]
        fitted = compute_fitted_shape([shape[a] for a in axes], [spacing[a] for a in axes], size, recipe.fit)
        # by the axes of the slices
        depth, height, width = (fitted[axes.index(axis)] for axis in range(3))
        if math.prod((shape[0], height, width)) > _MOST_VOXELS or max(height, width) > _MOST_PIXELS:
            raise PreprocessError(
                f"a volume of {'×'.join(map(str, shape))} voxels would grow to {depth}×{height}×{width}; "
                'use fit="pad", or look at its spacing'
            )
        slices = recipe.replace(dims=2, size=(height, width), fit="stretch", spacing=None)
        return cls(slices, depth, axes, flips, size, recipe.fill_value)

    def stack(self, planes: torch.Tensor) -> torch.Tensor:
        """Return the volume (1, C, *size), 0 to 1, of rendered slices (D, C, rows, columns)."""
        from medimg.preprocessing.resize import fit_about_center, resize_depth

        resized = resize_depth(planes, self.depth) if self.depth != len(planes) else planes
        volume = resized.transpose(0, 1).permute(0, *(1 + axis for axis in self.axes))
        volume = volume.flip([1 + axis for axis, flip in enumerate(self.flips) if flip])
        return fit_about_center(volume, self.size, self.fill).unsqueeze(0).clamp(0.0, 1.0)


def reorient_upright(volume: Volume, recipe: Preprocess) -> Volume:
    """Reorient a volume as the output is, for resampling."""
    is_placed = recipe.orientation == "display" and volume.space == "patient"
    return volume.reorient(_UPRIGHT) if is_placed else volume


def _find_upright_axes(
    image: Volume | Series, recipe: Preprocess
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return the axis of the displayed slices of each axis of the output, and whether it is reversed."""
    if recipe.orientation == "stored" or image.space != "patient":
        return (0, 1, 2), (False, False, False)
    empty = np.empty((1, 1, 1))
    displayed = reorient(empty, image.affine, display_code(image.affine))[1]
    _, _, axes, flips = reorient(empty, displayed, _UPRIGHT)
    return axes, flips
