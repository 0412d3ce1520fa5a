"""Synthetic chest CT as arrays."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medimg.errors import DatasetError
from medimg.phantom._anatomy import Chest, paint_chest
from medimg.phantom._shapes import Array, Grid, blend, compute_coverage, draw_tubes
from medimg.phantom._vessels import grow_tree, make_mediastinal_airways, make_mediastinal_vessels
from medimg.phantom.lesions import Lesion, check_classes, paint_lesions, plan_lesions
from medimg.phantom.patient import Habitus, Patient
from medimg.phantom.scanner import CT_SCANNERS, CTScanner, find_ct_scanner

__all__ = ["PhantomCT", "chest_ct"]

Scalar = TypeVar("Scalar", bound=np.generic)

_FLIPPED = {"supine": (1, 1, 1), "feet_first": (-1, 1, -1), "prone": (1, -1, -1)}  # along d, h, w


@dataclass(frozen=True)
class PhantomCT:
    """
    A synthetic chest CT.

    Parameters
    ----------
    seed : int
        Seed of the patient.
    label : str
        Class of the patient.
    scanner : CTScanner
        Scanner and protocol.
    array : numpy.ndarray
        (D, H, W) int16 HU, read-only; D runs along the normal of the slices, (row direction) x (column
        direction).
    affine : numpy.ndarray
        4x4 float64, index (d, h, w) to LPS mm.
    lesion_mask : numpy.ndarray
        (D, H, W) bool, read-only: voxels of lesions.
    outside : numpy.ndarray
        (H, W) bool, read-only: pixels outside the field of view of the scanner.
    lesions : tuple of Lesion
        Lesions of the patient, including those beyond the slices; in coordinates about `scan_center`.
    scan_center : tuple of 3 floats
        LPS position in mm of the origin of the patient's own coordinates.
    """

    seed: int
    label: str
    scanner: CTScanner
    array: NDArray[np.int16] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    lesion_mask: NDArray[np.bool_] = field(repr=False)
    outside: NDArray[np.bool_] = field(repr=False)
    lesions: tuple[Lesion, ...] = field(repr=False)
    scan_center: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between slices, rows and columns."""
        return Grid(self._shape, self.affine).spacing

    @property
    def lesion_mm2(self) -> tuple[float, ...]:
        """Area of the lesions on each slice, in square mm."""
        _, rows, columns = self.spacing
        return tuple(float(count) * rows * columns for count in self.lesion_mask.sum(axis=(1, 2)))

    @property
    def slice_labels(self) -> tuple[str, ...]:
        """Class of each slice: the patient's if a lesion is on it, else "normal"."""
        return tuple(self.label if area > 0 else "normal" for area in self.lesion_mm2)

    @property
    def _shape(self) -> tuple[int, int, int]:
        d, h, w = self.array.shape
        return d, h, w


def chest_ct(
    seed: int = 0,
    *,
    label: str = "normal",
    scanner: str | CTScanner = CT_SCANNERS[0],
    slices: int = 12,
    size: int = 256,
    habitus: Habitus | None = None,
    noise: bool = True,
) -> PhantomCT:
    """
    Make a synthetic chest CT.

    The patient depends only on `seed`, `label` and `habitus`: two scanners image the same patient, each on
    its own grid and with its own blur and noise.

    Parameters
    ----------
    seed : int
        Seed of the patient, 0 or more.
    label : str
        "normal", "nodule", "ground_glass" or "consolidation".
    scanner : str or CTScanner
        One of `CT_SCANNERS`, its name, or a custom scanner.
    slices, size : int
        Number of slices, and of rows and columns. The slices span the lungs, whatever their number.
    habitus : Habitus, optional
        Body size and lung density; drawn from `seed` by default.
    noise : bool
        Whether to add blur and noise.

    Returns
    -------
    PhantomCT
        Arrays (D, H, W) of shape (slices, size, size).

    Raises
    ------
    DatasetError
        If the class or scanner is unknown, the seed negative, or a size not positive.

    Examples
    --------
    >>> ct = chest_ct(3, label="nodule", slices=4, size=64)
    >>> ct.array.shape, ct.array.dtype.name, sorted(set(ct.slice_labels))
    ((4, 64, 64), 'int16', ['nodule', 'normal'])
    """
    check_classes((label,))
    machine = find_ct_scanner(scanner) if isinstance(scanner, str) else scanner
    if seed < 0 or slices < 1 or size < 16:
        raise DatasetError(
            f"seed {seed}, {slices} slices of {size} x {size} pixels: the seed must not be negative, "
            "with at least 1 slice and 16 pixels; change the one that is out of range"
        )
    patient = Patient.draw(seed, habitus)
    heights = (patient.dome - 18, patient.apex - 26)
    lesions = plan_lesions(patient, label, heights)
    grid = _make_grid(patient, machine, slices, size, heights)
    hu, mask = _paint(patient, grid, lesions, heights, machine)
    if noise:
        hu = _reconstruct(hu, machine, np.random.default_rng([seed, 4]))
    outside = _find_outside(machine, size)
    hu[:, outside] = -1024
    mask &= ~outside
    flips = _FLIPPED.get(machine.orientation, (1, 1, 1))
    hu, mask = (_flip(volume, flips) for volume in (hu, mask))
    stored = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return PhantomCT(
        seed=seed,
        label=label,
        scanner=machine,
        array=_make_read_only(stored),
        affine=_make_read_only(_shift_affine(_flip_affine(grid, flips), patient.scan_center)),
        lesion_mask=_make_read_only(mask),
        outside=_make_read_only(outside),
        lesions=lesions,
        scan_center=patient.scan_center,
    )


