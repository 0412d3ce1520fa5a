"""Orientation of stored slices relative to their display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medimg.core.geometry import display_code, reorient

if TYPE_CHECKING:
    from medimg.core.volume import Volume
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["DisplayOrientation"]


@dataclass(frozen=True, slots=True)
class DisplayOrientation:
    """
    Orientation of stored slices relative to their display.

    `turned`: the slice order is reversed; `swapped`: rows of the display are columns of the array; `flips`:
    rows and columns of the display run backwards in the array.
    """

    turned: bool = False
    swapped: bool = False
    flips: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, image: Volume | Series, recipe: Preprocess) -> DisplayOrientation:
        """Return the orientation of an image for the display that a recipe asks for."""
        if recipe.orientation == "stored" or image.space != "patient":
            return cls()
        _, _, axes, flips = reorient(np.empty((1, 1, 1)), image.affine, display_code(image.affine))
        return cls(flips[0], axes[1] == 2, flips[1:])

    def grid(self, image: Volume | Series) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return rows and columns of the display, and their spacing."""
        (_, _, height, width), (_, between_rows, between_columns) = image.shape, image.spacing
        if self.swapped:
            return (width, height), (between_columns, between_rows)
        return (height, width), (between_rows, between_columns)

    def reorient(self, volume: Volume) -> Volume:
        """Reorient a volume of this orientation for display."""
        return volume if self == DisplayOrientation() else volume.reorient(display_code(volume.affine))
