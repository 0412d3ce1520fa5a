"""X-ray phantoms as DX (For Presentation) and CR images (PS3.3 A.26 and A.2)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation

from medimg.phantom.dicom_modules import (
    Identity,
    derive_uid,
    format_decimals,
    make_common_modules,
    make_file_name,
    set_pixels,
    write_file,
)
from medimg.phantom.xray import PhantomXray

__all__ = ["write_xray_image"]


def write_xray_image(phantom: PhantomXray, folder: Path, identity: Identity, *, number: int = 1) -> Path:
    """
    Write an X-ray phantom as a DICOM file.

    Parameters
    ----------
    phantom : PhantomXray
        Phantom to write.
    folder : Path
        Existing folder, in which the file is written.
    identity : Identity
        Patient and study of the image.
    number : int
        Number of the image among the patient's, from 1.

    Returns
    -------
    Path
        The file.
    """
    unit = phantom.scanner
    dataset = make_common_modules(identity, manufacturer=unit.manufacturer, model=unit.model)
    dataset.SOPInstanceUID = derive_uid(identity.key, phantom.seed, unit.name, "image", number)
    dataset.SeriesInstanceUID = derive_uid(identity.key, phantom.seed, unit.name, "series", number)
    dataset.SeriesNumber = number
    dataset.InstanceNumber = 1
    dataset.Modality = unit.modality
    dataset.SeriesDescription = f"Chest {phantom.view}"
    dataset.ViewPosition = phantom.view
    dataset.PatientOrientation = ["L", "F"]
    dataset.KVP = str(unit.kvp)
    dataset.Exposure = 2 + number
    dataset.ImagerPixelSpacing = format_decimals(*phantom.spacing)
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.PhotometricInterpretation = unit.photometric
    if unit.modality == "DX":
        _set_dx_modules(dataset, phantom)
    else:
        _set_cr_modules(dataset, unit.name)
    _set_voi(dataset, phantom)
    set_pixels(dataset, _make_stored_values(phantom), bits=unit.bits_stored)
    path = folder / f"{make_file_name(dataset.SOPInstanceUID)}.dcm"
    write_file(dataset, path, unit.transfer_syntax)
    return path


def _make_stored_values(phantom: PhantomXray) -> NDArray[np.uint16]:
    """Return the stored values (H, W), inverted for MONOCHROME1."""
    highest = 2**phantom.scanner.bits_stored - 1
    values: NDArray[np.float64] = np.rint(phantom.array.astype(np.float64) * highest)
    if phantom.scanner.photometric == "MONOCHROME1":
        values = highest - values
    return values.astype(np.uint16)


def _set_voi(dataset: Dataset, phantom: PhantomXray) -> None:
    """Add the VOI LUT module: a window, linear or sigmoid, or a lookup table."""
    unit = phantom.scanner
    highest = 2**unit.bits_stored - 1
    low, high = (value * highest for value in phantom.window)
    if unit.photometric == "MONOCHROME1":
        low, high = highest - high, highest - low
    if unit.voi == "LUT":
        dataset.VOILUTSequence = [_make_lookup_table(low, high, highest)]
        return
    dataset.WindowCenter = format_decimals(round((low + high) / 2))[0]
    dataset.WindowWidth = format_decimals(round(high - low))[0]
    dataset.WindowCenterWidthExplanation = "NORMAL"
    dataset.VOILUTFunction = unit.voi


def _make_lookup_table(low: float, high: float, highest: int) -> Dataset:
    """Make a smooth curve from black at `low` to white at `high`, over every stored value, 16 bits wide."""
    level = np.clip((np.arange(highest + 1) - low) / (high - low), 0, 1)
    curve = np.rint((0.35 * level + 0.65 * level * level * (3 - 2 * level)) * 65535).astype("<u2")
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(curve) % 65536, 0, 16])  # 0 means 65536 entries
    table.LUTExplanation = "Chest"
    table.add_new("LUTData", "OW", curve.tobytes())
    return table


def _make_code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _set_cr_modules(dataset: Dataset, name: str) -> None:
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PlateID = name.upper()


def _set_dx_modules(dataset: Dataset, phantom: PhantomXray) -> None:
    """Add the DX series, anatomy, image, detector, positioning and acquisition context modules."""
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = [_make_code("816094009", "SCT", "Chest")]
    dataset.ViewCodeSequence = [_make_view_code(phantom.view)]
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if phantom.scanner.photometric == "MONOCHROME2" else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    inverse = phantom.scanner.photometric == "MONOCHROME1"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.DetectorType = "DIRECT"
    dataset.PositionerType = ""
    dataset.AcquisitionContextSequence = []


def _make_view_code(view: str) -> Dataset:
    if view == "PA":
        return _make_code("272479007", "SCT", "postero-anterior")
    return _make_code("399348003", "SCT", "antero-posterior")
