"""From the cells of a network's last grid back to the pixels of the source: what the recipe did, undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medimg.core.geometry import spacing_of
from medimg.core.resample import ResampledAxis, plan_axes, resample_affine
from medimg.core.volume import Volume
from medimg.preprocessing.orientation import DisplayOrientation
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.resize import compute_fitted_size
from medimg.saliency._receptive_field import Axis

__all__ = ["PixelMapping", "interpolation"]


def interpolation(centers: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.float32]:
    """
    Return the weights that interpolate linearly between samples.

    Parameters
    ----------
    centers : numpy.ndarray
        (n,) where to, in samples: 0 is the first; beyond the ends their values hold.
    count : int
        How many samples there are.

    Returns
    -------
    numpy.ndarray
        (n, count) float32, each row sums to 1.

    Examples
    --------
    >>> interpolation(np.array([-3.0, 0.25, 1.0]), 2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    places = np.clip(centers, 0.0, count - 1.0)
    weights: npt.NDArray[np.float32] = np.clip(
        1.0 - np.abs(places[:, None] - np.arange(count)), 0.0, None
    ).astype(np.float32)
    return weights


@dataclass(frozen=True, slots=True)
class _Side:
    """
    Rows or columns of the display, on their way into a picture.

    Attributes
    ----------
    size : int
        How many the source has.
    resampled : int
        How many there are at the recipe's spacing.
    scale : float
        Its spacing over the source's.
    inner : int
        How many they are resized to.
    wanted : int
        How many the picture has.
    """

    size: int
    resampled: int
    scale: float
    inner: int
    wanted: int

    @property
    def covered(self) -> slice:
        """Which pixels of the picture the source covers."""
        kept = min(self.inner, self.wanted)
        start = (self.wanted - kept) // 2
        return slice(start, start + kept)

    def in_picture(self) -> npt.NDArray[np.float64]:
        """(size,): where the source's pixels have their centers; 0 is the picture's outer edge."""
        # at another spacing the last pixel may be cut, or filled up
        resampled = np.clip((np.arange(self.size) + 0.5) / self.scale, 0.0, self.resampled)
        cut = (self.inner - min(self.inner, self.wanted)) // 2
        places: npt.NDArray[np.float64] = resampled * (self.inner / self.resampled) + self.covered.start - cut
        return places

    def from_cells(self, cells: int, axis: Axis) -> npt.NDArray[np.float32]:
        """(size, cells): the weights of the cells in each of the source's pixels; 0 where it was cropped."""
        places = self.in_picture()
        half = 0.5 / self.scale * (self.inner / self.resampled)
        # of a pixel that the edge of the picture cuts, the part that is seen
        seen = np.clip(places, 0.0, self.wanted)
        weights = interpolation((seen - 0.5 - axis.start) / axis.step, cells)
        weights[np.abs(seen - places) > half * (1 - 1e-6)] = 0.0
        return weights

    def over_picture(self, cells: int, axis: Axis) -> npt.NDArray[np.float32]:
        """(wanted, cells): the weights of the cells in each pixel of the picture."""
        return interpolation((np.arange(self.wanted) - axis.start) / axis.step, cells)


@dataclass(frozen=True, slots=True)
class PixelMapping:
    """
    Where the pictures that a recipe makes of a volume come from.

    Attributes
    ----------
    pose : DisplayOrientation
        How the slices lie in the array.
    rows, columns : _Side
        Of the display.
    slices : tuple of int
        The slices of the volume that have a part in a picture, ascending.
    shares : numpy.ndarray
        (slices, pictures) float32: how much each picture says about each slice; rows sum to 1.
    """

    pose: DisplayOrientation
    rows: _Side
    columns: _Side
    slices: tuple[int, ...]
    shares: npt.NDArray[np.float32]

    @classmethod
    def of(cls, volume: Volume, recipe: Preprocess, pictured: Sequence[int]) -> PixelMapping:
        """
        Return those of a volume.

        Parameters
        ----------
        volume : Volume
            As it was read.
        recipe : Preprocess
            What was done with it.
        pictured : sequence of int
            For each picture its slice in the volume, as :class:`medimg.preprocessing.render.Rendered` has it.
        """
        pose = DisplayOrientation.of(volume, recipe)
        size, spacing = pose.grid(volume)
        resampled, scales = size, (1.0, 1.0)
        slices, shares = _nearest(pictured)
        if recipe.spacing is not None:
            upright = pose.reorient(volume)
            axes = plan_axes(upright.shape, upright.spacing, recipe.spacing)
            _, *between = spacing_of(resample_affine(upright.affine, axes))
            spacing = (between[0], between[1])
            resampled = (axes[1].new_size, axes[2].new_size)
            scales = (_scale(axes[1]), _scale(axes[2]))
            if len(pictured) == axes[0].new_size > 1:
                slices, shares = _between(axes[0], turned=pose.turned)
        inner = compute_fitted_size(resampled, spacing, recipe.hw, recipe.fit)
        rows, columns = (_Side(*side) for side in zip(size, resampled, scales, inner, recipe.hw, strict=True))
        return cls(pose, rows, columns, slices, shares)

    def chosen(self, slices: Sequence[int]) -> PixelMapping:
        """Return those of some slices only, in ascending order; all of them must be there."""
        kept = sorted(set(slices))
        shares = self.shares[[self.slices.index(n) for n in kept]]
        return PixelMapping(self.pose, self.rows, self.columns, tuple(kept), shares)

    @property
    def pictures(self) -> tuple[int, ...]:
        """The pictures that have a part in a slice."""
        return tuple(np.flatnonzero(self.shares.any(axis=0)).tolist())

    def spread(self, cams: npt.NDArray[np.float32], axes: tuple[Axis, Axis]) -> npt.NDArray[np.float32]:
        """
        Spread the cells of pictures over the pixels of the volume.

        Parameters
        ----------
        cams : numpy.ndarray
            (pictures, h, w) float32: one of each in :attr:`pictures`.
        axes : tuple of 2 Axis
            Where in the pictures the cells lie.

        Returns
        -------
        numpy.ndarray
            (slices, H, W) float32, as the array lies; 0 where the recipe cropped.
        """
        by_slice = np.tensordot(self.shares[:, list(self.pictures)], cams, axes=1)
        down = self.rows.from_cells(cams.shape[1], axes[0])
        across = self.columns.from_cells(cams.shape[2], axes[1])
        down = down[::-1] if self.pose.flips[0] else down
        across = across[::-1] if self.pose.flips[1] else across
        if self.pose.swapped:
            by_slice, down, across = by_slice.transpose(0, 2, 1), across, down
        return np.stack([down @ plane @ across.T for plane in by_slice]).astype(np.float32, copy=False)

    def outside(self, cams: npt.NDArray[np.float32], axes: tuple[Axis, Axis]) -> tuple[float, float]:
        """
        Say what lies where the source covers nothing, in the padding.

        Parameters
        ----------
        cams : numpy.ndarray
            (pictures, h, w) float32.
        axes : tuple of 2 Axis
            Where in the pictures the cells lie.

        Returns
        -------
        tuple of 2 floats
            The greatest value there, and the share of the sum over the pictures.
        """
        rows, columns = self.rows, self.columns
        if (rows.covered.stop, columns.covered.stop) == (rows.wanted, columns.wanted):
            return 0.0, 0.0
        down = rows.over_picture(cams.shape[1], axes[0])
        across = columns.over_picture(cams.shape[2], axes[1])
        highest, total, inside = 0.0, 0.0, 0.0
        for cam in cams:
            picture = down @ cam @ across.T
            total += float(picture.sum())
            inside += float(picture[rows.covered, columns.covered].sum())
            picture[rows.covered, columns.covered] = 0.0
            highest = max(highest, float(picture.max()))
        return highest, 1.0 - inside / total if total > 0 else 0.0


def _scale(axis: ResampledAxis) -> float:
    return 1.0 if axis.is_unchanged else axis.scale


def _nearest(pictured: Sequence[int]) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return the slices that have pictures, and the mean of the pictures of each."""
    slices, owner, counts = np.unique(np.asarray(pictured), return_inverse=True, return_counts=True)
    shares = np.zeros((len(slices), len(pictured)), np.float32)
    shares[owner, np.arange(len(pictured))] = 1.0 / counts[owner]
    return tuple(slices.tolist()), shares


def _between(axis: ResampledAxis, *, turned: bool) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return all slices of a volume whose resampled slices all are pictures, and what lies between these."""
    shares = interpolation((np.arange(axis.size) + 0.5) / axis.scale - 0.5, axis.new_size)
    return tuple(range(axis.size)), shares[::-1] if turned else shares
