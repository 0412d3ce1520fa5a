"""From stored to modality values (PS3.3 C.11.1): rescale, Modality LUT, padding, units and colors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.core.rescale import choose_rescaled_dtype, describe_rescale, rescale_into
from medimg.core.window import LookupTable
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_codes,
    get_text,
    has_value,
    parse_defined_term,
    parse_float,
    parse_integer,
    parse_number,
)
from medimg.io.dicom.header.element_values import collect_findings
from medimg.io.dicom.values._color_conversion import convert_ycc_to_rgb, parse_palette, reduce_to_8_bits
from medimg.io.dicom.values._voi_lut import parse_declared_voi, parse_lookup_table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.volume import Photometric
    from medimg.core.window import Voi
    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["RADIANS", "VALUE_TAGS", "ModalityTransform", "normalize_angle", "parse_modality_transform"]

#: Tags that a header-only read must include for :func:`parse_modality_transform`, besides Image Pixel.
VALUE_TAGS: Final[list[str | int]] = [
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"{prefix}FloatPixelPadding{name}" for prefix in ("", "Double") for name in ("Value", "RangeLimit")),
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

_SIGN: Final = "the codestream is signed, contrary to Pixel Representation: its values are kept"
_LABELS: Final = "palette not applied: pixel values are segment numbers"
#: Rescaled values are stored in float32.
_MIN_SLOPE: Final = 1e-38
#: Defined terms of Presentation LUT Shape; LIN OD is that of films.
_LUT_SHAPES: Final = ("IDENTITY", "INVERSE", "LIN OD")
#: Names of angles as manufacturers write them, and in UCUM.
_ANGLES: Final = {
    **dict.fromkeys(("RAD", "RADIAN", "RADIANS", "RADIAL", "RADIALS"), "rad"),
    **dict.fromkeys(("MRAD", "MILLIRADIAN", "MILLIRADIANS", "MILLIRADIAL", "MILLIRADIALS"), "mrad"),
    **dict.fromkeys(("DEG", "DEGREE", "DEGREES"), "deg"),
}
#: Units of angles in radians.
RADIANS: Final = {"rad": 1.0, "mrad": 1e-3, "deg": math.pi / 180}
#: Images of more bits need a window, or percentiles, for display.
_DISPLAY_BITS: Final = 8
#: Least and greatest value, both included.
ValueRange: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True, slots=True, eq=False)
class ModalityTransform:
    """
    From stored to modality values, for one frame or for many with the same attributes.

    With `rgb`, it alone applies; with `table`, it replaces `slope` and `intercept`; `factor` multiplies the
    result.
    """

    dtype: np.dtype[Any] | None  # of modality values; None if it depends on the stored values
    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None  # Modality LUT
    factor: float = 1.0  # see real_world.apply_real_world_scale
    padding: ValueRange | None = None  # inclusive range of stored values outside the image; NaN matches NaN
    rgb: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None  # stored colors or indices to (H, W, 3)
    units: str = "raw"
    photometric: Photometric = "RGB"
    inverted: bool = False  # whether a display inverts windowed values
    voi: tuple[Voi, ...] = ()
    display_range: ValueRange | None = None  # modality values of black and white, of images of 8 bits
    transforms: tuple[str, ...] = ()  # descriptions of the steps
    notes: tuple[str, ...] = ()  # attributes that are present but not used

    @property
    def is_stored(self) -> bool:
        """Whether modality values are the stored ones."""
        return self.is_linear and (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def is_linear(self) -> bool:
        """Whether slope and intercept are the whole transform."""
        return self.table is None and self.rgb is None and self.factor == 1

    def find_dtype(self, stored: npt.NDArray[Any]) -> np.dtype[Any]:
        """Return the type of the modality values: the narrowest one that holds those of this frame."""
        if self.dtype is not None:
            return self.dtype
        return choose_rescaled_dtype((int(stored.min()), int(stored.max())), self.slope, self.intercept)

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """
        Return modality values (rows, columns), or (3, rows, columns), of stored (rows, columns[, 3]).

        The result may share memory with `stored`.
        """
        if self.rgb is not None:
            found = np.ascontiguousarray(np.moveaxis(self.rgb(stored), -1, 0))
        else:
            found = self._rescale(stored)
        return found if self.factor == 1 else (found * np.float64(self.factor)).astype(np.float32)

    def _rescale(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
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

    def check_slope(self, stored: npt.NDArray[Any]) -> None:
        """Raise DecodeError if a slope of 0 makes different values of the image equal."""
        if self.slope != 0 or not stored.size:
            return
        padding = self.find_padding(stored)
        values = stored if padding is None else stored[~padding]
        if values.size and values.min() != values.max():
            raise DecodeError(
                "Rescale Slope is 0, so that all pixels would be equal, but the stored values are not"
            )

    def find_padding(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Return a mask of padding, (rows, columns) bool; None if there is none."""
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


