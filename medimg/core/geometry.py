"""
Axis order, patient coordinates and orientation, with the only conversions between LPS and RAS.

Arrays are indexed (d, h, w): slice, row, column. Affines are 4×4 and map that index to millimeters in the
patient coordinate system of DICOM, LPS: x increases to the patient's Left, y to Posterior, z to Superior
(PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import math
import operator
from itertools import permutations
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from medimg.errors import GeometryError, also

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Affine",
    "affine_from_slices",
    "ascending_slices",
    "display_code",
    "image_affine",
    "index_affine",
    "index_to_lps",
    "lps_from_ras",
    "lps_from_space",
    "orientation_code",
    "ras_from_lps",
    "reorient",
    "slice_normal",
    "spacing_of",
    "subset_affine",
]

Affine: TypeAlias = npt.NDArray[np.float64]
_Scalar = TypeVar("_Scalar", bound=np.generic)

_POSITIVE: Final = "LPS"
_NEGATIVE: Final = "RAI"
_RAS_FLIP: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Display orientation (slices, rows, columns) by the patient axis along which slices are stacked.
_DISPLAY: Final = {0: "RIP", 1: "PIL", 2: "SPL"}


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the distance between neighbors along (d, h, w), in millimeters."""
    d, h, w = np.linalg.norm(affine[:3, :3], axis=0)
    return float(d), float(h), float(w)


