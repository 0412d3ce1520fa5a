"""Calls of the compiled header walker: a header or sequence in memory, or the headers of many files."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from enum import IntFlag
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = [
    "HeaderScan",
    "HeaderTables",
    "HeaderWalk",
    "ItemWalk",
    "Role",
    "WalkedItems",
    "WantedElement",
    "join_names",
]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_WANTED_ELEMENT: Final = struct.Struct("<I2sBB")
_ENDS: Final = 2
#: Numbers in the answer of a walk: these, and two for each run of wanted elements.
_FIXED: Final = 10
_CAPACITY: Final = 512


class Role(IntFlag):
    """What a scan keeps an element for; several may hold. As in header_scan.cpp."""

    COMMON = 1  # equal in all files of a class
    FILE = 2  # a column of the table of files
    SERIES = 4  # a column of the table of series
    ACQUISITION = 8  # kept for tables of acquisition attributes
    REFUSED = 16  # files that have it are left to the parser


class WantedElement(NamedTuple):
    """An element of which a scan keeps the value, its VR in explicit files (empty: any), and what for."""

    tag: int
    vr: bytes
    roles: Role
    column: int


class WantedElements:
    """Elements, ascending by tag, as the library takes them."""

    def __init__(self, elements: Sequence[WantedElement]) -> None:
        self.count = len(elements)
        self.packed = b"".join(_WANTED_ELEMENT.pack(*element) for element in elements)
        self.file_columns = 1 + max(e.column for e in elements if e.roles & Role.FILE)


class HeaderTables(NamedTuple):
    """Files by number, -1 if they are left to a parser; values of file f and column c by `offsets`."""

    groups: npt.NDArray[np.int32]  # (files)
    acquisitions: npt.NDArray[np.int32]  # (files), -1 for none
    classes: npt.NDArray[np.int32]  # (groups)
    regular: npt.NDArray[np.bool_]  # (files), whether no value of their own needs a parser
    positions: npt.NDArray[np.float64]  # (files, 3), of regular files; not numbers if there is none
    offsets: npt.NDArray[np.int64]  # (files × columns + 1)
    values: bytes
    series: list[tuple[bytes, ...]]  # of each group
    packed_acquisitions: list[bytes]


class _Tables(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("acquisitions", ctypes.c_int64),
        ("group_of_file", ctypes.c_void_p),
        ("acquisition_of_file", ctypes.c_void_p),
        ("class_of_group", ctypes.c_void_p),
        ("regular", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class HeaderScan:
    """
    Reads headers of files and groups files that differ in a few elements only.

    Files with a longer value than `max_value`, but for those of acquisitions
    alone, are left to a parser.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        wanted: WantedElements,
        *,
        max_value: int,
        max_acquisition: int,
        syntaxes: Iterable[str],
        implicit: str,
    ) -> None:
        self._library = library
        _declare(library)
        self._columns = wanted.file_columns
        self._scan = library.medimg_scan_new(
            wanted.packed,
            wanted.count,
            max_value,
            max_acquisition,
            " ".join(syntaxes).encode(),
            implicit.encode(),
        )
        if not self._scan:
            raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "_scan", None):
            self._library.medimg_scan_free(self._scan)

    def add(self, names: Sequence[str], threads: int) -> None:
        """Read the headers of files, by several threads."""
        if self._library.medimg_scan_add(self._scan, join_names(names), len(names), threads):
            raise MemoryError

    def get_tables(self) -> HeaderTables:
        """Return what was found."""
        found = _Tables()
        self._library.medimg_scan_tables(self._scan, ctypes.byref(found))
        files, columns = found.files, self._columns
        offsets = _copy_numbers(found.offsets, files * columns + 1, np.int64)
        size = int(offsets[-1])
        return HeaderTables(
            _copy_numbers(found.group_of_file, files, np.int32),
            _copy_numbers(found.acquisition_of_file, files, np.int32),
            _copy_numbers(found.class_of_group, found.groups, np.int32),
            _copy_numbers(found.regular, files, np.bool_),
            _copy_numbers(found.positions, 3 * files, np.float64).reshape(files, 3),
            offsets,
            ctypes.string_at(found.values, size) if size else b"",
            [_split_values(self._get(self._library.medimg_scan_series, n)) for n in range(found.groups)],
            [self._get(self._library.medimg_scan_acquisition, n) for n in range(found.acquisitions)],
        )

    def _get(self, function: ctypes._NamedFuncPointer, number: int) -> bytes:
        size = ctypes.c_int64()
        return ctypes.string_at(function(self._scan, number, ctypes.byref(size)), size.value)


def join_names(names: Sequence[str]) -> bytes:
    """Return names with zeros between them; those that the system refuses are empty, as no file's is."""
    joined = "\0".join(names)
    try:
        if joined.count("\0") < len(names):
            return _encode_name(joined)
    except UnicodeEncodeError:
        pass
    return b"\0".join(map(_encode_allowed, names))


def _encode_allowed(name: str) -> bytes:
    try:
        return b"" if "\0" in name else _encode_name(name)
    except UnicodeEncodeError:
        return b""


def _encode_name(name: str) -> bytes:
    # the compiled library makes wide characters of UTF-8 on Windows
    return name.encode() if sys.platform == "win32" else os.fsencode(name)


def _copy_numbers(address: int | None, count: int, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size) if size and address else b"", dtype)


