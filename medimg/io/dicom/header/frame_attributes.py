"""Attributes of a frame that grouping, sorting and geometry need, from its view (see `functional_groups`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_codes,
    get_floats,
    get_identifier,
    get_integer,
    get_items,
    get_number,
    get_text,
    parse_numbers,
)
from medimg.io.dicom.header.datetimes import get_local_datetime, get_time
from medimg.io.dicom.header.element_values import note_finding
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_integer,
    get_private_text,
    list_private_tags,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pydicom.dataset import Dataset

__all__ = [
    "FRAME_ATTRIBUTE_TAGS",
    "MAX_COORDINATE_MM",
    "FrameAttribute",
    "get_series_attributes",
    "get_temporal_attributes",
    "parse_orientation",
    "parse_pixel_spacing",
    "parse_position",
]

#: Plausible lengths: no patient is larger, and no pixel smaller than 1 nm.
MAX_COORDINATE_MM: Final = 1e5
_MIN_MM: Final = 1e-6
_MAX_MM: Final = 1e4

_GE_COMPONENT: Final = PrivateTag(0x0043, 0x2F, "GEMS_PARM_01", "SS")
_SIEMENS_COIL: Final = PrivateTag(0x0051, 0x0F, "SIEMENS MR HEADER", "LO")
#: b-value number, gradient number, label of arterial spin labeling, phase.
_PHILIPS: Final = (
    PrivateTag(0x2005, 0x12, "Philips MR Imaging DD 005", "IS"),
    PrivateTag(0x2005, 0x13, "Philips MR Imaging DD 005", "IS"),
    PrivateTag(0x2005, 0x29, "Philips MR Imaging DD 005", "CS"),
    PrivateTag(0x2001, 0x08, "Philips Imaging DD 001", "IS"),
)

#: Tags that a header-only read must include for this module.
FRAME_ATTRIBUTE_TAGS: Final[list[str | int]] = [
    "AcquisitionDateTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ComplexImageComponent",
    "ContentTime",
    "ConvolutionKernel",
    "DiffusionBValue",
    "DiffusionDirectionality",
    "DiffusionGradientOrientation",
    "EchoNumbers",
    "EchoTime",
    "FrameReferenceTime",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "TemporalPositionIdentifier",
    "TriggerTime",
    *list_private_tags(_GE_COMPONENT, _SIEMENS_COIL, *_PHILIPS),
]


class FrameAttribute(NamedTuple):
    """An attribute that distinguishes frames at one position: a name and a hashable value."""

    name: str
    value: Hashable


FrameAttributes: TypeAlias = tuple[FrameAttribute, ...]


def parse_position(view: Dataset) -> tuple[float, float, float] | None:
    """Return Image Position (Patient), LPS millimeters, None if it is absent; raise DecodeError if unusable."""
    found = parse_numbers(view, "ImagePositionPatient", 3)
    if found is None:
        return None
    if max(abs(v) for v in found) > MAX_COORDINATE_MM:
        raise DecodeError(
            f"ImagePositionPatient is more than {MAX_COORDINATE_MM / 1000:g} m away; the file is damaged"
        )
    return found[0], found[1], found[2]


def parse_orientation(view: Dataset) -> tuple[float, ...] | None:
    """Return Image Orientation (Patient), 6 numbers, None if it is absent; raise DecodeError if unusable."""
    found = parse_numbers(view, "ImageOrientationPatient", 6)
    if found is not None and not (max(abs(v) for v in found) <= 2 and any(found[:3]) and any(found[3:])):
        raise DecodeError("ImageOrientationPatient is not two directions; the file is damaged")
    return found


def parse_pixel_spacing(view: Dataset) -> tuple[float, float] | None:
    """
    Return the spacing of rows and of columns, in millimeters or as a ratio; None if absent.

    DecodeError is raised if the first attribute present is unusable: another one means something else.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = parse_numbers(view, keyword, 2)
        if spacing is None:
            continue
        if min(spacing) < _MIN_MM or max(spacing) > _MAX_MM:
            raise DecodeError(
                f"{keyword} is {spacing[0]:g} and {spacing[1]:g}, which no pixel measures in millimeters; "
                "the file is damaged"
            )
        return spacing[0], spacing[1]
    aspect = parse_numbers(view, "PixelAspectRatio", 2)
    if aspect is None:
        return None
    if min(aspect) <= 0 or not 1e-2 <= aspect[0] / aspect[1] <= 1e2:
        raise DecodeError(
            f"PixelAspectRatio is {aspect[0]:g} to {aspect[1]:g}, which no pixel has; the file is damaged"
        )
    return aspect[0] / aspect[1], 1.0


