"""DICOM files as datasets: with or without preamble, gzipped or not; parsing is bounded."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeVar, cast

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError, also
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.elements import (
    PIXEL_TAGS,
    UNDEFINED_LENGTH,
    UnusualHeaderError,
    build_dataset,
    locate_elements,
)
from medimg.io.dicom.header.item_elements import find_sequence_end
from medimg.io.dicom.header.transfer_syntax import SYNTAXES, parse_transfer_syntax
from medimg.io.files.blob import Blob, as_blob
from medimg.io.files.decompress import find_window_bits
from medimg.io.files.regular_file import read_start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset


__all__ = [
    "PixelElement",
    "is_dicom",
    "locate_pixels",
    "open_dataset",
    "open_header",
    "open_whole_header",
    "parse_dicom",
    "to_tag_numbers",
    "to_tags",
]

_T = TypeVar("_T")

_PIXEL_DATA: Final = BaseTag(0x7FE00010)
_DEFLATED: Final = str(DeflatedExplicitVRLittleEndian).encode()
#: Explicit VR Little Endian, filled up to the same length.
_INFLATED: Final = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")
_MAX_INFLATED: Final = 2**28
_CHUNK_BYTES: Final = 2**24
_SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIXEL_GROUPS: Final = (b"\xe0\x7f", b"\x7f\xe0")
#: Reads that parsing may take: a minimum for any file, and one for so many stored bytes.
_MIN_READS: Final = 2**20
_BYTES_PER_READ: Final = 32
#: Reads that parsing a longer value later may take, if it is a sequence: per byte, and per item.
_SHORT_VALUE: Final = 64
_BYTES_WITHIN: Final = 16
_READS_PER_ITEM: Final = 3
#: How Per-Frame Functional Groups begin, before their length, in explicit and in implicit VR.
_IMPLICIT_FRAMES: Final = b"\x00\x52\x30\x92"
_EXPLICIT_FRAMES: Final = _IMPLICIT_FRAMES + b"SQ\0\0"
_UNDEFINED: Final = b"\xff\xff\xff\xff"
#: Bytes of them that are read first, and at most, to find their end.
_FIRST_GROUPS_BYTES: Final = 2**20
_MAX_GROUPS_BYTES: Final = 2**27


def parse_dicom(file: BinaryIO, name: str, size: int, **options: Any) -> Dataset:
    """
    Parse a DICOM file as :func:`pydicom.dcmread` does, within bounds for a file of `size` stored bytes.

    DecodeError is raised if it has too many elements, or inflates to too much: an empty item of a sequence
    takes eight bytes, which an archive compresses to almost nothing, and a thousand times as much memory once
    parsed.
    """
    budget = _MIN_READS + size // _BYTES_PER_READ
    try:
        return _read_guarded(_BoundedFile(file, name, budget), options)
    except _DeflatedError as found:
        whole = _inflate_dataset(found, name)
    dataset = _read_guarded(_BoundedFile(whole, name, budget), options)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def _parse_with_pixels(file: BinaryIO, name: str, size: int, *, force: bool) -> Dataset:
    """
    Parse a whole file; see :func:`parse_dicom`.

    pydicom finds nothing if encapsulated pixel data lacks its delimiter: the file is parsed again with one,
    and decoding finds out whether all frames are present.
    """
    dataset = parse_dicom(file, name, size, force=force)
    syntax = parse_transfer_syntax(dataset)
    if "PixelData" in dataset or syntax not in SYNTAXES:
        return dataset
    file.seek(0)
    return parse_dicom(io.BytesIO(file.read() + _SEQUENCE_DELIMITER), name, size, force=force)


def _read_guarded(file: _BoundedFile, options: dict[str, Any]) -> Dataset:
    try:
        return pydicom.dcmread(cast("BinaryIO", file), **options)
    finally:
        # pydicom makes its own errors of those that a file raises
        file.check()


class _DeflatedError(Exception):
    """Raised when pydicom is about to inflate a dataset without a bound."""

    def __init__(self, head: bytes, packed: bytes) -> None:
        super().__init__()
        self.head = head
        self.packed = packed


class _BoundedFile:
    """
    A file that counts the reads, and fails once there are too many.

    Per-Frame Functional Groups of undefined length get the one that they have, without their delimiter:
    pydicom would parse all of them at once.
    """

    def __init__(self, file: BinaryIO, name: str, budget: int) -> None:
        self._file = file
        self._name = name
        self._left = budget
        self._in_pixels = False
        self._last = b""  # the last eight bytes that were read together
        self._delimiter: int | None = None  # offset of one that is to be skipped
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset."""
        position = self._file.seek(offset, whence)
        return position if self._delimiter is None else self._skip_delimiter(position)

    def read(self, size: int = -1) -> bytes:
        """Return bytes; pydicom reads to the end of the file only to inflate it."""
        if size < 0:
            start = self._file.tell()
            packed = self._file.read()
            self._file.seek(0)
            raise _DeflatedError(self._file.read(start), packed)
        data = self._file.read(size)
        self._left -= 1
        if self._delimiter is not None:
            self._skip_delimiter(self._file.tell())
        if size == 8:
            self._in_pixels = data[:2] in _PIXEL_GROUPS
            self._last = data
            if data == _IMPLICIT_FRAMES + _UNDEFINED:
                data = _IMPLICIT_FRAMES + self._find_length(implicit=True)
        elif size == 4 and data == _UNDEFINED and self._last == _EXPLICIT_FRAMES:
            data = self._find_length(implicit=False)
        elif size > _SHORT_VALUE and not self._in_pixels:
            self._left -= size // _BYTES_WITHIN + _READS_PER_ITEM * sum(map(data.count, _ITEMS))
        self.check()
        return data

    def _skip_delimiter(self, position: int) -> int:
        if position != self._delimiter:
            return position
        self._delimiter = None
        return self._file.seek(len(_SEQUENCE_DELIMITER), os.SEEK_CUR)

    def _find_length(self, *, implicit: bool) -> bytes:
        """Return the length of functional groups that begin here; the undefined one if they are unusual."""
        start = self._file.tell()
        data, length = b"", _UNDEFINED
        while len(data) < _MAX_GROUPS_BYTES and (
            more := self._file.read(max(_FIRST_GROUPS_BYTES, 3 * len(data)))
        ):
            data += more
            try:
                end = find_sequence_end(data, implicit=implicit) - len(_SEQUENCE_DELIMITER)
            except UnusualHeaderError as error:
                if error.ends:
                    continue
            else:
                self._delimiter = start + end
                length = struct.pack("<I", end)
            break
        self._file.seek(start)
        return length

    def check(self) -> None:
        """Raise DecodeError if too much was read."""
        if self._left < 0:
            raise DecodeError(
                f"{self._name} has more elements than a file of its size can sensibly have; it is damaged"
            )


