"""Rescaled values into those that can be compared: Philips' floating-point values, SUV, dose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.window import LookupTable, Voi, Window
from medimg.io.dicom.attributes import code
from medimg.io.dicom.nuclear import dose_scaling
from medimg.io.dicom.philips import PHILIPS_TAGS, philips_factor
from medimg.io.dicom.suv import suv_factor

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medimg.io.dicom.values import Meaning
    from medimg.io.series import ValueKind

__all__ = ["CALIBRATION_TAGS", "calibrated"]

#: What a header-only read must include for :func:`calibrated`, those of SUV apart.
CALIBRATION_TAGS: Final[list[str | int]] = [*PHILIPS_TAGS, "DoseGridScaling", "DoseUnits", "SOPClassUID"]


def calibrated(
    view: Dataset, found: Meaning, kind: ValueKind, *, first_acquired: float | None = None
) -> Meaning:
    """
    Multiply rescaled values with what the file says makes them comparable.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of the frame.
    found : Meaning
        Of its rescaled values.
    kind : {"auto", "rescaled", "suv"}
        "rescaled" changes nothing. "auto" makes display values of Philips MR its floating-point values, and
        RT dose its dose. "suv" makes activity concentrations of PET standardized uptake values by body
        weight.
    first_acquired : float, optional
        When the acquisition of the series began; see :func:`medimg.io.dicom.suv.suv_factor`.

    Raises
    ------
    ReadError
        If "suv" is asked for, and the file is no PET or lacks what SUV takes.
    """
    if kind == "suv":
        return _scaled(found, suv_factor(view, first_acquired=first_acquired), "SUV by body weight", "SUV")
    if kind == "rescaled" or found.photometric == "RGB":
        return found
    dose = dose_scaling(view)
    if dose is not None:
        units = {"GY": "Gy", "RELATIVE": "relative"}.get(code(view, "DoseUnits"), "raw")
        return _scaled(found, dose, "Dose Grid Scaling", units)
    factor = philips_factor(view)
    tables = any(isinstance(voi, LookupTable) for voi in found.voi)
    if factor is None or tables or abs(factor - 1) < 1e-6:
        return found
    return _scaled(found, factor, "floating-point values of Philips", found.units)


def _scaled(found: Meaning, factor: float, what: str, units: str) -> Meaning:
    step = f"{what}: times {factor:.6g}" if factor != 1 else what
    return replace(
        found,
        factor=factor,
        dtype=found.dtype if factor == 1 else np.dtype(np.float32),
        units=units,
        voi=tuple(v for v in (_scaled_voi(v, factor) for v in found.voi) if v is not None),
        transforms=(*found.transforms, step),
    )


def _scaled_voi(voi: Voi, factor: float) -> Voi | None:
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
