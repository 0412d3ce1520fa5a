"""Which slices of a series a recipe needs, told from headers, so that the others are never decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medimg.core.geometry import display_code, orientation_code
from medimg.core.window import PRESETS, Window
from medimg.prep.slices import choose_slices, neighbors

if TYPE_CHECKING:
    from medimg.io.series import Policies, Series
    from medimg.prep.recipe import Preprocess

__all__ = ["Part", "needed_slices"]


@dataclass(frozen=True, slots=True)
class Part:
    """
    Some slices of a volume.

    Attributes
    ----------
    depth : int
        Number of slices of the whole.
    stored : tuple of int
        Their indices as the series has them, ascending.
    displayed : tuple of int
        Their indices as they are displayed, ascending: in reverse order where the display turns them.
    """

    depth: int
    stored: tuple[int, ...]
    displayed: tuple[int, ...]

    @classmethod
    def whole(cls, depth: int) -> Part:
        """Return all slices."""
        return cls(depth, tuple(range(depth)), tuple(range(depth)))

    def place_of(self, index: int) -> int:
        """Return the place among these of a slice by its index as it is displayed."""
        return index if len(self.displayed) == self.depth else self.displayed.index(index)


def needed_slices(recipe: Preprocess, series: Series, policies: Policies) -> Part | None:
    """
    Return the slices that a recipe takes of a series.

    Returns
    -------
    Part or None
        None if it takes all, or if the pictures depend on the others: a window by percentiles or as declared,
        resampling, slices that are mended.
    """
    windows = recipe.window if isinstance(recipe.window, tuple) else (recipe.window,)
    fixed = all(
        isinstance(w, Window) or w in PRESETS or (w == "auto" and series.modality == "CT") for w in windows
    )
    mends = "fix" in (policies.on_missing, policies.on_tilt) or policies.on_duplicate == "keep"
    if not fixed or mends or recipe.spacing is not None:
        return None
    depth = series.shape[1]
    chosen = choose_slices(depth, recipe.slices)
    if recipe.channels == "adjacent":
        chosen = tuple(sorted({n for d in chosen for n in neighbors(d, depth)}))
    if len(chosen) == depth:
        return None
    stored = tuple(depth - 1 - d for d in reversed(chosen)) if _is_turned(recipe, series) else chosen
    return Part(depth, stored, chosen)


def _is_turned(recipe: Preprocess, series: Series) -> bool:
    """Whether the display shows the slices in reverse order."""
    if recipe.orientation == "stored" or series.space != "patient":
        return False
    return display_code(series.affine)[0] != orientation_code(series.affine)[0]
