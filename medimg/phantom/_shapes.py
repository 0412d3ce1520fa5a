"""Sampling grids and soft-edged shapes of the phantoms."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EDGE_MM",
    "Array",
    "Coordinates",
    "Grid",
    "Tubes",
    "blend",
    "compute_coverage",
    "draw_tubes",
    "ellipsoid_distance",
]

Array: TypeAlias = NDArray[np.float32]
Coordinates: TypeAlias = tuple[Array, Array, Array]
Box: TypeAlias = tuple[slice, slice, slice]

EDGE_MM = 1.6
"""Width of the ramp from outside to inside of a shape, in mm: the partial-volume blur of an edge."""


@dataclass(frozen=True)
class Grid:
    """A regular grid of points (d, h, w), with a 4×4 affine from index to x, y, z in mm (LPS)."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbors along (d, h, w)."""
        d, h, w = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return d, h, w

    def coordinates(self, box: Box | None = None) -> Coordinates:
        """
        Return x, y and z in mm, float32, of the points, or of those inside a box of indices.

        Each has three axes (d, h, w), of length 1 along axes it does not depend on, so that they broadcast.
        """
        bounds = [(0, n) for n in self.shape] if box is None else [(s.start, s.stop) for s in box]
        axes = np.ix_(*(np.arange(start, stop, dtype=np.float64) for start, stop in bounds))
        x, y, z = (self._coordinate(row, axes) for row in self.affine[:3])
        return x, y, z

    @staticmethod
    def _coordinate(row: NDArray[np.float64], axes: tuple[NDArray[np.float64], ...]) -> Array:
        total = np.full((1, 1, 1), row[3])
        for factor, axis in zip(row[:3], axes, strict=True):
            if factor != 0:
                total = total + factor * axis
        return total.astype(np.float32)

    def boxes(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> list[Box | None]:
        """Return the smallest index box for each box of space, with corners (n, 3) in mm; None if empty."""
        inverse = np.linalg.inv(self.affine)
        middle = (low + high) / 2 @ inverse[:3, :3].T + inverse[:3, 3]
        reach = (high - low) / 2 @ np.abs(inverse[:3, :3]).T
        first = np.maximum(np.ceil(middle - reach), 0).astype(int).tolist()
        last = np.minimum(np.floor(middle + reach) + 1, self.shape).astype(int).tolist()
        return [
            None if any(a >= b for a, b in zip(start, stop, strict=True)) else _box(start, stop)
            for start, stop in zip(first, last, strict=True)
        ]


def _box(start: list[int], stop: list[int]) -> Box:
    d, h, w = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return d, h, w


@dataclass(frozen=True)
class Tubes:
    """Straight tubes with round ends (n, 3) and a linearly changing radius (n, 2), in mm."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius: NDArray[np.float64]

    @classmethod
    def path(cls, points: NDArray[np.float64], radius: float | NDArray[np.float64]) -> "Tubes":
        """Make the tube along a polyline (n, 3), with one radius in mm, or one per corner (n,)."""
        radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(points),))
        return cls(points[:-1], points[1:], np.stack([radii[:-1], radii[1:]], axis=1))

    @classmethod
    def join(cls, *parts: "Tubes") -> "Tubes":
        """Concatenate several sets of tubes."""
        return cls(
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.end for part in parts]),
            np.concatenate([part.radius for part in parts]),
        )

    def widen(self, by: float) -> "Tubes":
        """Return the tubes with `by` mm added to every radius."""
        return Tubes(self.start, self.end, self.radius + by)

    def __len__(self) -> int:
        return len(self.start)


def compute_coverage(distance: Array, edge: float = EDGE_MM) -> Array:
    """
    Convert signed distances (mm, negative inside) to coverage from 1 to 0, with a ramp of `edge` mm.

    Examples
    --------
    >>> compute_coverage(np.float32([-5, 0, 5])).tolist()
    [1.0, 0.5, 0.0]
    """
    scaled = distance * (-1.0 / edge)
    scaled += 0.5
    clipped: Array = np.clip(scaled, 0, 1, out=scaled)
    return clipped


def blend(image: Array, weight: Array, value: float | Array) -> None:
    """Blend `value` into `image` in place, by `weight` from 0 to 1."""
    image += weight * (value - image)


def ellipsoid_distance(
    at: Coordinates, center: tuple[float, float, float], radii: tuple[float, float, float | None]
) -> Array:
    """
    Return the approximate signed distance in mm to an ellipsoid, negative inside.

    A third radius of None makes it an elliptic cylinder along z.
    """
    x, y, z = at
    level: Array = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2
    if radii[2] is not None:
        level = level + ((z - center[2]) / radii[2]) ** 2
    smallest = min(r for r in radii if r is not None)
    root: Array = np.sqrt(level)
    return (root - 1) * np.float32(smallest)


def draw_tubes(
    image: Array,
    grid: Grid,
    tubes: Tubes,
    value: float,
    *,
    within: Array | None = None,
    edge: float = EDGE_MM,
) -> None:
    """Draw tubes of a value into an image (D, H, W) float32 in place, multiplied by the coverage `within`."""
    inside = None if within is None else np.broadcast_to(within, image.shape)
    reach = tubes.radius.max(axis=1, keepdims=True) + edge / 2
    low, high = np.minimum(tubes.start, tubes.end) - reach, np.maximum(tubes.start, tubes.end) + reach
    for start, end, radius, box in zip(
        tubes.start, tubes.end, tubes.radius, grid.boxes(low, high), strict=True
    ):
        if box is None:
            continue
        weight = compute_coverage(_tube_distance(grid.coordinates(box), start, end, radius), edge)
        blend(image[box], weight if inside is None else weight * inside[box], value)


def _tube_distance(
    at: Coordinates, start: NDArray[np.float64], end: NDArray[np.float64], radius: NDArray[np.float64]
) -> Array:
    axis = [float(v) for v in end - start]
    length2 = max(sum(v * v for v in axis), 1e-6)
    offsets = [c - float(s) for c, s in zip(at, start, strict=True)]
    along: Array = (offsets[0] * axis[0] + offsets[1] * axis[1] + offsets[2] * axis[2]) * (1.0 / length2)
    along = np.clip(along, np.float32(0), np.float32(1))
    squared = (
        (offsets[0] - along * axis[0]) ** 2
        + (offsets[1] - along * axis[1]) ** 2
        + (offsets[2] - along * axis[2]) ** 2
    )
    first, last = float(radius[0]), float(radius[1])
    distance: Array = np.sqrt(squared) - (along * (last - first) + first)
    return distance
