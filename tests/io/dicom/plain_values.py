"""The plain way from stored to modality values, one slice at a time; see `tests.io.dicom.plain_reading`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medimg.core.rescale import describe_rescale
from medimg.core.volume import Photometric
from medimg.core.window import LookupTable, Voi, Window
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_codes,
    has_value,
    parse_float,
    parse_integer,
    parse_number,
)
from medimg.io.dicom.header.frame_vectors import parse_dose_scaling
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.values._color_conversion import convert_ycc_to_rgb, parse_palette_table, reduce_to_8_bits
from medimg.io.dicom.values._voi_lut import parse_declared_voi, parse_lookup_table
from medimg.io.dicom.values.real_world import compute_philips_factor
from medimg.io.dicom.values.suv import compute_suv_factor
from medimg.io.series import ValueKind

_SIGN = "the codestream is signed, contrary to Pixel Representation: its values are kept"


@dataclass(frozen=True, slots=True)
class SliceValues:
    """
    The values of one slice.

    Attributes
    ----------
    array : numpy.ndarray
        (C, H, W) in modality units: integers where slope and intercept are whole, else float32.
    padding : numpy.ndarray or None
        (C, H, W) bool.
    units : str
        "HU", or what Rescale Type says, or "raw".
    photometric : str
        MONOCHROME1, MONOCHROME2 or RGB.
    inverted : bool
        Whether a display inverts the windowed values.
    voi : tuple of (Window or LookupTable)
        What the file declares for its display.
    transforms : tuple of str
        What was applied.
    """

    array: npt.NDArray[Any]
    padding: npt.NDArray[np.bool_] | None
    units: str
    photometric: Photometric
    inverted: bool
    voi: tuple[Voi, ...]
    transforms: tuple[str, ...]


def slice_values(view: Dataset, form: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool) -> SliceValues:
    """
    Turn the stored values of one frame into modality values.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of that frame: rescale or Modality LUT, padding, windows, palette.
    form : FrameFormat
        Of the file.
    stored : numpy.ndarray
        (rows, columns) or (rows, columns, 3), as :meth:`StoredFrames.decode` gives them, or a part of these.
    is_rgb : bool
        Whether colors are RGB already.

    Raises
    ------
    DecodeError
        If attributes that the values depend on are damaged or contradict each other.
    """
    if form.photometric == "PALETTE COLOR" or form.samples == 3:
        return _color(view, form, stored, is_rgb=is_rgb)
    padding = padding_mask(view, form, stored)
    values, transform, is_calibrated = _modality(view, stored)
    shape = get_code(view, "PresentationLUTShape")
    steps = (_SIGN, transform) if stored.dtype.kind == "i" and not form.signed else (transform,)
    return SliceValues(
        array=values[None],
        padding=None if padding is None or not padding.any() else padding[None],
        units=_units(view, is_calibrated=is_calibrated),
        photometric="MONOCHROME1" if form.photometric == "MONOCHROME1" else "MONOCHROME2",
        inverted=form.photometric == "MONOCHROME1" or shape == "INVERSE",
        voi=parse_declared_voi(view),
        transforms=tuple(step for step in steps if step),
    )


def _units(dataset: Dataset, *, is_calibrated: bool) -> str:
    kind = get_code(dataset, "RescaleType")
    if get_code(dataset, "Modality") == "CT":
        scout = "LOCALIZER" in get_codes(dataset, "ImageType")
        return "HU" if is_calibrated and kind in {"", "HU", "US"} and not scout else "raw"
    if not kind and get_code(dataset, "Modality") == "PT":
        kind = get_code(dataset, "Units")
    return {"": "raw", "US": "raw"}.get(kind, kind)


def _modality(dataset: Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str, bool]:
    """Return the values, the step, and whether the file says how to get there at all."""
    table = parse_lookup_table(dataset, "ModalityLUTSequence")
    if table is not None and stored.dtype.kind == "f":
        raise DecodeError("a Modality LUT can't be applied to float pixel data")
    if table is not None:
        return _mapped(table, stored), f"modality LUT of {table.entries.size} entries", True
    absent = float("nan")
    slope, intercept = (
        parse_number(dataset, "RescaleSlope", absent),
        parse_number(dataset, "RescaleIntercept", absent),
    )
    is_calibrated = not (math.isnan(slope) and math.isnan(intercept))
    a, b = (1.0 if math.isnan(slope) else slope), (0.0 if math.isnan(intercept) else intercept)
    if a == 0 and stored.min() != stored.max():
        raise DecodeError("Rescale Slope is 0, so that all pixels would be equal")
    if (a, b) == (1.0, 0.0):
        return stored, "", is_calibrated
    if stored.dtype.kind == "f":
        values = (stored.astype(np.float64) * a + b).astype(stored.dtype)
        return values, describe_rescale(a, b), is_calibrated
    return rescaled(stored, a, b), describe_rescale(a, b), is_calibrated


def _mapped(table: LookupTable, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    index = stored.astype(np.int64) - table.first
    return np.asarray(table.entries[np.clip(index, 0, table.entries.size - 1)])


def padding_mask(view: Dataset, form: FrameFormat, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """
    Return where stored values are padding (PS3.3 C.7.5.1.1.2, C.7.6.24 for floats); None if none can be.

    Pixel Padding Value and, if it is there, Pixel Padding Range Limit are the ends of a range, both
    included.
    """
    if stored.dtype.kind == "f":
        return _float_padding(view, "Double" if stored.dtype.itemsize == 8 else "", stored)
    if not has_value(view, "PixelPaddingValue"):
        return None
    value = parse_integer(view, "PixelPaddingValue", 0)
    limit = parse_integer(view, "PixelPaddingRangeLimit", value)
    ends = sorted(_as_stored(v, form, stored.dtype) for v in (value, limit))
    # beyond the range of the type, nothing is equal
    low, high = max(ends[0], int(np.iinfo(stored.dtype).min)), min(ends[1], int(np.iinfo(stored.dtype).max))
    return np.asarray((stored >= low) & (stored <= high)) if low <= high else None


def _float_padding(view: Dataset, kind: str, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    value = parse_float(view, f"{kind}FloatPixelPaddingValue")
    if value is None:
        return None
    if math.isnan(value):
        return np.asarray(np.isnan(stored))
    limit = parse_float(view, f"{kind}FloatPixelPaddingRangeLimit")
    ends = np.sort(np.asarray([value, value if limit is None else limit]).astype(stored.dtype))
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def _as_stored(value: int, form: FrameFormat, dtype: np.dtype[Any]) -> int:
    """Read a value that was written with the other signedness than the pixels as what it stands for."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "u" and value < 0:
        return value + (1 << bits)
    if dtype.kind == "i" and value >= 1 << (bits - 1):
        return value - (1 << bits)
    if dtype.kind == "i" and 1 << (form.bits_stored - 1) <= value < 1 << form.bits_stored:
        # too large to be a value, but its bits are those of a negative one
        return value - (1 << form.bits_stored)
    return value


