"""What a single file holds, told by its content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from medimg.errors import MedimgError, NotAnImageError
from medimg.io.dicom.dicomdir import is_dicomdir
from medimg.io.dicom.header.instance import Instance, read_instance
from medimg.io.dicom.header.open import is_dicom
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats.image_file import image_series, looks_like_image
from medimg.io.formats.metaimage import looks_like_metaimage, metaimage_series
from medimg.io.formats.nifti import header_beside, looks_like_nifti, nifti_series
from medimg.io.formats.nrrd import looks_like_nrrd, nrrd_series
from medimg.io.series import Series
from medimg.io.sources import looks_like_zip

if TYPE_CHECKING:
    import os

__all__ = ["FORMATS", "Scanned", "Unreadable", "identify", "inspect"]

#: What can be read, for messages.
FORMATS = "DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """
    A file that holds no image, or a damaged one.

    Attributes
    ----------
    name : str
        The file.
    error : MedimgError
        Why.
    lasts : bool
        Whether that holds as long as the file is unchanged: it is not that of another file, or of the system.
    """

    name: str
    error: MedimgError
    lasts: bool = True


Scanned: TypeAlias = Instance | Series | Unreadable


def inspect(blob: Blob) -> Scanned | None:
    """Return what a file holds; None for a DICOMDIR, which merely lists what lies around it."""
    try:
        return identify(blob)
    except _DirectoryError:
        return None
    except MedimgError as error:
        failed = Unreadable(blob.name, error, _lasts(blob, error))
        # what it was raised in holds the start of the file: too much to keep of each of many
        error.__context__ = error.__traceback__ = None
        return failed


def _lasts(blob: Blob, error: MedimgError) -> bool:
    """Whether a file alone is to blame, as far as can be told."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return False
        cause = cause.__context__
    if isinstance(error, NotAnImageError):
        return True
    # the headers of other formats may lead to files with the values
    try:
        return is_dicom(blob.start())
    except MedimgError:
        return False


class _DirectoryError(NotAnImageError):
    """The file is a DICOMDIR."""


def identify(source: str | os.PathLike[str] | Blob) -> Instance | Series:
    """
    Return what a file holds, told by its content.

    Raises
    ------
    ReadError
        If it holds no image, or can't be read.
    """
    blob = as_blob(source)
    start = blob.start()
    if start[:2] == b"\x1f\x8b":
        blob = blob.unzipped()
        start = blob.start()
    if not start:
        raise NotAnImageError(f"{blob.name} is empty")
    if start[128:132] != b"DICM":
        found = _other_format(blob, start)
        if found is not None:
            return found
    if is_dicomdir(start):
        raise _DirectoryError(f"{blob.name} is a DICOMDIR: read it by itself")
    if is_dicom(start):
        return read_instance(blob)
    if looks_like_zip(start):
        raise NotAnImageError(
            f"{blob.name} is a zip archive, which is not entered from outside: read it by itself"
        )
    header = header_beside(blob)
    if header is not None:
        return nifti_series(header)
    raise NotAnImageError(f"{blob.name} is none of {FORMATS.replace(' or ', ' and ')}")


def _other_format(blob: Blob, start: bytes) -> Series | None:
    if looks_like_image(start):
        return image_series(blob)
    if looks_like_nifti(start):
        return nifti_series(blob)
    if looks_like_nrrd(start):
        return nrrd_series(blob)
    if looks_like_metaimage(start):
        return metaimage_series(blob)
    return None
