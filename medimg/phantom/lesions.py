"""Lesions: their position, appearance and mask."""

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medimg.errors import DatasetError
from medimg.phantom._anatomy import Chest
from medimg.phantom._shapes import Array, Coordinates, Grid, Tubes, blend, compute_coverage, draw_tubes
from medimg.phantom._vessels import measure_lung_depth
from medimg.phantom.patient import Patient

__all__ = ["CLASSES", "Blob", "Lesion", "check_classes", "paint_lesions", "plan_lesions"]

CLASSES: Final = ("normal", "nodule", "ground_glass", "consolidation")
"""Classes of phantoms."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Blob:
    """A ball, of which lesions are composed: center x, y, z and radius in mm, in patient coordinates."""

    center: Point
    radius: float


@dataclass(frozen=True)
class Lesion:
    """
    A lesion.

    Parameters
    ----------
    kind : str
        "nodule", "ground_glass" or "consolidation".
    blobs : tuple of Blob
        Balls that compose it: one for a nodule, a cluster for the others.
    hu : float
        HU of a nodule or consolidation; HU that ground glass adds to the lung.
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
    """Raise DatasetError if `classes` is empty, repeats a class, or has one not in `CLASSES`."""
    unknown = sorted(set(classes) - set(CLASSES))
    if unknown or not classes or len(set(classes)) != len(classes):
        raise DatasetError(
            f"classes are {list(classes)}, but must be different names out of {list(CLASSES)}"
            + (f"; remove {unknown}" if unknown else "")
        )


def plan_lesions(patient: Patient, label: str, heights: tuple[float, float]) -> tuple[Lesion, ...]:
    """
    Return the lesions of a patient, which depend on the patient's seed; none for "normal".

    They are in about half of the scanned range of heights (z in mm), at random upper, middle or lower, so
    that the height of a slice does not reveal a lesion, and each patient has slices with and without.
    """
    rng = np.random.default_rng([patient.seed, 3])
    if label == "normal":
        return ()
    count, depth = {
        "nodule": ((9, 12), 10.0),
        "ground_glass": ((4, 5), 10.0),
        "consolidation": ((3, 4), 8.0),
    }[label]
    build = {
        "nodule": _make_nodule,
        "ground_glass": _make_ground_glass,
        "consolidation": _make_consolidation,
    }[label]
    number = int(rng.integers(*count, endpoint=True))
    span = (heights[1] - heights[0]) * 0.55
    lowest = float(rng.uniform(heights[0], heights[1] - span))
    edges = np.linspace(lowest, lowest + span, number + 1)
    return tuple(
        build(_choose_center(patient, (float(low), float(high)), depth, rng), rng)
        for low, high in itertools.pairwise(edges)
    )


def _choose_center(
    patient: Patient, heights: tuple[float, float], depth: float, rng: np.random.Generator
) -> Point:
    """Return a random point `depth` mm below the pleura between two heights; else the deepest one tried."""
    half = np.array([patient.half_width, patient.half_depth])
    points = np.column_stack([rng.uniform(-1, 1, (400, 2)) * half, rng.uniform(*heights, 400)])
    found = measure_lung_depth(patient, points)
    deep = np.flatnonzero(found > depth)
    x, y, z = points[deep[0] if len(deep) else int(np.argmax(found))]
    return float(x), float(y), float(z)


def _draw_directions(number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    vectors = rng.normal(size=(number, 3))
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _to_point(values: NDArray[np.float64]) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _make_nodule(center: Point, rng: np.random.Generator) -> Lesion:
    diameter = float(rng.uniform(14, 24) if rng.uniform() < 0.9 else rng.uniform(6, 14))
    middle = np.array(center)
    spicules = [
        (_to_point(middle + way * diameter * 0.35), _to_point(middle + way * diameter * length))
        for way, length in zip(_draw_directions(10, rng), rng.uniform(0.6, 1.0, 10), strict=True)
    ]
    kept = tuple(spicules) if rng.uniform() < 0.6 else ()
    return Lesion("nodule", (Blob(center, diameter / 2),), float(rng.uniform(20, 60)), spicules=kept)


def _make_cluster(
    center: Point, number: int, spread: float, radius: tuple[float, float], rng: np.random.Generator
) -> tuple[Blob, ...]:
    offsets = rng.normal(scale=spread, size=(number, 3))
    offsets[0] = 0
    return tuple(
        Blob(_to_point(np.array(center) + offset), float(size))
        for offset, size in zip(offsets, rng.uniform(*radius, number), strict=True)
    )


def _make_ground_glass(center: Point, rng: np.random.Generator) -> Lesion:
    return Lesion("ground_glass", _make_cluster(center, 9, 14, (14, 26), rng), float(rng.uniform(250, 350)))


def _make_consolidation(center: Point, rng: np.random.Generator) -> Lesion:
    blobs = _make_cluster(center, 8, 13, (14, 24), rng)
    middle = np.array(center)
    hilum = np.array([np.sign(center[0]) * 30, 0, 10.0])
    bronchi = tuple(
        (_to_point(middle + 0.3 * (hilum - middle)), _to_point(middle + way * 24))
        for way in _draw_directions(7, rng)
    )
    return Lesion("consolidation", blobs, float(rng.uniform(5, 45)), bronchi=bronchi)


def paint_lesions(
    hu: Array, grid: Grid, chest: Chest, lesions: tuple[Lesion, ...], *, before_vessels: bool
) -> NDArray[np.bool_]:
    """
    Paint lesions that vessels run through (ground glass), or those that hide them, into (D, H, W) in place.

    Returns the mask (D, H, W) of voxels at least half of whose lung a lesion covers.
    """
    mask = np.zeros(hu.shape, dtype=np.bool_)
    lung = compute_coverage(chest.lung)
    for lesion in lesions:
        if (lesion.kind == "ground_glass") is not before_vessels:
            continue
        low, high = lesion.bounds
        (box,) = grid.boxes(low[None] - 4, high[None] + 4)
        if box is None:
            continue
        at = grid.coordinates(box)
        weight = _compute_weight(lesion, at) * lung[box]
        if lesion.kind == "ground_glass":
            hu[box] += weight * lesion.hu * (1 - 0.12 * _compute_waves(lesion, at))
        else:
            blend(hu[box], weight, lesion.hu)
        mask[box] |= weight > 0.5
        _paint_details(hu, grid, lesion, lung)
    return mask


def _compute_weight(lesion: Lesion, at: Coordinates) -> Array:
    """Return the fraction of the lung that the lesion replaces, before it is clipped at the pleura."""
    if lesion.kind == "nodule":
        return compute_coverage(_ball_distance(at, lesion.blobs[0]))
    ragged = _compute_waves(lesion, at) * 1.9
    field = np.zeros(np.broadcast_shapes(*(c.shape for c in at)), dtype=np.float32)
    for blob in lesion.blobs:
        from_middle = (_ball_distance(at, blob) + ragged) * (1 / blob.radius) + 1  # 1 at the edge
        reach = np.clip(from_middle, 0, 1)
        field = np.maximum(field, 1 - reach * reach)
    sharpness = 1.6 if lesion.kind == "ground_glass" else 4.5
    weight: Array = np.clip(field * sharpness, 0, 1)
    return weight


def _ball_distance(at: Coordinates, blob: Blob) -> Array:
    x, y, z = (c - middle for c, middle in zip(at, blob.center, strict=True))
    distance: Array = np.sqrt(x * x + y * y + z * z)
    return distance - np.float32(blob.radius)


def _compute_waves(lesion: Lesion, at: Coordinates) -> Array:
    """Return an uneven pattern a few mm wide, from -2 to 2."""
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
