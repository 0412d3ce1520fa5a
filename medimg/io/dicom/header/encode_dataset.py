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
_ENCODINGS: Final = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
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

    # pydicom raises errors of many types, and their texts can hold patient data
    try:
        with quiet_pydicom():
            # shares the elements, not the meta information
            whole = pydicom.Dataset(dataset)
            whole.file_meta = FileMetaDataset()
            whole.file_meta.TransferSyntaxUID = _find_syntax(dataset, name)
            whole.preamble = bytes(128)
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, whole)
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
    return _ENCODINGS.get(dataset.original_encoding, _ENCODINGS[False, True])
