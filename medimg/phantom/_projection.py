"""X-ray projection: attenuation along beams through the chest of the CT phantoms."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from medimg.phantom._anatomy import Chest, spine_x
from medimg.phantom._shapes import Array, Grid, Tubes, blend, compute_coverage, draw_tubes
from medimg.phantom._vessels import grow_tree, make_mediastinal_airways
from medimg.phantom.lesions import Lesion, paint_lesions
from medimg.phantom.patient import Patient

__all__ = ["project_attenuation"]

_WATER = 0.0195  # linear attenuation of water at 70 keV in 1/mm (NIST XCOM: 0.0193)
_DEPTH_STEP = 5.0  # mm between the samples along the beam
_COARSE = 2  # factor by which pixels are larger for the lungs


def project_attenuation(
    patient: Patient, lesions: tuple[Lesion, ...], shape: tuple[int, int], pixel: float
) -> tuple[Array, NDArray[np.bool_]]:
    """
    Integrate the attenuation coefficient along parallel beams, (H, W) float32; also return the lesion mask.

    Rows run from head to feet, columns from the patient's right to left. The integrals are minus the
    logarithm of the transmitted fraction of the beam.
    """
    grid = _make_grid(patient, shape, pixel)
    x, z = (c[0] for c in (grid.coordinates()[0], grid.coordinates()[2]))
    body = _measure_body(patient, x, z)
    missing, mask = _project_lungs(patient, lesions, shape, pixel)
    present = np.clip(body * 0.05, 0, 1)
    bones = (
        _project_ribs(patient, grid) * 1.5
        + _project_clavicles(patient, grid) * 3.0
        + _project_spine(patient, x, z) * 0.3
    )
    vessels = _project_vessels(patient, grid)
    water = np.maximum(body - missing + vessels * 0.82, 0) + bones * present
    return (water * _WATER).astype(np.float32), mask


def _make_grid(patient: Patient, shape: tuple[int, int], pixel: float, samples: int = 1) -> Grid:
    """Make a coronal grid: d from front to back, h from head to feet, w from right to left."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = _DEPTH_STEP, -pixel, pixel, 1
    middle = np.array([0.0, 0.0, (patient.apex + patient.dome) / 2 - 14, 1.0])
    full = (samples, *shape)
    affine[:3, 3] = (middle - affine @ np.array([*((np.array(full) - 1) / 2), 0.0]))[:3]
    return Grid(full, affine)


def _measure_body(patient: Patient, x: Array, z: Array) -> Array:
    """Return the thickness of the body in mm: a trunk that widens to the shoulders, and a neck."""
    wall = 11 + patient.muscle + patient.fat
    rise = np.clip((z - 20) / 80, 0, 1)
    width = patient.half_width + wall + 48 * rise * rise * (3 - 2 * rise)
    depth = patient.half_depth + wall - 14 * np.clip((z - 40) / 90, 0, 1)
    trunk = 2 * depth * np.clip(1 - np.abs(x / width) ** 2.4, 0, 1) ** (1 / 2.4)
    top = patient.apex + 16 + np.maximum(width - 75 - np.abs(x), -60) * 0.3
    trunk = trunk * np.sqrt(np.clip((top - z) / 55, 0, 1))
    neck = 110 * np.sqrt(np.clip(1 - (x / 62) ** 2, 0, 1)) * np.clip((z - 40) / 60, 0, 1)
    thickness: Array = np.maximum(trunk, neck)
    return thickness


