"""Anatomy of the chest: shapes of lungs, bones and organs, and their HU."""

from dataclasses import dataclass

import numpy as np

from medimg.phantom._shapes import Array, Coordinates, blend, compute_coverage, ellipsoid_distance
from medimg.phantom.patient import Patient

__all__ = ["Chest", "diaphragm_height", "paint_chest", "spine_x"]

AIR_HU = -1000.0
FAT_HU = -100.0
_ROUNDNESS = 2.4  # exponent of the chest's cross-section: 2 an ellipse, more is boxier


@dataclass(frozen=True)
class Chest:
    """Signed distances (mm, negative inside) at given points to rib cage, skin and the nearer lung."""

    at: Coordinates  # x, y, z of the points in the patient's own coordinates
    cavity: Array  # to the inner surface of the rib cage
    skin: Array
    lung: Array

    @classmethod
    def of(cls, patient: Patient, at: Coordinates) -> "Chest":
        """Compute the distances for one patient at the points `at`."""
        x, y, z = at
        size = float(np.sqrt(patient.half_width * patient.half_depth))
        section = _compute_section(x, y, patient.half_width, patient.half_depth)
        cavity = size * (section - _compute_narrowing(z, patient.apex))
        wall = 11 + patient.muscle + patient.fat
        outer = float(np.sqrt((patient.half_width + wall) * (patient.half_depth + wall)))
        skin = outer * (
            _compute_section(x, y, patient.half_width + wall, patient.half_depth + wall) - 1
        ) - _compute_relief(x, y)
        lung = np.maximum(cavity + 2.5, -_mediastinum_distance(patient, at))
        lung = np.maximum(lung, (diaphragm_height(patient, x, y) - z) * 0.8)
        return cls(at, cavity, skin, lung)


def _compute_section(x: Array, y: Array, half_width: float, half_depth: float) -> Array:
    level: Array = np.abs(x / half_width) ** _ROUNDNESS + np.abs(y / half_depth) ** _ROUNDNESS
    root: Array = level ** (1 / _ROUNDNESS)
    return root


def _compute_relief(x: Array, y: Array) -> Array:
    """Return the height in mm of the back and front muscles over the smooth outline of the body."""
    back = np.clip(y * 0.05, 0, 1) * (8 * np.exp(-(((np.abs(x) - 34) / 24) ** 2)) - 3)
    front = np.clip(y * -0.05, 0, 1) * (7 * np.exp(-(((np.abs(x) - 75) / 38) ** 2)) - 4)
    relief: Array = back + front
    return relief


def _compute_narrowing(z: Array, apex: float) -> Array:
    """Return the relative width of the cavity at height z: 1 below the carina, 0 at the apex."""
    share: Array = np.sqrt(1 - np.clip(z / (apex + 4), 0, 1) ** 3)
    return share


def spine_x(patient: Patient, z: Array) -> Array:
    """Return the x of the spine's axis at height z."""
    curve: Array = np.cos(z * (np.pi / 240)) * patient.shift
    return curve


def diaphragm_height(patient: Patient, x: Array, y: Array) -> Array:
    """Return the height z of the diaphragm at (x, y): a right dome, a lower left one, and dorsal recesses."""
    depth = ((y + 8) / patient.half_depth) ** 2 * 34
    half = patient.half_width * 0.5
    right = patient.dome - ((x + half) / (half * 1.15)) ** 2 * 30
    left = patient.dome - 11 - ((x - half) / (half * 1.15)) ** 2 * 30
    surface: Array = np.maximum(right, left) - depth
    return surface