def _apply_palette(view: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    signed = stored.dtype.kind == "i"
    tables = [parse_palette_table(view, color, signed=signed) for color in ("Red", "Green", "Blue")]
    bits = 16 if max(int(table.entries.max()) for table in tables) > 255 else 8
    planes = []
    for table in tables:
        index = np.clip(stored.astype(np.int64) - table.first, 0, table.entries.size - 1)
        planes.append(reduce_to_8_bits(table.entries, bits)[index])
    return np.stack(planes, axis=-1)


def _color(view: Dataset, form: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool) -> SliceValues:
    if form.photometric == "PALETTE COLOR":
        values, steps = _apply_palette(view, stored), ["palette applied"]
    elif is_rgb:
        values, steps = stored, []
    else:
        values, steps = convert_ycc_to_rgb(stored, form), ["YCbCr to RGB"]
    bits = 8 * values.dtype.itemsize
    if bits > 8 and (form.bits_stored < bits or values.dtype.kind != "u"):
        values = reduce_to_8_bits(values, form.bits_stored)
        steps.append("scaled to 8 bits")
    array = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    return SliceValues(array, None, "raw", "RGB", False, (), tuple(steps))


def rescaled(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """
    Return ``slope * stored + intercept``; integers stay integers where both numbers are whole.

    The result is int16 or int32, whichever holds every value; float32 where slope or intercept have
    fractions.
    """
    if not (float(slope).is_integer() and float(intercept).is_integer()):
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
    low, high = min(ends), max(ends)
    if np.iinfo(np.int32).min > low or high > np.iinfo(np.int32).max:
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    small = stored.dtype.itemsize <= 2 and abs(slope) < 2**15 and abs(intercept) < 2**30
    wide = stored.astype(np.int32 if small else np.int64) * int(slope) + int(intercept)
    fits = np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max
    return wide.astype(np.int16 if fits else np.int32)


def calibrated(
    view: Dataset, found: SliceValues, kind: ValueKind, *, first_acquired: float | None = None
) -> SliceValues:
    """
    Multiply rescaled values with what the file says makes them comparable.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of the frame.
    found : SliceValues
        Its rescaled values.
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
        return _scaled(
            found, compute_suv_factor(view, first_acquired=first_acquired), "SUV by body weight", "SUV"
        )
    if kind == "rescaled" or found.photometric == "RGB":
        return found
    dose = parse_dose_scaling(view)
    if dose is not None:
        units = {"GY": "Gy", "RELATIVE": "relative"}.get(get_code(view, "DoseUnits"), "raw")
        return _scaled(found, dose, "Dose Grid Scaling", units)
    factor = compute_philips_factor(view)
    tables = any(isinstance(voi, LookupTable) for voi in found.voi)
    if factor is None or tables or abs(factor - 1) < 1e-6:
        return found
    return _scaled(found, factor, "floating-point values of Philips", found.units)


def _scaled(found: SliceValues, factor: float, what: str, units: str) -> SliceValues:
    step = f"{what}: times {factor:.6g}" if factor != 1 else what
    array = found.array if factor == 1 else (found.array * np.float64(factor)).astype(np.float32)
    voi = tuple(v for v in (_scaled_voi(v, factor) for v in found.voi) if v is not None)
    return replace(found, array=array, units=units, voi=voi, transforms=(*found.transforms, step))


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
