"""Fast reading of single-frame files: headers by template, pixels straight into the array of the volume."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from medimg._native.slices import AlikeFiles
from medimg.core.rescale import find_stored_range, wrap_integer
from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.elements import (
    UNDEFINED_LENGTH,
    UnusualHeaderError,
    build_dataset,
    locate_elements,
)
from medimg.io.dicom.header.image_pixel import FORMAT_TAGS, FrameFormat, parse_frame_count, parse_frame_format
from medimg.io.dicom.header.open import to_tag_numbers
from medimg.io.dicom.header.transfer_syntax import IMPLICIT, NATIVE_SYNTAXES
from medimg.io.dicom.pixels._encapsulation import extract_codestream, is_trailing_padding
from medimg.io.dicom.pixels._frames import (
    WHOLE_SAMPLES,
    decode_stored,
    interpret_bits,
    read_native_frame,
)
from medimg.io.dicom.pixels._header_walk import Header, make_header_walker
from medimg.io.dicom.pixels._native import check_excess, describe_excess
from medimg.io.dicom.values.modality_lut import VALUE_TAGS, parse_modality_transform
from medimg.io.dicom.values.real_world import REAL_WORLD_TAGS, apply_real_world_scale
from medimg.io.dicom.values.suv import SUV_TAGS
from medimg.io.files.regular_file import OPEN_FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.instance import Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["AlikeSlices", "LoadedSlice", "RangeReader", "SingleFrameReader", "list_value_tags"]

_HAS_PREAD: Final = hasattr(os, "pread")
_HAS_PREADV: Final = hasattr(os, "preadv")


class RangeReader:
    """
    Unbuffered reads of byte ranges of a file, one system call each; for one thread only.

    OSError is raised if the file can't be opened, is not a regular file, or ends early.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, OPEN_FLAGS)
        status = os.fstat(self._file)
        self.size = status.st_size
        if not S_ISREG(status.st_mode):
            os.close(self._file)
            raise OSError("not a regular file")

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes, or those up to the end of the file."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if _HAS_PREAD:
            data = os.pread(self._file, length, offset)
        else:
            os.lseek(self._file, offset, os.SEEK_SET)
            data = os.read(self._file, length)
        if len(data) < length:
            raise OSError("the file ended early")
        return data

    def read_into(self, array: npt.NDArray[Any], offset: int) -> None:
        """Fill a contiguous array."""
        if _HAS_PREADV:
            count = os.preadv(self._file, [array.data], offset)
        else:
            with open(self._file, "rb", buffering=0, closefd=False) as file:
                file.seek(offset)
                count = file.readinto(array.data.cast("B")) or 0
        if count < array.nbytes:
            raise OSError("the file ended early")

    def read_both(self, length: int, array: npt.NDArray[Any]) -> bytes:
        """Return the first `length` bytes and fill a contiguous array with those that follow."""
        if not _HAS_PREADV:
            head = self.read(0, length)
            self.read_into(array, length)
            return head
        start = bytearray(length)
        if os.preadv(self._file, [start, array.data], 0) < length + array.nbytes:
            raise OSError("the file ended early")
        return bytes(start)


_PIXEL_DATA: Final = 0x7FE00010
_REPRESENTATIONS: Final = frozenset({b"OW", b"OB", b""})
_PRIVATE_BLOCKS: Final = range(0x10, 0x100)
#: Headers kept; keeping them is of no use if each slice has another one.
_MAX_HEADERS: Final = 64
#: Bytes of a header up to which it is shared by all readers.
_MAX_SHARED_BYTES: Final = 2**14
#: Bytes of the start of a file that are read, until they hold the header.
_STARTS: Final = (2**13, 2**16, 2**20)
#: Bits Allocated of files that are read together.
_ALIKE_BITS: Final = (8, 16)
#: Bytes after the pixels that are checked.
_MAX_TRAILING: Final = 2**16


class LoadedSlice(NamedTuple):
    """Stored values of a frame, (rows, columns[, 3]) and maybe read-only, with their transform."""

    transform: ModalityTransform
    stored: npt.NDArray[Any]


class AlikeSlices(NamedTuple):
    """Files that differ in their pixels only; transform, shape and type of their modality values."""

    files: AlikeFiles
    transform: ModalityTransform
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _ParsedHeader:
    """What was parsed from headers that are equal in all attributes that values depend on."""

    view: Dataset
    fmt: FrameFormat
    exact_bits: bool  # no stored value has more bits than Bits Stored
    cells: np.dtype[Any] | None  # unsigned integers of Bits Allocated; None if pixels are not such cells
    nbytes: int  # of native pixels
    transforms: dict[tuple[np.dtype[Any], bool], ModalityTransform] = field(default_factory=dict)


_HeaderCache: TypeAlias = dict[tuple[str, bytes], _ParsedHeader]
#: Headers shared by all readers, as X-rays of one device have equal ones.
_SHARED_HEADERS: Final[dict[ValueKind, _HeaderCache]] = {}


class _NativeSlice(NamedTuple):
    """The header of a file that ends with its native pixels, and what was parsed from it."""

    header: Header
    parsed: _ParsedHeader


class _ReadAhead(NamedTuple):
    """Expected layout of the next file: bytes from the pixels to its end, and bytes of the pixels."""

    tail: int
    pixels: int


@cache
def list_value_tags(values: ValueKind) -> frozenset[int]:
    """Return the tags of all attributes that values depend on, except the pixels."""
    names = [*FORMAT_TAGS, *VALUE_TAGS, *(SUV_TAGS if values == "suv" else REAL_WORLD_TAGS)]
    # for explanations of windows
    names.append("SpecificCharacterSet")
    found = set(to_tag_numbers(*names))
    for tag in [tag for tag in found if tag >> 16 & 1 and tag & 0xFFFF > 0xFF]:
        group = tag & 0xFFFF0000
        found |= {group | block for block in _PRIVATE_BLOCKS}
        found |= {group | block << 8 | tag & 0xFF for block in _PRIVATE_BLOCKS}
    return frozenset(found)


class SingleFrameReader:
    """Reads single-frame files, preferably of one series, from any thread."""

    def __init__(self, values: ValueKind, first_acquired: float | None) -> None:
        self._values = values
        self._first_acquired = first_acquired
        self._tags = list_value_tags(values)
        self._walker = make_header_walker(self._tags)
        self._own_headers: _HeaderCache = {}
        # SUV depends on other files, too
        self._shared_headers = (
            self._own_headers if values == "suv" else _SHARED_HEADERS.setdefault(values, {})
        )
        self._ahead: _ReadAhead | None = None
        self._native: _NativeSlice | None = None
        self._reads_whole_files = False

    def load(self, instance: Instance, slot: npt.NDArray[Any] | None = None) -> LoadedSlice | None:
        """Return the frame of a file, in `slot` if its type is as wide; None if the file is unusual."""
        if not instance.blob.is_local_file or sys.byteorder != "little":
            return None
        try:
            with RangeReader(instance.blob.name) as file:
                return self._load(file, instance.sop_instance_uid, slot)
        except (OSError, ValueError, UnusualHeaderError, MedimgError):
            return None

    @property
    def alike(self) -> AlikeSlices | None:
        """What files have in common with the one loaded last, if they can be read together."""
        native = self._native
        if native is None:
            return None
        header, parsed = native
        transform, fmt = parsed.transforms.get((parsed.fmt.dtype, False)), parsed.fmt
        if transform is None or not _is_whole(fmt, transform):
            return None
        # if values decide, int16 is tried
        dtype = np.dtype(np.int16) if transform.dtype is None else transform.dtype
        usual = find_stored_range(fmt.dtype, transform.slope, transform.intercept, dtype)
        if dtype.kind not in "iu" or dtype.itemsize != fmt.dtype.itemsize or usual is None:
            return None
        files = AlikeFiles(
            header.syntax,
            header.wanted,
            header.pixels.length,
            fmt.shape,
            fmt.dtype,
            fmt.bits_stored,
            usual,
            None if transform.padding is None else (int(transform.padding[0]), int(transform.padding[1])),
            int(wrap_integer(transform.slope, dtype)),
            int(wrap_integer(transform.intercept, dtype)),
        )
        return AlikeSlices(files, transform, fmt.shape, dtype)

    def read_alike(
        self, like: AlikeSlices, files: Sequence[tuple[Instance, npt.NDArray[Any]]], threads: int
    ) -> list[bool]:
        """
        Read files, each into memory (rows, columns) of modality values, and say which were read.

        Others have another header, or padding, or can't be read: they are left to :meth:`load`.
        """
        # no file has an empty name
        given = [
            (i.blob.name, i.sop_instance_uid, slot)
            if i.blob.is_local_file and i.sop_instance_uid.isprintable()
            else ("", "", slot)
            for i, slot in files
        ]
        return self._walker.read_alike(like.files, given, threads)

    def _load(self, file: RangeReader, uid: str, slot: npt.NDArray[Any] | None) -> LoadedSlice | None:
        head, header, is_read = self._read_header(file, slot)
        pixels, syntax = header.pixels, header.syntax
        if header.uid != uid.encode() or pixels.tag != _PIXEL_DATA or pixels.vr not in _REPRESENTATIONS:
            return None
        parsed = self._parse_header(head, header)
        if syntax in NATIVE_SYNTAXES:
            stored = self._read_native(file, header, parsed, slot=slot, is_read=is_read)
            is_rgb = parsed.fmt.photometric == "RGB"
        else:
            if pixels.length != UNDEFINED_LENGTH:
                return None
            if file.size > 2 * parsed.nbytes + _STARTS[-1]:
                return None
            self._reads_whole_files = True
            data = head if len(head) == file.size else file.read(0, file.size)
            stored, is_rgb = decode_stored(extract_codestream(data, pixels.value, syntax), syntax, parsed.fmt)
        transform = self._get_transform(parsed, stored.dtype, is_rgb=is_rgb)
        transform.check_slope(stored)
        return LoadedSlice(transform, stored)

    def _read_header(self, file: RangeReader, slot: npt.NDArray[Any] | None) -> tuple[bytes, Header, bool]:
        """Return the start of a file, its header, and whether the pixels were read into the slot."""
        ahead = self._ahead
        # a slot of colors is not in one piece
        if slot is not None and slot.ndim != 2:
            ahead = None
        length = 0 if ahead is None else file.size - ahead.tail
        if (
            ahead is not None
            and slot is not None
            and slot.nbytes == ahead.pixels
            and 0 < length <= _STARTS[-1]
        ):
            head = file.read_both(length, slot)
            try:
                header = self._walker.read_header(head)
                return head, header, header.pixels.value == len(head)
            except UnusualHeaderError as error:
                if not error.ends:
                    raise
        starts = (file.size,) if self._reads_whole_files and file.size < _STARTS[-1] else _STARTS
        for length in starts:
            head = file.read(0, length)
            try:
                return head, self._walker.read_header(head), False
            except UnusualHeaderError as error:
                if not error.ends or len(head) == file.size:
                    raise
        raise UnusualHeaderError(ends=True)

    def _parse_header(self, head: bytes, header: Header) -> _ParsedHeader:
        key = header.syntax, header.wanted
        headers = self._own_headers if len(header.wanted) > _MAX_SHARED_BYTES else self._shared_headers
        parsed = headers.get(key)
        if parsed is not None:
            return parsed
        tag, _, start, length, vr, _ = header.pixels
        with _raise_as_unusual(), quiet_pydicom():
            view = build_dataset(locate_elements(head), head, self._tags)
            # the type of the pixel data belongs to its format
            view[BaseTag(tag)] = RawDataElement(
                BaseTag(tag), vr.decode() or None, length, b"\0\0", start, header.syntax == IMPLICIT, True
            )
            fmt = parse_frame_format(view)
            if parse_frame_count(view) != 1:
                raise UnusualHeaderError
        if len(headers) >= _MAX_HEADERS:
            headers.clear()
        exact = header.syntax in NATIVE_SYNTAXES or header.syntax in WHOLE_SAMPLES
        width = fmt.dtype.itemsize
        cells = np.dtype(f"u{width}") if fmt.samples == 1 and fmt.bits_allocated > 1 else None
        parsed = headers[key] = _ParsedHeader(view, fmt, exact, cells, fmt.count * width)
        return parsed

    def _get_transform(
        self, parsed: _ParsedHeader, dtype: np.dtype[Any], *, is_rgb: bool
    ) -> ModalityTransform:
        transform = parsed.transforms.get((dtype, is_rgb))
        if transform is not None:
            return transform
        view = parsed.view
        with _raise_as_unusual(), quiet_pydicom():
            transform = parse_modality_transform(
                view, parsed.fmt, dtype, is_rgb=is_rgb, exact_bits=parsed.exact_bits
            )
            transform = apply_real_world_scale(
                view, transform, self._values, first_acquired=self._first_acquired
            )
        parsed.transforms[dtype, is_rgb] = transform
        return transform

    def _read_native(
        self,
        file: RangeReader,
        header: Header,
        parsed: _ParsedHeader,
        *,
        slot: npt.NDArray[Any] | None,
        is_read: bool,
    ) -> npt.NDArray[Any]:
        """Return the stored values of native pixel data, in the slot if they are as wide."""
        (_, _, start, length, _, _), fmt, dtype = header.pixels, parsed.fmt, parsed.cells
        end = start + length
        if length == UNDEFINED_LENGTH or end > file.size:
            raise UnusualHeaderError
        if end < file.size and not is_trailing_padding(
            file.read(end, _MAX_TRAILING), implicit=header.syntax == IMPLICIT
        ):
            raise UnusualHeaderError
        if dtype is None or length < parsed.nbytes:
            return read_native_frame(file.read(start, length), fmt)
        check_excess(length, 8 * parsed.nbytes, 1)
        if describe_excess(length, 8 * parsed.nbytes, 1, fmt):
            raise UnusualHeaderError
        if slot is not None and slot.shape == (fmt.rows, fmt.columns) and slot.itemsize == dtype.itemsize:
            cells = slot.view(dtype)
        else:
            cells, is_read = np.empty(fmt.shape, dtype), False
        if not is_read:
            file.read_into(cells, start)
        self._ahead = _ReadAhead(file.size - start, parsed.nbytes)
        self._native = _NativeSlice(header, parsed) if end == file.size else None
        return interpret_bits(cells, fmt)


def _is_whole(fmt: FrameFormat, transform: ModalityTransform) -> bool:
    """Whether whole numbers are stored in the lowest bits, and modality values are whole."""
    return (
        transform.is_linear
        and transform.slope != 0
        and transform.slope.is_integer()
        and transform.intercept.is_integer()
        and fmt.samples == 1
        and not fmt.floating
        and fmt.bits_allocated in _ALIKE_BITS
        and fmt.high_bit == fmt.bits_stored - 1
    )


@contextmanager
def _raise_as_unusual() -> Iterator[None]:
    """Raise UnusualHeaderError for any error, so that the file is parsed by pydicom instead."""
    try:
        yield
    except Exception:
        raise UnusualHeaderError from None
