"""Frames of an uncompressed file elsewhere: fetched one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom.dataelem import RawDataElement

from medimg.io.dicom.header.elements import UNDEFINED_LENGTH
from medimg.io.dicom.header.open import locate_pixels
from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES
from medimg.io.files.listed_file import ByteRange

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.instance import Instance

__all__ = ["open_ranges"]

#: Share of the frames from which on the whole file is fetched.
_MOST: Final = 0.5
_PLACEHOLDER: Final = b"\1\1"


def open_ranges(instance: Instance, wanted: int) -> tuple[Dataset, ByteRange] | None:
    """
    Return the header of a file, and the values of its pixels, which are fetched when they are taken.

    None if most frames are wanted, or the pixels are compressed, not the end of the file, or not found.
    """
    blob = instance.blob
    file = blob.listed_file
    if file is None or not file.ranged or blob.archive is not None or blob.gzipped:
        return None
    if wanted > _MOST * len(instance.facts) or instance.transfer_syntax not in NATIVE_SYNTAXES:
        return None
    dataset, pixels = locate_pixels(blob)
    if pixels is None or pixels.length == UNDEFINED_LENGTH or pixels.start + pixels.length != file.length:
        return None
    implicit, little = map(bool, dataset.original_encoding)
    dataset[pixels.tag] = RawDataElement(
        pixels.tag, pixels.vr or None, pixels.length, _PLACEHOLDER, pixels.start, implicit, little
    )
    return dataset, ByteRange(file, pixels.start, pixels.length)