def _inflate_dataset(found: _DeflatedError, name: str) -> BinaryIO:
    """Return the file with its dataset inflated, up to a bound."""
    whole = io.BytesIO()
    most = whole.write(found.head.replace(_DEFLATED, _INFLATED)) + _MAX_INFLATED
    packed = found.packed
    inflater = zlib.decompressobj(find_window_bits(packed))
    while data := inflater.decompress(packed, _CHUNK_BYTES):
        packed = inflater.unconsumed_tail
        if whole.write(data) and whole.tell() > most:
            raise DecodeError(f"{name} inflates to more than {_MAX_INFLATED >> 20} MB; inflate it first")
    if not inflater.eof:
        raise TruncatedError(f"{name} ends inside its deflated dataset; copy or export it again")
    whole.seek(0)
    return whole


#: Groups 0002 and 0008, one of which a file without preamble starts with.
_FIRST_GROUPS: Final = frozenset({b"\x02\x00", b"\x08\x00"})
#: Bytes that hold the header of a usual file.
_HEAD: Final = 2**14


def is_dicom(start: bytes) -> bool:
    """Whether a file is DICOM, by its first 132 bytes; without preamble, by its first element."""
    if start[128:132] == b"DICM":
        return True
    group = start[:2]
    if group not in _FIRST_GROUPS or len(start) < 12 or start[3] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    implicit_length = int.from_bytes(start[4:8], "little")
    return explicit or implicit_length < 1024


def open_dataset(source: str | Path | Blob, *, tags: Sequence[BaseTag] | None = None) -> Dataset:
    """Read a DICOM file: only `tags`, or everything with pixels; raise ReadError or NotAnImageError."""
    if tags is None:
        return _open(source, _parse_with_pixels)
    if isinstance(source, Blob):
        source = _without_pixels(source, frozenset(map(int, tags)))
    return _open(source, partial(parse_dicom, stop_before_pixels=True, specific_tags=list(tags)))


