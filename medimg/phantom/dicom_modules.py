"""DICOM modules shared by CT and X-ray files, and their encoding."""

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGLSLossless, RLELossless, generate_uid

__all__ = [
    "Identity",
    "derive_uid",
    "format_decimals",
    "make_common_modules",
    "make_file_name",
    "set_pixels",
    "write_file",
]

_IMPLEMENTATION_NAME = "MEDIMG_PHANTOM"


@dataclass(frozen=True)
class Identity:
    """The patient and study of an image; UIDs and dates are derived from `key`, `number` counts from 1."""

    key: str
    patient_id: str
    number: int
    age: int
    sex: str

    @classmethod
    def derive(cls, key: str, number: int) -> "Identity":
        """Return the fictional patient `number` of the dataset `key`."""
        full = f"{key}/{number}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(full.encode()).digest()[:8], "big"))
        return cls(
            full, f"PHANTOM-{number:04d}", number, int(rng.integers(25, 85)), "MF"[int(rng.integers(2))]
        )

    @property
    def study_date(self) -> date:
        """Study date, which depends only on the patient's number."""
        return date(2020, 1, 6) + timedelta(days=self.number)


def derive_uid(*sources: object) -> UID:
    """Return a UID under pydicom's root that depends only on `sources`."""
    return generate_uid(entropy_srcs=["medimg.phantom", *(str(source) for source in sources)])


def make_file_name(uid: str) -> str:
    """Return a file name derived from a UID that reveals neither position nor patient."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def format_decimals(*values: float) -> list[str]:
    """Format numbers as decimal strings (DS) of at most 16 characters and 9 decimals."""
    return [f"{value:.9f}".rstrip("0").rstrip(".") if abs(value) >= 5e-10 else "0" for value in values]


def make_common_modules(
    identity: Identity, *, manufacturer: str, model: str, body_part: str = "CHEST"
) -> Dataset:
    """
    Make the patient, general study, general series and general equipment modules.

    UIDs of series and instance are set by the caller.
    """
    day = f"{identity.study_date:%Y%m%d}"
    dataset = Dataset()
    dataset.PatientName = f"Phantom^{identity.number:04d}"
    dataset.PatientID = identity.patient_id
    dataset.PatientBirthDate = f"{identity.study_date.year - identity.age}0101"
    dataset.PatientSex = identity.sex
    dataset.PatientAge = f"{identity.age:03d}Y"
    dataset.StudyInstanceUID = derive_uid(identity.key, "study")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "100000"
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = str(identity.number)
    dataset.AccessionNumber = ""
    dataset.StudyDescription = "Synthetic chest"
    dataset.BodyPartExamined = body_part
    dataset.Manufacturer = manufacturer
    dataset.ManufacturerModelName = model
    dataset.InstitutionName = "Phantom Hospital"
    dataset.StationName = model.upper().replace(" ", "")
    dataset.DeviceSerialNumber = "0001"
    dataset.SoftwareVersions = "1.0"
    return dataset


def set_pixels(dataset: Dataset, stored: NDArray[np.uint16] | NDArray[np.int16], *, bits: int) -> None:
    """Set the image pixel module of one grayscale image (H, W), 16 bits allocated."""
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"


def write_file(dataset: Dataset, path: Path, transfer_syntax: str) -> None:
    """
    Write a dataset with native little-endian pixels as a DICOM file.

    Its transfer syntax is a native little-endian one, RLE Lossless or JPEG-LS Lossless.
    """
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = derive_uid("implementation")
    dataset.file_meta.ImplementationVersionName = _IMPLEMENTATION_NAME
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    if transfer_syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    elif transfer_syntax == JPEGLSLossless:
        _compress_jpegls(dataset)
    else:
        dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)


def _compress_jpegls(dataset: Dataset) -> None:
    import imagecodecs

    stored = np.frombuffer(bytes(dataset.PixelData), dtype="<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([bytes(imagecodecs.jpegls_encode(stored))])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
