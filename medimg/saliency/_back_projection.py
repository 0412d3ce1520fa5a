"""Mapping from the cells of a layer back to the pixels of the source, inverting the preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medimg.core.geometry import spacing_of
from medimg.core.resample import ResampledAxis, plan_axes, resample_affine
from medimg.core.volume import Volume
from medimg.preprocessing.display_orientation import DisplayOrientation
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.resize_plan import compute_fitted_size
from medimg.saliency._receptive_field import Axis

__all__ = ["PixelMapping", "interpolation_weights"]


def interpolation_weights(centers: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.float32]:
    """
    Return weights (n, count) float32 of linear interpolation between samples, rows of which sum to 1.

    Examples
    --------
    >>> interpolation_weights(np.array([-3.0, 0.25, 1.0]), 2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    clipped = np.clip(centers, 0.0, count - 1.0)
    weights: npt.NDArray[np.float32] = np.clip(
        1.0 - np.abs(clipped[:, None] - np.arange(count)), 0.0, None
    ).astype(np.float32)
    return weights


@dataclass(frozen=True, slots=True)
class _PixelAxis:
    """
    Rows or columns between the display and an image.

    Their numbers: in the source (`size`), at the recipe's spacing (`resampled`, coarser by `scale`), resized
    (`inner`), and in the image (`wanted`).
    """

    size: int
    resampled: int
    scale: float
    inner: int
    wanted: int

    @property
    def covered(self) -> slice:
        """The pixels of the image that the source covers."""
        kept = min(self.inner, self.wanted)
        start = (self.wanted - kept) // 2
        return slice(start, start + kept)

    def centers_in_image(self) -> npt.NDArray[np.float64]:
        """Return the centers (size,) of the source's pixels in the image; 0 is its outer edge."""
        # at another spacing the last pixel may be cropped or padded
        resampled = np.clip((np.arange(self.size) + 0.5) / self.scale, 0.0, self.resampled)
        cut = (self.inner - min(self.inner, self.wanted)) // 2
        centers: npt.NDArray[np.float64] = (
            resampled * (self.inner / self.resampled) + self.covered.start - cut
        )
        return centers

    def from_cells(self, cells: int, axis: Axis) -> npt.NDArray[np.float32]:
        """Return the weights (size, cells) of cells in the source's pixels; 0 where it was cropped."""
        centers = self.centers_in_image()
        half = 0.5 / self.scale * (self.inner / self.resampled)
        # the visible part of a pixel at the edge of the image
        seen = np.clip(centers, 0.0, self.wanted)
        weights = interpolation_weights((seen - 0.5 - axis.start) / axis.step, cells)
        weights[np.abs(seen - centers) > half * (1 - 1e-6)] = 0.0
        return weights

    def weights_in_image(self, cells: int, axis: Axis) -> npt.NDArray[np.float32]:
        """Return the weights (wanted, cells) of cells in the pixels of the image."""
        return interpolation_weights((np.arange(self.wanted) - axis.start) / axis.step, cells)


@dataclass(frozen=True, slots=True)
class PixelMapping:
    """
    Mapping between the pixels of a volume and those of the images that a recipe renders from it.

    `slices` are those that contribute to an image, ascending; `shares` (slices, images) float32 are the
    weights of the images in each slice, rows of which sum to 1.
    """

    pose: DisplayOrientation
    rows: _PixelAxis
    columns: _PixelAxis
    slices: tuple[int, ...]
    shares: npt.NDArray[np.float32]

    @classmethod
    def of(cls, volume: Volume, recipe: Preprocess, rendered: Sequence[int]) -> PixelMapping:
        """Return the mapping of a volume; `rendered` has the slice in the volume of each image."""
        pose = DisplayOrientation.of(volume, recipe)
        size, spacing = pose.grid(volume)
        resampled, scales = size, (1.0, 1.0)
        slices, shares = _mean_of_images(rendered)
        if recipe.spacing is not None:
            upright = pose.reorient(volume)
            axes = plan_axes(upright.shape, upright.spacing, recipe.spacing)
            _, *between = spacing_of(resample_affine(upright.affine, axes))
            spacing = (between[0], between[1])
            resampled = (axes[1].new_size, axes[2].new_size)
            scales = (_scale(axes[1]), _scale(axes[2]))
            if len(rendered) == axes[0].new_size > 1:
                slices, shares = _interpolate_slices(axes[0], turned=pose.turned)
        inner = compute_fitted_size(resampled, spacing, recipe.hw, recipe.fit)
        rows, columns = (
            _PixelAxis(*values) for values in zip(size, resampled, scales, inner, recipe.hw, strict=True)
        )
        return cls(pose, rows, columns, slices, shares)

    def select_slices(self, slices: Sequence[int]) -> PixelMapping:
        """Return the mapping of some of its slices, in ascending order."""
        kept = sorted(set(slices))
        shares = self.shares[[self.slices.index(n) for n in kept]]
        return PixelMapping(self.pose, self.rows, self.columns, tuple(kept), shares)

    @property
    def images(self) -> tuple[int, ...]:
        """The images that contribute to a slice."""
        return tuple(np.flatnonzero(self.shares.any(axis=0)).tolist())

    def to_source(self, cams: npt.NDArray[np.float32], axes: tuple[Axis, Axis]) -> npt.NDArray[np.float32]:
        """
        Return heat (slices, H, W) float32 from maps (images, h, w) with cell centers on these axes.

        It is 0 where the recipe cropped.
        """
        by_slice = np.tensordot(self.shares[:, list(self.images)], cams, axes=1)
        down = self.rows.from_cells(cams.shape[1], axes[0])
        across = self.columns.from_cells(cams.shape[2], axes[1])
        down = down[::-1] if self.pose.flips[0] else down
        across = across[::-1] if self.pose.flips[1] else across
        if self.pose.swapped:
            by_slice, down, across = by_slice.transpose(0, 2, 1), across, down
        return np.stack([down @ plane @ across.T for plane in by_slice]).astype(np.float32, copy=False)

    def padding_heat(self, cams: npt.NDArray[np.float32], axes: tuple[Axis, Axis]) -> tuple[float, float]:
        """Return the maximum of maps (images, h, w) in the padding, and the fraction of their sum there."""
        rows, columns = self.rows, self.columns
        if (rows.covered.stop, columns.covered.stop) == (rows.wanted, columns.wanted):
            return 0.0, 0.0
        down = rows.weights_in_image(cams.shape[1], axes[0])
        across = columns.weights_in_image(cams.shape[2], axes[1])
        highest, total, inside = 0.0, 0.0, 0.0
        for cam in cams:
            image = down @ cam @ across.T
            total += float(image.sum())
            inside += float(image[rows.covered, columns.covered].sum())
            image[rows.covered, columns.covered] = 0.0
            highest = max(highest, float(image.max()))
        return highest, 1.0 - inside / total if total > 0 else 0.0


def _scale(axis: ResampledAxis) -> float:
    """Return the spacing of a resampled axis over the original one."""
    return 1.0 if axis.is_unchanged else axis.scale


def _mean_of_images(rendered: Sequence[int]) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return the slices that have images, and the shares (slices, images) of the mean of these."""
    slices, owner, counts = np.unique(np.asarray(rendered), return_inverse=True, return_counts=True)
    shares = np.zeros((len(slices), len(rendered)), np.float32)
    shares[owner, np.arange(len(rendered))] = 1.0 / counts[owner]
    return tuple(slices.tolist()), shares


def _interpolate_slices(
    axis: ResampledAxis, *, turned: bool
) -> tuple[tuple[int, ...], npt.NDArray[np.float32]]:
    """Return all slices of a volume, and the shares (slices, images) of its resampled slices in them."""
    shares = interpolation_weights((np.arange(axis.size) + 0.5) / axis.scale - 0.5, axis.new_size)
    return tuple(range(axis.size)), shares[::-1] if turned else shares
