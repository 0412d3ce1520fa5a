"""Stored colors to RGB: color differences and palettes (PS3.3 C.7.6.3.1.2 and C.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg._native.decoding import INDEX_DTYPES, apply_palette
from medimg._native.library import load_library
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import get_value
from medimg.io.dicom.header.transfer_syntax import BIG_ENDIAN, parse_transfer_syntax
from medimg.io.dicom.values._voi_lut import build_lookup_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.window import LookupTable
    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = [
    "Palette",
    "convert_ycc_to_rgb",
    "expand_segments",
    "parse_palette",
    "parse_palette_table",
    "reduce_to_8_bits",
]

_RGB_FROM_FULL: Final = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])
#: The inverse of the rounded matrix that the standard gives, of luminances from 16 to 235.
_RGB_FROM_PARTIAL: Final = np.linalg.inv(
    np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
)
_CONVERTIBLE: Final = frozenset({"YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"})
_CHUNK: Final = 2**20
_DISCRETE, _LINEAR, _INDIRECT = range(3)


def convert_ycc_to_rgb(values: npt.NDArray[Any], fmt: FrameFormat) -> npt.NDArray[Any]:
    """Convert (..., 3) luminance, Cb and Cr, unsigned, to RGB of the same shape and type."""
    if fmt.photometric not in _CONVERTIBLE:
        raise DecodeError(
            f"Photometric Interpretation {fmt.photometric} is not valid for this transfer syntax: "
            "its colors are ambiguous"
        )
    most = 2**fmt.bits_stored - 1
    half = 2.0 ** (fmt.bits_stored - 1)
    partial = fmt.photometric == "YBR_PARTIAL_422"
    matrix = _RGB_FROM_PARTIAL if partial else _RGB_FROM_FULL
    offset = np.array([half / 8 if partial else 0.0, half, half])
    flat = values.reshape(-1, 3)
    rgb = np.empty_like(flat, order="C")
    for start in range(0, len(flat), _CHUNK):
        centered = flat[start : start + _CHUNK].astype(np.float64) - offset
        rgb[start : start + _CHUNK] = np.clip(np.rint(centered @ matrix.T), 0, most)
    return rgb.reshape(values.shape)


def reduce_to_8_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the highest 8 of `bits` bits."""
    return (values.astype(np.int64) >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


class Palette(NamedTuple):
    """Colors (3, entries) uint8, contiguous; the first entry is that of index `first`."""

    first: int
    colors: npt.NDArray[np.uint8]

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return the colors (rows, columns, 3) of (rows, columns) indices, clipped to the palette."""
        library = load_library()
        if library is not None and stored.dtype in INDEX_DTYPES:
            planes = apply_palette(library, stored, self.first, self.colors)
        else:
            index = np.clip(stored.astype(np.int64) - self.first, 0, self.colors.shape[1] - 1)
            planes = np.take(self.colors, index, axis=1)
        return np.moveaxis(planes, 0, -1)


def parse_palette(view: Dataset, *, signed: bool) -> Palette:
    """
    Return the palette of a header for signed or unsigned indices.

    One of 16 bits is reduced to 8, unless it has no entry above 255.
    """
    tables = [parse_palette_table(view, color, signed=signed) for color in ("Red", "Green", "Blue")]
    bits = 16 if max(int(table.entries.max()) for table in tables) > 255 else 8
    # the colors may begin and end at different indices
    first = min(table.first for table in tables)
    index = np.arange(first, max(table.first + table.entries.size for table in tables))
    colors = [
        reduce_to_8_bits(table.entries, bits)[np.clip(index - table.first, 0, table.entries.size - 1)]
        for table in tables
    ]
    return Palette(first, np.stack(colors))


def parse_palette_table(view: Dataset, color: str, *, signed: bool) -> LookupTable:
    """Return the table of one color of a palette."""
    name = f"{color}PaletteColorLookupTable"
    big_endian = parse_transfer_syntax(view) == BIG_ENDIAN
    data = get_value(view, f"{name}Data")
    if not data and (segments := get_value(view, f"Segmented{name}Data")):
        data = segments
        expand = expand_segments
    else:
        expand = None
    try:
        return build_lookup_table(
            view, f"{name}Descriptor", data, signed_input=signed, big_endian=big_endian, expand=expand
        )
    except DecodeError as error:
        raise DecodeError(f"the {color.lower()} palette: {error}") from None


def expand_segments(data: Sequence[int], count: int, *, bytes_each: int) -> list[int]:
    """
    Return the first `count` entries of a segmented palette (PS3.3 C.7.9.2), from codes, lengths and values.

    `bytes_each`, 1 or 2, is the size of a number: indirect segments address their target in bytes.
    """
    entries: list[int] = []
    starts: list[int] = []
    order: dict[int, int] = {}
    at = 0
    while at + 2 < len(data) and len(entries) < count:
        if not data[at + 1]:
            # any number of these would take any time
            raise DecodeError("a segment is empty")
        if data[at] == _INDIRECT:
            length, numbers = data[at + 1], data[at + 2 : at + 2 + 4 // bytes_each]
            target = sum(n << (8 * bytes_each * k) for k, n in enumerate(numbers)) // bytes_each
            if target not in order:
                raise DecodeError("an indirect segment points to no earlier segment")
            copied = starts[order[target] : order[target] + length]
            if len(copied) < length or any(data[start] == _INDIRECT for start in copied):
                raise DecodeError("an indirect segment names segments that it can't copy")
            for start in copied:
                _expand_segment(data, start, entries)
            following = at + 2 + 4 // bytes_each
        else:
            following = _expand_segment(data, at, entries)
        order[at] = len(starts)
        starts.append(at)
        at = following
    if len(entries) < count:
        raise DecodeError(f"a segmented table of {count} entries holds {len(entries)}")
    return entries[:count]


def _expand_segment(data: Sequence[int], at: int, entries: list[int]) -> int:
    """Append the entries of a discrete or linear segment; return the index of the next segment."""
    operation, length = data[at], data[at + 1]
    if operation == _DISCRETE:
        entries.extend(data[at + 2 : at + 2 + length])
        return at + 2 + length
    if operation != _LINEAR or not entries or not length:
        raise DecodeError("a segment is of an unknown type, or has no value to start from")
    start, end = entries[-1], data[at + 2]
    entries.extend((start * (length - k) + end * k + length // 2) // length for k in range(1, length + 1))
    return at + 3
