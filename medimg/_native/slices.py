"""Calls of the compiled reader of slices: pixels of files whose headers equal one that was parsed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medimg._native.headers import join_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg._native.headers import HeaderWalk

__all__ = ["AlikeFiles", "read_alike"]


@dataclass(frozen=True, slots=True)
class AlikeFiles:
    """
    What single-frame files of native pixels have in common.

    Attributes
    ----------
    syntax : str
        Transfer Syntax UID.
    wanted : bytes
        The elements that a :class:`HeaderWalk` keeps, joined.
    tail : int
        Bytes from the first pixel to the end of the file, all of the pixel data.
    shape : tuple of 2 int
        Rows and columns.
    stored : dtype
        Type of the stored values, of 8 or 16 bits, as wide as Bits Allocated.
    bits : int
        Bits Stored, the lowest ones.
    usual : tuple of 2 int
        Range of stored values whose modality values do not leave the type.
    padding : tuple of 2 int, optional
        Range of stored values that are padding.
    factor, offset : int
        Of the rescale, modulo the range of the type.
    """

    syntax: str
    wanted: bytes
    tail: int
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    bits: int
    usual: tuple[int, int]
    padding: tuple[int, int] | None
    factor: int
    offset: int

    def pack(self) -> _Alike:
        """Return the structure that the library takes."""
        rows, columns = self.shape
        ends = np.iinfo(self.stored)
        return _Alike(
            self.syntax.encode(),
            self.wanted,
            len(self.wanted),
            self.tail,
            rows * columns,
            self.stored.itemsize,
            self.stored.kind == "i",
            self.bits,
            self.usual != (ends.min, ends.max),
            self.padding is not None,
            *self.usual,
            *(self.padding or (0, 0)),
            self.factor,
            self.offset,
        )


class _Alike(ctypes.Structure):
    _fields_: ClassVar = [
        ("syntax", ctypes.c_char_p),
        ("wanted", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("wanted_size", "tail", "pixels")),
        *((name, ctypes.c_int32) for name in ("width", "is_signed", "bits", "is_checked", "has_padding")),
        *(
            (name, ctypes.c_int64)
            for name in ("low", "high", "padding_low", "padding_high", "factor", "offset")
        ),
    ]


def read_alike(
    library: ctypes.CDLL,
    walk: HeaderWalk,
    like: AlikeFiles,
    files: Sequence[tuple[str, str, npt.NDArray[Any]]],
    threads: int,
) -> list[bool]:
    """
    Read files, each with its SOP Instance UID and the memory (rows, columns) of its modality values.

    The result says which were read: others are unlike, unreadable, or have values that are padding or
    not usual, and their memory holds anything.
    """
    _declare(library)
    names, uids, slots = zip(*files, strict=True)
    done = np.zeros(len(files), np.bool_)
    places = (ctypes.c_void_p * len(files))(*(slot.ctypes.data for slot in slots))
    status = library.medimg_read_alike(
        walk.pointer,
        ctypes.byref(like.pack()),
        join_names(names),
        "\0".join(uids).encode(),
        len(files),
        places,
        threads,
        done.ctypes.data,
    )
    if status:
        raise MemoryError
    return [bool(one) for one in done]


@cache
def _declare(library: ctypes.CDLL) -> None:
    """State the types of the function of a library, once."""
    number, pointer, text = ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p
    function = library.medimg_read_alike
    function.restype = number
    function.argtypes = [pointer, pointer, text, text, ctypes.c_int64, pointer, number, pointer]
