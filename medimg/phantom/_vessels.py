"""Vessels and airways: trees of tubes that branch from the hila into the lungs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimg.phantom._anatomy import Chest
from medimg.phantom._shapes import Tubes
from medimg.phantom.patient import Patient

__all__ = ["Tree", "grow_tree", "make_mediastinal_airways", "make_mediastinal_vessels", "measure_lung_depth"]

_GENERATIONS = 7
_LOBES = np.array(  # directions of the first branches of the right lung; x is mirrored for the left
    [
        [-0.45, -0.35, 0.85],
        [-0.60, 0.45, 0.70],
        [-0.90, -0.50, 0.05],
        [-0.80, 0.55, 0.10],
        [-0.60, -0.30, -0.80],
        [-0.50, 0.50, -0.75],
        [-0.75, 0.15, -0.60],
        [-0.35, -0.75, 0.30],
        [-0.35, 0.85, -0.20],
    ]
)


@dataclass(frozen=True)
class Tree:
    """Pulmonary vessels, 6 to 0.8 mm in radius, and lumina of the segmental bronchi beside them."""

    vessels: Tubes
    airways: Tubes


def measure_lung_depth(patient: Patient, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the depth (n,) in mm of points (n, 3) below the pleura, negative outside the lungs."""
    x, y, z = (points[:, axis].astype(np.float32) for axis in range(3))
    return -Chest.of(patient, (x, y, z)).lung.astype(np.float64)


def grow_tree(patient: Patient) -> Tree:
    """Grow a patient's pulmonary vessels and bronchi, which depend on the patient's seed."""
    rng = np.random.default_rng([patient.seed, 2])
    vessels: list[Tubes] = []
    airways: list[Tubes] = []
    for side in (-1.0, 1.0):
        start, direction = _make_roots(side, rng)
        radius = rng.uniform(4.6, 5.8, len(start))
        for generation in range(_GENERATIONS):
            length = rng.uniform(0.8, 1.25, len(start)) * 24 * 0.86**generation
            end = start + direction * length[:, None]
            inside = measure_lung_depth(patient, end) > 1.0
            if generation > 0:
                start, end, direction, radius = start[inside], end[inside], direction[inside], radius[inside]
            branches = Tubes(start, end, np.stack([radius, radius * 0.88], axis=1))
            vessels.append(branches)
            if generation < 3:
                airways.append(_make_airways(branches))
            start, direction, radius = _fork(end, direction, radius, rng)
    return Tree(Tubes.join(*vessels), Tubes.join(*airways))


def _make_roots(side: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    direction = _LOBES * np.array([-side, 1, 1]) + rng.normal(scale=0.13, size=_LOBES.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    hilum = np.array([side * 27, -2.0, 14.0 if side < 0 else 20.0])
    start = hilum + np.stack([np.zeros(len(_LOBES)), np.zeros(len(_LOBES)), _LOBES[:, 2] * 20], axis=1)
    return start, direction


def _make_airways(vessels: Tubes) -> Tubes:
    offset = vessels.radius.mean(axis=1, keepdims=True) * np.array([0.0, -1.45, 0.5])
    return Tubes(vessels.start + offset, vessels.end + offset, vessels.radius * 0.55)


def _fork(
    end: NDArray[np.float64],
    direction: NDArray[np.float64],
    radius: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return two children per branch, bent to opposite sides, with radii by Murray's law (2^(-1/3) each)."""
    sideways = np.cross(direction, rng.normal(size=direction.shape))
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    first = np.tan(np.radians(rng.uniform(12, 38, len(end))))[:, None] * sideways
    second = -np.tan(np.radians(rng.uniform(18, 46, len(end))))[:, None] * sideways
    children = np.concatenate([direction + first, direction + second])
    children /= np.linalg.norm(children, axis=1, keepdims=True)
    radii = np.concatenate(
        [radius * rng.uniform(0.76, 0.86, len(end)), radius * rng.uniform(0.68, 0.80, len(end))]
    )
    return np.concatenate([end, end]), children, np.maximum(radii, 0.8)


def make_mediastinal_vessels(patient: Patient) -> Tubes:
    """Return the aorta with arch and branches, superior vena cava, pulmonary trunk and arteries."""
    back = patient.half_depth * 0.42
    aorta = [
        [2, -22, -20],
        [-6, -26, 20],
        [-4, -22, 42],
        [6, -8, 56],
        [16, 12, 58],
        [22, back, 46],
        [22, back, 0],
    ]
    parts = [
        Tubes.path(np.array([*aorta, [20, back, -75], [14, back + 2, -180]], dtype=np.float64), 13.0),
        Tubes.path(
            np.array([[-20, -16, -20], [-22, -18, 30], [-20, -20, 75], [-34, -22, 105]], dtype=np.float64),
            8.0,
        ),
        Tubes.path(
            np.array([[14, -34, -15], [20, -28, 16], [24, -8, 22], [30, 0, 20]], dtype=np.float64), 12.0
        ),
        Tubes.path(np.array([[20, -26, 14], [0, -12, 12], [-28, -4, 12]], dtype=np.float64), 10.0),
        Tubes.path(np.array([[-2, -20, 52], [-14, -18, 110]], dtype=np.float64), 5.5),
        Tubes.path(np.array([[10, -6, 56], [14, -8, 110]], dtype=np.float64), 4.0),
        Tubes.path(np.array([[16, 6, 56], [24, 4, 110]], dtype=np.float64), 4.5),
        Tubes.path(
            np.array([[4, back - 14, 120], [6, back - 12, 0], [10, back - 16, -120]], dtype=np.float64), 6.0
        ),
    ]
    return Tubes.join(*parts)


def make_mediastinal_airways(patient: Patient) -> Tubes:
    """Return the lumina of the trachea and of the main bronchi."""
    middle = 4.0
    carina = [middle, 2.0, 34.0]
    parts = [
        Tubes.path(np.array([[middle, -4, 150], carina], dtype=np.float64), 8.2),
        Tubes.path(
            np.array([carina, [-16, 1, 18], [-30, 2, 6]], dtype=np.float64), np.array([7.2, 6.4, 5.0])
        ),
        Tubes.path(np.array([carina, [22, 6, 14], [36, 8, 4]], dtype=np.float64), np.array([6.6, 5.8, 4.6])),
    ]
    return Tubes.join(*parts)
