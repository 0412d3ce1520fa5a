"""
Volumes stored as one image: Siemens mosaics and the grids of United Imaging (UIH).

Slices are equal tiles of one large image, from left to right and then down.

Siemens: Image Type contains MOSAIC. The number of slices is NumberOfImagesInMosaic of the CSA image header,
(0019,xx0A) "SIEMENS MR HEADER" or (0021,xx01) "SIEMENS MR SDI 02"; the grid is square, its side the square
root of the number, rounded up. Image Position (Patient) is that of an image as large as all tiles together
with the center of the first slice: the corner of a tile is half the difference of the sizes further along
rows and columns. The step between slices is Spacing Between Slices along SliceNormalVector of the CSA header,
or (0021,xx02) "SIEMENS MR SDI 02", which points against the normal of the image plane if slices were numbered
in reverse. Source: https://nipy.org/nibabel/dicom/dicom_mosaic.html. The positions equal those that the
protocol in the CSA series header states for every slice.

UIH: Image Type contains VFRAME. (0065,xx50) "Image Private Header" is the number of slices; the grid is as
wide as its square root, rounded up, and only as high as needed; each item of (0065,xx51) has the Image
Position (Patient) of its tile. This follows the description that UIH gave to the authors of dcm2niix (its
folder UIH), and was not verified on a file of a scanner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from medimg.errors import DecodeError, GeometryError
from medimg.io.dicom.header._siemens_csa import parse_csa
from medimg.io.dicom.header.attributes import get_codes, get_floats, get_integer, has_value
from medimg.io.dicom.header.element_values import parse_decimal
from medimg.io.dicom.header.frame_attributes import MAX_COORDINATE_MM
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

#: Tags that a header-only read must include for :func:`parse_mosaic`, besides the image plane.
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

#: Tags read only if the others show that a file is a mosaic.
CSA_TAGS: Final = tuple(_CSA.group << 16 | block << 8 | _CSA.element for block in range(0x10, 0x20))

_MAX_TILES: Final = 4096
#: Least cosine between the stated direction from slice to slice and the normal of the image plane.
_PARALLEL: Final = 0.999


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Tiles of a mosaic: their size, their corners in the image, and their positions in the patient."""

    rows: int  # of one tile
    columns: int
    corners: tuple[tuple[int, int], ...]  # (row, column) of the first pixel of each tile, in slice order
    positions: tuple[Point, ...]  # LPS millimeters, center of the first pixel of each tile
    notes: tuple[str, ...] = ()  # assumptions made


def parse_mosaic(view: Dataset) -> Mosaic | None:
    """
    Return the tiles of a mosaic, None for other files; raise ReadError or GeometryError if unusable.

    Siemens XA scanners split mosaics into enhanced multi-frame files but leave MOSAIC in Image Type: these
    are not one.
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
        raise GeometryError(
            "PixelSpacing of a mosaic is not positive; the positions of its slices can't be computed"
        )
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
    number = parse_decimal(stated[0]) if stated else None
    if number is not None and number.is_integer():
        return int(number)
    count = get_private_integer(view, _COUNT)
    return get_private_integer(view, _XA_COUNT) if count is None else count


def _check_count(count: int | None) -> int:
    if count is None:
        raise DecodeError(
            "ImageType declares a mosaic of several slices, but their number is missing: the private header "
            "of the manufacturer was removed; export the file again with its private elements"
        )
    if not 1 <= count <= _MAX_TILES:
        raise DecodeError(f"a mosaic declares {count} slices, 1 to {_MAX_TILES} are expected")
    return count


def _ceil_sqrt(count: int) -> int:
    """Return the square root of a positive integer, rounded up."""
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
    if found is None or max(abs(v) for v in found) > MAX_COORDINATE_MM:
        raise GeometryError(
            f"{keyword} of a mosaic is missing or unusable; the positions of its slices can't be computed"
        )
    return found


def _get_orientation(view: Dataset) -> npt.NDArray[np.float64]:
    """Return the directions of rows and columns, (2, 3)."""
    found = np.array(_get_numbers(view, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(found @ found.T, np.eye(2), atol=1e-3):
        raise GeometryError(
            "ImageOrientationPatient of a mosaic does not hold two perpendicular unit vectors"
        )
    return found


def _get_spacing(view: Dataset, csa: dict[str, tuple[str, ...]]) -> tuple[float, tuple[str, ...]]:
    """Return the distance between slices in millimeters, and notes on assumptions."""
    stated = _parse_csa_numbers(csa, "SpacingBetweenSlices", 1) or (0.0,)
    for gap in (get_floats(view, "SpacingBetweenSlices", 1) or (0.0,))[0], stated[0]:
        if 0 < abs(gap) <= MAX_COORDINATE_MM:
            return abs(gap), ()
    thickness = get_floats(view, "SliceThickness", 1)
    if thickness is None or not 0 < thickness[0] <= MAX_COORDINATE_MM:
        raise GeometryError(
            "SpacingBetweenSlices of a mosaic is missing; the positions of its slices can't be computed"
        )
    return thickness[0], ("the slice spacing of a mosaic was taken from SliceThickness, assuming no gaps",)


def _parse_csa_numbers(csa: dict[str, tuple[str, ...]], name: str, count: int) -> tuple[float, ...] | None:
    found = tuple(v for v in map(parse_decimal, csa.get(name, ())) if v is not None)
    return found if len(found) == count == len(csa.get(name, ())) else None


def _get_slice_direction(
    view: Dataset, csa: dict[str, tuple[str, ...]], orientation: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the direction from one tile to the next, (3,)."""
    stated = _parse_csa_numbers(csa, "SliceNormalVector", 3) or get_private_floats(view, _XA_NORMAL, 3)
    if stated is None:
        raise GeometryError(
            "the slice direction of a mosaic is missing (SliceNormalVector of the CSA header): its slices "
            "may be upside down; export the file again with its private elements"
        )
    normal = np.cross(*orientation)
    cosine = float(normal @ stated)
    if abs(cosine) < _PARALLEL:
        raise GeometryError("SliceNormalVector of a mosaic is not perpendicular to ImageOrientationPatient")
    return normal * math.copysign(1, cosine)


def _to_point(position: npt.NDArray[np.float64]) -> Point:
    return float(position[0]), float(position[1]), float(position[2])


def _parse_uih(view: Dataset) -> Mosaic:
    count = _check_count(get_private_integer(view, _UIH_COUNT))
    wide = _ceil_sqrt(count)
    rows, columns, corners = _split_tiles(view, count, -(-count // wide), wide)
    items = get_private_items(view, _UIH_TILES)
    if len(items) != count:
        raise DecodeError(f"a grid of {count} slices describes {len(items)} of them; the file is damaged")
    positions = (_get_numbers(item, "ImagePositionPatient", 3) for item in items)
    return Mosaic(rows, columns, corners, tuple((p[0], p[1], p[2]) for p in positions))