def get_length(view: Dataset, keyword: str) -> float | None:
    """Return the absolute value of a length in millimeters; None if it is absent, 0 or, noted, implausible."""
    found = get_number(view, keyword)
    if not found:
        return None
    if _MIN_MM <= abs(found) <= _MAX_MM:
        return abs(found)
    note_finding(f"{keyword} is {found:g}, which is no plausible length in millimeters; it is not used")
    return None


def get_image_type(view: Dataset) -> tuple[str, ...]:
    """Return the frame's own Frame Type, or else Image Type."""
    return get_codes(view, "FrameType") or get_codes(view, "ImageType")


def get_series_attributes(view: Dataset) -> FrameAttributes:
    """Return attributes whose difference puts images into different series."""
    echo = get_number(view, "EffectiveEchoTime")
    if echo is None:
        echo = get_number(view, "EchoTime")
    thickness = get_length(view, "SliceThickness")
    component = get_code(view, "ComplexImageComponent"), get_private_integer(view, _GE_COMPONENT)
    candidates = (
        ("type", (*get_image_type(view), *component)),
        ("echo", get_integer(view, "EchoNumbers")),
        ("echo time", echo),
        ("coil", get_private_text(view, _SIEMENS_COIL) or None),
        ("kernel", get_text(view, "ConvolutionKernel") or None),
        ("directionality", _is_trace(view)),
        ("stack", get_identifier(view, "StackID") or None),
        ("thickness", None if thickness is None else round(thickness, 2)),
    )
    return tuple(FrameAttribute(name, value) for name, value in candidates if value is not None)


def _is_trace(view: Dataset) -> bool:
    """Whether a diffusion image is averaged over directions, and so not a volume of its source series."""
    b_value = get_number(view, "DiffusionBValue")
    return bool(b_value) and get_code(view, "DiffusionDirectionality") == "ISOTROPIC"


def get_temporal_attributes(view: Dataset) -> FrameAttributes:
    """Return attributes that distinguish repetitions within a series, the most specific first."""
    candidates = (
        ("time", _get_first_integer(view, "TemporalPositionIndex", "TemporalPositionIdentifier")),
        ("segment", get_integer(view, "ReferencedSegmentNumber")),
        ("reference time", get_number(view, "FrameReferenceTime")),
        ("trigger", _get_first_number(view, "NominalCardiacTriggerDelayTime", "TriggerTime")),
        ("diffusion", _get_diffusion(view)),
        ("philips", _get_philips_labels(view)),
        ("label", get_code(view, "ASLContext") or None),
        ("velocity", get_floats(view, "VelocityEncodingDirection", 3)),
        ("dimensions", get_floats(view, "DimensionIndexValues")),
        ("acquisition", get_integer(view, "AcquisitionNumber")),
        ("frame acquisition", get_integer(view, "FrameAcquisitionNumber")),
        ("offset", get_number(view, "TemporalPositionTimeOffset")),
        ("started", _get_start(view)),
        ("acquired", get_time(view, "AcquisitionTime")),
        ("made", get_time(view, "ContentTime")),
    )
    return tuple(FrameAttribute(name, value) for name, value in candidates if value is not None)


def _get_start(view: Dataset) -> float | None:
    starts = (get_local_datetime(view, k) for k in ("FrameAcquisitionDateTime", "AcquisitionDateTime"))
    return next((start for start in starts if start is not None), None)


def _get_first_integer(view: Dataset, *keywords: str) -> int | None:
    return next((n for n in (get_integer(view, k) for k in keywords) if n is not None), None)


def _get_first_number(view: Dataset, *keywords: str) -> float | None:
    return next((n for n in (get_number(view, k) for k in keywords) if n is not None), None)


def _get_diffusion(view: Dataset) -> Hashable:
    b_value = get_number(view, "DiffusionBValue")
    if b_value is None:
        return None
    direction = get_floats(view, "DiffusionGradientOrientation", 3)
    for item in get_items(view, "DiffusionGradientDirectionSequence")[:1]:
        direction = get_floats(item, "DiffusionGradientOrientation", 3)
    return b_value, None if direction is None else tuple(round(v, 4) for v in direction)


def _get_philips_labels(view: Dataset) -> Hashable:
    """Return b-value, gradient, ASL label and phase of classic Philips files, whose order is free."""
    found = tuple(get_private_text(view, tag).zfill(6) for tag in _PHILIPS)
    return found if any(text.strip("0") for text in found) else None
