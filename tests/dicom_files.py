"""Small DICOM files for tests, written with pydicom alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

if TYPE_CHECKING:
    from medimg.io.series import Series

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def make_instance(pixels: npt.NDArray[Any], **attributes: Any) -> FileDataset:
    """A CT instance by default; attributes by keyword override it, None deletes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID = "1.2.3.4"
    ds.StudyInstanceUID = "1.2.3"
    ds.PatientID = "SENTINEL-ID"
    ds.PatientName = "Sentinel^Name"
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PixelSpacing = [0.8, 0.6]
    ds.ImageOrientationPatient = list(AXIAL)
    ds.ImagePositionPatient = [-10.0, -20.0, 30.0]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def write(ds: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_stack(
    folder: Path,
    positions: list[float],
    *,
    names: list[str] | None = None,
    shear: float = 0.0,
    **attributes: Any,
) -> list[Path]:
    """One axial file for each z position; the pixels of a slice encode its z and its row and column."""
    paths = []
    for n, z in enumerate(positions):
        ds = make_instance(
            stack_pixels(z),
            ImagePositionPatient=[-10.0, -20.0 + shear * z, z],
            InstanceNumber=n + 1,
            **attributes,
        )
        paths.append(write(ds, folder / (names[n] if names else f"{n:03d}.dcm")))
    return paths


def stack_pixels(z: float, shape: tuple[int, int] = (12, 16)) -> npt.NDArray[np.uint16]:
    rows, columns = np.indices(shape)
    return (1000 + 10 * z + 3 * rows + columns).astype(np.uint16)


def total_of(series: Series) -> float:
    """The sum of all values; other processes that run it import little more than this module."""
    return float(series.read().array.sum())
