"""Arguments of `Volume.from_array`: axes, type and geometry of an array made elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg._validation import check_choice
from medimg.core import geometry
from medimg.errors import GeometryError, NotAnImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["Convention", "as_numbers", "check_colors", "make_affine", "move_axes"]

#: Patient coordinate system of an affine: that of DICOM, or that of NIfTI.
Convention: TypeAlias = Literal["LPS", "RAS"]

_COLORS: Final = 3


def as_numbers(array: object, *, copy: bool) -> npt.NDArray[Any]:
    """
    Return an array of real numbers in native byte order, truth values as 0 and 1 of int8.

    Raises NotAnImageError for anything else.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise NotAnImageError(
            "a masked array was given, and a volume has no mask; fill it first: array.filled(value)"
        )
    try:
        values = np.asarray(array)
    # a tensor on a GPU or with gradients, rows of unequal length, objects that raise anything
    except Exception as error:
        raise NotAnImageError(
            f"a {type(array).__name__} can't be made an array ({type(error).__name__}); expected a NumPy "
            "array, or what np.asarray takes, such as tensor.detach().cpu()"
        ) from None
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise NotAnImageError(
            f"expected an array of real numbers of up to 64 bits; found {values.dtype}; convert it: "
            "np.abs(array) of complex numbers, or array.astype(np.float32)"
        )
    if copy:
        values = values.copy()
    if values.dtype.kind == "b":
        return values.view(np.int8)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def move_axes(values: npt.NDArray[Any], *, color: bool) -> npt.NDArray[Any]:
    """Return (H, W), (D, H, W) or (C, D, H, W), or colors first or last, as (C, D, H, W)."""
    expected = (
        "(H, W, 3), (3, H, W), (D, H, W, 3) or (3, D, H, W)" if color else "(H, W), (D, H, W) or (C, D, H, W)"
    )
    if values.ndim not in ((3, 4) if color else (2, 3, 4)) or 0 in values.shape:
        raise GeometryError(
            f"expected an array {expected}, without empty axes; found the shape {values.shape}"
        )
    if color:
        ends = [axis for axis in (0, values.ndim - 1) if values.shape[axis] == _COLORS]
        if len(ends) != 1:
            found = "both its first and its last axis have 3" if ends else "neither end has 3"
            raise GeometryError(
                f"expected colors in the first or the last axis, {expected}; found the shape {values.shape}: "
                f"{found}; pass (3, D, H, W) to medimg.Volume itself"
            )
        check_colors(values)
        values = np.moveaxis(values, ends[0], 0)
        return values if values.ndim == 4 else values[:, None]
    return values.reshape((1,) * (4 - values.ndim) + values.shape)


def check_colors(values: npt.NDArray[Any]) -> None:
    """Raise NotAnImageError for colors of floating-point numbers that are not from 0 to 1."""
    if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 1):
        raise NotAnImageError(
            "colors of floating-point numbers must be from 0 to 1; scale them, or convert them to np.uint8"
        )


def make_affine(
    affine: npt.ArrayLike | None,
    spacing: float | Sequence[float] | None,
    convention: Convention,
    dimension: int,
) -> geometry.Affine:
    """Return the affine (d, h, w) → LPS of what was given: an affine in a convention, or a spacing."""
    check_choice("convention", convention, ("LPS", "RAS"), error=GeometryError)
    if affine is None:
        return geometry.image_affine(_check_spacing(spacing, dimension))
    if spacing is not None:
        raise GeometryError("affine= and spacing= were given; an affine has the spacing, so pass one of them")
    matrix = _as_floats(affine)
    if matrix is None or matrix.shape != (4, 4) or matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        found = "something else" if matrix is None else f"the shape {matrix.shape}"
        if matrix is not None and matrix.shape == (4, 4):
            found = f"the last row {matrix[3].tolist()}"
        raise GeometryError(
            "affine must be a 4×4 matrix with the last row 0 0 0 1, which maps (d, h, w) to millimeters; "
            f"found {found}"
        )
    return matrix if convention == "LPS" else geometry.lps_from_ras(matrix[:, [2, 1, 0, 3]])


def _as_floats(values: object) -> npt.NDArray[np.float64] | None:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _check_spacing(spacing: float | Sequence[float] | None, dimension: int) -> tuple[float, float, float]:
    """Return the spacing along (D, H, W); that of an image (H, W) may have two numbers."""
    found = _as_floats(1.0 if spacing is None else spacing)
    if found is not None and found.ndim == 0:
        found = np.full(3, found)
    if found is not None and found.shape == (2,) and dimension == 2:
        found = np.array([1.0, *found])
    if found is None or found.shape != (3,) or not (np.isfinite(found) & (found > 0)).all():
        raise GeometryError(
            "spacing must be positive millimeters: one number, or one for each of (D, H, W), or of (H, W) if "
            "the array is an image (H, W)"
        )
    d, h, w = found.tolist()
    return d, h, w
