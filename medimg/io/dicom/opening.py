"""DICOM files into data sets: with or without preamble, gzipped or not, damaged or hostile."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag

from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.blob import Blob, as_blob
from medimg.io.dicom.attributes import quiet_pydicom, transfer_syntax
from medimg.io.dicom.codecs import SYNTAXES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset

__all__ = ["looks_like_dicom", "open_dataset", "tags_of"]

_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_MOST_INFLATED: Final = 2**28
_SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def looks_like_dicom(start: bytes) -> bool:
    """
    Tell from the first 132 bytes whether a file is DICOM.

    A file without preamble counts if it starts with a plausible element of group 0002 or 0008.
    """
    if start[128:132] == b"DICM":
        return True
    group = start[:2]
    if group not in {b"\x02\x00", b"\x08\x00"} or len(start) < 12 or start[3] != 0:
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
        If it can't be opened or parsed.
    """
    path = source.name if isinstance(source, Blob) else str(source)
    try:
        with as_blob(source).open() as file, quiet_pydicom():
            start = file.read(132)
            if not looks_like_dicom(start):
                raise NotAnImageError(f"{path} is no DICOM file: neither preamble nor a first element")
            _check_inflated_size(file, path)
            file.seek(0)
            no_preamble = start[128:132] != b"DICM"
            if tags is None:
                return _with_pixels(file, force=no_preamble)
            return pydicom.dcmread(file, force=no_preamble, stop_before_pixels=True, specific_tags=list(tags))
    except FileNotFoundError:
        raise ReadError(f"there is no file {path}") from None
    except OSError as error:
        raise ReadError(f"{path} can't be opened: {error.strerror or type(error).__name__}") from None
    except ReadError:
        raise
    except InvalidDicomError:
        raise NotAnImageError(f"{path} is no DICOM file") from None
    except EOFError:
        raise TruncatedError(f"{path} ends inside a DICOM element; copy or export it again") from None
    # pydicom raises many kinds of exception on damaged files, and their texts can hold patient data
    except Exception as error:
        raise ReadError(f"{path} is damaged: parsing it as DICOM failed ({type(error).__name__})") from None


def tags_of(*names: str | int) -> tuple[BaseTag, ...]:
    """Return keywords and numbers as tags, for a reading of headers."""
    return tuple(dict.fromkeys(Tag(name) for name in names))


def _with_pixels(file: BinaryIO, *, force: bool) -> Dataset:
    """
    Read a whole file.

    pydicom finds nothing in a file whose encapsulated pixels lack their delimiter; it is read once more with
    one, and whether all frames are there is found when they are decoded.
    """
    dataset = pydicom.dcmread(file, force=force)
    syntax = transfer_syntax(dataset)
    if "PixelData" in dataset or syntax not in SYNTAXES:
        return dataset
    file.seek(0)
    return pydicom.dcmread(io.BytesIO(file.read() + _SEQUENCE_DELIMITER), force=force)


def _check_inflated_size(file: BinaryIO, path: str | Path) -> None:
    """Refuse a deflated file that would fill the memory, before pydicom inflates it."""
    file.seek(132)
    start = file.read(4096)
    if start[:4] != b"\x02\x00\x00\x00" or _DEFLATED not in start:
        return
    file.seek(144 + int.from_bytes(start[8:12], "little"))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    while block := inflater.unconsumed_tail or file.read(2**20):
        size += len(inflater.decompress(block, 2**24))
        if size > _MOST_INFLATED:
            raise DecodeError(f"{path} inflates to more than {_MOST_INFLATED >> 20} MB; inflate it first")
