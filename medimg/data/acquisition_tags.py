"""Acquisition attributes of images, from DICOM attributes that don't identify anyone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.data.items import ItemFacts
from medimg.errors import DatasetError
from medimg.io.dicom.header.attributes import description, floats
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import numbers_of, open_header
from medimg.io.files.blob import as_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from medimg.io.files.blob import Blob
    from medimg.io.series import Series

__all__ = ["NUMBERED", "NUMBERS", "TEXTS", "find_first_file", "read_acquisition_tags"]

#: Text attributes.
TEXTS: Final = (
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "ConvolutionKernel",
    "FilterType",
    "BodyPartExamined",
    "PatientPosition",
    "ViewPosition",
    "PhotometricInterpretation",
    "ScanningSequence",
    "SequenceVariant",
    "MRAcquisitionType",
    "DetectorType",
    "LossyImageCompression",
)
#: Attributes that would identify a place, returned as "site 1", "site 2", …
NUMBERED: Final = {"InstitutionName": "site", "StationName": "station", "DeviceSerialNumber": "device"}
#: Numeric attributes; the first of several values.
NUMBERS: Final = (
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "KVP",
    "XRayTubeCurrent",
    "Exposure",
    "ReconstructionDiameter",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "BitsStored",
)


def read_acquisition_tags(
    images: ItemFacts | Iterable[Series], keywords: Sequence[str] = (*TEXTS, *NUMBERS)
) -> list[dict[str, str | float]]:
    """
    Read DICOM attributes of how images were acquired.

    Parameters
    ----------
    images : ImageDataset, or Series
        Images; the first header of each series is read, once.
    keywords : sequence of str
        DICOM keywords, from a list of attributes that identify nobody. Names of institutions, stations and
        devices are replaced by numbers ("site 1"), counted over the images of this call.

    Returns
    -------
    list of dict
        Text or float by keyword for each item; "" if the attribute is absent, or the file is not DICOM.

    Raises
    ------
    DatasetError
        If a keyword is not in the list.
    ReadError
        If a file can't be read.

    Examples
    --------
    >>> read_acquisition_tags([], ["Manufacturer"])
    []
    """
    known = {*TEXTS, *NUMBERED, *NUMBERS}
    unknown = [keyword for keyword in keywords if keyword not in known]
    if unknown:
        raise DatasetError(
            f"these tags are not available (identifying tags are withheld): {unknown}; expected some of "
            f"{', '.join(sorted(known))}"
        )
    several: tuple[Series, ...] = images.series if isinstance(images, ItemFacts) else tuple(images)
    read: dict[int, dict[str, str | float]] = {}
    for series in several:
        if id(series) not in read:
            read[id(series)] = _read_tags(series, keywords)
    for keyword in set(keywords) & set(NUMBERED):
        names = sorted({str(tags[keyword]) for tags in read.values()} - {""})
        shown = {name: f"{NUMBERED[keyword]} {n}" for n, name in enumerate(names, 1)}
        for tags in read.values():
            tags[keyword] = shown.get(str(tags[keyword]), "")
    return [read[id(series)] for series in several]


def _read_tags(series: Series, keywords: Sequence[str]) -> dict[str, str | float]:
    if series.format != "DICOM":
        return {keyword: series.modality if keyword == "Modality" else "" for keyword in keywords}
    wanted = numbers_of(*keywords, "SharedFunctionalGroupsSequence")
    # of enhanced files, the attributes shared by all frames
    view = FrameViews(open_header(find_first_file(series), wanted), 1)[0]
    return {keyword: _read_value(view, keyword) for keyword in keywords}


def find_first_file(series: Series) -> Blob:
    """Return the first file of a series."""
    # the path of a member of an archive can't be opened by itself
    plan = getattr(series.reader, "plan", None)
    return as_blob(series.path) if plan is None else plan.first.instance.blob


def _read_value(view: Dataset, keyword: str) -> str | float:
    if keyword not in NUMBERS:
        return description(view, keyword)
    numbers = floats(view, keyword)
    return numbers[0] if numbers else ""
