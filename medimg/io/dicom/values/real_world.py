"""Rescaled values to quantitative ones: Philips' floating-point values, SUV, dose."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.window import LookupTable, Voi, Window
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_items,
    get_text,
    has_value,
    parse_integer,
    parse_number,
)
from medimg.io.dicom.header.distinguishing_attributes import get_image_type
from medimg.io.dicom.header.element_values import collect_findings, note_finding
from medimg.io.dicom.header.frame_vectors import parse_dose_scaling
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_floats,
    has_private,
    is_private_empty,
    list_private_tags,
)
from medimg.io.dicom.values.modality_lut import RADIANS, normalize_angle
from medimg.io.dicom.values.suv import compute_suv_factor

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = [
    "PHILIPS_TAGS",
    "REAL_WORLD_TAGS",
    "apply_real_world_scale",
    "compute_philips_factor",
    "has_physical_unit",
]

_SCALE_SLOPE: Final = PrivateTag(0x2005, 0x0E, "Philips MR Imaging DD 001", "FL")
#: Smallest factor whose products float32 can hold.
_MIN_FACTOR: Final = 1e-38
_PHASE_TYPES: Final = frozenset({"P", "PHASE", "PHASE MAP"})
#: Slope and intercept are rounded, and the range is of 4095 or 4096 steps.
_TURN_TOLERANCE: Final = 0.01
_UCUM_NO_UNITS: Final = frozenset({"1", "{NO UNITS}", "NO UNITS", ""})

#: Tags that a header-only read must include for :func:`compute_philips_factor`.
PHILIPS_TAGS: Final[list[str | int]] = [
    "Modality",
    "BitsStored",
    "ComplexImageComponent",
    "FrameType",
    "ImageType",
    "RealWorldValueMappingSequence",
    "RescaleSlope",
    *list_private_tags(_SCALE_SLOPE),
]


def has_physical_unit(view: Dataset) -> bool:
    """Whether the Real World Value Mapping Sequence names a physical unit."""
    for mapping in get_items(view, "RealWorldValueMappingSequence"):
        for unit in get_items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            if get_text(unit, "CodeValue").upper() not in _UCUM_NO_UNITS:
                return True
    return False


def compute_philips_factor(view: Dataset) -> float | None:
    """
    Return 1 / (Rescale Slope · Scale Slope), from display values of Philips MR to its floating-point values.

    None if it is not Philips MR, has no Scale Slope, or is in a physical unit already; DecodeError if a slope
    is unusable.
    """
    if get_code(view, "Modality", "MR") != "MR" or is_private_empty(view, _SCALE_SLOPE):
        return None
    if has_physical_unit(view):
        return None
    scale = get_private_floats(view, _SCALE_SLOPE, 1)
    if scale is None or scale[0] == 0:
        raise DecodeError(
            "Philips' Scale Slope (2005,100E) is present but is not a finite number other than 0"
        )
    slope = parse_number(view, "RescaleSlope", 1)
    if slope == 0:
        raise DecodeError("RescaleSlope is 0, so that Philips' floating-point values can't be computed")
    factor = 1 / slope / scale[0]
    if not math.isfinite(factor) or abs(factor) < _MIN_FACTOR:
        raise DecodeError("RescaleSlope and Philips' Scale Slope (2005,100E) have no usable product")
    return factor


#: Tags that a header-only read must include for :func:`apply_real_world_scale`, except those of SUV.
REAL_WORLD_TAGS: Final[list[str | int]] = [*PHILIPS_TAGS, "DoseGridScaling", "DoseUnits", "SOPClassUID"]


def apply_real_world_scale(
    view: Dataset, transform: ModalityTransform, values: ValueKind, *, first_acquired: float | None = None
) -> ModalityTransform:
    """
    Return a transform to quantitative values.

    "auto" converts phase in any unit of angle to radians, Philips MR to floating-point values and RT Dose to
    dose; "suv" converts PET activity to SUV by body weight, or raises ReadError; "rescaled" changes nothing.
    """
    with collect_findings() as findings:
        found = _apply_scale(view, transform, values, first_acquired)
    return replace(found, notes=(*found.notes, *findings)) if findings else found


def _apply_scale(
    view: Dataset, transform: ModalityTransform, values: ValueKind, first_acquired: float | None
) -> ModalityTransform:
    if values == "suv":
        return _scale_transform(
            transform, compute_suv_factor(view, first_acquired=first_acquired), "SUV by body weight", "SUV"
        )
    if values == "rescaled" or transform.photometric == "RGB":
        return transform
    dose = parse_dose_scaling(view)
    if dose is not None:
        units = {"GY": "Gy", "RELATIVE": "relative"}.get(get_code(view, "DoseUnits"), "raw")
        return _scale_transform(transform, dose, "Dose Grid Scaling", units)
    phase = _find_phase_factor(view, transform)
    if phase is not None:
        return _scale_transform(transform, phase, "phase in radians", "rad")
    factor = compute_philips_factor(view)
    tables = any(isinstance(voi, LookupTable) for voi in transform.voi)
    if factor is None or tables or abs(factor - 1) < 1e-6:
        return transform
    return _scale_transform(transform, factor, "floating-point values of Philips", transform.units)


def _find_phase_factor(view: Dataset, transform: ModalityTransform) -> float | None:
    """
    Return the factor from rescaled values to radians; None if nothing says that they are angles.

    By the unit of the rescale, that of the Real World Value Mapping, or the range of 2π of a Philips phase
    image: classic files have milliradians, enhanced ones radians.
    """
    if transform.table is not None or get_code(view, "Modality", "MR") != "MR":
        return None
    if transform.units in RADIANS:
        return RADIANS[transform.units]
    mapped = _find_mapped_angle(view, transform)
    if mapped is not None or not (_is_phase(view) and has_private(view, _SCALE_SLOPE)):
        return mapped
    turn = transform.slope * 2 ** parse_integer(view, "BitsStored", 0)
    for factor in RADIANS.values():
        is_turn = abs(turn * factor / math.tau - 1) < _TURN_TOLERANCE
        if is_turn and abs(transform.intercept * factor / math.pi + 1) < _TURN_TOLERANCE:
            return factor
    return None


def _is_phase(view: Dataset) -> bool:
    named = get_code(view, "ComplexImageComponent") == "PHASE"
    return named or not _PHASE_TYPES.isdisjoint(get_image_type(view))


def _find_mapped_angle(view: Dataset, transform: ModalityTransform) -> float | None:
    """Return the factor by a mapping to an angle, if it is proportional to the rescale; None if not."""
    for mapping in get_items(view, "RealWorldValueMappingSequence"):
        for unit in get_items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            to_radians = RADIANS.get(normalize_angle(get_text(unit, "CodeValue").upper()))
            if to_radians is None or not has_value(mapping, "RealWorldValueSlope"):
                continue
            slope = parse_number(mapping, "RealWorldValueSlope", 1)
            intercept = parse_number(mapping, "RealWorldValueIntercept", 0)
            ratio = slope / transform.slope
            if ratio > 0 and abs(intercept - ratio * transform.intercept) <= abs(slope):
                return ratio * to_radians
    return None


def _scale_transform(
    transform: ModalityTransform, factor: float, description: str, units: str
) -> ModalityTransform:
    step = f"{description}: times {factor:.6g}" if factor != 1 else description
    return replace(
        transform,
        factor=factor,
        dtype=transform.dtype if factor == 1 else np.dtype(np.float32),
        units=units,
        voi=tuple(v for v in (_scale_voi(v, factor) for v in transform.voi) if v is not None),
        transforms=(*transform.transforms, step),
    )


def _scale_voi(voi: Voi, factor: float) -> Voi | None:
    """Return the window that displays scaled values as the declared one displays the unscaled ones."""
    if factor == 1:
        return voi
    if isinstance(voi, LookupTable):
        note_finding("VOILUTSequence does not apply to scaled values; it is not used")
        return None
    if voi.function != "LINEAR":
        return Window(voi.center * factor, voi.width * factor, voi.function, voi.explanation)
    if voi.width <= 1:
        note_finding("a LINEAR window of width 1 has no counterpart in scaled values; it is not used")
        return None
    # LINEAR is LINEAR_EXACT half a value lower and one narrower (PS3.3 C.11.2.1.3.2)
    return Window((voi.center - 0.5) * factor, (voi.width - 1) * factor, "LINEAR_EXACT", voi.explanation)
