"""Acquisition attributes of images, and sex and age of patients, as kept when headers were read."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from medimg._validation import did_you_mean
from medimg.data.items import ItemFacts
from medimg.errors import DatasetError, MedimgError, MedimgWarning, also
from medimg.io.dicom.header.acquisition import (
    ACQUISITION_TAGS,
    NUMBERED,
    NUMBERS,
    TEXTS,
    AcquisitionElements,
)
from medimg.io.dicom.header.attributes import (
    get_code,
    get_description,
    get_floats,
    get_text,
    has_value,
    quiet_pydicom,
)
from medimg.io.dicom.header.datetimes import SECONDS_PER_DAY, parse_datetime
from medimg.io.dicom.header.element_values import collect_findings, note_finding
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import open_header, to_tag_numbers
from medimg.io.files.blob import as_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydicom.dataset import Dataset

    from medimg.io.files.blob import Blob
    from medimg.io.series import Series

__all__ = [
    "NUMBERED",
    "NUMBERS",
    "TEXTS",
    "ages_of",
    "parse_age",
    "read_acquisition_tags",
    "read_missing_elements",
    "sexes_of",
]

_AGE: Final = re.compile(r"(\d{1,3}(?:\.\d+)?)([YMWD]?)", re.ASCII)
_PER_YEAR: Final = {"Y": 1.0, "": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_MAX_AGE: Final = 130.0
_SEXES: Final = frozenset({"F", "M", "O"})
_THREADS: Final = 8


def read_acquisition_tags(
    images: ItemFacts | Iterable[Series], keywords: Sequence[str] = (*TEXTS, *NUMBERS)
) -> list[dict[str, str | float]]:
    """
    Read DICOM attributes of how images were acquired.

    Parameters
    ----------
    images : ImageDataset, or sequence of Series
        Images to describe by the header of the first file of each series. Only XRayTubeCurrent and Exposure
        are read from the file; the other attributes were kept when headers were read.
    keywords : sequence of str
        DICOM keywords, from a list of attributes that identify nobody. Names of institutions, stations and
        devices are replaced by numbers ("site 1"), counted over the images of this call.

    Returns
    -------
    list of dict
        One for each item: text, or float (the first of several values); "" if the file does not say, or is
        not DICOM, or has an invalid value, such as a number with a comma.

    Raises
    ------
    DatasetError
        If a keyword is not on the list.
    ReadError
        If a file can no longer be read.

    Warns
    -----
    MedimgWarning
        If an attribute is present but invalid, with the number of series.

    Examples
    --------
    >>> read_acquisition_tags([], ["Manufacturer"])
    []
    """
    known = {*TEXTS, *NUMBERED, *NUMBERS}
    unknown = [keyword for keyword in keywords if keyword not in known]
    if unknown:
        raise also(DatasetError, KeyError)(
            f"these tags are not available: {unknown} (identifying tags are withheld); "
            f"expected some of {', '.join(sorted(known))}{did_you_mean(unknown[0], known)}"
        )
    tags = to_tag_numbers(*keywords)

    def describe(series: Series, kept: AcquisitionElements | None) -> dict[str, str | float]:
        if series.format != "DICOM":
            return {keyword: series.modality if keyword == "Modality" else "" for keyword in keywords}
        header = _header_of(series, kept, tags)
        with quiet_pydicom():
            return {keyword: _get_tag(header, keyword) for keyword in keywords}

    described = _map_series(images, describe)
    distinct = list({id(one): one for one in described}.values())
    for keyword in set(keywords) & set(NUMBERED):
        names = sorted({str(one[keyword]) for one in distinct} - {""})
        numbered = {name: f"{NUMBERED[keyword]} {n}" for n, name in enumerate(names, 1)}
        for one in distinct:
            one[keyword] = numbered.get(str(one[keyword]), "")
    return described


def sexes_of(images: ItemFacts | Iterable[Series]) -> list[str]:
    """Return Patient's Sex of each item: "F", "M", "O", or "" if unknown; for groups of many only."""

    def find_sex(series: Series, kept: AcquisitionElements | None) -> str:
        if series.format != "DICOM":
            return ""
        sex = get_code(_header_of(series, kept, to_tag_numbers("PatientSex")), "PatientSex")
        if sex and sex not in _SEXES:
            note_finding("PatientSex is present but is not F, M or O; it is not used")
        return sex if sex in _SEXES else ""

    return _map_series(images, find_sex)


