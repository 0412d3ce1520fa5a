"""Spacing of pixels in a frame, and what it is worth (PS3.3 10.7.1.3, C.8.5.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_floats,
    get_integer,
    get_items,
    has_value,
    parse_numbers,
)
from medimg.io.dicom.header.frame_attributes import get_lengths, parse_lengths

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["PIXEL_SPACING_TAGS", "PixelSpacing", "find_pixel_spacing"]

#: Tags that a header-only read must include for this module.
PIXEL_SPACING_TAGS: Final[list[str | int]] = [
    "EstimatedRadiographicMagnificationFactor",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "ObjectPixelSpacingInCenterOfBeam",
    "PixelAspectRatio",
    "PixelSpacing",
    "PixelSpacingCalibrationType",
    "SequenceOfUltrasoundRegions",
]

_SAME: Final = 1e-3
_CENTIMETERS: Final = 3
_TWO_DIMENSIONAL: Final = 1
#: An object can't be behind the detector; nor does any X-ray magnify more.
_MAGNIFICATIONS: Final = (0.99, 20.0)
_NONE: Final = "no pixel spacing in the file: 1 mm assumed"


class PixelSpacing(NamedTuple):
    """
    Spacing of rows and of columns, in millimeters; None if unknown.

    `warning` says what is assumed, `remark` what the spacing refers to if not to the patient.
    """

    lengths: tuple[float, float] | None
    warning: str = ""
    remark: str = ""


def find_pixel_spacing(view: Dataset) -> PixelSpacing:
    """
    Return the spacing of pixels by the first attribute that states it.

    Pixel Spacing, unless it repeats Imager Pixel Spacing without a calibration; Object Pixel Spacing in
    Center of Beam; Imager Pixel Spacing, divided by the magnification; Nominal Scanned Pixel Spacing; the
    ultrasound regions; the aspect ratio. DecodeError is raised if the first attribute present is unusable, as
    the others mean something else.
    """
    stated = parse_lengths(view, "PixelSpacing")
    imager = (parse_lengths if stated is None else get_lengths)(view, "ImagerPixelSpacing")
    is_repeated = stated is not None and imager is not None and _are_close(stated, imager)
    if stated is not None and (not is_repeated or has_value(view, "PixelSpacingCalibrationType")):
        return PixelSpacing(stated)
    in_object = parse_lengths(view, "ObjectPixelSpacingInCenterOfBeam")
    if in_object is not None:
        return PixelSpacing(in_object, remark="pixel spacing is that in the center of the beam")
    if imager is not None:
        return _reduce_to_patient(view, imager)
    scanned = parse_lengths(view, "NominalScannedPixelSpacing")
    if scanned is not None:
        return PixelSpacing(scanned, remark="pixel spacing is that of the scanned film, not of the patient")
    return _find_region_spacing(view) or _find_aspect(view) or PixelSpacing(None, _NONE)


def _are_close(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a - b) <= _SAME * abs(b) for a, b in zip(one, other, strict=True))


def _reduce_to_patient(view: Dataset, imager: tuple[float, float]) -> PixelSpacing:
    """Divide the spacing at the detector by the magnification of the object, if that is stated."""
    at_detector = "pixel spacing is that at the detector, not in the patient"
    keyword = "EstimatedRadiographicMagnificationFactor"
    if not has_value(view, keyword):
        return PixelSpacing(imager, remark=f"{at_detector}: no magnification is stated")
    factor = get_floats(view, keyword, 1)
    if factor is None or not _MAGNIFICATIONS[0] <= factor[0] <= _MAGNIFICATIONS[1]:
        return PixelSpacing(imager, warning=f"{keyword} is not a magnification: {at_detector}")
    return PixelSpacing(
        (imager[0] / factor[0], imager[1] / factor[0]),
        remark=f"pixel spacing is that at the detector, divided by the magnification {factor[0]:g}",
    )


def _find_region_spacing(view: Dataset) -> PixelSpacing | None:
    """Return the spacing on which all two-dimensional ultrasound regions agree; None if there are none."""
    regions = get_items(view, "SequenceOfUltrasoundRegions")
    flat = [r for r in regions if get_integer(r, "RegionSpatialFormat") in {_TWO_DIMENSIONAL, None}]
    if not flat:
        return None
    found = [_measure_region(region) for region in flat]
    known = [lengths for lengths in found if lengths is not None]
    if not known:
        return PixelSpacing(None, "the ultrasound regions state no usable pixel spacing: 1 mm assumed")
    if len(known) < len(found) or not all(_are_close(lengths, known[0]) for lengths in known):
        return PixelSpacing(None, "the ultrasound regions differ in pixel spacing: 1 mm assumed")
    remark = "pixel spacing is that of the ultrasound region"
    if len(flat) < len(regions):
        remark += "; other regions have axes of time or velocity"
    return PixelSpacing(known[0], remark=remark)


def _measure_region(region: Dataset) -> tuple[float, float] | None:
    """Return the spacing of rows and columns of a region in centimeters, as millimeters; None if unusable."""
    lengths = []
    for axis in "YX":
        delta = get_floats(region, f"PhysicalDelta{axis}", 1)
        if get_integer(region, f"PhysicalUnits{axis}Direction") != _CENTIMETERS or delta is None:
            return None
        lengths.append(10 * abs(delta[0]))
    usable = all(1e-6 <= length <= 1e4 for length in lengths)
    return (lengths[0], lengths[1]) if usable else None


def _find_aspect(view: Dataset) -> PixelSpacing | None:
    """Return the spacing by Pixel Aspect Ratio, for columns of 1 mm; None if absent; raise if unusable."""
    aspect = parse_numbers(view, "PixelAspectRatio", 2)
    if aspect is None:
        return None
    if min(aspect) <= 0 or not 1e-2 <= aspect[0] / aspect[1] <= 1e2:
        raise DecodeError(
            f"PixelAspectRatio is {aspect[0]:g} to {aspect[1]:g}, which no pixel has; the file is damaged"
        )
    return PixelSpacing(
        (aspect[0] / aspect[1], 1.0),
        "no pixel spacing in the file, only the aspect ratio: columns are assumed 1 mm apart",
    )
