"""What CT and X-ray files share: the modules of patient, study and equipment, and the encoding."""

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

__all__ = ["Identity", "common_modules", "derived_uid", "file_name", "fixed", "set_pixels", "write_file"]

_IMPLEMENTATION_NAME = "MEDIMG_PHANTOM"


@dataclass(frozen=True)
class Identity:
    """
    Who is imaged, in which study.

    Parameters
    ----------
    key : str
        Text from which every UID and date of the study is derived.
    patient_id : str
        Patient ID, such as "PHANTOM-0001".
    number : int
        Number of the patient, from 1.
    age : int
        In years.
    sex : str
        "M" or "F".
    """

    key: str
    patient_id: str
    number: int
    age: int
    sex: str

    @classmethod
    def derive(cls, key: str, number: int) -> "Identity":
        """The fictional patient `number` of the data set `key`."""
        full = f"{key}/{number}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(full.encode()).digest()[:8], "big"))
        return cls(
            full, f"PHANTOM-{number:04d}", number, int(rng.integers(25, 85)), "MF"[int(rng.integers(2))]
        )

    @property
    def study_date(self) -> date:
        """A fixed date that depends on the patient's number alone."""
        return date(2020, 1, 6) + timedelta(days=self.number)


def derived_uid(*sources: object) -> UID:
    """A UID under pydicom's root that follows from `sources` alone."""
    return generate_uid(entropy_srcs=["medimg.phantom", *(str(source) for source in sources)])


def file_name(uid: str) -> str:
    """A file name that follows from a UID and tells nothing about position or patient."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def fixed(*values: float) -> list[str]:
    """Numbers as decimal strings (DS) of at most 16 characters, with 9 decimals at most."""
    return [f"{value:.9f}".rstrip("0").rstrip(".") if abs(value) >= 5e-10 else "0" for value in values]


def common_modules(identity: Identity, *, manufacturer: str, model: str, body_part: str = "CHEST") -> Dataset:
    """
    Patient, general study, general series and general equipment modules.

    Parameters
    ----------
    identity : Identity
        Whose study.
    manufacturer, model : str
        Of the scanner.
    body_part : str
        Body Part Examined.

    Returns
    -------
    Dataset
        Without UIDs of series and instance, which the caller sets.
    """
    day = f"{identity.study_date:%Y%m%d}"
    dataset = Dataset()
    dataset.PatientName = f"Phantom^{identity.number:04d}"
    dataset.PatientID = identity.patient_id
    dataset.PatientBirthDate = f"{identity.study_date.year - identity.age}0101"
    dataset.PatientSex = identity.sex
    dataset.PatientAge = f"{identity.age:03d}Y"
    dataset.StudyInstanceUID = derived_uid(identity.key, "study")
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
    """
    Image pixel module for one gray image.

    Parameters
    ----------
    dataset : Dataset
        Gets the module.
    stored : numpy.ndarray
        (H, W) stored values, 16 bits each.
    bits : int
        Bits Stored.
    """
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
    Write a dataset as a DICOM Part 10 file, compressing its pixels where the transfer syntax asks for it.

    Parameters
    ----------
    dataset : Dataset
        Complete but for the file meta information, with native little-endian pixels.
    path : Path
        Where to.
    transfer_syntax : str
        UID of the transfer syntax: a native little-endian one, RLE Lossless or JPEG-LS Lossless.
    """
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = derived_uid("implementation")
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