def _mediastinum_distance(patient: Patient, at: Coordinates) -> Array:
    x, y, z = at
    depth, size = patient.half_depth, patient.heart
    vertebrae = (x - spine_x(patient, z), y, z)
    parts = [
        ellipsoid_distance((x + 4 * np.sin(z * 0.04), y, z), (3, -8, 0), (25, depth * 0.8, None)),
        ellipsoid_distance(at, (20, 4, 52), (21, 34, 17)),
        ellipsoid_distance(vertebrae, (0, depth * 0.72, 0), (24, 24, None)),
        ellipsoid_distance(at, (22, depth * 0.42, 0), (15, 15, None)),
        ellipsoid_distance(at, (20, -depth * 0.3, -44), (52 * size, 45 * size, 52 * size)),
        ellipsoid_distance(at, (46, -depth * 0.38, -56), (40 * size, 34 * size, 36 * size)),
        ellipsoid_distance(at, (-18, -depth * 0.25, -42), (32 * size, 36 * size, 44 * size)),
    ]
    nearest = parts[0]
    for part in parts[1:]:
        nearest = np.minimum(nearest, part)
    return nearest


def paint_chest(patient: Patient, chest: Chest) -> Array:
    """Return the HU, float32, of everything but vessels, airways and lesions at the points of `chest`."""
    shape = np.broadcast_shapes(*(c.shape for c in chest.at))
    hu = np.full(shape, AIR_HU, dtype=np.float32)
    _paint_wall(hu, patient, chest)
    _paint_ribs(hu, patient, chest)
    _paint_abdomen(hu, patient, chest)
    _paint_heart(hu, patient, chest.at)
    blend(hu, compute_coverage(chest.lung), _compute_parenchyma(patient, chest))
    _paint_spine(hu, patient, chest.at)
    _paint_sternum(hu, patient, chest.at)
    return hu


def _paint_wall(hu: Array, patient: Patient, chest: Chest) -> None:
    x, y, _ = chest.at
    blend(hu, compute_coverage(chest.skin), 25.0)
    blend(hu, compute_coverage(chest.skin + 2.5), FAT_HU)
    width, depth = patient.half_width + 11 + patient.muscle, patient.half_depth + 11 + patient.muscle
    muscle = (
        float(np.sqrt(width * depth)) * (_compute_section(x, y, width, depth) - 1)
        - _compute_relief(x, y) * 0.8
    )
    blend(hu, compute_coverage(muscle), patient.soft_hu)
    wave = 3.5 * np.cos(x * 0.045 + 0.4) * np.sin(y * 0.05) + 0.6
    planes = compute_coverage(np.abs(chest.cavity - 15 - wave) - 0.9) + compute_coverage(
        np.abs(chest.cavity - 26 + 1.6 * wave) - 0.7
    )
    fading = np.clip(0.55 + 0.6 * np.sin(x * 0.06 + y * 0.035), 0, 1)
    blend(hu, np.clip(planes, 0, 1) * compute_coverage(muscle + 5) * fading, FAT_HU)
    blend(hu, compute_coverage(chest.cavity + 2), FAT_HU)


def _paint_ribs(hu: Array, patient: Patient, chest: Chest) -> None:
    x, y, z = chest.at
    angle = np.arctan2(np.abs(x), y - 0.1 * patient.half_depth)  # 0 at the spine, pi at the sternum
    drop = np.where(angle < 2.3, angle * 34, 2.3 * 34 - (angle - 2.3) * 45)
    height = np.mod(z + drop + patient.rib_phase, patient.rib_pitch) - patient.rib_pitch / 2
    radius = np.sqrt(((chest.cavity - 6) / 4.6) ** 2 + (height / 6.8) ** 2)
    present = compute_coverage(np.abs(angle - 1.66) * 60 - 87)
    osseous = compute_coverage((angle - 2.35) * 60)
    blend(hu, compute_coverage((radius - 1) * 4.6) * present, 110.0 + osseous * 560)
    blend(hu, compute_coverage((radius - 0.62) * 4.6) * present * osseous, patient.bone_hu + 20)
    plate = np.maximum(np.abs(chest.cavity - 19) - 2.6, np.abs(angle - 0.95) * 110 - 40)
    plate = np.maximum(plate, np.abs(z - 62) - 52)
    blend(hu, compute_coverage(plate), 480.0)


