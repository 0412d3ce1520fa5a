"""Stored values into modality values (PS3.3 C.11.1), with padding, units and colors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.rescale import rescaled
from medimg.core.window import LookupTable
from medimg.errors import DecodeError
from medimg.io.dicom.attributes import code, codes, is_there, number, whole
from medimg.io.dicom.frames import frame_format, stored_values
from medimg.io.dicom.voi import declared_voi, lookup_table

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.volume import Photometric
    from medimg.core.window import Voi
    from medimg.io.dicom.codecs import FrameFormat

__all__ = ["SliceValues", "slice_values"]

# PS3.3 C.7.6.3.1.2: YBR_FULL back to RGB
_RGB_FROM_YCC: Final = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])


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


def slice_values(dataset: Dataset) -> SliceValues:
    """
    Decode a single-frame instance into modality values.

    Raises
    ------
    ReadError
        If the pixel data is absent, truncated, damaged, or contradicts its header.
    """
    form = frame_format(dataset)
    stored, is_rgb = stored_values(dataset, form)
    if form.photometric == "PALETTE COLOR" or form.samples == 3:
        return _color(dataset, form, stored, is_rgb=is_rgb)
    if form.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise DecodeError(f"Photometric Interpretation {form.photometric!r} with one sample per pixel")
    padding = _padding(dataset, stored)
    values, transform, is_calibrated = _modality(dataset, stored)
    shape = code(dataset, "PresentationLUTShape")
    return SliceValues(
        array=values[None],
        padding=None if padding is None or not padding.any() else padding[None],
        units=_units(dataset, is_calibrated=is_calibrated),
        photometric="MONOCHROME1" if form.photometric == "MONOCHROME1" else "MONOCHROME2",
        inverted=form.photometric == "MONOCHROME1" or shape == "INVERSE",
        voi=declared_voi(dataset),
        transforms=(transform,) if transform else (),
    )


def _units(dataset: Dataset, *, is_calibrated: bool) -> str:
    kind = code(dataset, "RescaleType")
    if code(dataset, "Modality") == "CT":
        scout = "LOCALIZER" in codes(dataset, "ImageType")
        return "HU" if is_calibrated and kind in {"", "HU", "US"} and not scout else "raw"
    return {"": "raw", "US": "raw"}.get(kind, kind)


def _modality(dataset: Dataset, stored: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str, bool]:
    """Return the values, the step, and whether the file says how to get there at all."""
    table = lookup_table(dataset, "ModalityLUTSequence")
    if table is not None:
        return _mapped(table, stored), f"modality LUT of {table.entries.size} entries", True
    absent = float("nan")
    slope, intercept = number(dataset, "RescaleSlope", absent), number(dataset, "RescaleIntercept", absent)
    is_calibrated = not (math.isnan(slope) and math.isnan(intercept))
    a, b = (1.0 if math.isnan(slope) else slope), (0.0 if math.isnan(intercept) else intercept)
    if a == 0:
        raise DecodeError("Rescale Slope is 0, so that all pixels would be equal")
    if (a, b) == (1.0, 0.0):
        return stored, "", is_calibrated
    return rescaled(stored, a, b), f"rescaled: {a:g} × stored + {b:g}", is_calibrated


def _mapped(table: LookupTable, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    index = stored.astype(np.int64) - table.first
    return np.asarray(table.entries[np.clip(index, 0, table.entries.size - 1)])


def _padding(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    if not is_there(dataset, "PixelPaddingValue"):
        return None
    value = whole(dataset, "PixelPaddingValue", 0)
    limit = whole(dataset, "PixelPaddingRangeLimit", value)
    ends = sorted(_as_stored(v, stored.dtype) for v in (value, limit))
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def _as_stored(value: int, dtype: np.dtype[Any]) -> int:
    """Read a value that was written with the other signedness than the pixels as what it stands for."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "u" and value < 0:
        return value + (1 << bits)
    if dtype.kind == "i" and value >= 1 << (bits - 1):
        return value - (1 << bits)
    return value


def _color(dataset: Dataset, form: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool) -> SliceValues:
    step = ""
    if form.photometric == "PALETTE COLOR":
        values, step = _palette(dataset, stored), "palette applied"
    elif is_rgb or form.photometric == "RGB":
        values = stored
    elif form.photometric in {"YBR_FULL", "YBR_FULL_422"}:
        values, step = _rgb_from_ycc(stored, form.bits_stored), "YCbCr to RGB"
    else:
        raise DecodeError(f"Photometric Interpretation {form.photometric!r} is not supported")
    if values.dtype.itemsize > 1:
        values, step = _eight_bits(values, form.bits_stored), f"{step} scaled to 8 bits".strip()
    array = np.ascontiguousarray(np.moveaxis(values, -1, 0)).astype(np.uint8, copy=False)
    return SliceValues(array, None, "raw", "RGB", False, (), (step,) if step else ())


def _eight_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    return (values.astype(np.int64) >> max(0, bits - 8)).astype(np.uint8)


def _palette(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    try:
        everything = np.arange(2 ** min(16, whole(dataset, "BitsStored", 16)), dtype=np.uint16)
        table = np.asarray(apply_color_lut(everything, dataset))[:, :3]
    # damaged palettes surface as various exceptions
    except Exception as error:
        raise DecodeError(f"the color palette is damaged ({type(error).__name__})") from None
    if table.dtype.itemsize > 1:
        # by the whole table, so that a color does not depend on the others in the picture
        table = _eight_bits(table, 16 if table.max() > 255 else 8)
    return np.asarray(table[stored.astype(np.uint16) & (table.shape[0] - 1)])


def _rgb_from_ycc(values: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    half = 2.0 ** (bits - 1)
    centered = values.astype(np.float64) - [0.0, half, half]
    rgb = np.clip(np.rint(centered @ _RGB_FROM_YCC.T), 0, 2**bits - 1)
    return np.asarray(rgb.astype(values.dtype))