def parse_modality_transform(
    view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool, exact_bits: bool = False
) -> ModalityTransform:
    """
    Return the transform of stored values of `dtype`; raise DecodeError if the attributes are unusable.

    `is_rgb`: colors are RGB already; `exact_bits`: no stored value has more bits than Bits Stored.
    """
    with collect_findings() as findings:
        found = _parse_transform(view, fmt, dtype, is_rgb=is_rgb, exact_bits=exact_bits)
    return replace(found, notes=tuple(findings))


def _parse_transform(
    view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool, exact_bits: bool
) -> ModalityTransform:
    if fmt.photometric == "PALETTE COLOR" or fmt.samples == 3:
        return _build_color_transform(view, fmt, dtype, is_rgb=is_rgb)
    padding = _parse_padding(view, fmt, dtype)
    table, slope, intercept, step, is_calibrated = _parse_rescale(view, dtype)
    shape = parse_defined_term(view, "PresentationLUTShape", _LUT_SHAPES, "IDENTITY")
    steps = (_SIGN, step) if dtype.kind == "i" and not fmt.signed else (step,)
    if get_code(view, "PhotometricInterpretation") == "PALETTE COLOR":
        steps = (_LABELS, *steps)
    bits = fmt.bits_stored if exact_bits and fmt.dtype == dtype else 8 * dtype.itemsize
    return ModalityTransform(
        dtype=_find_fixed_dtype(dtype, bits, slope, intercept) if table is None else table.entries.dtype,
        slope=slope,
        intercept=intercept,
        table=table,
        padding=padding,
        units=_get_units(view, is_calibrated=is_calibrated),
        photometric="MONOCHROME1" if fmt.photometric == "MONOCHROME1" else "MONOCHROME2",
        inverted=fmt.photometric == "MONOCHROME1" or shape == "INVERSE",
        voi=parse_declared_voi(view),
        display_range=_find_display_range(view, fmt, dtype, slope, intercept) if table is None else None,
        transforms=tuple(filter(None, steps)),
    )


def _get_units(dataset: Dataset, *, is_calibrated: bool) -> str:
    units = get_code(dataset, "RescaleType")
    if not units and get_text(dataset, "RescaleType"):
        return "raw"
    if get_code(dataset, "Modality") == "CT":
        scout = "LOCALIZER" in get_codes(dataset, "ImageType")
        return "HU" if is_calibrated and units in {"", "HU", "US"} and not scout else "raw"
    if not units and get_code(dataset, "Modality") == "PT":
        units = get_code(dataset, "Units")
    return {"": "raw", "US": "raw"}.get(units, normalize_angle(units))


def normalize_angle(units: str) -> str:
    """Return "rad", "mrad" or "deg" for the names of these units, and others unchanged."""
    return _ANGLES.get(units, units)


def _find_display_range(
    view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any], slope: float, intercept: float
) -> ValueRange | None:
    """Return the full range of an image of up to 8 bits, rescaled; None for others, and for labels."""
    if fmt.bits_stored > _DISPLAY_BITS or dtype.kind == "f" or get_code(view, "Modality") == "SEG":
        return None
    least = -(1 << (fmt.bits_stored - 1)) if dtype.kind == "i" else 0
    ends = (slope * v + intercept for v in (least, least + (1 << fmt.bits_stored) - 1))
    low, high = sorted(ends)
    return low, high


def _parse_rescale(
    dataset: Dataset, dtype: np.dtype[Any]
) -> tuple[LookupTable | None, float, float, str, bool]:
    """Return table, slope, intercept, a description, and whether the file states any of them."""
    table = parse_lookup_table(dataset, "ModalityLUTSequence")
    if table is not None and dtype.kind == "f":
        raise DecodeError("a Modality LUT can't be applied to float pixel data")
    if table is not None:
        return table, 1.0, 0.0, f"modality LUT of {table.entries.size} entries", True
    absent = float("nan")
    slope, intercept = (
        parse_number(dataset, "RescaleSlope", absent),
        parse_number(dataset, "RescaleIntercept", absent),
    )
    is_calibrated = not (math.isnan(slope) and math.isnan(intercept))
    a, b = (1.0 if math.isnan(slope) else slope), (0.0 if math.isnan(intercept) else intercept)
    if 0 < abs(a) < _MIN_SLOPE:
        raise DecodeError(f"Rescale Slope is {a:g}, so that float32 could not distinguish any values from 0")
    step = "" if (a, b) == (1.0, 0.0) else describe_rescale(a, b)
    return None, a, b, step, is_calibrated


