"""DICOM files into data sets: with or without preamble, gzipped or not, damaged or hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag

from medimg.errors import NotAnImageError, ReadError, TruncatedError
from medimg.io.blob import Blob, as_blob
from medimg.io.dicom.attributes import quiet_pydicom
from medimg.io.dicom.outline import UnusualHeaderError, dataset_of, outline_of
from medimg.io.dicom.parsing import parsed, parsed_with_pixels
from medimg.io.starts import read_start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom.dataset import Dataset

__all__ = ["looks_like_dicom", "numbers_of", "open_dataset", "open_header", "tags_of"]

#: Groups 0002 and 0008, one of which a file without preamble starts with.
_FIRST_GROUPS: Final = frozenset({b"\x02\x00", b"\x08\x00"})
#: Bytes in which the header of a usual file lies.
_HEAD: Final = 2**14


def looks_like_dicom(start: bytes) -> bool:
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
            if not looks_like_dicom(start):
                raise NotAnImageError(f"{path} is no DICOM file: neither preamble nor a first element")
            file.seek(0)
            no_preamble = start[128:132] != b"DICM"
            if tags is None:
                return parsed_with_pixels(file, path, blob.stored_size(), force=no_preamble)
            return parsed(
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
            return dataset_of(outline_of(head), head, tags)
        except UnusualHeaderError:
            pass
    return open_dataset(blob, tags=[BaseTag(tag) for tag in sorted(tags)])


def tags_of(*names: str | int) -> tuple[BaseTag, ...]:
    """Return keywords and numbers as tags, for a reading of headers."""
    return tuple(dict.fromkeys(Tag(name) for name in names))


def numbers_of(*names: str | int) -> frozenset[int]:
    """Return the numbers of tags by keyword or number: plain ones, as pydicom's take long to compare."""
    return frozenset(int(Tag(name)) for name in names)
