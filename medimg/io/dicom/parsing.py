"""pydicom's parser behind a guard: what a file costs is bounded by what it weighs."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.attributes import transfer_syntax
from medimg.io.dicom.codecs import SYNTAXES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["parsed", "parsed_with_pixels"]

_DEFLATED: Final = str(DeflatedExplicitVRLittleEndian).encode()
#: Explicit VR Little Endian, filled up to the same length.
_INFLATED: Final = b"1.2.840.10008.1.2.1".ljust(len(_DEFLATED), b"\0")
_MOST_INFLATED: Final = 2**28
_PIECE: Final = 2**24
_SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIXEL_GROUPS: Final = (b"\xe0\x7f", b"\x7f\xe0")
#: What parsing may cost, in reads: so many for any file, and one for so many bytes of it as they are stored.
_ALWAYS: Final = 2**20
_BYTES_A_READ: Final = 32
#: What parsing a longer value later may cost, if it turns out to be a sequence: by the byte, and by the item.
_SHORT_VALUE: Final = 64
_BYTES_WITHIN: Final = 16
_READS_AN_ITEM: Final = 3


def parsed(file: BinaryIO, name: str, size: int, **options: Any) -> Dataset:
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
    budget = _ALWAYS + size // _BYTES_A_READ
    try:
        return _read(_Guarded(file, name, budget), options)
    except _DeflatedError as found:
        whole = _inflated(found, name)
    dataset = _read(_Guarded(whole, name, budget), options)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


def parsed_with_pixels(file: BinaryIO, name: str, size: int, *, force: bool) -> Dataset:
    """
    Parse a whole file; see :func:`parsed`.

    pydicom finds nothing in a file whose encapsulated pixels lack their delimiter; it is read once more with
    one, and whether all frames are there is found when they are decoded.
    """
    dataset = parsed(file, name, size, force=force)
    syntax = transfer_syntax(dataset)
    if "PixelData" in dataset or syntax not in SYNTAXES:
        return dataset
    file.seek(0)
    return parsed(io.BytesIO(file.read() + _SEQUENCE_DELIMITER), name, size, force=force)


def _read(file: _Guarded, options: dict[str, Any]) -> Dataset:
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
            self._left -= size // _BYTES_WITHIN + _READS_AN_ITEM * sum(map(data.count, _ITEMS))
        self.check()
        return data

    def check(self) -> None:
        """Raise an error if too much has been read."""
        if self._left < 0:
            raise DecodeError(
                f"{self._name} has more elements than a file of its size can sensibly have; it is damaged"
            )


def _inflated(found: _DeflatedError, name: str) -> BinaryIO:
    """Return the file with its data set inflated, unless it would fill the memory."""
    whole = io.BytesIO()
    most = whole.write(found.head.replace(_DEFLATED, _INFLATED)) + _MOST_INFLATED
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = found.packed
    while data := inflater.decompress(packed, _PIECE):
        packed = inflater.unconsumed_tail
        if whole.write(data) and whole.tell() > most:
            raise DecodeError(f"{name} inflates to more than {_MOST_INFLATED >> 20} MB; inflate it first")
    if not inflater.eof:
        raise TruncatedError(f"{name} ends inside its deflated data set; copy or export it again")
    whole.seek(0)
    return whole
