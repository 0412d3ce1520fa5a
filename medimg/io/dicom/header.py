"""The facts of one DICOM instance that grouping, sorting and geometry need, without its pixels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.attributes import (
    code,
    codes,
    description,
    floats,
    identifier,
    integer,
    quiet_pydicom,
    text,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Instance", "looks_like_dicom", "open_dataset", "read_instance"]

_TAGS: Final = [
    "AcquisitionNumber",
    "BitsAllocated",
    "Columns",
    "EchoNumbers",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "ImagerPixelSpacing",
    "InstanceNumber",
    "MediaStorageSOPClassUID",
    "Modality",
    "NominalScannedPixelSpacing",
    "NumberOfFrames",
    "PatientID",
    "PhotometricInterpretation",
    "PixelAspectRatio",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SpacingBetweenSlices",
    "StudyInstanceUID",
]

#: Bounds beyond which a length can't be meant: no patient is larger than 10 m, nor a pixel smaller than 1 nm.
_FARTHEST_MM: Final = 1e5
_LEAST_MM: Final = 1e-6
_MOST_MM: Final = 1e4

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
#: Enhanced and legacy converted CT, MR and PET, XA and XRF, segmentations, parametric maps, and their like.
_WITH_FUNCTIONAL_GROUPS: Final = frozenset(
    _STORAGE + suffix
    for suffix in (
        "2.1", "2.2", "4.1", "4.3", "4.4", "6.2", "12.1.1", "12.2.1", "13.1.1", "13.1.2", "13.1.3",
        "13.1.4", "13.1.5", "14.1", "14.2", "30", "66.4", "77.1.6", "128.1", "130",
    )
)  # fmt: skip

_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_MOST_INFLATED: Final = 2**28


@dataclass(frozen=True, slots=True)
class Instance:
    """
    One DICOM file that holds an image; what identifies the patient stays out of its repr.

    Attributes carry the names of their DICOM attributes; positions and spacings are in millimeters, and
    None where the file has none or they are unusable.
    """

    path: str = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    instance_number: int | None
    acquisition_number: int | None
    echo_number: int | None
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    photometric: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    spacing_between_slices: float | None
    transfer_syntax: str

    @property
    def is_localizer(self) -> bool:
        """Whether this is a scout: Image Type value 3 is LOCALIZER (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.image_type[2:]

    @property
    def is_multiframe(self) -> bool:
        """Whether geometry and rescale lie in functional groups, or there are several frames."""
        return self.frames > 1 or self.sop_class_uid in _WITH_FUNCTIONAL_GROUPS

    @property
    def has_place(self) -> bool:
        """Whether position and orientation in the patient are known."""
        return self.position is not None and self.orientation is not None


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


def open_dataset(path: str | Path, *, tags: list[str] | None = None) -> Dataset:
    """
    Read a DICOM file, with pixels unless only some tags are asked for.

    Parameters
    ----------
    path : str or Path
        The file.
    tags : list of str, optional
        Keywords; reading then ends before the pixel data.

    Raises
    ------
    NotAnImageError
        If it is no DICOM file.
    TruncatedError
        If it ends inside an element.
    ReadError
        If it can't be opened or parsed.
    """
    try:
        with Path(path).open("rb") as file, quiet_pydicom():
            start = file.read(132)
            if not looks_like_dicom(start):
                raise NotAnImageError(f"{path} is no DICOM file: neither preamble nor a first element")
            _check_inflated_size(file, path)
            file.seek(0)
            no_preamble = start[128:132] != b"DICM"
            if tags is None:
                return pydicom.dcmread(file, force=no_preamble)
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


def _pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = floats(dataset, keyword, 2)
        if spacing is not None and min(spacing) >= _LEAST_MM and max(spacing) <= _MOST_MM:
            return spacing[0], spacing[1]
    aspect = floats(dataset, "PixelAspectRatio", 2)
    if aspect is not None and min(aspect) > 0 and 1e-2 <= aspect[0] / aspect[1] <= 1e2:
        return aspect[0] / aspect[1], 1.0
    return None


def _position(dataset: Dataset) -> tuple[float, float, float] | None:
    position = floats(dataset, "ImagePositionPatient", 3)
    if position is None or max(abs(v) for v in position) > _FARTHEST_MM:
        return None
    return position[0], position[1], position[2]


def _orientation(dataset: Dataset) -> tuple[float, ...] | None:
    orientation = floats(dataset, "ImageOrientationPatient", 6)
    return orientation if orientation is not None and max(abs(v) for v in orientation) <= 2 else None


def _slice_spacing(dataset: Dataset) -> float | None:
    """Spacing Between Slices, which may be negative; None where it is absent or absurd."""
    spacing = floats(dataset, "SpacingBetweenSlices", 1)
    return abs(spacing[0]) if spacing and _LEAST_MM <= abs(spacing[0]) <= _MOST_MM else None


def _kind(sop_class: str) -> str:
    name = UID(sop_class).name
    return name if name != sop_class else "unknown SOP class"


def read_instance(path: str | Path) -> Instance:
    """
    Read what :class:`Instance` holds from a DICOM file; its pixels are not touched.

    Raises
    ------
    NotAnImageError
        If the file is no DICOM file, or an object without pixels.
    ReadError
        If it can't be opened or parsed.
    """
    with quiet_pydicom():
        return _instance(str(path), open_dataset(path, tags=_TAGS))


def _instance(path: str, dataset: Dataset) -> Instance:
    sop_class = identifier(dataset, "SOPClassUID") or identifier(dataset.file_meta, "MediaStorageSOPClassUID")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if not rows or not columns or rows < 0 or columns < 0:
        raise NotAnImageError(f"{path} is a DICOM object without pixels ({_kind(sop_class)})")
    return Instance(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=identifier(dataset, "SOPInstanceUID"),
        series_uid=identifier(dataset, "SeriesInstanceUID"),
        study_uid=identifier(dataset, "StudyInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        modality=code(dataset, "Modality"),
        description=description(dataset, "SeriesDescription"),
        instance_number=integer(dataset, "InstanceNumber"),
        acquisition_number=integer(dataset, "AcquisitionNumber"),
        echo_number=integer(dataset, "EchoNumbers"),
        image_type=codes(dataset, "ImageType"),
        rows=rows,
        columns=columns,
        samples=integer(dataset, "SamplesPerPixel") or 1,
        frames=max(1, integer(dataset, "NumberOfFrames") or 1),
        bits_allocated=integer(dataset, "BitsAllocated") or 16,
        photometric=code(dataset, "PhotometricInterpretation", "MONOCHROME2"),
        position=_position(dataset),
        orientation=_orientation(dataset),
        pixel_spacing=_pixel_spacing(dataset),
        spacing_between_slices=_slice_spacing(dataset),
        transfer_syntax=identifier(dataset.file_meta, "TransferSyntaxUID"),
    )
