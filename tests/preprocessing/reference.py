"""What a recipe means, step by step in float64, one slice after the other; slow and plain."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medimg.core import geometry
from medimg.core.display import choose_voi
from medimg.core.volume import Volume
from medimg.preprocessing._slice_selection import choose_slices, neighbor_indices
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.resize_plan import compute_fitted_size

Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=32)
def triangle(size: int, count: int) -> Floats:
    """(count, size) float64: the weights of an antialiased linear resize, straight from its definition."""
    scale = size / count
    support = max(scale, 1.0)
    centers = (np.arange(count) + 0.5)[:, None] * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(size) + 0.5 - centers) / support)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def reference(volume: Volume, recipe: Preprocess) -> Floats:
    """(N, 3, H, W): normalized pictures."""
    mean, std = (np.array(v)[:, None, None] for v in (recipe.mean, recipe.std))
    return np.asarray((reference_planes(volume, recipe) - mean) / std)


def reference_planes(volume: Volume, recipe: Preprocess) -> Floats:
    """(N, 3, H, W): pictures from 0 to 1."""
    if volume.space == "patient" and recipe.orientation == "display":
        volume = volume.reorient(geometry.display_code(volume.affine))
    depth = volume.shape[1]
    result = []
    for center in choose_slices(depth, recipe.slices):
        if volume.is_color:
            shown = [volume.array[c, center] / volume.white for c in range(3)]
        elif recipe.channels == "adjacent":
            shown = [seen(volume, recipe, recipe.window, d, center) for d in neighbor_indices(center, depth)]
        else:
            windows = recipe.window if isinstance(recipe.window, tuple) else (recipe.window,) * 3
            shown = [seen(volume, recipe, window, center, center) for window in windows]
        result.append(np.stack([fitted(picture, volume.spacing[1:], recipe) for picture in shown]))
    return np.stack(result)


def seen(volume: Volume, recipe: Preprocess, window: Any, d: int, center: int) -> Floats:
    """(H, W): slice d through the window of slice `center`."""
    voi = choose_voi(volume, window, recipe.percentiles, full_range=recipe.revision > 3)
    values = volume.array[0, d]
    shown = voi[center if len(voi) > 1 else 0].apply(np.nan_to_num(values))
    shown = 1 - shown if volume.inverted else shown
    black = ~np.isfinite(values)
    if volume.padding is not None:
        black = black | volume.padding[0, d]
    return np.where(black, 0.0, shown)


def fitted(picture: Floats, spacing: Any, recipe: Preprocess) -> Floats:
    rows, columns = compute_fitted_size(picture.shape, spacing, recipe.hw, recipe.fit)
    small = triangle(picture.shape[0], rows) @ picture @ triangle(picture.shape[1], columns).T
    canvas = np.full(recipe.hw, recipe.fill_value)
    for axis, (have, want) in enumerate(zip((rows, columns), recipe.hw, strict=True)):
        if have > want:
            start = (have - want) // 2
            small = np.take(small, range(start, start + want), axis)
    top, left = ((w - h) // 2 for w, h in zip(recipe.hw, small.shape, strict=True))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