def _make_grid(
    patient: Patient, scanner: CTScanner, slices: int, size: int, heights: tuple[float, float]
) -> Grid:
    """Make the grid in the patient's own coordinates, before flips."""
    pixel = scanner.field_of_view / size
    middle = (heights[0] + heights[1]) / 2
    rows, columns, center, extent = (
        (0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        (0.0, 8.0, middle),
        heights[1] - heights[0],
    )
    if scanner.orientation == "coronal":
        rows, center, extent = (
            (0.0, 0.0, -1.0),
            (0.0, 0.04 * patient.half_depth, middle),
            1.3 * patient.half_depth,
        )
    axes = np.array([np.cross(columns, rows), rows, columns]).T
    if scanner.orientation == "oblique":
        axes = _make_rotation(7.0, 4.0) @ axes
    distance = max(round(extent / max(slices - 1, 1) * 4) / 4, 0.25)
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array([distance, pixel, pixel])
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array([slices, size, size]) - 1) / 2)
    return Grid((slices, size, size), affine)


def _make_rotation(about_x: float, about_z: float) -> NDArray[np.float64]:
    a, b = np.radians([about_x, about_z])
    nod = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    rotation: NDArray[np.float64] = turn @ nod
    return rotation


def _paint(
    patient: Patient,
    grid: Grid,
    lesions: tuple[Lesion, ...],
    heights: tuple[float, float],
    scanner: CTScanner,
) -> tuple[Array, NDArray[np.bool_]]:
    chest = Chest.of(patient, grid.coordinates())
    hu = paint_chest(patient, chest)
    lung = compute_coverage(chest.lung)
    mask = paint_lesions(hu, grid, chest, lesions, before_vessels=True)
    tree = grow_tree(patient)
    draw_tubes(hu, grid, make_mediastinal_vessels(patient), 46.0, within=compute_coverage(chest.cavity + 2))
    draw_tubes(hu, grid, tree.vessels, 35.0, within=lung)
    draw_tubes(hu, grid, tree.airways.widen(0.9), -150.0, within=lung)
    draw_tubes(hu, grid, tree.airways, -920.0, within=lung)
    mask |= paint_lesions(hu, grid, chest, lesions, before_vessels=False)
    windpipe, skin = make_mediastinal_airways(patient), compute_coverage(chest.skin)
    draw_tubes(hu, grid, windpipe.widen(1.4), 30.0, within=skin)
    draw_tubes(hu, grid, windpipe, -985.0, within=skin)
    _paint_table(hu, patient, chest, prone=scanner.orientation == "prone")
    if scanner.orientation == "coronal":
        _clear_beyond(hu, mask, chest, heights)
    return hu, mask


def _paint_table(hu: Array, patient: Patient, chest: Chest, *, prone: bool) -> None:
    """Paint the curved table top under the body: a dense shell around foam."""
    x, y, _ = chest.at
    down = -y if prone else y
    surface = patient.half_depth + patient.muscle + patient.fat + 14
    below = surface - (x / 200) ** 2 * 20 - down
    board = np.maximum(np.maximum(below, -below - 22), np.abs(x) - 205)
    clear = 1 - compute_coverage(chest.skin)
    blend(hu, compute_coverage(board) * clear, -120.0)
    blend(hu, compute_coverage(board + 2) * clear, -930.0)


def _clear_beyond(hu: Array, mask: NDArray[np.bool_], chest: Chest, heights: tuple[float, float]) -> None:
    """Clear a coronal reformation above and below the scanned range."""
    z = chest.at[2]
    beyond = np.broadcast_to((z < heights[0] - 40) | (z > heights[1] + 40), hu.shape)
    hu[beyond] = -1024
    mask[beyond] = False


def _reconstruct(hu: Array, scanner: CTScanner, rng: np.random.Generator) -> Array:
    """Add the blur and noise of the kernel, within the slices."""
    blurred = ndimage.gaussian_filter(hu, (0, scanner.blur, scanner.blur), truncate=3)
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, (0, abs(scanner.grain), abs(scanner.grain)), truncate=3)
    grain = smooth if scanner.grain > 0 else white - smooth
    result: Array = blurred + grain * (scanner.noise / float(grain.std()))
    return result


def _find_outside(scanner: CTScanner, size: int) -> NDArray[np.bool_]:
    if scanner.padding is None:
        return np.zeros((size, size), dtype=np.bool_)
    offset = np.arange(size) - (size - 1) / 2
    beyond: NDArray[np.bool_] = np.hypot(offset[:, None], offset[None, :]) > size / 2
    return beyond


def _flip(volume: NDArray[Any], flips: tuple[int, int, int]) -> NDArray[Any]:
    return volume[:: flips[0], :: flips[1], :: flips[2]]


def _flip_affine(grid: Grid, flips: tuple[int, int, int]) -> NDArray[np.float64]:
    turn = np.diag([*flips, 1.0])
    turn[:3, 3] = [n - 1 if flip < 0 else 0 for n, flip in zip(grid.shape, flips, strict=True)]
    flipped: NDArray[np.float64] = grid.affine @ turn
    return flipped


def _shift_affine(affine: NDArray[np.float64], by: tuple[float, float, float]) -> NDArray[np.float64]:
    shifted = affine.copy()
    shifted[:3, 3] += by
    return shifted


def _make_read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    own = np.ascontiguousarray(array)
    own.setflags(write=False)
    return own
