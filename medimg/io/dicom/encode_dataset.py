"""Datasets of pydicom in memory as bytes of a DICOM file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from medimg.errors import ReadError
from medimg.io.dicom.header.attributes import quiet_pydicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["encode_dataset"]

#: Transfer syntax of an encoding: whether VRs are implicit, and numbers little endian.
_SYNTAXES: Final = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
#: Start of the transfer syntaxes of DICOM, of which all others are in explicit little endian (PS3.5 A.4).
_STANDARD: Final = "1.2.840.10008.1.2."
#: Start of the first item of encapsulated pixel data (PS3.5 A.4).
_ITEM: Final = b"\xfe\xff\x00\xe0"


def encode_dataset(dataset: Dataset, name: str) -> bytes:
    """
    Return a dataset as a DICOM file, which is read as any other; the dataset is unchanged.

    Without file meta information it is written as it was read, or in explicit little endian. Raises ReadError
    if pixels are compressed and no transfer syntax says how, or pydicom can't encode the dataset.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    # pydicom raises errors of many types, and their texts can hold patient data
    try:
        with quiet_pydicom():
            # shares the elements, not the meta information
            whole = pydicom.Dataset(dataset)
            whole.file_meta = FileMetaDataset()
            syntax = _find_syntax(dataset, name)
            whole.file_meta.TransferSyntaxUID = UID(syntax)
            whole.preamble = bytes(128)
            implicit, little = _find_encoding(dataset, syntax)
            buffer = io.BytesIO()
            # pydicom does not know the newest transfer syntaxes
            pydicom.dcmwrite(buffer, whole, implicit_vr=implicit, little_endian=little, force_encoding=True)
            return buffer.getvalue()
    except (ReadError, MemoryError):
        raise
    except Exception as error:
        raise ReadError(
            f"{name} can't be encoded ({type(error).__name__}); check that it can be saved with "
            "dataset.save_as"
        ) from None


def _find_syntax(dataset: Dataset, name: str) -> str:
    stated = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if stated:
        return str(stated)
    start = dataset["PixelData"].value[:4] if "PixelData" in dataset else b""
    if start == _ITEM:
        raise ReadError(
            f"{name} has compressed pixels and no Transfer Syntax UID; set "
            "dataset.file_meta.TransferSyntaxUID"
        )
    implicit, little = dataset.original_encoding
    return _SYNTAXES.get((bool(implicit), little is not False), _SYNTAXES[False, True])


def _find_encoding(dataset: Dataset, syntax: str) -> tuple[bool, bool]:
    """Return whether VRs are implicit, and numbers little endian; a private syntax may be either."""
    known = {uid: encoding for encoding, uid in _SYNTAXES.items()}
    if syntax in known:
        return known[syntax]
    implicit, little = dataset.original_encoding
    if syntax.startswith(_STANDARD) or implicit is None or little is None:
        return False, True
    return implicit, little
