"""The files of a series as pydicom alone sees them: an opinion of its own on what medimg makes of them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medimg.io.dicom.attributes import quiet_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from pydicom.dataset import Dataset

__all__ = ["FramePlace", "dataset_of", "frame_places", "is_mosaic", "native_values"]

_NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where one frame lies, as its header says: position (3,), orientation (6,), pixel spacing (2,)."""

    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]


def dataset_of(name: str, *, pixels: bool = False) -> Dataset | None:
    """Return a DICOM file, or member of a zip archive, as pydicom reads it; None if it can't."""
    try:
        with quiet_pydicom():
            return pydicom.dcmread(io.BytesIO(_content(name)), force=True, stop_before_pixels=not pixels)
    # a header that can't be read holds no facts to compare with
    except Exception:
        return None


def _content(name: str) -> bytes:
    path = Path(name)
    if path.is_file():
        return path.read_bytes()
    archive = next(parent for parent in path.parents if parent.is_file())
    with zipfile.ZipFile(archive) as opened:
        return opened.read(path.relative_to(archive).as_posix())


def is_mosaic(dataset: Dataset) -> bool:
    """Whether slices lie side by side in one frame, so that its position is not that of a slice."""
    kinds = str(dataset.get("ImageType", ""))
    return "MOSAIC" in kinds or "VFRAME" in kinds


def frame_places(dataset: Dataset) -> list[FramePlace] | None:
    """Return where each frame of a file lies; None where one of them doesn't say."""
    try:
        with quiet_pydicom():
            return [_place(groups) for groups in _groups(dataset)]
    # absent or damaged attributes
    except Exception:
        return None


def _groups(dataset: Dataset) -> Iterator[list[Dataset]]:
    """Give, for each frame, the items that its facts stand in, the most specific first."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        yield [dataset]
        return
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    for own in dataset.PerFrameFunctionalGroupsSequence:
        yield [own, *shared]


def _place(groups: list[Dataset]) -> FramePlace:
    def numbers(sequence: str, keyword: str) -> npt.NDArray[np.float64]:
        for group in groups:
            item = group[sequence].value[0] if sequence in group else group
            if keyword in item:
                return np.asarray([float(v) for v in item.get(keyword)])
        raise KeyError(keyword)

    return FramePlace(
        numbers("PlanePositionSequence", "ImagePositionPatient"),
        numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
        numbers("PixelMeasuresSequence", "PixelSpacing"),
    )


def native_values(dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """
    Return slope · stored + intercept (PS3.3 C.11.1) of a plain gray picture; (H, W).

    None where the pixels are compressed, colored, in several frames, or mapped by a table.
    """
    try:
        with quiet_pydicom():
            return _native_values(dataset)
    # absent or damaged attributes
    except Exception:
        return None


def _native_values(dataset: Dataset) -> npt.NDArray[np.float64] | None:
    plain = (
        dataset.file_meta.TransferSyntaxUID in _NATIVE
        and int(dataset.get("NumberOfFrames") or 1) == 1
        and dataset.get("SamplesPerPixel", 1) == 1
        and str(dataset.PhotometricInterpretation).startswith("MONOCHROME")
        and "ModalityLUTSequence" not in dataset
        and "PerFrameFunctionalGroupsSequence" not in dataset
        and dataset.BitsAllocated in {8, 16, 32}
        and "PixelData" in dataset
    )
    if not plain:
        return None
    stored = _stored(dataset)
    return stored * float(dataset.get("RescaleSlope") or 1) + float(dataset.get("RescaleIntercept") or 0)


def _stored(dataset: Dataset) -> npt.NDArray[Any]:
    """Take Bits Stored up to High Bit of each cell (PS3.5 8.1.1), with their sign."""
    rows, columns, bits = dataset.Rows, dataset.Columns, dataset.BitsStored
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    swapped_bytes = order == ">" and dataset.BitsAllocated == 8 and dataset["PixelData"].VR == "OW"
    if swapped_bytes:
        raise ValueError("bytes within words")
    cells = np.frombuffer(dataset.PixelData, f"{order}u{dataset.BitsAllocated // 8}", rows * columns)
    values = (cells.astype(np.int64) >> (dataset.HighBit + 1 - bits)) & ((1 << bits) - 1)
    if dataset.PixelRepresentation:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return np.asarray(values.reshape(rows, columns))
