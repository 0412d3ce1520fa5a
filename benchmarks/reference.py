"""The same results in float64, by dense matrices: what errors are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.job import CENTER, MEAN, STD, WIDTH

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from benchmarks.peers.grid import Resampled

__all__ = ["picture", "picture_of", "resampling_error", "triangles"]

_SAMPLED = 6


def triangles(
    positions: npt.NDArray[np.floating[Any]], length: int, support: float
) -> npt.NDArray[np.float64]:
    """
    Weights of a triangle filter.

    Parameters
    ----------
    positions : numpy.ndarray
        (n,) where to sample, as indices into what is sampled.
    length : int
        Samples that there are.
    support : float
        Half the width of the triangle, in samples: 1 interpolates linearly.

    Returns
    -------
    numpy.ndarray
        (n, length) float64; each row has the sum 1.
    """
    weights = np.maximum(0, 1 - np.abs(np.arange(length) - positions[:, None]) / support)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _shrinking(before: int, after: int) -> npt.NDArray[np.float64]:
    scale = before / after
    return triangles((np.arange(after) + 0.5) * scale - 0.5, before, max(scale, 1.0))


def picture(
    values: npt.NDArray[Any],
    size: int,
    center: float = CENTER,
    width: float = WIDTH,
    *,
    inverted: bool = False,
) -> npt.NDArray[np.float64]:
    """
    Window, invert, resize with antialiasing, and normalize one image.

    Parameters
    ----------
    values : numpy.ndarray
        (H, W).
    size : int
        Rows and columns of the picture.
    center, width : float
        Of the window, LINEAR (PS3.3 C.11.2.1.2).
    inverted : bool
        Whether low values are white.

    Returns
    -------
    numpy.ndarray
        (3, size, size).
    """
    shown = np.clip((values.astype(np.float64) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if inverted:
        shown = 1 - shown
    rows, columns = (_shrinking(n, size) for n in shown.shape)
    small = rows @ shown @ columns.T
    return np.stack([(small - mean) / std for mean, std in zip(MEAN, STD, strict=True)])


def picture_of(ds: Dataset, size: int) -> npt.NDArray[np.float64]:
    """Return the picture of an image in the window that it declares."""
    inverted = ds.PhotometricInterpretation == "MONOCHROME1"
    center, width = float(ds.WindowCenter), float(ds.WindowWidth)
    return picture(ds.pixel_array, size, center, width, inverted=inverted)


def resampling_error(before: npt.NDArray[Any], made: Resampled, *, antialias: bool) -> float:
    """
    Return the largest difference from a triangle filter on the grid of the result, away from its borders.

    Parameters
    ----------
    before : numpy.ndarray
        (D, H, W), what was resampled.
    made : Resampled
        What it became.
    antialias : bool
        Whether the filter widens with the steps along axes that get coarser, or interpolates linearly.
    """
    array = np.asarray(made.array)
    inside, weights = [], []
    for axis in range(3):
        positions = made.start[axis] + made.step[axis] * np.arange(array.shape[axis])
        support = max(abs(made.step[axis]), 1.0) if antialias else 1.0
        kept = np.flatnonzero((positions >= support) & (positions <= before.shape[axis] - 1 - support))
        if axis == 0:
            kept = kept[np.unique(np.linspace(0, len(kept) - 1, _SAMPLED).astype(int))]
        inside.append(kept)
        weights.append(triangles(positions[kept], before.shape[axis], support))
    worst = 0.0
    for number, row in zip(inside[0], weights[0], strict=True):
        taps = np.flatnonzero(row)
        plane = np.tensordot(row[taps], before[taps].astype(np.float64), 1)
        expected = weights[1] @ plane @ weights[2].T
        found = array[number][np.ix_(inside[1], inside[2])]
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst
