"""Parts of a file, read without a buffer between: each costs one call of the system."""

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

from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.elements import (
    IMPLICIT,
    UNDEFINED,
    UnusualHeaderError,
    dataset_of,
    element_offsets,
)
from medimg.io.dicom.header.image_pixel import FORMAT_TAGS, FrameFormat, frame_count, frame_format
from medimg.io.dicom.header.open import numbers_of
from medimg.io.dicom.pixels._encapsulation import codestream_at, is_trailing
from medimg.io.dicom.pixels.frames import (
    NATIVE_SYNTAXES,
    WHOLE_SAMPLES,
    decode_frames,
    interpret_bits,
    native_frame,
)
from medimg.io.dicom.scanning.header_template import Header, HeaderTemplateWalker
from medimg.io.dicom.values.modality_lut import VALUE_TAGS, modality_transform
from medimg.io.dicom.values.real_world import CALIBRATION_TAGS, apply_real_world_scale
from medimg.io.dicom.values.suv import SUV_TAGS
from medimg.io.files.prefetch import OPEN_FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.instance import Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["LoadedSlice", "PixelSegments", "SingleFrameReader", "read_tags"]

_HAS_PREAD: Final = hasattr(os, "pread")
_HAS_PREADV: Final = hasattr(os, "preadv")


class PixelSegments:
    """
    An open file; its position belongs to whoever reads, so that only one thread may.

    Parameters
    ----------
    path : str
        Of an ordinary file.

    Raises
    ------
    OSError
        If it can't be opened, or is no ordinary file.

    Attributes
    ----------
    size : int
        Bytes of the file.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, OPEN_FLAGS)
        facts = os.fstat(self._file)
        self.size = facts.st_size
        if not S_ISREG(facts.st_mode):
            os.close(self._file)
            raise OSError("no ordinary file")

    def __enter__(self) -> PixelSegments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes, or those up to the end of the file."""
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
        """
        Fill a contiguous array.

        Raises
        ------
        OSError
            If the file ends before.
        """
        if _HAS_PREADV:
            count = os.preadv(self._file, [array.data], offset)
        else:
            with open(self._file, "rb", buffering=0, closefd=False) as file:
                file.seek(offset)
                count = file.readinto(array.data.cast("B")) or 0
        if count < array.nbytes:
            raise OSError("the file ended early")

    def read_both(self, length: int, array: npt.NDArray[Any]) -> bytes:
        """
        Return the first bytes, and fill an array with those that follow.

        Raises
        ------
        OSError
            If the file ends before.
        """
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
#: Headers that are remembered; where each slice has another one, remembering is of no use.
_MOST_KNOWN: Final = 64
#: Bytes of a header up to which it is remembered from one reading to the next.
_MOST_REMEMBERED: Final = 2**14
#: The start of a file that is read first, and what it is tried with where the header is longer.
_STARTS: Final = (2**13, 2**16, 2**20)
#: Bytes after the pixels that are looked at.
_MOST_TRAILING: Final = 2**16


class LoadedSlice(NamedTuple):
    """
    One image as it is stored.

    Attributes
    ----------
    meaning : ModalityTransform
        What its values mean.
    stored : numpy.ndarray
        (rows, columns) or (rows, columns, 3); maybe not writable.
    """

    meaning: ModalityTransform
    stored: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Known:
    """
    What is known of headers that say the same.

    Attributes
    ----------
    view : pydicom.Dataset
        The attributes that values depend on.
    form : FrameFormat
        Of the pixels.
    exact_bits : bool
        Whether no stored value has more bits than Bits Stored.
    cells : numpy.dtype or None
        Unsigned integers of Bits Allocated; None where native pixels are no such cells, one each.
    nbytes : int
        Of the pixels, if native.
    meanings : dict
        What stored values mean, by their type and whether they are RGB.
    """

    view: Dataset
    form: FrameFormat
    exact_bits: bool
    cells: np.dtype[Any] | None
    nbytes: int
    meanings: dict[tuple[np.dtype[Any], bool], ModalityTransform] = field(default_factory=dict)


_Memory: TypeAlias = dict[tuple[str, bytes], _Known]
#: By how values are scaled: what was known in readings before, as X-rays of one device say the same.
_REMEMBERED: Final[dict[ValueKind, _Memory]] = {}


class _Ahead(NamedTuple):
    """What to expect of the next file: bytes from the pixels to its end, and bytes of the pixels."""

    tail: int
    pixels: int


@cache
def read_tags(kind: ValueKind) -> frozenset[int]:
    """
    Return the tags of all attributes that values depend on, the pixels apart.

    Parameters
    ----------
    kind : {"auto", "rescaled", "suv"}
        How values are scaled.
    """
    names = [*FORMAT_TAGS, *VALUE_TAGS, *(SUV_TAGS if kind == "suv" else CALIBRATION_TAGS)]
    # the character set is that of explanations of windows
    names.append("SpecificCharacterSet")
    found = set(numbers_of(*names))
    for tag in [tag for tag in found if tag >> 16 & 1 and tag & 0xFFFF > 0xFF]:
        group = tag & 0xFFFF0000
        found |= {group | block for block in _PRIVATE_BLOCKS}
        found |= {group | block << 8 | tag & 0xFF for block in _PRIVATE_BLOCKS}
    return frozenset(found)


class SingleFrameReader:
    """
    Reads files of one image each, best those of one series, from any thread.

    Parameters
    ----------
    kind : {"auto", "rescaled", "suv"}
        How values are scaled; see :func:`medimg.read`.
    first_acquired : float, optional
        See :func:`medimg.io.dicom.values.suv.suv_factor`.
    """

    def __init__(self, kind: ValueKind, first_acquired: float | None) -> None:
        self._kind = kind
        self._first_acquired = first_acquired
        self._tags = read_tags(kind)
        self._walker = HeaderTemplateWalker(self._tags)
        self._known: _Memory = {}
        # what SUV are depends on other files, too
        self._remembered = self._known if kind == "suv" else _REMEMBERED.setdefault(kind, {})
        self._ahead: _Ahead | None = None
        self._whole = False

    def load(self, instance: Instance, slot: npt.NDArray[Any] | None = None) -> LoadedSlice | None:
        """
        Read the image of a file.

        Parameters
        ----------
        instance : Instance
            The file, of one image.
        slot : numpy.ndarray, optional
            (rows, columns), contiguous: where stored values are read into, if they are as wide as its type.

        Returns
        -------
        Loaded or None
            None where the file is not as usual, or anything is wrong with it.
        """
        blob = instance.blob
        in_memory = blob.archive is not None or blob.data is not None or blob.gzipped
        if in_memory or sys.byteorder != "little":
            return None
        try:
            with PixelSegments(blob.name) as file:
                return self._loaded(file, instance.sop_instance_uid, slot)
        except (OSError, ValueError, UnusualHeaderError, MedimgError):
            return None

    def _loaded(self, file: PixelSegments, uid: str, slot: npt.NDArray[Any] | None) -> LoadedSlice | None:
        head, header, is_read = self._start(file, slot)
        pixels, syntax = header.pixels, header.syntax
        if header.uid != uid.encode() or pixels.tag != _PIXEL_DATA or pixels.vr not in _REPRESENTATIONS:
            return None
        known = self._known_of(head, header)
        if syntax in NATIVE_SYNTAXES:
            stored = self._native(file, header, known, slot=slot, is_read=is_read)
            is_rgb = known.form.photometric == "RGB"
        else:
            if pixels.length != UNDEFINED:
                return None
            if file.size > 2 * known.nbytes + _STARTS[-1]:
                return None
            self._whole = True
            data = head if len(head) == file.size else file.read(0, file.size)
            stored, is_rgb = decode_frames(codestream_at(data, pixels.value, syntax), syntax, known.form)
        return LoadedSlice(self._meaning(known, stored.dtype, is_rgb=is_rgb), stored)

    def _start(self, file: PixelSegments, slot: npt.NDArray[Any] | None) -> tuple[bytes, Header, bool]:
        """Return the start of a file, its header, and whether the pixels have been read into the slot."""
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
        starts = (file.size,) if self._whole and file.size < _STARTS[-1] else _STARTS
        for length in starts:
            head = file.read(0, length)
            try:
                return head, self._walker.read_header(head), False
            except UnusualHeaderError as error:
                if not error.ends or len(head) == file.size:
                    raise
        raise UnusualHeaderError(ends=True)

    def _known_of(self, head: bytes, header: Header) -> _Known:
        key = header.syntax, header.wanted
        memory = self._known if len(header.wanted) > _MOST_REMEMBERED else self._remembered
        known = memory.get(key)
        if known is not None:
            return known
        tag, _, start, length, vr, _ = header.pixels
        with _damage_is_unusual(), quiet_pydicom():
            view = dataset_of(element_offsets(head), head, self._tags)
            # that there are pixels, and of which kind, belongs to their format
            view[BaseTag(tag)] = RawDataElement(
                BaseTag(tag), vr.decode() or None, length, b"\0\0", start, header.syntax == IMPLICIT, True
            )
            form = frame_format(view)
            if frame_count(view) != 1:
                raise UnusualHeaderError
        if len(memory) >= _MOST_KNOWN:
            memory.clear()
        exact = header.syntax in NATIVE_SYNTAXES or header.syntax in WHOLE_SAMPLES
        width = form.dtype.itemsize
        cells = np.dtype(f"u{width}") if form.samples == 1 and form.bits_allocated > 1 else None
        known = memory[key] = _Known(view, form, exact, cells, form.count * width)
        return known

    def _meaning(self, known: _Known, dtype: np.dtype[Any], *, is_rgb: bool) -> ModalityTransform:
        meaning = known.meanings.get((dtype, is_rgb))
        if meaning is not None:
            return meaning
        view = known.view
        with _damage_is_unusual(), quiet_pydicom():
            meaning = modality_transform(view, known.form, dtype, is_rgb=is_rgb, exact_bits=known.exact_bits)
            meaning = apply_real_world_scale(view, meaning, self._kind, first_acquired=self._first_acquired)
        known.meanings[dtype, is_rgb] = meaning
        return meaning

    def _native(
        self,
        file: PixelSegments,
        header: Header,
        known: _Known,
        *,
        slot: npt.NDArray[Any] | None,
        is_read: bool,
    ) -> npt.NDArray[Any]:
        """Return the stored values of native pixel data: in the slot, if they are as wide."""
        (_, _, start, length, _, _), form, dtype = header.pixels, known.form, known.cells
        end = start + length
        if length == UNDEFINED or end > file.size:
            raise UnusualHeaderError
        if end < file.size and not is_trailing(
            file.read(end, _MOST_TRAILING), implicit=header.syntax == IMPLICIT
        ):
            raise UnusualHeaderError
        if dtype is None or length < known.nbytes:
            return native_frame(file.read(start, length), form)
        if slot is not None and slot.shape == (form.rows, form.columns) and slot.itemsize == dtype.itemsize:
            cells = slot.view(dtype)
        else:
            cells, is_read = np.empty(form.shape, dtype), False
        if not is_read:
            file.read_into(cells, start)
        self._ahead = _Ahead(file.size - start, known.nbytes)
        return interpret_bits(cells, form)


@contextmanager
def _damage_is_unusual() -> Iterator[None]:
    """Leave a file whose attributes raise anything when they are used to the careful way of reading."""
    try:
        yield
    except Exception:
        raise UnusualHeaderError from None
