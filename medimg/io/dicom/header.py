"""The facts of one DICOM instance that grouping, sorting and geometry need, without its pixels."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import UID

from medimg.errors import NotAnImageError, ReadError, TruncatedError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Instance", "floats", "looks_like_dicom", "open_dataset", "quiet_pydicom", "read_instance", "text"]

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
    "SeriesNumber",
    "SpacingBetweenSlices",
    "StudyInstanceUID",
]


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
    series_number: int | None
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
    def has_place(self) -> bool:
        """Whether position and orientation in the patient are known."""
        return self.position is not None and self.orientation is not None


class _Quiet:
    """
    Keeps pydicom's warnings and log silent while any thread reads: they quote values, a patient's name too.

    Filters of warnings and loggers belong to the process, so that the first to enter sets them and the
    last to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                _PYDICOM_LOG.addFilter(_nothing)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                _PYDICOM_LOG.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


_PYDICOM_LOG: Final = logging.getLogger("pydicom")
_QUIET: Final = _Quiet()


def quiet_pydicom() -> _Quiet:
    """Return the context in which pydicom's warnings and log are silent."""
    return _QUIET


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
            file.seek(0)
            no_preamble = start[128:132] != b"DICM"
            if tags is None:
                return pydicom.dcmread(file, force=no_preamble)
            return pydicom.dcmread(file, force=no_preamble, stop_before_pixels=True, specific_tags=list(tags))
    except FileNotFoundError:
        raise ReadError(f"there is no file {path}") from None
    except OSError as error:
        raise ReadError(f"{path} can't be opened: {error.strerror or type(error).__name__}") from None
    except (InvalidDicomError, ReadError) as error:
        if isinstance(error, ReadError):
            raise
        raise NotAnImageError(f"{path} is no DICOM file") from None
    except EOFError:
        raise TruncatedError(f"{path} ends inside a DICOM element; copy or export it again") from None
    # pydicom raises many kinds of exception on damaged files, and their texts can hold patient data
    except Exception as error:
        raise ReadError(f"{path} is damaged: parsing it as DICOM failed ({type(error).__name__})") from None


def text(dataset: Dataset, keyword: str, default: str = "") -> str:
    """Return an attribute as text without padding; the default where it is absent or unusable."""
    value = _value(dataset, keyword)
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return default if value is None else str(value).strip(" \0")


def floats(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return a numeric attribute, or None if absent, not finite or of another multiplicity than asked."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return None
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    sound = numbers and all(math.isfinite(v) for v in numbers) and count in {None, len(numbers)}
    return numbers if sound else None


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int | None:
    """Return an integer attribute, or the default where it is absent or unusable."""
    numbers = floats(dataset, keyword)
    return default if numbers is None else int(numbers[0])


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    # a value is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return None


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    value = _value(dataset, "ImageType")
    values = value if isinstance(value, MultiValue | list | tuple) else [value] if value else []
    return tuple(str(v).strip().upper() for v in values)


def _pixel_spacing(dataset: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = floats(dataset, keyword, 2)
        if spacing is not None and min(spacing) > 0:
            return spacing[0], spacing[1]
    aspect = floats(dataset, "PixelAspectRatio", 2)
    if aspect is not None and min(aspect) > 0:
        return aspect[0] / aspect[1], 1.0
    return None


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
    sop_class = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if not rows or not columns or rows < 0 or columns < 0:
        kind = UID(sop_class).name if sop_class else "no SOP class"
        raise NotAnImageError(f"{path} is a DICOM object without pixels ({kind})")
    position = floats(dataset, "ImagePositionPatient", 3)
    between = floats(dataset, "SpacingBetweenSlices")
    return Instance(
        path=path,
        sop_class_uid=sop_class,
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        modality=text(dataset, "Modality").upper(),
        description=text(dataset, "SeriesDescription"),
        series_number=integer(dataset, "SeriesNumber"),
        instance_number=integer(dataset, "InstanceNumber"),
        acquisition_number=integer(dataset, "AcquisitionNumber"),
        echo_number=integer(dataset, "EchoNumbers"),
        image_type=_image_type(dataset),
        rows=rows,
        columns=columns,
        samples=integer(dataset, "SamplesPerPixel", 1) or 1,
        frames=max(1, integer(dataset, "NumberOfFrames", 1) or 1),
        bits_allocated=integer(dataset, "BitsAllocated", 16) or 16,
        photometric=text(dataset, "PhotometricInterpretation", "MONOCHROME2").upper(),
        position=None if position is None else (position[0], position[1], position[2]),
        orientation=floats(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=_pixel_spacing(dataset),
        spacing_between_slices=abs(between[0]) if between and between[0] else None,
        transfer_syntax=str(getattr(dataset.file_meta, "TransferSyntaxUID", "")),
    )
