"""Stored colors into RGB: color differences and palettes (PS3.3 C.7.6.3.1.2 and C.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import get_value
from medimg.io.dicom.header.transfer_syntax import BIG_ENDIAN, parse_transfer_syntax
from medimg.io.dicom.values.voi_lut import build_lookup_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.window import LookupTable
    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["apply_palette", "convert_ycc_to_rgb", "expand_segments", "reduce_to_8_bits"]

_RGB_FROM_FULL: Final = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])
#: The inverse of the rounded matrix that the standard gives, of luminances from 16 to 235.
_RGB_FROM_PARTIAL: Final = np.linalg.inv(
    np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
)
_CONVERTED: Final = frozenset({"YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"})
_CHUNK: Final = 2**20
_DISCRETE, _LINEAR, _INDIRECT = range(3)


def convert_ycc_to_rgb(values: npt.NDArray[Any], form: FrameFormat) -> npt.NDArray[Any]:
    """
    Convert color differences.

    Parameters
    ----------
    values : numpy.ndarray
        (..., 3) luminance, Cb and Cr, unsigned.
    form : FrameFormat
        Of the frame; its Photometric Interpretation tells the range of luminances.

    Returns
    -------
    numpy.ndarray
        RGB, the shape and type of `values`.

    Raises
    ------
    DecodeError
        If colors of that kind can't be there.
    """
    if form.photometric not in _CONVERTED:
        raise DecodeError(
            f"Photometric Interpretation {form.photometric} does not go with this transfer syntax: "
            "its colors can't be told"
        )
    most = 2**form.bits_stored - 1
    half = 2.0 ** (form.bits_stored - 1)
    partial = form.photometric == "YBR_PARTIAL_422"
    matrix = _RGB_FROM_PARTIAL if partial else _RGB_FROM_FULL
    offset = np.array([half / 8 if partial else 0.0, half, half])
    flat = values.reshape(-1, 3)
    rgb = np.empty_like(flat, order="C")
    for start in range(0, len(flat), _CHUNK):
        centered = flat[start : start + _CHUNK].astype(np.float64) - offset
        rgb[start : start + _CHUNK] = np.clip(np.rint(centered @ matrix.T), 0, most)
    return rgb.reshape(values.shape)


def reduce_to_8_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the highest 8 of that many bits."""
    return (values.astype(np.int64) >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


def apply_palette(view: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """
    Look colors up.

    Parameters
    ----------
    view : pydicom.Dataset
        With its palette, segmented or not.
    stored : numpy.ndarray
        (rows, columns) indices, signed or unsigned; those outside of the palette take its end entries.

    Returns
    -------
    numpy.ndarray
        (rows, columns, 3), the highest 8 bits of palettes of 16; 8 bits are taken for what they are where a
        palette that claims 16 has no entry above 255.

    Raises
    ------
    DecodeError
        If the palette is absent or damaged.
    """
    tables = [
        _parse_palette(view, color, signed=stored.dtype.kind == "i") for color in ("Red", "Green", "Blue")
    ]
    largest = max(int(table.entries.max()) for table in tables)
    bits = 16 if largest > 255 else 8
    planes = []
    for table in tables:
        index = np.clip(stored.astype(np.int64) - table.first, 0, table.entries.size - 1)
        planes.append(reduce_to_8_bits(table.entries, bits)[index])
    return np.stack(planes, axis=-1)


def _parse_palette(view: Dataset, color: str, *, signed: bool) -> LookupTable:
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
    Expand a segmented palette (PS3.3 C.7.9.2).

    Parameters
    ----------
    data : sequence of int
        Operation codes, lengths and values.
    count : int
        The number of entries that must come out.
    bytes_each : int
        1 or 2: of each number; an indirect segment names its target by the byte.

    Returns
    -------
    list of int
        The first `count` entries.

    Raises
    ------
    DecodeError
        If a segment is unknown, empty or incomplete, or there are too few entries.
    """
    entries: list[int] = []
    places: list[int] = []
    order: dict[int, int] = {}
    at = 0
    while at + 2 < len(data) and len(entries) < count:
        if not data[at + 1]:
            # without an end to these, a table could take any time
            raise DecodeError("a segment is empty")
        if data[at] == _INDIRECT:
            length, numbers = data[at + 1], data[at + 2 : at + 2 + 4 // bytes_each]
            target = sum(n << (8 * bytes_each * k) for k, n in enumerate(numbers)) // bytes_each
            if target not in order:
                raise DecodeError("an indirect segment points at no segment before it")
            copied = places[order[target] : order[target] + length]
            if len(copied) < length or any(data[place] == _INDIRECT for place in copied):
                raise DecodeError("an indirect segment names segments that it can't copy")
            for place in copied:
                _expand_segment(data, place, entries)
            following = at + 2 + 4 // bytes_each
        else:
            following = _expand_segment(data, at, entries)
        order[at] = len(places)
        places.append(at)
        at = following
    if len(entries) < count:
        raise DecodeError(f"a segmented table of {count} entries holds {len(entries)}")
    return entries[:count]


def _expand_segment(data: Sequence[int], at: int, entries: list[int]) -> int:
    """Append what a discrete or linear segment stands for; return where the next one starts."""
    operation, length = data[at], data[at + 1]
    if operation == _DISCRETE:
        entries.extend(data[at + 2 : at + 2 + length])
        return at + 2 + length
    if operation != _LINEAR or not entries or not length:
        raise DecodeError("a segment is of an unknown kind, or has nothing to start from")
    start, end = entries[-1], data[at + 2]
    entries.extend((start * (length - k) + end * k + length // 2) // length for k in range(1, length + 1))
    return at + 3
