"""Rescaled values into those that can be compared: Philips' floating-point values, SUV, dose."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.window import LookupTable, Voi, Window
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import get_code, get_items, get_text, parse_number
from medimg.io.dicom.header.frame_vectors import parse_dose_scaling
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_floats,
    has_private,
    list_private_tags,
)
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
_UCUM_NO_UNITS: Final = frozenset({"1", "{NO UNITS}", "NO UNITS", ""})

#: What a header-only read must include for :func:`philips_factor`.
PHILIPS_TAGS: Final[list[str | int]] = [
    "Modality",
    "RealWorldValueMappingSequence",
    "RescaleSlope",
    *list_private_tags(_SCALE_SLOPE),
]


def has_physical_unit(view: Dataset) -> bool:
    """Whether the Real World Value Mapping Sequence names a unit, other than that there is none."""
    for mapping in get_items(view, "RealWorldValueMappingSequence"):
        for unit in get_items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            if get_text(unit, "CodeValue").upper() not in _UCUM_NO_UNITS:
                return True
    return False


def compute_philips_factor(view: Dataset) -> float | None:
    """
    Return what display values of Philips MR are multiplied with to get its floating-point values.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of one frame, as a single-frame file would have them, with private elements.

    Returns
    -------
    float or None
        1 / (RS · SS). None where it is no Philips MR, where Scale Slope is not said, and where the rescaled
        values are in a physical unit already.

    Raises
    ------
    DecodeError
        If Rescale Slope or Scale Slope is there, but 0 or not finite.
    """
    if get_code(view, "Modality", "MR") != "MR" or not has_private(view, _SCALE_SLOPE):
        return None
    if has_physical_unit(view):
        return None
    scale = get_private_floats(view, _SCALE_SLOPE, 1)
    if scale is None or scale[0] == 0:
        raise DecodeError("Philips' Scale Slope (2005,100E) is there, but no finite number other than 0")
    slope = parse_number(view, "RescaleSlope", 1)
    if slope == 0:
        raise DecodeError("RescaleSlope is 0, so that Philips' floating-point values can't be computed")
    factor = 1 / slope / scale[0]
    if not math.isfinite(factor) or factor == 0:
        raise DecodeError("RescaleSlope and Philips' Scale Slope (2005,100E) have no usable product")
    return factor


#: What a header-only read must include for :func:`apply_real_world_scale`, those of SUV apart.
REAL_WORLD_TAGS: Final[list[str | int]] = [*PHILIPS_TAGS, "DoseGridScaling", "DoseUnits", "SOPClassUID"]


def apply_real_world_scale(
    view: Dataset, found: ModalityTransform, kind: ValueKind, *, first_acquired: float | None = None
) -> ModalityTransform:
    """
    Multiply rescaled values with what the file says makes them comparable.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of the frame.
    found : ModalityTransform
        Of its rescaled values.
    kind : {"auto", "rescaled", "suv"}
        "rescaled" changes nothing. "auto" makes display values of Philips MR its floating-point values, and
        RT dose its dose. "suv" makes activity concentrations of PET standardized uptake values by body
        weight.
    first_acquired : float, optional
        When the acquisition of the series began; see :func:`medimg.io.dicom.values.suv.compute_suv_factor`.

    Raises
    ------
    ReadError
        If "suv" is asked for, and the file is no PET or lacks what SUV takes.
    """
    if kind == "suv":
        return _scale_transform(
            found, compute_suv_factor(view, first_acquired=first_acquired), "SUV by body weight", "SUV"
        )
    if kind == "rescaled" or found.photometric == "RGB":
        return found
    dose = parse_dose_scaling(view)
    if dose is not None:
        units = {"GY": "Gy", "RELATIVE": "relative"}.get(get_code(view, "DoseUnits"), "raw")
        return _scale_transform(found, dose, "Dose Grid Scaling", units)
    factor = compute_philips_factor(view)
    tables = any(isinstance(voi, LookupTable) for voi in found.voi)
    if factor is None or tables or abs(factor - 1) < 1e-6:
        return found
    return _scale_transform(found, factor, "floating-point values of Philips", found.units)


def _scale_transform(found: ModalityTransform, factor: float, what: str, units: str) -> ModalityTransform:
    step = f"{what}: times {factor:.6g}" if factor != 1 else what
    return replace(
        found,
        factor=factor,
        dtype=found.dtype if factor == 1 else np.dtype(np.float32),
        units=units,
        voi=tuple(v for v in (_scale_voi(v, factor) for v in found.voi) if v is not None),
        transforms=(*found.transforms, step),
    )


def _scale_voi(voi: Voi, factor: float) -> Voi | None:
    """Return the window that shows scaled values as the declared one shows the values before."""
    if factor == 1:
        return voi
    if isinstance(voi, LookupTable):
        return None
    if voi.function != "LINEAR":
        return Window(voi.center * factor, voi.width * factor, voi.function, voi.explanation)
    if voi.width <= 1:
        return None
    # LINEAR is LINEAR_EXACT half a value lower and one narrower (PS3.3 C.11.2.1.3.2)
    return Window((voi.center - 0.5) * factor, (voi.width - 1) * factor, "LINEAR_EXACT", voi.explanation)
