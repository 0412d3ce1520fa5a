"""How images were acquired, from DICOM attributes that identify nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.data.items import ItemFacts
from medimg.errors import DatasetError
from medimg.io.dicom.header.attributes import get_description, get_floats
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import open_header, to_tag_numbers
from medimg.io.files.blob import as_blob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from medimg.io.files.blob import Blob
    from medimg.io.series import Series

__all__ = ["NUMBERED", "NUMBERS", "TEXTS", "first_blob", "tags_of"]

#: Attributes in words.
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
#: Attributes that say where, and are given as "site 1", "site 2", … only.
NUMBERED: Final = {"InstitutionName": "site", "StationName": "station", "DeviceSerialNumber": "device"}
#: Attributes in numbers; of several values the first.
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


def tags_of(
    images: ItemFacts | Iterable[Series], keywords: Sequence[str] = (*TEXTS, *NUMBERS)
) -> list[dict[str, str | float]]:
    """
    Return how images were acquired.

    Parameters
    ----------
    images : ImageDataset, or Series
        Of each series, the header of the first file is read, once.
    keywords : sequence of str
        DICOM keywords out of a list of attributes that identify nobody. Names of institutions, stations and
        devices are replaced by numbers ("site 1"), counted over the images of this call.

    Returns
    -------
    list of dict
        One for each item: text, or float; "" where the file does not say, or is not DICOM.

    Raises
    ------
    DatasetError
        If a keyword is none of the list.
    ReadError
        If a file can't be read any more.

    Examples
    --------
    >>> tags_of([], ["Manufacturer"])
    []
    """
    known = {*TEXTS, *NUMBERED, *NUMBERS}
    unknown = [keyword for keyword in keywords if keyword not in known]
    if unknown:
        raise DatasetError(
            f"no tags of these names are given out: {unknown}; expected some of {', '.join(sorted(known))}"
        )
    several: tuple[Series, ...] = images.series if isinstance(images, ItemFacts) else tuple(images)
    read: dict[int, dict[str, str | float]] = {}
    for series in several:
        if id(series) not in read:
            read[id(series)] = _tags(series, keywords)
    for keyword in set(keywords) & set(NUMBERED):
        names = sorted({str(tags[keyword]) for tags in read.values()} - {""})
        shown = {name: f"{NUMBERED[keyword]} {n}" for n, name in enumerate(names, 1)}
        for tags in read.values():
            tags[keyword] = shown.get(str(tags[keyword]), "")
    return [read[id(series)] for series in several]


def _tags(series: Series, keywords: Sequence[str]) -> dict[str, str | float]:
    if series.format != "DICOM":
        return {keyword: series.modality if keyword == "Modality" else "" for keyword in keywords}
    wanted = to_tag_numbers(*keywords, "SharedFunctionalGroupsSequence")
    # of enhanced files: what holds for all frames
    view = FrameViews(open_header(first_blob(series), wanted), 1)[0]
    return {keyword: _value(view, keyword) for keyword in keywords}


def first_blob(series: Series) -> Blob:
    """Return the first file of a series."""
    # the path of a member of an archive can't be opened by itself
    plan = getattr(series.reader, "plan", None)
    return as_blob(series.path) if plan is None else plan.first.instance.blob


def _value(view: Dataset, keyword: str) -> str | float:
    if keyword not in NUMBERS:
        return get_description(view, keyword)
    numbers = get_floats(view, keyword)
    return numbers[0] if numbers else ""
