"""The files of a series as pydicom alone sees them: an opinion of its own on what medimg makes of them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medimg.io.dicom.header.attributes import quiet_pydicom

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.core.volume import Volume

__all__ = ["FileFacts", "FramePlace", "dataset_of", "file_facts", "frames_of", "native_values"]

_NATIVE: Final = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where one frame lies, as its header says: position (3,), orientation (6,), pixel spacing (2,)."""

    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """
    What a header says.

    Attributes
    ----------
    uid : str
        SOP Instance UID.
    places : tuple of FramePlace
        Of each frame; empty where one of them does not say, or holds several slices side by side.
    """

    uid: str
    places: tuple[FramePlace, ...]


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


def file_facts(name: str) -> FileFacts:
    """Return what a header says; nothing where it can't be read."""
    path = Path(name)
    found = path.stat() if path.is_file() else None
    return _file_facts(name, (found.st_mtime_ns, found.st_size) if found else None)


@lru_cache(maxsize=2048)
def _file_facts(name: str, stamp: tuple[int, int] | None) -> FileFacts:
    """Keep what was read until the file changes."""
    del stamp
    dataset = dataset_of(name)
    if dataset is None:
        return FileFacts("", ())
    with quiet_pydicom():
        return FileFacts(_uid(dataset), () if _is_mosaic(dataset) else _places(dataset))


def _uid(dataset: Dataset) -> str:
    try:
        return str(dataset.get("SOPInstanceUID") or "")
    # damaged attributes
    except Exception:
        return ""


def _is_mosaic(dataset: Dataset) -> bool:
    """Whether slices lie side by side in one frame, so that its position is not that of a slice."""
    kinds = str(dataset.get("ImageType", ""))
    return "MOSAIC" in kinds or "VFRAME" in kinds


def _places(dataset: Dataset) -> tuple[FramePlace, ...]:
    try:
        found = tuple(_place(groups) for groups in _groups(dataset))
        # without functional groups, the position is that of the first frame
        return found if len(found) == int(dataset.get("NumberOfFrames") or 1) else ()
    # absent or damaged attributes
    except Exception:
        return ()


def _groups(dataset: Dataset) -> Iterator[list[Dataset]]:
    """Give, for each frame, the items that its facts stand in, the most specific first."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        yield [dataset]
        return
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    for own in dataset.PerFrameFunctionalGroupsSequence:
        yield [own, *shared]


def _number(groups: list[Dataset], sequence: str, keyword: str) -> Any:
    for group in groups:
        item = group[sequence].value[0] if sequence in group else group
        if keyword in item and item.get(keyword) is not None:
            return item.get(keyword)
    return None


def _place(groups: list[Dataset]) -> FramePlace:
    def numbers(sequence: str, keyword: str) -> npt.NDArray[np.float64]:
        return np.asarray([float(v) for v in _number(groups, sequence, keyword)])

    return FramePlace(
        numbers("PlanePositionSequence", "ImagePositionPatient"),
        numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
        numbers("PixelMeasuresSequence", "PixelSpacing"),
    )


def frames_of(volume: Volume) -> list[tuple[str, int]]:
    """
    Return the file and the frame, from 0, of each slice, channel by channel.

    Returns
    -------
    list
        D long, or C·D; empty where the report doesn't tell.
    """
    report = volume.report
    if report.format != "DICOM":
        return []
    count = len(report.sop_instance_uids) or volume.shape[1]
    numbers = report.frame_numbers or (1,) * count
    files = report.files
    if len(files) != count:
        by_uid = {file_facts(name).uid: name for name in files}
        if len(by_uid) < len(files) or not set(report.sop_instance_uids) <= set(by_uid):
            return []
        files = tuple(by_uid[uid] for uid in report.sop_instance_uids)
    return [(name, number - 1) for name, number in zip(files, numbers, strict=True)] if files else []


def native_values(dataset: Dataset, frame: int = 0) -> npt.NDArray[np.float64] | None:
    """
    Return slope · stored + intercept (PS3.3 C.11.1) of a frame of plain gray pixels; (H, W).

    None where they are compressed or colored, mapped by a table, or hold several slices side by side.
    """
    try:
        with quiet_pydicom():
            return _native_values(dataset, frame)
    # absent or damaged attributes
    except Exception:
        return None


def _native_values(dataset: Dataset, frame: int) -> npt.NDArray[np.float64] | None:
    groups = list(_groups(dataset))
    groups_of_frame = [*groups[frame if len(groups) > 1 else 0], dataset]
    transformation = "PixelValueTransformationSequence"
    plain = (
        dataset.file_meta.TransferSyntaxUID in _NATIVE
        and dataset.get("SamplesPerPixel", 1) == 1
        and str(dataset.PhotometricInterpretation).startswith("MONOCHROME")
        and "ModalityLUTSequence" not in dataset
        and dataset.BitsAllocated in {8, 16, 32}
        and "PixelData" in dataset
        and not _is_mosaic(dataset)
    )
    if not plain:
        return None
    slope = _number(groups_of_frame, transformation, "RescaleSlope")
    intercept = _number(groups_of_frame, transformation, "RescaleIntercept")
    return _stored(dataset, frame) * float(1 if slope is None else slope) + float(intercept or 0)


def _stored(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """Take Bits Stored up to High Bit of each cell (PS3.5 8.1.1), with their sign."""
    rows, columns, bits = dataset.Rows, dataset.Columns, dataset.BitsStored
    order = ">" if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
    if order == ">" and dataset.BitsAllocated == 8 and dataset["PixelData"].VR == "OW":
        raise ValueError("bytes within words")
    size = dataset.BitsAllocated // 8
    cells = np.frombuffer(
        dataset.PixelData, f"{order}u{size}", rows * columns, offset=frame * rows * columns * size
    )
    values = (cells.astype(np.int64) >> (dataset.HighBit + 1 - bits)) & ((1 << bits) - 1)
    if dataset.PixelRepresentation:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return np.asarray(values.reshape(rows, columns))