def _project_lungs(
    patient: Patient, lesions: tuple[Lesion, ...], shape: tuple[int, int], pixel: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the water, in mm, that air in lungs and airways replaces in each beam, and the lesion mask."""
    rows, columns = (-(-n // _COARSE) for n in shape)
    samples = int(2 * patient.half_depth / _DEPTH_STEP) + 1
    fine = _make_grid(patient, shape, pixel)
    affine = _make_grid(patient, shape, pixel, samples).affine @ np.diag([1.0, _COARSE, _COARSE, 1.0])
    affine[[2, 0], 3] = fine.affine[[2, 0], 3] + np.array([-pixel, pixel]) * (_COARSE - 1) / 2
    grid = Grid((samples, rows, columns), affine)
    chest = Chest.of(patient, grid.coordinates())
    hu = np.zeros(grid.shape, dtype=np.float32)
    blend(hu, compute_coverage(chest.lung, 3.0), patient.lung_hu)
    mask = paint_lesions(hu, grid, chest, lesions, before_vessels=True)
    mask |= paint_lesions(hu, grid, chest, lesions, before_vessels=False)
    draw_tubes(hu, grid, make_mediastinal_airways(patient), -1000.0)
    missing = hu.sum(axis=0) * (-_DEPTH_STEP / 1000)
    missing = ndimage.zoom(missing, _COARSE, order=1, mode="nearest", grid_mode=True)
    seen = np.repeat(np.repeat(mask.any(axis=0), _COARSE, axis=0), _COARSE, axis=1)
    return missing[: shape[0], : shape[1]], seen[: shape[0], : shape[1]]


def _splat(points: NDArray[np.float64], weights: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """Sum the weights (n,) of points (n, 3) into the pixels they project to."""
    inverse = np.linalg.inv(grid.affine)
    index = np.rint(points @ inverse[1:3, :3].T + inverse[1:3, 3]).astype(int)
    _, rows, columns = grid.shape
    inside = np.all((index >= 0) & (index < [rows, columns]), axis=1)
    flat = index[inside] @ np.array([columns, 1])
    total = np.bincount(flat, weights[inside], minlength=rows * columns)
    return total.astype(np.float64).reshape(rows, columns)


def _project_hollow_bone(points: NDArray[np.float64], step: float, radius: float, grid: Grid) -> Array:
    """Return the path length in mm through hollow bone of `radius` mm about a center line of points."""
    pixel = grid.spacing[1]
    reach = np.arange(-np.ceil(radius / pixel), np.ceil(radius / pixel) + 1) * pixel / radius
    level = reach[:, None] ** 2 + reach[None, :] ** 2
    profile = np.sqrt(np.clip(1 - level, 0, None)) - 0.62 * np.sqrt(np.clip(0.62 - level, 0, None))
    density = _splat(points, np.full(len(points), step), grid)
    smooth: Array = signal.oaconvolve(density, profile * (4 / np.pi), mode="same").astype(np.float32)
    return smooth


def _project_ribs(patient: Patient, grid: Grid) -> Array:
    angles, size = np.linspace(0.22, 2.3, 420), float(np.sqrt(patient.half_width * patient.half_depth))
    lines = []
    for rib in range(-7, 8):
        z = (rib + 0.5) * patient.rib_pitch - patient.rib_phase - angles * 34
        share = np.sqrt(1 - np.clip(z / (patient.apex + 4), 0, 0.97) ** 3) + 6 / size
        sine, cosine = (
            np.abs(np.sin(angles) / patient.half_width),
            np.abs(np.cos(angles) / patient.half_depth),
        )
        reach = share / (sine**2.4 + cosine**2.4) ** (1 / 2.4)
        if z.max() < patient.apex + 6:
            x, y = reach * np.sin(angles), reach * np.cos(angles)
            lines += [np.column_stack([x, y, z]), np.column_stack([-x, y, z])]
    step = size * 2.1 / len(angles)
    return _project_hollow_bone(np.concatenate(lines), step, 5.6, grid)


def _project_clavicles(patient: Patient, grid: Grid) -> Array:
    t = np.linspace(0, 1, 400)
    top = patient.apex - 26
    line = [14 + 128 * t, 0 * t, top + 36 * t + 7 * np.sin(t * 5.2)]
    points = [np.column_stack([side * line[0], line[1], line[2]]) for side in (-1, 1)]
    return _project_hollow_bone(np.concatenate(points), 135 / len(t), 6.4, grid)


def _project_spine(patient: Patient, x: Array, z: Array) -> Array:
    """Return the bone of the vertebrae in mm: bodies, end plates, pedicles and spinous processes."""
    across = x - spine_x(patient, z)
    phase = np.mod(z + 9, 24.0) - 12
    body = 29 * np.sqrt(np.clip(1 - (across / 18) ** 2, 0, 1)) * compute_coverage(np.abs(phase) - 9.5, 2.0)
    plates = 9 * compute_coverage(np.abs(np.abs(phase) - 9) - 0.8) * compute_coverage(np.abs(across) - 17)
    pedicles = 16 * compute_coverage(np.hypot(np.abs(across) - 11.5, phase - 3) - 3.4)
    process = 22 * compute_coverage(np.hypot(across * 1.8, phase + 4) - 4.5)
    transverse = 7 * compute_coverage(np.maximum(np.abs(np.abs(across) - 26) - 11, np.abs(phase - 3) - 4))
    bone: Array = body + plates + pedicles + process + transverse
    return bone


def _project_vessels(patient: Patient, grid: Grid) -> Array:
    """Return the path length in mm through the pulmonary vessels."""
    tubes, pixel = grow_tree(patient).vessels, grid.spacing[1]
    total = np.zeros(grid.shape[1:], dtype=np.float32)
    mean = tubes.radius.mean(axis=1)
    for low, high in ((0.0, 1.3), (1.3, 2.1), (2.1, 3.3), (3.3, 9.0)):
        chosen = np.flatnonzero((mean >= low) & (mean < high))
        points, weights = _sample_tubes(tubes, chosen)
        sigma = float(mean[chosen].mean()) * 0.55 / pixel
        total += ndimage.gaussian_filter(_splat(points, weights, grid) / pixel**2, sigma).astype(np.float32)
    return total


def _sample_tubes(tubes: Tubes, chosen: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points (n, 3) along tubes, and the volume in cubic mm of each."""
    t = (np.arange(48) + 0.5) / 48
    start, way = tubes.start[chosen], tubes.end[chosen] - tubes.start[chosen]
    points = start[:, None, :] + way[:, None, :] * t[:, None]
    radius = tubes.radius[chosen, :1] + (tubes.radius[chosen, 1:] - tubes.radius[chosen, :1]) * t
    volume = np.pi * radius**2 * (np.linalg.norm(way, axis=1, keepdims=True) / len(t))
    return points.reshape(-1, 3), volume.reshape(-1)
