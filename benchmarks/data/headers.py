"""Headers as scanners write them: about 112 elements, whose values vary in length from slice to slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["CT_ELEMENTS", "SPACING", "ct_header", "encapsulate", "place_slice", "uid", "write", "xray_header"]

#: Millimeters between slices, rows and columns of the CT.
SPACING: Final = (1.25, 0.7, 0.7)
_ROOT: Final = "1.2.826.0.1.3680043.8.498"
_DAY: Final = "20240117"

_SHARED: Final[dict[str, Any]] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "InstanceCreationDate": _DAY,
    "StudyDate": _DAY,
    "SeriesDate": _DAY,
    "AcquisitionDate": _DAY,
    "ContentDate": _DAY,
    "StudyTime": "093012.250000",
    "SeriesTime": "093144.015000",
    "AccessionNumber": "0000417",
    "Manufacturer": "Benchmark Imaging",
    "InstitutionName": "Synthetic Hospital",
    "InstitutionAddress": "1 Example Street",
    "ReferringPhysicianName": "",
    "StationName": "CT01",
    "StudyDescription": "CT chest and abdomen",
    "InstitutionalDepartmentName": "Radiology",
    "PerformingPhysicianName": "",
    "OperatorsName": "",
    "ManufacturerModelName": "Synthetic 64",
    "PatientName": "Benchmark^Synthetic",
    "PatientID": "BENCHMARK-1",
    "PatientBirthDate": "19700101",
    "PatientSex": "O",
    "PatientAge": "054Y",
    "PatientSize": "1.75",
    "PatientWeight": "75",
    "AdditionalPatientHistory": "None: made by a program.",
    "BodyPartExamined": "CHEST",
    "DeviceSerialNumber": "64001",
    "SoftwareVersions": "syn.1.0.3",
    "ProtocolName": "Thorax routine",
    "PatientPosition": "FFS",
    "StudyID": "417",
    "PositionReferenceIndicator": "SN",
    "ImageComments": "synthetic",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "RequestingPhysician": "",
    "RequestedProcedureDescription": "CT chest and abdomen",
    "PerformedProcedureStepStartDate": _DAY,
    "PerformedProcedureStepStartTime": "093012.250000",
    "PerformedProcedureStepID": "417-1",
    "PerformedProcedureStepDescription": "CT chest and abdomen",
}
#: Attributes of CT images, and their values.
CT_ELEMENTS: Final[dict[str, Any]] = {
    "Modality": "CT",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
    "ScanOptions": "HELICAL MODE",
    "ContrastBolusAgent": "APPLIED",
    "KVP": "120",
    "SliceThickness": "1.25",
    "DataCollectionDiameter": "500",
    "ReconstructionDiameter": "358.4",
    "DistanceSourceToDetector": "1085.6",
    "DistanceSourceToPatient": "595",
    "GantryDetectorTilt": "0",
    "TableHeight": "152.5",
    "RotationDirection": "CW",
    "FilterType": "WEDGE_3",
    "GeneratorPower": "46",
    "FocalSpots": "1.2",
    "DateOfLastCalibration": _DAY,
    "TimeOfLastCalibration": "061200.000000",
    "ConvolutionKernel": "B30f",
    "RevolutionTime": 0.5,
    "SingleCollimationWidth": 0.6,
    "TotalCollimationWidth": 38.4,
    "TableSpeed": 46.0,
    "TableFeedPerRotation": 23.0,
    "SpiralPitchFactor": 0.6,
    "EstimatedDoseSaving": 12.5,
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "PixelSpacing": ["0.7", "0.7"],
    "WindowCenter": ["40", "-600"],
    "WindowWidth": ["400", "1500"],
    "WindowCenterWidthExplanation": ["WINDOW1", "WINDOW2"],
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "RescaleType": "HU",
    "AcquisitionNumber": "4",
}


def uid(*numbers: int) -> str:
    """A UID whose length depends on its numbers, as it does on scanners."""
    return ".".join([_ROOT, "30000", *map(str, numbers)])


def _reference(number: int) -> Sequence:
    item = Dataset()
    item.ReferencedSOPClassUID = CTImageStorage
    item.ReferencedSOPInstanceUID = uid(9, number)
    return Sequence([item])


def _procedure() -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "CTCHAB", "99SYN"
    item.CodeMeaning = "CT chest and abdomen"
    return Sequence([item])


def _private(ds: FileDataset, elements: int, group: int = 0x0019) -> None:
    block = ds.private_block(group, "BENCHMARK CT HEADER", create=True)
    for n in range(elements):
        block.add_new(0x10 + n, ("LO", "DS", "SH")[n % 3], ("synthetic " * 2, "12.5", "B30")[n % 3])


def _new(syntax: str, sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.TransferSyntaxUID = UID(syntax)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = UID(sop_class)
    for keyword, value in _SHARED.items():
        setattr(ds, keyword, value)
    return ds


def ct_header(series: int, pixels: np.ndarray[Any, Any]) -> FileDataset:
    """
    Everything that the slices of one series share; :func:`place_slice` adds the rest.

    Parameters
    ----------
    series : int
        Number of the series, from 1.
    pixels : numpy.ndarray
        (H, W) uint16; for the numbers of rows and columns.
    """
    ds = _new(ExplicitVRLittleEndian, CTImageStorage)
    for keyword, value in CT_ELEMENTS.items():
        setattr(ds, keyword, value)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(1, series), uid(2, series)
    ds.FrameOfReferenceUID, ds.SeriesNumber = uid(3, series), str(series)
    ds.SeriesDescription = f"Thorax 1.25 B30f {series}"
    ds.ReferencedStudySequence = ds.ReferencedImageSequence = _reference(series)
    ds.ProcedureCodeSequence = _procedure()
    _private(ds, 8)
    _pixel_module(ds, pixels, 12)
    return ds


def place_slice(ds: FileDataset, index: int, rng: np.random.Generator) -> None:
    """Set what differs from slice to slice, in as many characters as it takes."""
    z = -412.5 + SPACING[0] * index
    milliseconds = 93144_015 + 41 * index
    ds.SOPInstanceUID = UID(uid(4, int(ds.SeriesNumber), int(rng.integers(10**9)), index + 1))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.InstanceNumber = str(index + 1)
    ds.ImagePositionPatient = ["-178.85", "-331.35", f"{z:g}"]
    ds.SliceLocation = f"{z:g}"
    ds.XRayTubeCurrent = str(int(rng.integers(60, 480)))
    ds.ExposureTime = "500"
    ds.Exposure = str(int(ds.XRayTubeCurrent) // 2)
    ds.CTDIvol = float(int(ds.XRayTubeCurrent)) / 31
    time = f"{milliseconds / 1000:013.6f}".rstrip("0" if index % 3 else "")
    ds.AcquisitionTime = ds.ContentTime = ds.InstanceCreationTime = time


def xray_header(number: int, pixels: np.ndarray[Any, Any], bits: int) -> FileDataset:
    """
    A complete header of a chest X-ray; every third is MONOCHROME1.

    Parameters
    ----------
    number : int
        From 0.
    pixels : numpy.ndarray
        (H, W) uint16.
    bits : int
        Bits Stored; the declared window spans most of their range.
    """
    ds = _new(ExplicitVRLittleEndian, DigitalXRayImageStorageForPresentation)
    ds.Modality, ds.SeriesDescription, ds.StationName = "DX", "Chest PA", "DX02"
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(5, number), uid(6, number)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(uid(7, number, 7**number % 10**6))
    ds.SeriesNumber = ds.InstanceNumber = "1"
    ds.ViewPosition, ds.KVP, ds.PatientOrientation = "PA", "125", ["L", "F"]
    ds.AcquisitionTime = ds.ContentTime = f"09{number % 60:02d}12.5"
    ds.PixelSpacing = ds.ImagerPixelSpacing = ["0.143", "0.143"]
    ds.WindowCenter, ds.WindowWidth = str(2 ** (bits - 1)), str(int(0.8 * 2**bits))
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if number % 3 == 0 else "IDENTITY"
    _private(ds, 8)
    _pixel_module(ds, pixels, bits)
    ds.PhotometricInterpretation = "MONOCHROME1" if number % 3 == 0 else "MONOCHROME2"
    ds.PixelData = pixels.tobytes()
    return ds


def _pixel_module(ds: FileDataset, pixels: np.ndarray[Any, Any], bits: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.add_new("PixelData", "OW", b"")


def encapsulate(ds: FileDataset, syntax: str, frame: bytes) -> None:
    """Make one compressed frame the pixel data, in one fragment."""
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = pydicom.encaps.encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def write(ds: FileDataset, path: Path) -> None:
    """Write a data set as a DICOM file."""
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
