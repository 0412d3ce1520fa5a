"""Calls of the compiled decoders: frames of RLE, colors of palettes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["INDEX_DTYPES", "apply_palette", "decode_rle"]

#: Types of palette indices, by their numbers in palette.cpp.
INDEX_DTYPES: Final = {np.dtype(t): n for n, t in enumerate(("u1", "i1", "u2", "i2"))}
_SHORT_SEGMENT: Final = 2


def decode_rle(
    library: ctypes.CDLL, data: bytes, shape: tuple[int, int], width: int
) -> tuple[npt.NDArray[Any], int]:
    """
    Return the planes (samples, values) of an RLE frame, unsigned integers of `width` bytes (1, 2, 4 or 8).

    The second result is how many values the first segment that is too short holds, or all of them. ValueError
    if the header does not name that many segments.
    """
    _declare(library)
    planes = np.empty(shape, f"u{width}")
    held = ctypes.c_int64(shape[1])
    state = library.medimg_decode_rle(
        data, len(data), shape[0], width, shape[1], planes.ctypes.data, ctypes.byref(held)
    )
    if state not in (0, _SHORT_SEGMENT):
        raise ValueError("the header of an RLE frame has another number of segments")
    return planes, held.value


def apply_palette(
    library: ctypes.CDLL, indices: npt.NDArray[Any], first: int, table: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """
    Return the colors (3, rows, columns) of indices (rows, columns) of one of the :data:`INDEX_DTYPES`.

    `table` is (3, entries), contiguous; its first entry is the color of index `first`.
    """
    _declare(library)
    flat = np.ascontiguousarray(indices)
    colors = np.empty((3, *indices.shape), np.uint8)
    state = library.medimg_apply_palette(
        flat.ctypes.data,
        INDEX_DTYPES[flat.dtype],
        flat.size,
        first,
        table.ctypes.data,
        table.shape[1],
        colors.ctypes.data,
    )
    if state:
        raise ValueError("the palette has no entries")
    return colors


@cache
def _declare(library: ctypes.CDLL) -> None:
    """State the types of the functions of a library, once."""
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.medimg_decode_rle.restype = library.medimg_apply_palette.restype = ctypes.c_int32
    library.medimg_decode_rle.argtypes = [ctypes.c_char_p, number, number, number, number, pointer, pointer]
    library.medimg_apply_palette.argtypes = [
        pointer,
        ctypes.c_int32,
        number,
        number,
        pointer,
        number,
        pointer,
    ]
