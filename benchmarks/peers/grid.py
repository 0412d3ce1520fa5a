"""A resampled volume, and where its voxels lie in the one that it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Resampled", "placed"]


@dataclass(frozen=True, slots=True)
class Resampled:
    """
    What a resampling made.

    Attributes
    ----------
    array : array-like
        (D, H, W).
    start : tuple of 3 floats
        Index, in the original, of the first voxel along (D, H, W).
    step : tuple of floats
        Distance of neighbors, in voxels of the original.
    """

    array: Any
    start: tuple[float, float, float]
    step: tuple[float, ...]


def placed(array: Any, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> Resampled:
    """
    Place a resampled array by the affines of both volumes.

    Parameters
    ----------
    array : array-like
        (D, H, W).
    before, after : numpy.ndarray
        4×4, index (d, h, w) → one and the same space; the axes are parallel.
    """
    index = np.linalg.inv(before) @ after
    d, h, w = (float(v) for v in index[:3, 3])
    return Resampled(array, (d, h, w), tuple(float(v) for v in np.diag(index)[:3]))
