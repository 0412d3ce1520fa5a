"""Position, orientation and lengths of a frame, from its view (see `functional_groups`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from medimg.io.dicom.header.attributes import get_floats, has_value

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "FRAME_ATTRIBUTE_TAGS",
    "MAX_COORDINATE_MM",
    "FrameOfReference",
    "choose_frame_of_reference",
    "get_length",
    "get_lengths",
    "get_orientation",
    "get_position",
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


def get_position(view: Dataset, of: FrameOfReference = "Patient") -> tuple[float, float, float] | None:
    """Return Image Position (Patient), LPS millimeters, or (Volume); None if it is absent or implausible."""
    found = get_floats(view, f"ImagePosition{of}", 3)
    if found is None or max(abs(v) for v in found) > MAX_COORDINATE_MM:
        return None
    return found[0], found[1], found[2]


def get_orientation(view: Dataset, of: FrameOfReference = "Patient") -> tuple[float, ...] | None:
    """Return Image Orientation (Patient), 6 numbers, or (Volume); None if it is absent or implausible."""
    found = get_floats(view, f"ImageOrientation{of}", 6)
    usable = found is not None and max(abs(v) for v in found) <= 2 and any(found[:3]) and any(found[3:])
    return found if usable else None


def choose_frame_of_reference(view: Dataset) -> FrameOfReference:
    """Return what positions refer to: ultrasound volumes have coordinates of their own (PS3.3 C.8.24.3)."""
    in_volume = has_value(view, "ImagePositionVolume") and not has_value(view, "ImagePositionPatient")
    return "Volume" if in_volume else "Patient"


def get_lengths(view: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return two lengths in millimeters, of rows and of columns; None if absent or implausible."""
    found = get_floats(view, keyword, 2)
    usable = found is not None and min(found) >= _MIN_MM and max(found) <= _MAX_MM
    return (found[0], found[1]) if found is not None and usable else None


def get_length(view: Dataset, keyword: str) -> float | None:
    """Return the absolute value of a length in millimeters; None if it is absent or implausible."""
    found = get_floats(view, keyword, 1)
    return abs(found[0]) if found and _MIN_MM <= abs(found[0]) <= _MAX_MM else None
