"""What stored values mean (PS3.3 C.11.1): rescale, padding, units and colors, found once for many frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.core.rescale import choose_rescaled_dtype, rescale_into
from medimg.core.window import LookupTable
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import code, codes, is_there, number, real, whole
from medimg.io.dicom.values.photometric import eight_bits, rgb_from_palette, rgb_from_ycc
from medimg.io.dicom.values.voi_lut import declared_voi, lookup_table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.volume import Photometric
    from medimg.core.window import Voi
    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["VALUE_TAGS", "ModalityTransform", "SliceValues", "modality_transform", "slice_values"]

#: What a header-only read must include for :func:`modality_transform`, beside the Image Pixel module.
VALUE_TAGS: Final[list[str | int]] = [
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"{kind}FloatPixelPadding{name}" for kind in ("", "Double") for name in ("Value", "RangeLimit")),
    "ImageType",
    "LUTExplanation",
    "Modality",
    "ModalityLUTSequence",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PresentationLUTShape",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Units",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowCenterWidthExplanation",
    "WindowWidth",
]

_SIGN: Final = "the codestream is signed, against Pixel Representation: its values are kept"
#: The least and the greatest value that can be there, both included.
Ends: TypeAlias = "tuple[float, float]"


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


@dataclass(frozen=True, slots=True, eq=False)
class ModalityTransform:
    """
    What stored values of a certain type mean in one frame, or in many whose headers say the same of them.

    Attributes
    ----------
    dtype : numpy.dtype or None
        Of the values; None where it depends on them.
    slope, intercept : float
        From stored values to rescaled ones.
    table : LookupTable or None
        Modality LUT, in place of these.
    factor : float
        What rescaled values are multiplied with; see
        :func:`medimg.io.dicom.values.real_world.apply_real_world_scale`.
    padding : tuple of 2 numbers or None
        The ends of a range of stored values, both included, that are no part of the image; NaN stands for
        itself.
    rgb : callable or None
        Stored colors or indices into (H, W, 3), in place of all of these.
    units, photometric, inverted, voi, transforms
        See :class:`SliceValues`.
    """

    dtype: np.dtype[Any] | None
    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None
    factor: float = 1.0
    padding: Ends | None = None
    rgb: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    units: str = "raw"
    photometric: Photometric = "RGB"
    inverted: bool = False
    voi: tuple[Voi, ...] = ()
    transforms: tuple[str, ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether values are as stored."""
        return self.is_linear and (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def is_linear(self) -> bool:
        """Whether slope and intercept are all that there is."""
        return self.table is None and self.rgb is None and self.factor == 1

    def dtype_of(self, stored: npt.NDArray[Any]) -> np.dtype[Any]:
        """Return the type of the values: the narrowest that holds those of this frame."""
        if self.dtype is not None:
            return self.dtype
        return choose_rescaled_dtype((int(stored.min()), int(stored.max())), self.slope, self.intercept)

    def values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        Return modality values.

        Parameters
        ----------
        stored : numpy.ndarray
            (rows, columns) or (rows, columns, 3), as :meth:`StoredFrames.stored` gives them, or a part of
            these.

        Returns
        -------
        numpy.ndarray
            (rows, columns), or (3, rows, columns) of colors; maybe the memory of `stored`.
        """
        if self.rgb is not None:
            found = np.ascontiguousarray(np.moveaxis(self.rgb(stored), -1, 0))
        else:
            found = self._rescaled(stored)
        return found if self.factor == 1 else (found * np.float64(self.factor)).astype(np.float32)

    def _rescaled(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.table is not None:
            index = stored.astype(np.int64) - self.table.first
            return np.asarray(self.table.entries[np.clip(index, 0, self.table.entries.size - 1)])
        if (self.slope, self.intercept) == (1.0, 0.0):
            return stored
        if stored.dtype.kind == "f":
            return (stored.astype(np.float64) * self.slope + self.intercept).astype(stored.dtype)
        dtype = choose_rescaled_dtype((int(stored.min()), int(stored.max())), self.slope, self.intercept)
        values = np.empty(stored.shape, dtype)
        rescale_into(np.ascontiguousarray(stored).reshape(-1), self.slope, self.intercept, values.reshape(-1))
        return values

    def mask(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Return where stored values are padding, (rows, columns); None where none are."""
        if self.padding is None:
            return None
        low, high = self.padding
        if math.isnan(low):
            found = np.isnan(stored)
        elif stored.dtype.kind == "f":
            found = (stored >= low) & (stored <= high)
        else:
            least = int(stored.min())
            if least > high:
                return None
            found = stored <= high if least >= low else (stored >= low) & (stored <= high)
        return np.asarray(found) if found.any() else None


def modality_transform(
    view: Dataset, form: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool, exact_bits: bool = False
) -> ModalityTransform:
    """
    Return what the stored values of a frame mean.

    Parameters
    ----------
    view : pydicom.Dataset
        The attributes of that frame: rescale or Modality LUT, padding, windows, palette.
    form : FrameFormat
        Of the file.
    dtype : numpy.dtype
        Of the stored values.
    is_rgb : bool
        Whether colors are RGB already.
    exact_bits : bool
        Whether no stored value has more bits than Bits Stored.

    Raises
    ------
    DecodeError
        If attributes that the values depend on are damaged or contradict each other.
    """
    if form.photometric == "PALETTE COLOR" or form.samples == 3:
        return _color(view, form, dtype, is_rgb=is_rgb)
    padding = _padding(view, form, dtype)
    table, slope, intercept, transform, is_calibrated = _modality(view, dtype)
    shape = code(view, "PresentationLUTShape")
    steps = (_SIGN, transform) if dtype.kind == "i" and not form.signed else (transform,)
    bits = form.bits_stored if exact_bits and form.dtype == dtype else 8 * dtype.itemsize
    return ModalityTransform(
        dtype=_certain_dtype(dtype, bits, slope, intercept) if table is None else table.entries.dtype,
        slope=slope,
        intercept=intercept,
        table=table,
        padding=padding,
        units=_units(view, is_calibrated=is_calibrated),
        photometric="MONOCHROME1" if form.photometric == "MONOCHROME1" else "MONOCHROME2",
        inverted=form.photometric == "MONOCHROME1" or shape == "INVERSE",
        voi=declared_voi(view),
        transforms=tuple(step for step in steps if step),
    )


def slice_values(view: Dataset, form: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool) -> SliceValues:
    """Turn the stored values of one frame into modality values; see :func:`modality_transform`."""
    return slice_values_of(modality_transform(view, form, stored.dtype, is_rgb=is_rgb), stored)


def slice_values_of(meaning: ModalityTransform, stored: npt.NDArray[Any]) -> SliceValues:
    """Return the values of one frame with all that is known of them."""
    array, padding = meaning.values(stored), meaning.mask(stored)
    return SliceValues(
        array=array if array.ndim == 3 else array[None],
        padding=None if padding is None else padding[None],
        units=meaning.units,
        photometric=meaning.photometric,
        inverted=meaning.inverted,
        voi=meaning.voi,
        transforms=meaning.transforms,
    )


def _units(dataset: Dataset, *, is_calibrated: bool) -> str:
    kind = code(dataset, "RescaleType")
    if code(dataset, "Modality") == "CT":
        scout = "LOCALIZER" in codes(dataset, "ImageType")
        return "HU" if is_calibrated and kind in {"", "HU", "US"} and not scout else "raw"
    if not kind and code(dataset, "Modality") == "PT":
        kind = code(dataset, "Units")
    return {"": "raw", "US": "raw"}.get(kind, kind)


def _modality(dataset: Dataset, dtype: np.dtype[Any]) -> tuple[LookupTable | None, float, float, str, bool]:
    """Return table, slope, intercept, the step, and whether the file says how to get there at all."""
    table = lookup_table(dataset, "ModalityLUTSequence")
    if table is not None and dtype.kind == "f":
        raise DecodeError("a Modality LUT does not go with float pixel data")
    if table is not None:
        return table, 1.0, 0.0, f"modality LUT of {table.entries.size} entries", True
    absent = float("nan")
    slope, intercept = number(dataset, "RescaleSlope", absent), number(dataset, "RescaleIntercept", absent)
    is_calibrated = not (math.isnan(slope) and math.isnan(intercept))
    a, b = (1.0 if math.isnan(slope) else slope), (0.0 if math.isnan(intercept) else intercept)
    if a == 0:
        raise DecodeError("Rescale Slope is 0, so that all pixels would be equal")
    step = "" if (a, b) == (1.0, 0.0) else f"rescaled: {a:g} × stored + {b:g}"
    return None, a, b, step, is_calibrated


def _certain_dtype(dtype: np.dtype[Any], bits: int, slope: float, intercept: float) -> np.dtype[Any] | None:
    """Return the type of rescaled values of so many bits; None where it depends on them."""
    if dtype.kind == "f" or (slope, intercept) == (1.0, 0.0):
        return dtype
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    widest = choose_rescaled_dtype((low, low + (1 << bits) - 1), slope, intercept)
    whole = slope.is_integer() and intercept.is_integer()
    return None if whole and widest != np.int16 else widest


def _padding(view: Dataset, form: FrameFormat, dtype: np.dtype[Any]) -> Ends | None:
    """
    Return the ends of the range of padding (PS3.3 C.7.5.1.1.2, C.7.6.24 for floats); None if none can be.

    Pixel Padding Value and, if it is there, Pixel Padding Range Limit are the ends, both included.
    """
    if dtype.kind == "f":
        return _float_padding(view, "Double" if dtype.itemsize == 8 else "", dtype)
    if not is_there(view, "PixelPaddingValue"):
        return None
    value = whole(view, "PixelPaddingValue", 0)
    limit = whole(view, "PixelPaddingRangeLimit", value)
    ends = sorted(_as_stored(v, form, dtype) for v in (value, limit))
    # beyond the range of the type, nothing is equal
    low, high = max(ends[0], int(np.iinfo(dtype).min)), min(ends[1], int(np.iinfo(dtype).max))
    return (low, high) if low <= high else None


def _float_padding(view: Dataset, kind: str, dtype: np.dtype[Any]) -> Ends | None:
    value = real(view, f"{kind}FloatPixelPaddingValue")
    if value is None:
        return None
    if math.isnan(value):
        return value, value
    limit = real(view, f"{kind}FloatPixelPaddingRangeLimit")
    low, high = np.sort(np.asarray([value, value if limit is None else limit]).astype(dtype))
    return low, high


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


def _color(view: Dataset, form: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool) -> ModalityTransform:
    rgb, steps = _rgb(view, form, dtype, is_rgb=is_rgb)
    # what can't be converted is refused before other attributes are looked at
    one = rgb(np.zeros((1, 1) if form.samples == 1 else (1, 1, 3), dtype))
    return ModalityTransform(dtype=one.dtype, rgb=rgb, transforms=steps)


def _rgb(
    view: Dataset, form: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool
) -> tuple[Callable[[npt.NDArray[Any]], npt.NDArray[Any]], tuple[str, ...]]:
    """Return what makes RGB of stored values, and the steps."""
    bits = 8 * dtype.itemsize
    if form.photometric == "PALETTE COLOR":
        return partial(rgb_from_palette, view), ("palette applied",)
    deep = bits > 8 and (form.bits_stored < bits or dtype.kind != "u")
    steps = (() if is_rgb else ("YCbCr to RGB",)) + (("scaled to 8 bits",) if deep else ())
    return partial(_converted, form, is_rgb=is_rgb, deep=deep), steps


def _converted(form: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool, deep: bool) -> npt.NDArray[Any]:
    values = stored if is_rgb else rgb_from_ycc(stored, form)
    return eight_bits(values, form.bits_stored) if deep else values
