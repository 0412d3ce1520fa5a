"""DICOM files into data sets: with or without preamble, gzipped or not, damaged or hostile."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.elements import UnusualHeaderError, build_dataset, locate_elements
from medimg.io.dicom.header.transfer_syntax import SYNTAXES, parse_transfer_syntax
from medimg.io.files.blob import Blob, as_blob
from medimg.io.files.prefetch import read_start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset


__all__ = [
    "_parse_with_pixels",
    "is_dicom",
    "open_dataset",
    "open_header",
    "parse_dicom",
    "to_tag_numbers",
    "to_tags",
]

_DEFLATED: Final = str(DeflatedExplicitVRLittleEndian).encode()
#: Explicit VR Little Endian, filled up to the same length.
_INFLATED: Final = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")
_MAX_INFLATED: Final = 2**28
_PIECE: Final = 2**24
_SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIXEL_GROUPS: Final = (b"\xe0\x7f", b"\x7f\xe0")
#: What parsing may cost, in reads: so many for any file, and one for so many bytes of it as they are stored.
_MIN_READS: Final = 2**20
_BYTES_PER_READ: Final = 32
#: What parsing a longer value later may cost, if it turns out to be a sequence: by the byte, and by the item.
_SHORT_VALUE: Final = 64
_BYTES_WITHIN: Final = 16
_READS_PER_ITEM: Final = 3


def parse_dicom(file: BinaryIO, name: str, size: int, **options: Any) -> Dataset:
    """
    Parse a DICOM file, as :func:`pydicom.dcmread` does.

    Parameters
    ----------
    file : binary file object
        The file, at its start.
    name : str
        For messages.
    size : int
        Its bytes as they are stored, packed or not: the measure for what it may cost. Empty items of a
        sequence are eight bytes each, which an archive packs to next to nothing, and take a thousand times
        as much memory.
    **options
        Of :func:`pydicom.dcmread`.

    Raises
    ------
    DecodeError
        If it has too many elements for its size, or inflates to too much.
    """
    budget = _MIN_READS + size // _BYTES_PER_READ
    try:
        return _read_guarded(_Guarded(file, name, budget), options)
    except _DeflatedError as found:
        whole = _inflate_dataset(found, name)
    dataset = _read_guarded(_Guarded(whole, name, budget), options)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def _parse_with_pixels(file: BinaryIO, name: str, size: int, *, force: bool) -> Dataset:
    """
    Parse a whole file; see :func:`parse`.

    pydicom finds nothing in a file whose encapsulated pixels lack their delimiter; it is read once more with
    one, and whether all frames are there is found when they are decoded.
    """
    dataset = parse_dicom(file, name, size, force=force)
    syntax = parse_transfer_syntax(dataset)
    if "PixelData" in dataset or syntax not in SYNTAXES:
        return dataset
    file.seek(0)
    return parse_dicom(io.BytesIO(file.read() + _SEQUENCE_DELIMITER), name, size, force=force)


def _read_guarded(file: _Guarded, options: dict[str, Any]) -> Dataset:
    try:
        return pydicom.dcmread(cast("BinaryIO", file), **options)
    finally:
        # pydicom makes its own errors of those that a file raises
        file.check()


class _DeflatedError(Exception):
    """pydicom is about to inflate a data set, however large it becomes."""

    def __init__(self, head: bytes, packed: bytes) -> None:
        super().__init__()
        self.head = head
        self.packed = packed


class _Guarded:
    """A file that counts what is read from it, until it is too much."""

    def __init__(self, file: BinaryIO, name: str, budget: int) -> None:
        self._file = file
        self._name = name
        self._left = budget
        self._in_pixels = False
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int = -1) -> bytes:
        """Return bytes; all that are left are what pydicom takes to be deflated."""
        if size < 0:
            start = self._file.tell()
            packed = self._file.read()
            self._file.seek(0)
            raise _DeflatedError(self._file.read(start), packed)
        data = self._file.read(size)
        self._left -= 1
        if size == 8:
            self._in_pixels = data[:2] in _PIXEL_GROUPS
        elif size > _SHORT_VALUE and not self._in_pixels:
            self._left -= size // _BYTES_WITHIN + _READS_PER_ITEM * sum(map(data.count, _ITEMS))
        self.check()
        return data

    def check(self) -> None:
        """Raise an error if too much has been read."""
        if self._left < 0:
            raise DecodeError(
                f"{self._name} has more elements than a file of its size can sensibly have; it is damaged"
            )


def _inflate_dataset(found: _DeflatedError, name: str) -> BinaryIO:
    """Return the file with its data set inflated, unless it would fill the memory."""
    whole = io.BytesIO()
    most = whole.write(found.head.replace(_DEFLATED, _INFLATED)) + _MAX_INFLATED
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = found.packed
    while data := inflater.decompress(packed, _PIECE):
        packed = inflater.unconsumed_tail
        if whole.write(data) and whole.tell() > most:
            raise DecodeError(f"{name} inflates to more than {_MAX_INFLATED >> 20} MB; inflate it first")
    if not inflater.eof:
        raise TruncatedError(f"{name} ends inside its deflated data set; copy or export it again")
    whole.seek(0)
    return whole


#: Groups 0002 and 0008, one of which a file without preamble starts with.
_FIRST_GROUPS: Final = frozenset({b"\x02\x00", b"\x08\x00"})
#: Bytes in which the header of a usual file lies.
_HEAD: Final = 2**14


def is_dicom(start: bytes) -> bool:
    """
    Tell from the first 132 bytes whether a file is DICOM.

    A file without preamble counts if it starts with a plausible element of group 0002 or 0008.
    """
    if start[128:132] == b"DICM":
        return True
    group = start[:2]
    if group not in _FIRST_GROUPS or len(start) < 12 or start[3] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    implicit_length = int.from_bytes(start[4:8], "little")
    return explicit or implicit_length < 1024


def open_dataset(source: str | Path | Blob, *, tags: Sequence[BaseTag] | None = None) -> Dataset:
    """
    Read a DICOM file, with pixels unless only some tags are asked for.

    Parameters
    ----------
    source : str, Path or Blob
        The file.
    tags : sequence of BaseTag, optional
        See :func:`tags_of`; reading then ends before the pixel data.

    Raises
    ------
    NotAnImageError
        If it is no DICOM file.
    TruncatedError
        If it ends inside an element.
    ReadError
        If it can't be opened or parsed, or would take too much time or memory for a file of its size.
    """
    path = source.name if isinstance(source, Blob) else str(source)
    try:
        blob = as_blob(source)
        with blob.open() as file, quiet_pydicom():
            start = file.read(132)
            if not is_dicom(start):
                raise NotAnImageError(f"{path} is no DICOM file: neither preamble nor a first element")
            file.seek(0)
            no_preamble = start[128:132] != b"DICM"
            if tags is None:
                return _parse_with_pixels(file, path, blob.stored_size(), force=no_preamble)
            return parse_dicom(
                file,
                path,
                blob.stored_size(),
                force=no_preamble,
                stop_before_pixels=True,
                specific_tags=list(tags),
            )
    except FileNotFoundError:
        raise ReadError(f"there is no file {path}") from None
    except OSError as error:
        # pydicom raises some of its own
        reason = f"can't be opened: {error.strerror}" if error.strerror else "is damaged: it can't be parsed"
        raise ReadError(f"{path} {reason}") from None
    except ReadError:
        raise
    except InvalidDicomError:
        raise NotAnImageError(f"{path} is no DICOM file") from None
    except EOFError:
        raise TruncatedError(f"{path} ends inside a DICOM element; copy or export it again") from None
    # pydicom raises many kinds of exception on damaged files, and their texts can hold patient data
    except Exception as error:
        raise ReadError(f"{path} is damaged: parsing it as DICOM failed ({type(error).__name__})") from None


def open_header(blob: Blob, tags: frozenset[int]) -> Dataset:
    """
    Read some elements of the header of a DICOM file.

    The usual ones are found by their lengths alone, which takes half as long as parsing the whole header.

    Parameters
    ----------
    blob : Blob
        The file.
    tags : frozenset of int
        Which elements; see :func:`numbers_of`.

    Raises
    ------
    ReadError
        See :func:`open_dataset`.
    """
    if blob.path is not None:
        head = read_start(blob.name, _HEAD)
        try:
            return build_dataset(locate_elements(head), head, tags)
        except UnusualHeaderError:
            pass
    return open_dataset(blob, tags=[BaseTag(tag) for tag in sorted(tags)])


def to_tags(*names: str | int) -> tuple[BaseTag, ...]:
    """Return keywords and numbers as tags, for a reading of headers."""
    return tuple(dict.fromkeys(Tag(name) for name in names))


def to_tag_numbers(*names: str | int) -> frozenset[int]:
    """Return the numbers of tags by keyword or number: plain ones, as pydicom's take long to compare."""
    return frozenset(int(Tag(name)) for name in names)