def _without_pixels(blob: Blob, tags: frozenset[int]) -> Blob:
    """Return a file with these elements, if they can be read apart from a remote file; else the file."""
    source = blob.remote_header
    head = None if source is None else source.read_header(tags)
    return blob if head is None else Blob(blob.name, data=head)


def open_whole_header(source: str | Path | Blob) -> tuple[Dataset, BaseTag | None]:
    """Read all that comes before the pixel data, and return the tag of these, None if there are none."""
    dataset, pixels = _open(source, _parse_whole_header)
    return dataset, None if pixels is None else pixels.tag


class PixelElement(NamedTuple):
    """Tag, VR ("" if not stated), offset and length of a value with pixels; if deflated, only the tag."""

    tag: BaseTag
    vr: str = ""
    start: int = 0
    length: int = UNDEFINED_LENGTH


def locate_pixels(blob: Blob) -> tuple[Dataset, PixelElement | None]:
    """Read all that comes before the pixel data, and return where they are."""
    return _open(blob, _parse_whole_header)


def _parse_whole_header(
    file: BinaryIO, name: str, size: int, *, force: bool
) -> tuple[Dataset, PixelElement | None]:
    dataset = parse_dicom(file, name, size, force=force, stop_before_pixels=True)
    if parse_transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian:
        # where the inflated dataset ends is not known here
        return dataset, PixelElement(_PIXEL_DATA)
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    start = file.tell()
    element = file.read(8 if implicit else 12).ljust(12, b"\0")
    group, number = struct.unpack_from(f"{order}HH", element)
    tag = BaseTag(group << 16 | number)
    if tag not in PIXEL_TAGS:
        return dataset, None
    # all of them have a VR with a length of four bytes
    vr = "" if implicit else element[4:6].decode("latin-1")
    (length,) = struct.unpack_from(f"{order}I", element, 4 if implicit else 8)
    return dataset, PixelElement(tag, vr, start + (8 if implicit else 12), length)


def _open(source: str | Path | Blob, parse: Callable[..., _T]) -> _T:
    """Return what `parse(file, name, size, force=…)` makes of a file; see :func:`open_dataset`."""
    path = source.name if isinstance(source, Blob) else str(source)
    try:
        blob = as_blob(source)
        with blob.open() as file, quiet_pydicom():
            start = file.read(132)
            if not is_dicom(start):
                raise NotAnImageError(
                    f"{path} is not a DICOM file: it has neither a preamble nor a valid first element"
                )
            # an instance of a server is in memory now; its size would be found by fetching it again
            is_fetched = blob.remote_header is not None and not blob.gzipped
            size = file.seek(0, os.SEEK_END) if is_fetched else blob.stored_size()
            file.seek(0)
            return parse(file, path, size, force=start[128:132] != b"DICM")
    except ReadError:
        raise
    except OSError as error:
        # pydicom raises some of its own
        reason = f"can't be opened: {error.strerror}" if error.strerror else "is damaged: it can't be parsed"
        raise also(ReadError, type(error))(f"{path} {reason}") from None
    except InvalidDicomError:
        raise NotAnImageError(f"{path} is not a DICOM file") from None
    except EOFError:
        raise TruncatedError(f"{path} ends inside a DICOM element; copy or export it again") from None
    # pydicom raises various errors on damaged files, and their texts can hold patient data
    except Exception as error:
        raise ReadError(f"{path} is damaged: parsing it as DICOM failed ({type(error).__name__})") from None


def open_header(blob: Blob, tags: frozenset[int]) -> Dataset:
    """Read the elements `tags` of a header; by lengths alone if it is usual, in half the time of parsing."""
    blob = _without_pixels(blob, tags)
    if blob.path is not None or blob.data is not None:
        head = read_start(blob.name, _HEAD) if blob.data is None else blob.data[:_HEAD]
        try:
            return build_dataset(locate_elements(head), head, tags)
        except UnusualHeaderError:
            pass
    return open_dataset(blob, tags=_sort_tags(tags))


@cache
def _sort_tags(tags: frozenset[int]) -> list[BaseTag]:
    return [BaseTag(tag) for tag in sorted(tags)]


def to_tags(*names: str | int) -> tuple[BaseTag, ...]:
    """Return keywords and numbers as tags."""
    return tuple(dict.fromkeys(Tag(name) for name in names))


def to_tag_numbers(*names: str | int) -> frozenset[int]:
    """Return keywords and numbers as plain integers, which compare faster than tags."""
    return frozenset(int(Tag(name)) for name in names)