def _split_values(joined: bytes) -> tuple[bytes, ...]:
    """Split values, each after its length in four bytes."""
    found, at = [], 0
    while at < len(joined):
        size = int.from_bytes(joined[at : at + 4], "little")
        found.append(joined[at + 4 : at + 4 + size])
        at += 4 + size
    return tuple(found)


class WalkedHeader(NamedTuple):
    """Offsets in a header, those of UIDs with padding; the wanted elements as runs of bytes."""

    pixel_tag: int
    pixels: int
    pixel_value: int
    pixel_length: int
    pixel_vr: bytes  # empty if implicit
    instance_uid: slice
    syntax: slice
    wanted: list[slice]


class HeaderWalk:
    """Finds the wanted elements of headers in memory, from any thread; headers with `refused` are unusual."""

    def __init__(
        self,
        library: ctypes.CDLL,
        wanted: Iterable[int],
        refused: Iterable[int],
        *,
        instance_uid: int,
        syntaxes: Iterable[str],
        implicit: str,
    ) -> None:
        self._library = library
        _declare(library)
        kept, unusual = sorted(wanted), sorted(refused)
        self.pointer = library.medimg_walker_new(
            " ".join(syntaxes).encode(),
            implicit.encode(),
            (ctypes.c_uint32 * len(kept))(*kept),
            len(kept),
            (ctypes.c_uint32 * len(unusual))(*unusual),
            len(unusual),
            instance_uid,
        )
        if not self.pointer:
            raise MemoryError

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._library.medimg_walker_free(self.pointer)

    def run(self, head: bytes) -> WalkedHeader | Literal["unusual", "ends"]:
        """Return what was found, or whether the header is unusual or ends early."""
        answer = (ctypes.c_uint64 * _CAPACITY)()
        status: int = self._library.medimg_walker_run(self.pointer, head, len(head), answer, _CAPACITY)
        if status:
            return "ends" if status == _ENDS else "unusual"
        tag, at, value, length, vr, uid, uid_size, syntax, syntax_size, runs = answer[:_FIXED]
        ends = answer[_FIXED : _FIXED + 2 * runs]
        return WalkedHeader(
            tag,
            at,
            value,
            length,
            vr.to_bytes(2, "little") if vr else b"",
            slice(uid, uid + uid_size),
            slice(syntax, syntax + syntax_size),
            [slice(*pair) for pair in zip(ends[::2], ends[1::2], strict=True)],
        )


class WalkedItems(NamedTuple):
    """Elements of the items of a sequence: tag, VR, length, offset of the value, and its end."""

    elements: npt.NDArray[np.uint64]  # (elements, 5)
    ends: npt.NDArray[np.uint64]  # (items), number of elements up to the end of each


class ItemWalk:
    """Finds the elements of the items of one sequence, up to `most` elements and items."""

    def __init__(
        self, library: ctypes.CDLL, data: bytes, *, implicit: bool, most: int, max_depth: int
    ) -> None:
        self._library = library
        _declare(library)
        self._data = data
        self._options = implicit, most, max_depth

    def find_end(self) -> int | Literal["unusual", "ends"]:
        """Return the offset behind the delimiter of the sequence, or whether it is unusual or ends early."""
        found = self._run(is_delimited=True)
        return found if isinstance(found, str) else found[2]

    def locate(self) -> WalkedItems | Literal["unusual", "ends"]:
        """Return the elements of all items, which the data ends with, or whether it is unusual."""
        found = self._run(is_delimited=False)
        if isinstance(found, str):
            return found
        walked = WalkedItems(np.empty((found[0], 5), np.uint64), np.empty(found[1], np.uint64))
        self._run(walked, is_delimited=False)
        return walked

    def _run(
        self, into: WalkedItems | None = None, *, is_delimited: bool
    ) -> list[int] | Literal["unusual", "ends"]:
        counts = (ctypes.c_uint64 * 3)()
        implicit, most, max_depth = self._options
        elements, ends = (array.ctypes.data for array in into) if into else (None, None)
        status: int = self._library.medimg_locate_items(
            self._data, len(self._data), implicit, is_delimited, most, max_depth, elements, ends, counts
        )
        if status:
            return "ends" if status == _ENDS else "unusual"
        return list(counts)


@cache
def _declare(library: ctypes.CDLL) -> None:
    """State the types of the functions of a library, once."""
    pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    text = ctypes.c_char_p
    signatures = {
        "medimg_scan_new": (pointer, [pointer, number, ctypes.c_uint32, ctypes.c_uint32, text, text]),
        "medimg_scan_free": (None, [pointer]),
        "medimg_scan_add": (number, [pointer, text, size, number]),
        "medimg_scan_tables": (None, [pointer, pointer]),
        "medimg_scan_series": (pointer, [pointer, number, pointer]),
        "medimg_scan_acquisition": (pointer, [pointer, number, pointer]),
        "medimg_walker_new": (pointer, [text, text, pointer, number, pointer, number, ctypes.c_uint32]),
        "medimg_walker_free": (None, [pointer]),
        "medimg_locate_items": (
            number,
            [text, ctypes.c_uint64, number, number, ctypes.c_uint64, number, pointer, pointer, pointer],
        ),
        "medimg_walker_run": (number, [pointer, text, ctypes.c_uint64, pointer, ctypes.c_uint64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