def _paint_spine(hu: Array, patient: Patient, at: Coordinates) -> None:
    x, y, z = at
    local = (x - spine_x(patient, z), y, z)
    back = patient.half_depth * 0.72
    disc = np.abs(np.mod(z + 9, 24.0) - 12) - 9.2  # negative within the vertebra, positive within the disc
    trabecular = patient.bone_hu - compute_coverage(-disc) * (patient.bone_hu - 85)
    cortical = 520 - compute_coverage(-disc) * 420
    body = ellipsoid_distance(local, (0, back, 0), (17.5, 14.5, None))
    arch = ellipsoid_distance(local, (0, back + 23, 0), (17, 12, None))
    process = np.maximum(np.abs(local[0]) - 3, np.abs(y - back - 40) - 13)
    transverse = np.maximum(
        np.abs(np.abs(local[0]) - 24) - 13, np.abs(y - back - 20 - np.abs(local[0]) * 0.25) - 4
    )
    transverse = np.maximum(transverse, disc + 2)
    for part, level in ((transverse, 430.0), (process, 430.0), (arch, 480.0)):
        blend(hu, compute_coverage(part), level)
    blend(hu, compute_coverage(body), cortical)
    blend(hu, compute_coverage(body + 2.2), trabecular)
    blend(hu, compute_coverage(ellipsoid_distance(local, (0, back + 21, 0), (9.5, 7.5, None))), 25.0)


def _paint_sternum(hu: Array, patient: Patient, at: Coordinates) -> None:
    z = at[2]
    front = -(patient.half_depth + 2) + np.clip(z, 0, 90) * 0.3
    local = (at[0], at[1] - front, z)
    plate = np.maximum(ellipsoid_distance(local, (0, 0, 0), (19, 6.5, None)), -75 - z)
    blend(hu, compute_coverage(plate), 420.0)
    blend(hu, compute_coverage(plate + 2), patient.bone_hu - 40)


def _paint_heart(hu: Array, patient: Patient, at: Coordinates) -> None:
    depth, size = patient.half_depth, patient.heart
    chambers = [
        ellipsoid_distance(at, (20, -depth * 0.3, -44), (47 * size, 40 * size, 47 * size)),
        ellipsoid_distance(at, (46, -depth * 0.38, -56), (36 * size, 30 * size, 32 * size)),
        ellipsoid_distance(at, (-18, -depth * 0.25, -42), (28 * size, 32 * size, 40 * size)),
    ]
    muscle = np.minimum(np.minimum(chambers[0], chambers[1]), chambers[2])
    blend(hu, compute_coverage(muscle), 48.0)
    blend(
        hu,
        compute_coverage(np.abs(chambers[0] - chambers[2]) - 1.5) * compute_coverage(muscle + 3) * 0.35,
        FAT_HU,
    )


def _paint_abdomen(hu: Array, patient: Patient, chest: Chest) -> None:
    x, y, z = chest.at
    below = np.maximum(chest.cavity + 2.5, z - diaphragm_height(patient, x, y))
    if not bool((below < 0).any()):
        return
    blend(hu, compute_coverage(below), patient.soft_hu)
    inside = compute_coverage(below + 3.5)
    blend(hu, inside, FAT_HU)
    dome = patient.dome
    liver = ellipsoid_distance(chest.at, (-62, -8, dome - 62), (98, 88, 78))
    spleen = ellipsoid_distance(chest.at, (88, 38, dome - 66), (36, 44, 56))
    stomach = ellipsoid_distance(chest.at, (66, -22, dome - 62), (48, 44, 52))
    for organ, level in ((spleen, 50.0), (stomach, 28.0), (liver, 60.0)):
        blend(hu, compute_coverage(organ) * inside, level)
    blend(hu, compute_coverage(np.maximum(stomach + 4, y + 38)) * compute_coverage(-liver) * inside, -960.0)


def _compute_parenchyma(patient: Patient, chest: Chest) -> Array:
    """Return the HU of lung tissue: denser toward the back, hazy below the pleura there, darker cranially."""
    _, y, z = chest.at
    back = np.clip(y / patient.half_depth, -1, 1)
    haze = np.clip(1 + chest.lung / 9, 0, 1) * np.clip(back * 1.6 - 0.5, 0, 1) * patient.dependent
    tissue: Array = patient.lung_hu + back * patient.gradient - z * 0.12 + haze
    return tissue
