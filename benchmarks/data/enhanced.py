"""An enhanced CT: one file of many frames, each with functional groups of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRLittleEndian

from benchmarks.data.headers import uid

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.data.scale import Scale

__all__ = ["write_enhanced"]

_SIZE: Final = 16
_TYPE: Final = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
_ALIKE: Final[dict[str, dict[str, Any]]] = {
    "CTImageFrameTypeSequence": {
        "FrameType": _TYPE,
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
    },
    "CTAcquisitionDetailsSequence": {
        "RotationDirection": "CW",
        "RevolutionTime": 0.5,
        "SingleCollimationWidth": 0.6,
        "TotalCollimationWidth": 38.4,
        "TableHeight": 100.0,
        "GantryDetectorTilt": 0.0,
        "DataCollectionDiameter": 500.0,
    },
    "CTXRayDetailsSequence": {"KVP": 120.0, "FocalSpots": [1.2], "FilterType": "FLAT"},
    "PixelValueTransformationSequence": {
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
    },
    "FrameVOILUTSequence": {"WindowCenter": "40", "WindowWidth": "400"},
}


def write_enhanced(folder: Path, scale: Scale) -> None:
    """Write the file, with small frames."""
    folder.mkdir(parents=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid(900, 1))
    path = folder / "enhanced.dcm"
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.SOPInstanceUID = uid(900, 1)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(900, 2), uid(900, 3)
    ds.FrameOfReferenceUID = uid(900, 4)
    ds.Modality, ds.PatientID, ds.SeriesNumber, ds.InstanceNumber = "CT", "BENCHMARK-1", "1", "1"
    ds.ImageType, ds.NumberOfFrames = _TYPE, str(scale.frames)
    ds.Rows = ds.Columns = _SIZE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.SharedFunctionalGroupsSequence = Sequence([_group(_SHARED)])
    frames = [_group(_ALIKE | _list_own(n)) for n in range(scale.frames)]
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.PixelData = bytes(2 * _SIZE * _SIZE * scale.frames)
    ds.save_as(path, enforce_file_format=True)


_SHARED: Final[dict[str, dict[str, Any]]] = {
    "PixelMeasuresSequence": {"PixelSpacing": ["0.7", "0.7"], "SliceThickness": "1"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]},
}


def _list_own(number: int) -> dict[str, dict[str, Any]]:
    """Return the groups that differ between frames."""
    return {
        "FrameContentSequence": {
            "FrameAcquisitionNumber": 1,
            "FrameAcquisitionDateTime": f"20240117120000.{number:06d}",
            "FrameReferenceDateTime": "20240117120000",
            "FrameAcquisitionDuration": 100.0,
            "StackID": "1",
            "InStackPositionNumber": number + 1,
            "DimensionIndexValues": [1, number + 1],
        },
        "PlanePositionSequence": {"ImagePositionPatient": ["-179.2", "-179.2", f"{number * 0.5:g}"]},
        "CTExposureSequence": {
            "ExposureTimeInms": 500.0,
            "XRayTubeCurrentInmA": 200.0 + number % 7,
            "ExposureInmAs": 100.0,
        },
    }


def _group(macros: dict[str, dict[str, Any]]) -> Dataset:
    group = Dataset()
    for keyword, attributes in macros.items():
        item = Dataset()
        for name, value in attributes.items():
            setattr(item, name, value)
        setattr(group, keyword, Sequence([item]))
    return group
