"""
Volumes stored as one picture: Siemens mosaics and the grids of United Imaging (UIH).

The slices of a volume lie beside each other, left to right and then down, as equal tiles of one big picture.

Siemens: Image Type has MOSAIC. The number of slices is NumberOfImagesInMosaic of the CSA image header, or
(0019,xx0A) "SIEMENS MR HEADER", or (0021,xx01) "SIEMENS MR SDI 02"; the grid is square, its side the square
root of the number, rounded up. Image Position (Patient) is that of a picture as large as all tiles together
that has the center of the first slice: the corner of a tile lies half the difference of the sizes further
along rows and columns. From one tile to the next it is Spacing Between Slices along SliceNormalVector of the
CSA header, or (0021,xx02) "SIEMENS MR SDI 02", which points against the normal of the image plane where
slices were numbered in reverse. See https://nipy.org/nibabel/dicom/dicom_mosaic.html. The positions are those
that the protocol in the CSA series header states for every slice.

UIH: Image Type has VFRAME. (0065,xx50) "Image Private Header" is the number of slices; the grid is as wide as
its square root, rounded up, and only as high as needed; each item of (0065,xx51) has the Image Position
(Patient) of its tile. This is from the description that UIH gave to the authors of dcm2niix (its folder UIH),
and was not verified on a file of a scanner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from medimg.errors import DecodeError, GeometryError
from medimg.io.dicom.header._siemens_csa import parse_csa
from medimg.io.dicom.header.attributes import get_codes, get_floats, get_integer, has_value
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_bytes,
    get_private_codes,
    get_private_floats,
    get_private_integer,
    get_private_items,
    has_private,
    list_private_tags,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

__all__ = ["CSA_TAGS", "MOSAIC_TAGS", "Mosaic", "parse_mosaic"]

Point: TypeAlias = tuple[float, float, float]

_CSA: Final = PrivateTag(0x0029, 0x10, "SIEMENS CSA HEADER", "OB")
_COUNT: Final = PrivateTag(0x0019, 0x0A, "SIEMENS MR HEADER", "US")
_XA_COUNT: Final = PrivateTag(0x0021, 0x01, "SIEMENS MR SDI 02", "US")
_XA_NORMAL: Final = PrivateTag(0x0021, 0x02, "SIEMENS MR SDI 02", "FD")
_XA_IMAGE_TYPE: Final = PrivateTag(0x0021, 0x75, "SIEMENS MR SDI 02", "CS")
_UIH_COUNT: Final = PrivateTag(0x0065, 0x50, "Image Private Header", "DS")
_UIH_TILES: Final = PrivateTag(0x0065, 0x51, "Image Private Header", "SQ")

#: What a header-only read must include for :func:`mosaic_of`, beside the attributes of the image plane.
MOSAIC_TAGS: Final[list[str | int]] = [
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "NumberOfFrames",
    "PixelSpacing",
    "Rows",
    "SliceThickness",
    "SpacingBetweenSlices",
    *list_private_tags(_CSA, _COUNT, _XA_COUNT, _XA_NORMAL, _XA_IMAGE_TYPE, _UIH_COUNT, _UIH_TILES),
]

#: Those that are asked only where the others say that a file is a mosaic.
CSA_TAGS: Final = tuple(_CSA.group << 16 | block << 8 | _CSA.element for block in range(0x10, 0x20))

_MAX_TILES: Final = 4096
_FARTHEST_MM: Final = 1e5
#: Least cosine between the stated direction from slice to slice and the normal of the image plane.
_PARALLEL: Final = 0.999


@dataclass(frozen=True, slots=True)
class Mosaic:
    """
    Where the slices of a volume lie in one big picture, and where in the patient.

    Attributes
    ----------
    rows, columns : int
        Size of one tile, in pixels.
    corners : tuple of (int, int)
        (row, column) in the big picture of the upper left pixel of each tile, in the order of the slices.
    positions : tuple of (float, float, float)
        LPS millimeters of the center of the upper left pixel of each tile, as Image Position (Patient) of a
        single-frame file of that slice would say.
    notes : tuple of str
        What had to be assumed; empty as a rule.
    """

    rows: int
    columns: int
    corners: tuple[tuple[int, int], ...]
    positions: tuple[Point, ...]
    notes: tuple[str, ...] = ()


def parse_mosaic(view: Dataset) -> Mosaic | None:
    """
    Return where the slices lie in a file that stores them as one picture.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of the file; those of :data:`MOSAIC_TAGS` suffice.

    Returns
    -------
    Mosaic or None
        None where the file is no mosaic. Siemens' XA scanners take mosaics apart for enhanced files and leave
        MOSAIC in Image Type: files of several frames are none.

    Raises
    ------
    DecodeError
        If it is a mosaic, but how many slices it holds isn't said, or doesn't fit its size.
    GeometryError
        If position, orientation, spacing, or the direction from slice to slice is missing or unsound.
    """
    if (get_integer(view, "NumberOfFrames") or 1) > 1:
        return None
    image_type = get_codes(view, "ImageType")
    if "VFRAME" in image_type or has_private(view, _UIH_TILES):
        return _parse_uih(view)
    if "MOSAIC" in image_type or "MOSAIC" in get_private_codes(view, _XA_IMAGE_TYPE):
        return _parse_siemens(view)
    return None


def _parse_siemens(view: Dataset) -> Mosaic | None:
    header = get_private_bytes(view, _CSA)
    names = ("NumberOfImagesInMosaic", "SliceNormalVector", "SpacingBetweenSlices")
    csa = {} if header is None else parse_csa(header, *names)
    count = _get_siemens_count(view, csa)
    if count is None and has_value(view, "FrameType"):
        return None
    count = _check_count(count)
    side = _ceil_sqrt(count)
    rows, columns, corners = _split_tiles(view, count, side, side)
    orientation = _get_orientation(view)
    spacing = _get_numbers(view, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise GeometryError("PixelSpacing of a mosaic is not positive; its slices can't be placed")
    first = (
        np.array(_get_numbers(view, "ImagePositionPatient", 3))
        + orientation[0] * spacing[1] * (columns * (side - 1) / 2)
        + orientation[1] * spacing[0] * (rows * (side - 1) / 2)
    )
    if len(corners) == 1:
        return Mosaic(rows, columns, corners, (_to_point(first),))
    gap, notes = _get_spacing(view, csa)
    step = gap * _get_slice_direction(view, csa, orientation)
    return Mosaic(
        rows, columns, corners, tuple(_to_point(first + n * step) for n in range(len(corners))), notes
    )


def _get_siemens_count(view: Dataset, csa: dict[str, tuple[str, ...]]) -> int | None:
    stated = csa.get("NumberOfImagesInMosaic", ())
    if stated and stated[0].isdecimal():
        return int(stated[0][:9])
    count = get_private_integer(view, _COUNT)
    return get_private_integer(view, _XA_COUNT) if count is None else count


def _check_count(count: int | None) -> int:
    if count is None:
        raise DecodeError(
            "ImageType says that this is a mosaic of several slices, but how many is not said: the private "
            "header of the manufacturer was removed; export it again with its private elements"
        )
    if not 1 <= count <= _MAX_TILES:
        raise DecodeError(f"a mosaic declares {count} slices, 1 to {_MAX_TILES} are expected")
    return count


def _ceil_sqrt(count: int) -> int:
    """Return the square root of a positive number, rounded up."""
    return math.isqrt(count - 1) + 1


def _split_tiles(
    view: Dataset, count: int, high: int, wide: int
) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return height and width of a tile, and the corners of all."""
    rows, columns = get_integer(view, "Rows") or 0, get_integer(view, "Columns") or 0
    if rows < 1 or columns < 1 or rows % high or columns % wide:
        raise DecodeError(
            f"a mosaic of {rows}×{columns} pixels can't hold {count} slices as {high}×{wide} equal tiles; "
            "the file is damaged or was resized"
        )
    rows, columns = rows // high, columns // wide
    return rows, columns, tuple((n // wide * rows, n % wide * columns) for n in range(count))


def _get_numbers(view: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    found = get_floats(view, keyword, count)
    if found is None or max(abs(v) for v in found) > _FARTHEST_MM:
        raise GeometryError(f"{keyword} of a mosaic is missing or unusable; its slices can't be placed")
    return found


def _get_orientation(view: Dataset) -> npt.NDArray[np.float64]:
    """Return the directions of rows and columns, (2, 3)."""
    found = np.array(_get_numbers(view, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(found @ found.T, np.eye(2), atol=1e-3):
        raise GeometryError("ImageOrientationPatient of a mosaic is not two perpendicular directions")
    return found


def _get_spacing(view: Dataset, csa: dict[str, tuple[str, ...]]) -> tuple[float, tuple[str, ...]]:
    """Return the distance between slices in millimeters, and what was assumed."""
    stated = _parse_csa_numbers(csa, "SpacingBetweenSlices", 1) or (0.0,)
    for gap in (get_floats(view, "SpacingBetweenSlices", 1) or (0.0,))[0], stated[0]:
        if 0 < abs(gap) <= _FARTHEST_MM:
            return abs(gap), ()
    thickness = get_floats(view, "SliceThickness", 1)
    if thickness is None or not 0 < thickness[0] <= _FARTHEST_MM:
        raise GeometryError("SpacingBetweenSlices of a mosaic is missing; its slices can't be placed")
    return thickness[0], (
        "the distance between slices of a mosaic was taken from SliceThickness: no gaps assumed",
    )


def _parse_csa_numbers(csa: dict[str, tuple[str, ...]], name: str, count: int) -> tuple[float, ...] | None:
    try:
        found = tuple(float(v) for v in csa.get(name, ()))
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _get_slice_direction(
    view: Dataset, csa: dict[str, tuple[str, ...]], orientation: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the direction from one tile to the next, (3,)."""
    stated = _parse_csa_numbers(csa, "SliceNormalVector", 3) or get_private_floats(view, _XA_NORMAL, 3)
    if stated is None:
        raise GeometryError(
            "the direction from slice to slice of a mosaic is missing (SliceNormalVector of the CSA header): "
            "its slices may be upside down; export it again with its private elements"
        )
    normal = np.cross(*orientation)
    cosine = float(normal @ stated)
    if abs(cosine) < _PARALLEL:
        raise GeometryError("SliceNormalVector of a mosaic is not perpendicular to ImageOrientationPatient")
    return normal * math.copysign(1, cosine)


def _to_point(place: npt.NDArray[np.float64]) -> Point:
    return float(place[0]), float(place[1]), float(place[2])


def _parse_uih(view: Dataset) -> Mosaic:
    count = _check_count(get_private_integer(view, _UIH_COUNT))
    wide = _ceil_sqrt(count)
    rows, columns, corners = _split_tiles(view, count, -(-count // wide), wide)
    items = get_private_items(view, _UIH_TILES)
    if len(items) != count:
        raise DecodeError(f"a grid of {count} slices describes {len(items)} of them; the file is damaged")
    positions = (_get_numbers(item, "ImagePositionPatient", 3) for item in items)
    return Mosaic(rows, columns, corners, tuple((p[0], p[1], p[2]) for p in positions))