def _find_fixed_dtype(
    dtype: np.dtype[Any], bits: int, slope: float, intercept: float
) -> np.dtype[Any] | None:
    """Return the type of rescaled values of `bits` bits; None if it depends on the values."""
    if dtype.kind == "f" or (slope, intercept) == (1.0, 0.0):
        return dtype
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    widest = choose_rescaled_dtype((low, low + (1 << bits) - 1), slope, intercept)
    whole = slope.is_integer() and intercept.is_integer()
    return None if whole and widest != np.int16 else widest


def _parse_padding(view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any]) -> ValueRange | None:
    """
    Return the range of padding (PS3.3 C.7.5.1.1.2, C.7.6.24 for floats); None if there can be none.

    Its ends are Pixel Padding Value and, if present, Pixel Padding Range Limit, both inclusive.
    """
    if dtype.kind == "f":
        return _parse_float_padding(view, "Double" if dtype.itemsize == 8 else "", dtype)
    if not has_value(view, "PixelPaddingValue"):
        return None
    value = parse_integer(view, "PixelPaddingValue", 0)
    limit = parse_integer(view, "PixelPaddingRangeLimit", value)
    ends = sorted(_reinterpret_sign(v, fmt, dtype) for v in (value, limit))
    # no value is beyond the range of its type
    low, high = max(ends[0], int(np.iinfo(dtype).min)), min(ends[1], int(np.iinfo(dtype).max))
    return (low, high) if low <= high else None


def _parse_float_padding(view: Dataset, prefix: str, dtype: np.dtype[Any]) -> ValueRange | None:
    value = parse_float(view, f"{prefix}FloatPixelPaddingValue")
    if value is None:
        return None
    if math.isnan(value):
        return value, value
    limit = parse_float(view, f"{prefix}FloatPixelPaddingRangeLimit")
    low, high = np.sort(np.asarray([value, value if limit is None else limit]).astype(dtype))
    return low, high


def _reinterpret_sign(value: int, fmt: FrameFormat, dtype: np.dtype[Any]) -> int:
    """Return a value written with the other signedness than the pixels as the pixel value it means."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "u" and value < 0:
        return value + (1 << bits)
    if dtype.kind == "i" and value >= 1 << (bits - 1):
        return value - (1 << bits)
    if dtype.kind == "i" and 1 << (fmt.bits_stored - 1) <= value < 1 << fmt.bits_stored:
        # too large for a value, but it has the bits of a negative one
        return value - (1 << fmt.bits_stored)
    return value


def _build_color_transform(
    view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool
) -> ModalityTransform:
    rgb, steps = _choose_conversion(view, fmt, dtype, is_rgb=is_rgb)
    # colors that can't be converted raise an error before other attributes are read
    one = rgb(np.zeros((1, 1) if fmt.samples == 1 else (1, 1, 3), dtype))
    return ModalityTransform(dtype=one.dtype, rgb=rgb, transforms=steps)


def _choose_conversion(
    view: Dataset, fmt: FrameFormat, dtype: np.dtype[Any], *, is_rgb: bool
) -> tuple[Callable[[npt.NDArray[Any]], npt.NDArray[Any]], tuple[str, ...]]:
    """Return the conversion of stored values to RGB, and descriptions of its steps."""
    bits = 8 * dtype.itemsize
    if fmt.photometric == "PALETTE COLOR":
        return parse_palette(view, signed=dtype.kind == "i").apply, ("palette applied",)
    deep = bits > 8 and (fmt.bits_stored < bits or dtype.kind != "u")
    steps = (() if is_rgb else ("YCbCr to RGB",)) + (("scaled to 8 bits",) if deep else ())
    return partial(_convert_color, fmt, is_rgb=is_rgb, deep=deep), steps


def _convert_color(
    fmt: FrameFormat, stored: npt.NDArray[Any], *, is_rgb: bool, deep: bool
) -> npt.NDArray[Any]:
    values = stored if is_rgb else convert_ycc_to_rgb(stored, fmt)
    return reduce_to_8_bits(values, fmt.bits_stored) if deep else values
