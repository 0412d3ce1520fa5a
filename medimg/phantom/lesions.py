"""Lesions: where they lie, what they look like, and the mask that says which points belong to them."""

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medimg.errors import DatasetError
from medimg.phantom._shapes import Array, Coordinates, Grid, Tubes, blend, coverage, draw_tubes
from medimg.phantom._vessels import lung_depth
from medimg.phantom.anatomy import Chest
from medimg.phantom.patient import Patient

__all__ = ["CLASSES", "Blob", "Lesion", "check_classes", "paint_lesions", "plan_lesions"]

CLASSES: Final = ("normal", "nodule", "ground_glass", "consolidation")
"""The classes a phantom can have."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Blob:
    """
    A ball, the building block of a lesion.

    Parameters
    ----------
    center : Point
        x, y, z in mm, in the patient's own coordinates.
    radius : float
        In mm.
    """

    center: Point
    radius: float


@dataclass(frozen=True)
class Lesion:
    """
    One lesion.

    Parameters
    ----------
    kind : str
        "nodule", "ground_glass" or "consolidation".
    blobs : tuple of Blob
        The balls it is made of: one for a nodule, a cluster for the others.
    hu : float
        A nodule's or consolidation's own HU; what ground glass adds to the lung, in HU.
    spicules, bronchi : tuple of tuples
        Spicules of a nodule and air bronchograms of a consolidation: polylines of two points, in mm.
    """

    kind: str
    blobs: tuple[Blob, ...]
    hu: float
    spicules: tuple[tuple[Point, Point], ...] = ()
    bronchi: tuple[tuple[Point, Point], ...] = ()

    @property
    def center(self) -> Point:
        """Mean of the centers of the blobs: x, y, z in mm, in the patient's own coordinates."""
        x, y, z = (float(v) for v in np.mean([blob.center for blob in self.blobs], axis=0))
        return x, y, z

    @property
    def diameter(self) -> float:
        """Largest extent along an axis, in mm."""
        low, high = self.bounds
        return float((high - low).max())

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper corner (3,) of the box around the blobs, in mm."""
        centers = np.array([blob.center for blob in self.blobs])
        radii = np.array([[blob.radius] for blob in self.blobs])
        return (centers - radii).min(axis=0), (centers + radii).max(axis=0)


def check_classes(classes: tuple[str, ...]) -> None:
    """
    Refuse classes that no phantom has.

    Raises
    ------
    DatasetError
        If `classes` is empty, names a class twice, or names one that is not in `CLASSES`.
    """
    unknown = sorted(set(classes) - set(CLASSES))
    if unknown or not classes or len(set(classes)) != len(classes):
        raise DatasetError(
            f"classes are {list(classes)}, but must be different names out of {list(CLASSES)}"
            + (f"; remove {unknown}" if unknown else "")
        )


def plan_lesions(patient: Patient, label: str, heights: tuple[float, float]) -> tuple[Lesion, ...]:
    """
    Decide which lesions a patient has.

    Parameters
    ----------
    patient : Patient
        Whose; the lesions follow from the patient's seed.
    label : str
        One of `CLASSES`.
    heights : tuple of 2 floats
        Lowest and highest z in mm that the scan covers. The lesions lie in about half of that range, at
        random upper, middle or lower, so that the height of a slice doesn't tell whether there is one on
        it, and that each patient has slices with and without.

    Returns
    -------
    tuple of Lesion
        Empty for "normal".
    """
    rng = np.random.default_rng([patient.seed, 3])
    if label == "normal":
        return ()
    count, depth = {
        "nodule": ((9, 12), 10.0),
        "ground_glass": ((4, 5), 10.0),
        "consolidation": ((3, 4), 8.0),
    }[label]
    build = {"nodule": _nodule, "ground_glass": _ground_glass, "consolidation": _consolidation}[label]
    number = int(rng.integers(*count, endpoint=True))
    span = (heights[1] - heights[0]) * 0.55
    lowest = float(rng.uniform(heights[0], heights[1] - span))
    edges = np.linspace(lowest, lowest + span, number + 1)
    return tuple(
        build(_place(patient, (float(low), float(high)), depth, rng), rng)
        for low, high in itertools.pairwise(edges)
    )


def _place(patient: Patient, heights: tuple[float, float], depth: float, rng: np.random.Generator) -> Point:
    """A random point `depth` mm below the pleura between two heights; else the deepest one tried."""
    half = np.array([patient.half_width, patient.half_depth])
    points = np.column_stack([rng.uniform(-1, 1, (400, 2)) * half, rng.uniform(*heights, 400)])
    found = lung_depth(patient, points)
    deep = np.flatnonzero(found > depth)
    x, y, z = points[deep[0] if len(deep) else int(np.argmax(found))]
    return float(x), float(y), float(z)


def _directions(number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    vectors = rng.normal(size=(number, 3))
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _nodule(center: Point, rng: np.random.Generator) -> Lesion:
    diameter = float(rng.uniform(14, 24) if rng.uniform() < 0.9 else rng.uniform(6, 14))
    middle = np.array(center)
    spicules = [
        (_point(middle + way * diameter * 0.35), _point(middle + way * diameter * length))
        for way, length in zip(_directions(10, rng), rng.uniform(0.6, 1.0, 10), strict=True)
    ]
    kept = tuple(spicules) if rng.uniform() < 0.6 else ()
    return Lesion("nodule", (Blob(center, diameter / 2),), float(rng.uniform(20, 60)), spicules=kept)


def _cluster(
    center: Point, number: int, spread: float, radius: tuple[float, float], rng: np.random.Generator
) -> tuple[Blob, ...]:
    offsets = rng.normal(scale=spread, size=(number, 3))
    offsets[0] = 0
    return tuple(
        Blob(_point(np.array(center) + offset), float(size))
        for offset, size in zip(offsets, rng.uniform(*radius, number), strict=True)
    )


def _ground_glass(center: Point, rng: np.random.Generator) -> Lesion:
    return Lesion("ground_glass", _cluster(center, 9, 14, (14, 26), rng), float(rng.uniform(250, 350)))


def _consolidation(center: Point, rng: np.random.Generator) -> Lesion:
    blobs = _cluster(center, 8, 13, (14, 24), rng)
    middle = np.array(center)
    hilum = np.array([np.sign(center[0]) * 30, 0, 10.0])
    bronchi = tuple(
        (_point(middle + 0.3 * (hilum - middle)), _point(middle + way * 24)) for way in _directions(7, rng)
    )
    return Lesion("consolidation", blobs, float(rng.uniform(5, 45)), bronchi=bronchi)


def paint_lesions(
    hu: Array, grid: Grid, chest: Chest, lesions: tuple[Lesion, ...], *, before_vessels: bool
) -> NDArray[np.bool_]:
    """
    Paint those lesions that vessels run through (`before_vessels`), or those that hide them.

    Parameters
    ----------
    hu : Array
        (D, H, W) float32, changed in place.
    grid : Grid
        Where its points lie.
    chest : Chest
        The distances at these points; nothing is painted outside of the lungs.
    lesions : tuple of Lesion
        What to paint.
    before_vessels : bool
        True for ground glass; False for nodules and consolidations.

    Returns
    -------
    ndarray
        (D, H, W) bool: where a lesion covers at least half of the lung.
    """
    mask = np.zeros(hu.shape, dtype=np.bool_)
    lung = coverage(chest.lung)
    for lesion in lesions:
        if (lesion.kind == "ground_glass") is not before_vessels:
            continue
        low, high = lesion.bounds
        (box,) = grid.boxes(low[None] - 4, high[None] + 4)
        if box is None:
            continue
        at = grid.coordinates(box)
        weight = _weight(lesion, at) * lung[box]
        if lesion.kind == "ground_glass":
            hu[box] += weight * lesion.hu * (1 - 0.12 * _waves(lesion, at))
        else:
            blend(hu[box], weight, lesion.hu)
        mask[box] |= weight > 0.5
        _paint_details(hu, grid, lesion, lung)
    return mask


def _weight(lesion: Lesion, at: Coordinates) -> Array:
    """How much of the lung the lesion has replaced, 0 to 1, before it is clipped at the pleura."""
    if lesion.kind == "nodule":
        return coverage(_ball(at, lesion.blobs[0]))
    ragged = _waves(lesion, at) * 1.9
    field = np.zeros(np.broadcast_shapes(*(c.shape for c in at)), dtype=np.float32)
    for blob in lesion.blobs:
        from_middle = (_ball(at, blob) + ragged) * (1 / blob.radius) + 1  # 1 at the edge
        reach = np.clip(from_middle, 0, 1)
        field = np.maximum(field, 1 - reach * reach)
    sharpness = 1.6 if lesion.kind == "ground_glass" else 4.5
    weight: Array = np.clip(field * sharpness, 0, 1)
    return weight


def _ball(at: Coordinates, blob: Blob) -> Array:
    x, y, z = (c - middle for c, middle in zip(at, blob.center, strict=True))
    distance: Array = np.sqrt(x * x + y * y + z * z)
    return distance - np.float32(blob.radius)


def _waves(lesion: Lesion, at: Coordinates) -> Array:
    """An uneven pattern a few mm wide, from -2 to 2."""
    x, y, z = (c - m for c, m in zip(at, lesion.center, strict=True))
    first = np.sin(x * 0.37 + z * 0.11) * np.cos(y * 0.42 - z * 0.23)
    waves: Array = first + np.sin(x * 0.19 - y * 0.27 + 1) * np.cos(x * 0.24 + y * 0.21 + z * 0.25)
    return waves


def _paint_details(hu: Array, grid: Grid, lesion: Lesion, lung: Array) -> None:
    for lines, radius, value in ((lesion.spicules, 0.9, lesion.hu - 60), (lesion.bronchi, 1.7, -900.0)):
        if lines:
            points = np.array(lines)
            taper = np.tile([radius, radius * 0.6], (len(points), 1))
            draw_tubes(hu, grid, Tubes(points[:, 0], points[:, 1], taper), value, within=lung)
