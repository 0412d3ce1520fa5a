"""CT phantoms as CT Image Storage (PS3.3 A.3)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage

from medimg.phantom.ct import PhantomCT
from medimg.phantom.dicom_modules import (
    Identity,
    derive_uid,
    format_decimals,
    make_common_modules,
    make_file_name,
    set_pixels,
    write_file,
)

__all__ = ["WrittenSlice", "make_series_uid", "write_ct_series"]

_POSITIONS = {"supine": "HFS", "feet_first": "FFS", "prone": "HFP", "coronal": "HFS", "oblique": "HFS"}


@dataclass(frozen=True)
class WrittenSlice:
    """
    One file of a CT series.

    Parameters
    ----------
    path : Path
        Path of the file.
    sop_instance_uid : str
        SOP Instance UID.
    index : int
        Index of the slice along the first axis of the phantom's array.
    """

    path: Path
    sop_instance_uid: str
    index: int


def make_series_uid(phantom: PhantomCT, identity: Identity) -> str:
    """Return the Series Instance UID of a phantom's series."""
    return str(derive_uid(identity.key, phantom.seed, phantom.scanner.name, "series"))


def write_ct_series(phantom: PhantomCT, folder: Path, identity: Identity) -> tuple[WrittenSlice, ...]:
    """
    Write a CT phantom as a series of DICOM files.

    Parameters
    ----------
    phantom : PhantomCT
        Phantom to write.
    folder : Path
        Existing folder, in which one file per slice is written. File names do not reveal their order.
    identity : Identity
        Patient and study of the series.

    Returns
    -------
    tuple of WrittenSlice
        In the order of the phantom's array.
    """
    header = _make_header(phantom, identity)
    written = []
    for index in range(len(phantom.array)):
        dataset = Dataset()
        dataset.update(header)
        _set_slice_attributes(dataset, phantom, index, identity)
        set_pixels(dataset, _make_stored_values(phantom, index), bits=16 if phantom.scanner.signed else 12)
        path = folder / f"{make_file_name(dataset.SOPInstanceUID)}.dcm"
        write_file(dataset, path, phantom.scanner.transfer_syntax)
        written.append(WrittenSlice(path, str(dataset.SOPInstanceUID), index))
    return tuple(written)


def _make_stored_values(phantom: PhantomCT, index: int) -> NDArray[np.uint16] | NDArray[np.int16]:
    """Return the stored values of one slice (H, W), with padding outside the field of view."""
    scanner = phantom.scanner
    values: NDArray[np.int32] = phantom.array[index].astype(np.int32) - scanner.intercept
    if scanner.padding is not None:
        values[phantom.outside] = scanner.padding
    return values.astype(np.int16) if scanner.signed else values.astype(np.uint16)


def _make_header(phantom: PhantomCT, identity: Identity) -> Dataset:
    """Return the attributes that all slices of the series share."""
    scanner = phantom.scanner
    reformatted = scanner.orientation == "coronal"
    dataset = make_common_modules(identity, manufacturer=scanner.manufacturer, model=scanner.model)
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = make_series_uid(phantom, identity)
    dataset.SeriesNumber = 3
    dataset.SeriesDescription = f"Chest {scanner.orientation} {scanner.kernel}"
    dataset.FrameOfReferenceUID = derive_uid(identity.key, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.PatientPosition = _POSITIONS[scanner.orientation]
    dataset.ImageType = (
        ["DERIVED", "SECONDARY", "REFORMATTED"] if reformatted else ["ORIGINAL", "PRIMARY", "AXIAL"]
    )
    if reformatted:
        dataset.DerivationDescription = "Coronal reformation"
    distance, *pixel = phantom.spacing
    dataset.SliceThickness = format_decimals(distance * scanner.thickness)[0]
    dataset.PixelSpacing = format_decimals(*pixel)
    directions = phantom.affine[:3, [2, 1]] / np.linalg.norm(phantom.affine[:3, [2, 1]], axis=0)
    dataset.ImageOrientationPatient = format_decimals(*directions.T.ravel())
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleIntercept = str(scanner.intercept)
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    if scanner.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS", scanner.padding)
    dataset.WindowCenter = format_decimals(*(center for center, _, _ in scanner.windows))
    dataset.WindowWidth = format_decimals(*(width for _, width, _ in scanner.windows))
    dataset.WindowCenterWidthExplanation = [explanation for _, _, explanation in scanner.windows]
    dataset.KVP = str(scanner.kvp)
    dataset.ConvolutionKernel = scanner.kernel
    dataset.ReconstructionDiameter = format_decimals(scanner.field_of_view)[0]
    dataset.GantryDetectorTilt = "0"
    dataset.RotationDirection = "CW"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    return dataset


def _set_slice_attributes(dataset: Dataset, phantom: PhantomCT, index: int, identity: Identity) -> None:
    """Add the attributes that differ between slices."""
    scanner, count = phantom.scanner, len(phantom.array)
    number = count - index if scanner.descending else index + 1
    dataset.SOPInstanceUID = derive_uid(identity.key, phantom.seed, scanner.name, "slice", index)
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = 1
    position = phantom.affine @ np.array([index, 0, 0, 1.0])
    dataset.ImagePositionPatient = format_decimals(*position[:3])
    dataset.XRayTubeCurrent = 180 + 5 * ((index * 7) % 11)  # modulated along the body, as real ones do
    dataset.ExposureTime = 500
    dataset.Exposure = round(dataset.XRayTubeCurrent * 0.5)
