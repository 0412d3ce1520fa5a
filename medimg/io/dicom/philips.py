"""
Values of Philips MR: what the scanner measured, beside what it displays.

Rescale Slope and Intercept of Philips MR give *display* values, whose scale differs from series to series and
from frame to frame. The floating-point value that can be compared within an examination is

    FP = (stored · RS + RI) / (RS · SS)

with RS and RI the rescale and SS the Scale Slope (2005,xx0E) of "Philips MR Imaging DD 001" (Chenevert et
al., Errors in Quantitative Image Analysis due to Platform-Dependent Image Scaling, Transl. Oncol. 2014,
PMC3998685). Enhanced files have SS in an item of the private sequence (2005,xx0F) of each frame.

Where the file maps its stored values to a physical unit (Real World Value Mapping Sequence, PS3.3
C.7.6.16.2.11, with units other than "no units"), such as the Hz of a field map, those are the values that
count: there is no factor then. Philips writes the same slope and intercept there as in the rescale.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from medimg.errors import DecodeError
from medimg.io.dicom.attributes import code, items, number, text
from medimg.io.dicom.private import PrivateTag, is_private_there, private_floats, private_tags

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["PHILIPS_TAGS", "has_physical_unit", "philips_factor"]

_SCALE_SLOPE: Final = PrivateTag(0x2005, 0x0E, "Philips MR Imaging DD 001", "FL")
_UCUM_NO_UNITS: Final = frozenset({"1", "{NO UNITS}", "NO UNITS", ""})

#: What a header-only read must include for :func:`philips_factor`.
PHILIPS_TAGS: Final[list[str | int]] = [
    "Modality",
    "RealWorldValueMappingSequence",
    "RescaleSlope",
    *private_tags(_SCALE_SLOPE),
]


def has_physical_unit(view: Dataset) -> bool:
    """Whether the Real World Value Mapping Sequence names a unit, other than that there is none."""
    for mapping in items(view, "RealWorldValueMappingSequence"):
        for unit in items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            if text(unit, "CodeValue").upper() not in _UCUM_NO_UNITS:
                return True
    return False


def philips_factor(view: Dataset) -> float | None:
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
    if code(view, "Modality", "MR") != "MR" or not is_private_there(view, _SCALE_SLOPE):
        return None
    if has_physical_unit(view):
        return None
    scale = private_floats(view, _SCALE_SLOPE, 1)
    if scale is None or scale[0] == 0:
        raise DecodeError("Philips' Scale Slope (2005,100E) is there, but no finite number other than 0")
    slope = number(view, "RescaleSlope", 1)
    if slope == 0:
        raise DecodeError("RescaleSlope is 0, so that Philips' floating-point values can't be computed")
    factor = 1 / slope / scale[0]
    if not math.isfinite(factor) or factor == 0:
        raise DecodeError("RescaleSlope and Philips' Scale Slope (2005,100E) have no usable product")
    return factor
