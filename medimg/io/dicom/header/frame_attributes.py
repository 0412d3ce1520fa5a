"""Position, orientation and lengths of a frame, from its view (see `functional_groups`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import get_number, has_value, parse_numbers
from medimg.io.dicom.header.element_values import note_finding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "FRAME_ATTRIBUTE_TAGS",
    "MAX_COORDINATE_MM",
    "FrameOfReference",
    "choose_frame_of_reference",
    "get_length",
    "get_lengths",
    "parse_lengths",
    "parse_orientation",
    "parse_position",
]

FrameOfReference: TypeAlias = Literal["Patient", "Volume"]

#: Plausible lengths: no patient is larger, and no pixel smaller than 1 nm.
MAX_COORDINATE_MM: Final = 1e5
_MIN_MM: Final = 1e-6
_MAX_MM: Final = 1e4

#: Tags that a header-only read must include for this module.
FRAME_ATTRIBUTE_TAGS: Final[list[str | int]] = [
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
]


def parse_position(view: Dataset, of: FrameOfReference = "Patient") -> tuple[float, float, float] | None:
    """Return Image Position (Patient), LPS millimeters, or (Volume); None if absent; raise if unusable."""
    keyword = f"ImagePosition{of}"
    found = parse_numbers(view, keyword, 3)
    if found is None:
        return None
    if max(map(abs, found)) > MAX_COORDINATE_MM:
        raise DecodeError(f"{keyword} is more than {MAX_COORDINATE_MM / 1000:g} m away; the file is damaged")
    return found[0], found[1], found[2]


def parse_orientation(view: Dataset, of: FrameOfReference = "Patient") -> tuple[float, ...] | None:
    """Return Image Orientation (Patient), 6 numbers, or (Volume); None if absent; raise if unusable."""
    keyword = f"ImageOrientation{of}"
    found = parse_numbers(view, keyword, 6)
    if found is not None and not (max(abs(v) for v in found) <= 2 and any(found[:3]) and any(found[3:])):
        raise DecodeError(f"{keyword} is not two directions; the file is damaged")
    return found


def choose_frame_of_reference(view: Dataset) -> FrameOfReference:
    """Return what positions refer to: ultrasound volumes have coordinates of their own (PS3.3 C.8.24.3)."""
    in_volume = has_value(view, "ImagePositionVolume") and not has_value(view, "ImagePositionPatient")
    return "Volume" if in_volume else "Patient"


def parse_lengths(view: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return lengths of rows and of columns, in millimeters; None if absent, DecodeError if unusable."""
    found = parse_numbers(view, keyword, 2)
    if found is None:
        return None
    if min(found) < _MIN_MM or max(found) > _MAX_MM:
        raise DecodeError(
            f"{keyword} is {found[0]:g} and {found[1]:g}, which no pixel measures in millimeters; "
            "the file is damaged"
        )
    return found[0], found[1]


def get_lengths(view: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return lengths of rows and of columns, in millimeters; None if absent or, noted, unusable."""
    try:
        return parse_lengths(view, keyword)
    except DecodeError as error:
        note_finding(str(error).replace("the file is damaged", "it is not used"))
        return None


def get_length(view: Dataset, keyword: str) -> float | None:
    """Return the absolute value of a length in millimeters; None if absent, 0 or, noted, implausible."""
    found = get_number(view, keyword)
    if not found:
        return None
    if _MIN_MM <= abs(found) <= _MAX_MM:
        return abs(found)
    note_finding(f"{keyword} is {found:g}, which is no plausible length in millimeters; it is not used")
    return None