def ages_of(images: ItemFacts | Iterable[Series]) -> list[float | None]:
    """Return the age in years of each item's patient at the study; None if unknown."""
    tags = to_tag_numbers("PatientAge", "PatientBirthDate", "StudyDate")

    def find_age(series: Series, kept: AcquisitionElements | None) -> float | None:
        if series.format != "DICOM":
            return None
        header = _header_of(series, kept, tags)
        written = get_text(header, "PatientAge")
        stated = parse_age(written)
        if written and stated is None:
            note_finding("PatientAge is present but is not an age; it is not used")
        return _compute_age(header) if stated is None else stated

    return _map_series(images, find_age)


def parse_age(age: object) -> float | None:
    """
    Return an age in years, given as a number or as DICOM writes it (PS3.5 6.2, AS); None if it isn't one.

    Examples
    --------
    >>> parse_age("045Y"), parse_age("030M"), parse_age(39.9), parse_age("old")
    (45.0, 2.5, 39.9, None)
    """
    match = _AGE.fullmatch(str(age).strip().upper())
    years = float(match[1]) / _PER_YEAR[match[2]] if match else _MAX_AGE
    return years if years < _MAX_AGE else None


def read_missing_elements(several: Iterable[Series]) -> dict[int, AcquisitionElements]:
    """
    Read the elements of series whose headers were read by an earlier scan, by id of the series.

    A saved index does not hold them, as some identify. Series whose file can't be read are left out.
    """
    missing = {
        id(series): series
        for series in several
        if series.format == "DICOM" and _kept_elements(series) is None
    }

    def read(series: Series) -> AcquisitionElements | None:
        try:
            return AcquisitionElements.from_dataset(_read_header(series, ACQUISITION_TAGS))
        except MedimgError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = zip(missing, pool.map(read, missing.values()), strict=True)
        return {number: elements for number, elements in found if elements is not None}


def _map_series(
    images: ItemFacts | Iterable[Series], function: Callable[[Series, AcquisitionElements | None], Any]
) -> list[Any]:
    """Return the value of a function of each item's series and its kept elements, called once per series."""
    if isinstance(images, ItemFacts):
        several: tuple[Series, ...] = images.series
        extra: Mapping[int, AcquisitionElements] = images.read_elements
    else:
        several, extra = tuple(images), {}
    distinct = {id(series): series for series in several}
    found: dict[int, Any] = {}
    counts: Counter[str] = Counter()
    for number, series in distinct.items():
        with collect_findings() as findings:
            found[number] = function(series, _kept_elements(series) or extra.get(number))
        counts.update([*findings])
    for text, count in counts.items():
        warnings.warn(f"{text} ({count} of {len(distinct)} series)", MedimgWarning, stacklevel=3)
    return [found[id(series)] for series in several]


def _kept_elements(series: Series) -> AcquisitionElements | None:
    plan = getattr(series.reader, "plan", None)
    return None if plan is None else plan.first.instance.acquisition


def _header_of(series: Series, kept: AcquisitionElements | None, tags: frozenset[int]) -> Dataset:
    if kept is not None and tags <= ACQUISITION_TAGS:
        return kept.to_dataset()
    return _read_header(series, tags)


def _read_header(series: Series, tags: frozenset[int]) -> Dataset:
    # attributes that all frames of an enhanced file share
    header = open_header(_find_first_file(series), tags | to_tag_numbers("SharedFunctionalGroupsSequence"))
    return FrameViews(header, 1).common


def _find_first_file(series: Series) -> Blob:
    """Return the first file of a series."""
    # the path of a member of an archive can't be opened by itself
    plan = getattr(series.reader, "plan", None)
    return as_blob(series.path) if plan is None else plan.first.instance.blob


def _get_tag(header: Dataset, keyword: str) -> str | float:
    if keyword not in NUMBERS:
        text = get_description(header, keyword)
        if not text and has_value(header, keyword):
            note_finding(f"{keyword} is present but is not a short, printable text; it is not used")
        return text
    numbers = get_floats(header, keyword)
    return numbers[0] if numbers else ""


def _compute_age(header: Dataset) -> float | None:
    born, studied = (
        parse_datetime(f"{get_text(header, keyword)}000000") for keyword in ("PatientBirthDate", "StudyDate")
    )
    if born is None or studied is None or studied < born:
        return None
    return round((studied - born) / SECONDS_PER_DAY / _PER_YEAR["D"], 3)
