"""The files of a series as pydicom reads them: a reference independent of medimg's reader."""

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

__all__ = ["FileFacts", "FramePosition", "compute_values", "list_frames", "read_dataset", "read_facts"]

_NATIVE: Final = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})


@dataclass(frozen=True, slots=True)
class FramePosition:
    """Position (3,), orientation (6,) and pixel spacing (2,) of one frame, from its header."""

    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """SOP Instance UID and position of each frame; no positions if one is unknown or a mosaic."""

    uid: str
    positions: tuple[FramePosition, ...]


def read_dataset(name: str, *, pixels: bool = False) -> Dataset | None:
    """Read a DICOM file, or member of a zip archive, by pydicom; None if it can't be read."""
    try:
        with quiet_pydicom():
            return pydicom.dcmread(io.BytesIO(_read_content(name)), force=True, stop_before_pixels=not pixels)
    # an unreadable header has no facts to compare with
    except Exception:
        return None


def _read_content(name: str) -> bytes:
    path = Path(name)
    if path.is_file():
        return path.read_bytes()
    archive = next(parent for parent in path.parents if parent.is_file())
    with zipfile.ZipFile(archive) as opened:
        return opened.read(path.relative_to(archive).as_posix())


def read_facts(name: str) -> FileFacts:
    """Return the facts of a header; none if it can't be read."""
    path = Path(name)
    found = path.stat() if path.is_file() else None
    return _read_facts(name, (found.st_mtime_ns, found.st_size) if found else None)


@lru_cache(maxsize=2048)
def _read_facts(name: str, stamp: tuple[int, int] | None) -> FileFacts:
    """Read the facts of a header, once while the file does not change."""
    del stamp
    dataset = read_dataset(name)
    if dataset is None:
        return FileFacts("", ())
    with quiet_pydicom():
        return FileFacts(_get_uid(dataset), () if _is_mosaic(dataset) else _list_positions(dataset))


def _get_uid(dataset: Dataset) -> str:
    try:
        return str(dataset.get("SOPInstanceUID") or "")
    # damaged attributes
    except Exception:
        return ""


def _is_mosaic(dataset: Dataset) -> bool:
    """Whether a frame holds several slices side by side, so that its position is not that of a slice."""
    types = str(dataset.get("ImageType", ""))
    return "MOSAIC" in types or "VFRAME" in types


def _list_positions(dataset: Dataset) -> tuple[FramePosition, ...]:
    try:
        found = tuple(_read_position(groups) for groups in _list_groups(dataset))
        # without functional groups, the position is that of the first frame
        return found if len(found) == int(dataset.get("NumberOfFrames") or 1) else ()
    # absent or damaged attributes
    except Exception:
        return ()


def _list_groups(dataset: Dataset) -> Iterator[list[Dataset]]:
    """Yield, for each frame, the items that hold its attributes, the most specific first."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        yield [dataset]
        return
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    for own in dataset.PerFrameFunctionalGroupsSequence:
        yield [own, *shared]


def _find_value(groups: list[Dataset], sequence: str, keyword: str) -> Any:
    for group in groups:
        item = group[sequence].value[0] if sequence in group else group
        if keyword in item and item.get(keyword) is not None:
            return item.get(keyword)
    return None


def _read_position(groups: list[Dataset]) -> FramePosition:
    def read_numbers(sequence: str, keyword: str) -> npt.NDArray[np.float64]:
        return np.asarray([float(v) for v in _find_value(groups, sequence, keyword)])

    return FramePosition(
        read_numbers("PlanePositionSequence", "ImagePositionPatient"),
        read_numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
        read_numbers("PixelMeasuresSequence", "PixelSpacing"),
    )


def list_frames(volume: Volume) -> list[tuple[str, int]]:
    """Return file and frame, from 0, of each slice, channel by channel; none if the report is unclear."""
    report = volume.report
    if report.format != "DICOM":
        return []
    count = len(report.sop_instance_uids) or volume.shape[1]
    numbers = report.frame_numbers or (1,) * count
    files = report.files
    if len(files) != count:
        by_uid = {read_facts(name).uid: name for name in files}
        if len(by_uid) < len(files) or not set(report.sop_instance_uids) <= set(by_uid):
            return []
        files = tuple(by_uid[uid] for uid in report.sop_instance_uids)
    return [(name, number - 1) for name, number in zip(files, numbers, strict=True)] if files else []


def compute_values(dataset: Dataset, frame: int = 0) -> npt.NDArray[np.float64] | None:
    """
    Return slope · stored + intercept (PS3.3 C.11.1) of a grayscale frame (H, W).

    None if it is compressed, in color, mapped by a table, or a mosaic.
    """
    try:
        with quiet_pydicom():
            return _compute_values(dataset, frame)
    # absent or damaged attributes
    except Exception:
        return None


def _compute_values(dataset: Dataset, frame: int) -> npt.NDArray[np.float64] | None:
    groups = list(_list_groups(dataset))
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
    slope = _find_value(groups_of_frame, transformation, "RescaleSlope")
    intercept = _find_value(groups_of_frame, transformation, "RescaleIntercept")
    return _extract_stored(dataset, frame) * float(1 if slope is None else slope) + float(intercept or 0)


def _extract_stored(dataset: Dataset, frame: int) -> npt.NDArray[Any]:
    """Return the bits from Bits Stored to High Bit of each cell (PS3.5 8.1.1), with their sign."""
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
