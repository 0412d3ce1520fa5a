"""Selection of the slices of a volume that are rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from medimg.core.display import DECLARED
from medimg.core.window import PRESETS, Window
from medimg.preprocessing.display_orientation import DisplayOrientation

if TYPE_CHECKING:
    from medimg.core.volume import Volume
    from medimg.io.series import Policies, Series
    from medimg.preprocessing.preprocess import OneWindow, Preprocess

__all__ = [
    "SliceChoice",
    "SliceSelection",
    "choose_slices",
    "depends_on_all",
    "find_needed_slices",
    "list_windows",
    "neighbor_indices",
]

SliceChoice: TypeAlias = Literal["all", "middle"] | int


def choose_slices(depth: int, slices: SliceChoice) -> tuple[int, ...]:
    """
    Return the indices of the chosen slices out of `depth`; an int chooses that many, evenly spaced.

    Examples
    --------
    >>> choose_slices(500, 3), choose_slices(9, "middle")
    ((0, 250, 499), (4,))
    """
    if slices in {"middle", 1}:
        return (depth // 2,)
    if not isinstance(slices, int) or slices >= depth:
        return tuple(range(depth))
    return tuple(int(i) for i in np.floor(np.linspace(0, depth - 1, slices) + 0.5))


def neighbor_indices(index: int, depth: int) -> tuple[int, int, int]:
    """Return the indices of the previous slice, the slice and the next one; the ends repeat."""
    return max(index - 1, 0), index, min(index + 1, depth - 1)


@dataclass(frozen=True, slots=True)
class SliceSelection:
    """Some slices of a volume of `depth` slices, by ascending array indices."""

    depth: int
    stored: tuple[int, ...]

    @classmethod
    def whole(cls, depth: int) -> SliceSelection:
        """Select all slices."""
        return cls(depth, tuple(range(depth)))

    @property
    def is_whole(self) -> bool:
        """Whether all slices are selected."""
        return len(self.stored) == self.depth


def find_needed_slices(recipe: Preprocess, series: Series, policies: Policies) -> SliceSelection | None:
    """Return the slices needed by a recipe; None if images depend on the other slices too."""
    repairs = "fix" in (policies.on_missing, policies.on_tilt) or policies.on_duplicate == "keep"
    if (
        repairs
        or recipe.spacing is not None
        or not all(_is_local(w, recipe, series) for w in list_windows(recipe))
    ):
        return None
    depth = series.shape[1]
    chosen = choose_slices(depth, recipe.slices)
    if recipe.channels == "adjacent":
        chosen = tuple(sorted({n for d in chosen for n in neighbor_indices(d, depth)}))
    turned = DisplayOrientation.of(series, recipe).turned
    return SliceSelection(depth, tuple(depth - 1 - d for d in reversed(chosen)) if turned else chosen)


def depends_on_all(recipe: Preprocess, piece: Volume) -> bool:
    """
    Whether some slices show that the windows depend on all slices after all.

    So it is if "auto" means percentiles, or if the index of a window may also be an explanation: it is one
    only if all slices have it.
    """
    if piece.is_color:
        return False
    windows = list_windows(recipe)
    if "auto" in windows and piece.units != "HU":
        return True
    choices = {w.removeprefix(DECLARED).strip() for w in windows if isinstance(w, str)}
    numbers = {choice for choice in choices if choice.isdecimal()}
    return any(v.explanation.strip() in numbers for declared in piece.voi for v in declared)


def list_windows(recipe: Preprocess) -> tuple[OneWindow, ...]:
    """Return the window of each channel, or the one of all."""
    # a recipe makes Windows of pairs
    windows: Any = recipe.window
    return windows if isinstance(windows, tuple) else (windows,)


def _is_local(window: OneWindow, recipe: Preprocess, series: Series) -> bool:
    """Whether the window of a slice is known without the other slices."""
    if isinstance(window, Window) or window in PRESETS:
        return True
    if window == "auto":
        return series.modality == "CT"
    # adjacent slices use the window that the middle slice declares
    return (window == "dicom" or window.startswith(DECLARED)) and recipe.channels != "adjacent"