def slice_normal(orientation: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the unit normal X×Y of a slice from Image Orientation (Patient) (0020,0037)."""
    # plain numbers: NumPy takes ten times as long for so few
    values = [float(v) for v in orientation]
    x, y = values[:3], values[3:]
    unit = all(abs(math.hypot(*direction) - 1) <= 1e-2 for direction in (x, y))
    if len(values) != 6 or not unit or abs(sum(map(operator.mul, x, y))) > 1e-2:
        raise GeometryError(
            "Image Orientation (Patient) must hold two perpendicular unit vectors; "
            f"found {[round(v, 4) for v in values]}"
        )
    normal = (x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0])
    length = math.hypot(*normal)
    return np.array([v / length for v in normal])


def affine_from_slices(
    origin: Sequence[float] | npt.NDArray[np.float64],
    step: Sequence[float] | npt.NDArray[np.float64],
    orientation: Sequence[float],
    pixel_spacing: Sequence[float],
) -> Affine:
    """
    Return the (4, 4) affine, index (d, h, w) to LPS millimeters, of a stack (DICOM PS3.3 C.7.6.2.1.1).

    `origin` is the position of the first slice, `step` the vector from one slice to the next; `pixel_spacing`
    is the distance between rows, then between columns (PS3.3 10.7.1.3).

    Examples
    --------
    >>> affine_from_slices([-10, -20, 5], [0, 0, 2.5], [1, 0, 0, 0, 1, 0], [0.7, 0.5])[:3].tolist()
    [[0.0, 0.0, 0.5, -10.0], [0.0, 0.7, 0.0, -20.0], [2.5, 0.0, 0.0, 5.0]]
    """
    x, y = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in pixel_spacing)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = y * between_rows
    affine[:3, 2] = x * between_columns
    affine[:3, 3] = origin
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise GeometryError("positions, orientation and spacing of the slices do not span a volume")
    return affine


def image_affine(spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Affine:
    """Return the affine of an image with a spacing but no position in a patient."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = [float(v) for v in spacing]
    affine[3, 3] = 1.0
    return affine


def lps_from_ras(ijk_to_ras: Affine) -> Affine:
    """
    Return the affine (d, h, w) → LPS of an array stored as (i, j, k) → RAS, as in NIfTI.

    The array is transposed from (i, j, k) to (d, h, w) = (k, j, i).
    """
    return np.asarray((_RAS_FLIP @ np.asarray(ijk_to_ras, dtype=np.float64))[:, [2, 1, 0, 3]])


def lps_from_space(ijk_to_space: Affine, code: str) -> Affine:
    """
    Return the affine (d, h, w) → LPS of an array stored as (i, j, k), i fastest.

    `code` gives the directions of the axes x, y and z of the space, such as "RAS", "LAS" or "LPS".

    Examples
    --------
    >>> lps_from_space(np.diag([1.0, 2.0, 3.0, 1.0]), "LAS")[:3].tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, -2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    """
    turned = np.zeros((4, 4))
    turned[3, 3] = 1.0
    for own, (axis, sign) in enumerate(_parse_code(code)):
        turned[axis, own] = sign
    return np.asarray((turned @ np.asarray(ijk_to_space, dtype=np.float64))[:, [2, 1, 0, 3]])


def ras_from_lps(dhw_to_lps: Affine) -> Affine:
    """Return the affine (i, j, k) → RAS of a (d, h, w) → LPS one: the inverse of `lps_from_ras`."""
    return np.asarray((_RAS_FLIP @ np.asarray(dhw_to_lps, dtype=np.float64))[:, [2, 1, 0, 3]])


def _find_closest_axes(affine: Affine) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the closest patient axis (0 x, 1 y, 2 z) of each array axis (d, h, w), and its sign."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[i], i]) for i in range(3)))
    signs = [1 if cosines[axes[i], i] >= 0 else -1 for i in range(3)]
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def orientation_code(affine: Affine) -> str:
    """
    Return the directions of the axes (d, h, w) as three letters, such as "SPL" for a standard axial CT.

    Examples
    --------
    >>> orientation_code(affine_from_slices([0, 0, 0], [0, 0, 1], [1, 0, 0, 0, 1, 0], [1, 1]))
    'SPL'
    """
    axes, signs = _find_closest_axes(affine)
    return "".join(
        _POSITIVE[axis] if sign > 0 else _NEGATIVE[axis] for axis, sign in zip(axes, signs, strict=True)
    )


def display_code(affine: Affine) -> str:
    """
    Return the orientation in which radiologists view such slices, keeping the slice axis.

    Axial slices have anterior up and the patient's right on the left of the image ("SPL"), coronal ones the
    head up and the patient's right on the left ("PIL"), sagittal ones the head up and anterior on the left
    ("RIP").
    """
    axes, _ = _find_closest_axes(affine)
    return _DISPLAY[axes[0]]


def _parse_code(code: str) -> list[tuple[int, int]]:
    letters = code.upper()
    parsed = [
        (_POSITIVE.index(c), 1) if c in _POSITIVE else (_NEGATIVE.index(c), -1)
        for c in letters
        if c in _POSITIVE + _NEGATIVE
    ]
    if len(letters) != 3 or len(parsed) != 3 or len({axis for axis, _ in parsed}) != 3:
        raise GeometryError(
            f"an orientation must be three letters, one each of L/R, P/A and S/I; found {code!r}"
        )
    return parsed


def reorient(
    array: npt.NDArray[_Scalar], affine: Affine, code: str
) -> tuple[npt.NDArray[_Scalar], Affine, tuple[int, int, int], tuple[bool, bool, bool]]:
    """
    Permute and flip the last three axes (..., D, H, W) to the orientation `code`, without interpolation.

    Returns a view, its affine, the old axis (0 d, 1 h, 2 w) of each new one, and whether that is flipped.
    """
    axes, signs = _find_closest_axes(affine)
    wanted = _parse_code(code)
    sources = [axes.index(axis) for axis, _ in wanted]
    flips = [signs[s] != sign for s, (_, sign) in zip(sources, wanted, strict=True)]
    source, flipped = (sources[0], sources[1], sources[2]), (flips[0], flips[1], flips[2])
    lead = array.ndim - 3
    view = array.transpose(*range(lead), *(lead + s for s in source))
    d, h, w = (slice(None, None, -1 if f else 1) for f in flipped)
    view = view[..., d, h, w]
    shape = array.shape[lead:]
    transform = np.zeros((4, 4))
    transform[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(source, flipped, strict=True)):
        transform[old, new] = -1.0 if flip else 1.0
        transform[old, 3] = shape[old] - 1.0 if flip else 0.0
    return view, affine @ transform, source, flipped


def ascending_slices(slices: Sequence[int], depth: int) -> list[int]:
    """Return slice indices as a list; GeometryError if they are not ascending indices below `depth`."""
    try:
        chosen = [operator.index(i) for i in slices]
    except TypeError:
        raise also(GeometryError, TypeError)(
            f"expected several whole numbers, indices of {depth} slices; found a {type(slices).__name__}"
        ) from None
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth or (np.diff(chosen) <= 0).any():
        raise GeometryError(f"expected ascending indices of {depth} slices, 0 to {depth - 1}; found {chosen}")
    return chosen


def subset_affine(affine: Affine, slices: Sequence[int]) -> Affine:
    """Return the affine of some slices of a stack; the step is the mean one, for one slice the stack's."""
    chosen = np.asarray(slices, dtype=np.float64)
    result = affine.copy()
    result[:3, 3] = affine[:3, 3] + chosen[0] * affine[:3, 0]
    if len(chosen) > 1:
        result[:3, 0] = affine[:3, 0] * (chosen[-1] - chosen[0]) / (len(chosen) - 1)
    return result


def index_affine(affine: Affine, ranges: Sequence[range]) -> Affine:
    """
    Return the affine of the part of an array that ranges of d, h and w select; an axis of one keeps its step.

    Examples
    --------
    >>> index_affine(image_affine((2.0, 1.0, 1.0)), (range(8, 0, -2), range(3, 4), range(5)))[:3].tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 3.0], [-4.0, 0.0, 0.0, 16.0]]
    """
    result = affine.copy()
    for axis, chosen in enumerate(ranges):
        result[:3, 3] += chosen.start * affine[:3, axis]
        if len(chosen) > 1:
            result[:3, axis] *= chosen.step
    return result + 0.0  # no -0.0


def index_to_lps(affine: Affine, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the LPS position, in millimeters, of indices (..., 3) in the order (d, h, w)."""
    points = np.asarray(index, dtype=np.float64)
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])
