"""
PET activity to standardized uptake values by body weight.

SUVbw = activity concentration [Bq/ml] · weight [g] / dose decayed to the time of the image [Bq]

Source: the vendor-neutral pseudocode of RSNA's Quantitative Imaging Biomarkers Alliance (qibawiki.rsna.org,
"Standardized Uptake Value", SUV_vendorneutral_pseudocode_20180626); cases it calls impossible raise an error
that names the attribute. Enhanced PET (PS3.3 C.8.22) states the dose in MBq and the time of decay correction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from medimg.errors import ReadError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_codes,
    get_floats,
    get_identifier,
    get_items,
    get_text,
    has_value,
)
from medimg.io.dicom.header.datetimes import SECONDS_PER_DAY, get_datetime, get_time, parse_local_datetime
from medimg.io.dicom.header.element_values import note_finding
from medimg.io.dicom.header.private_tags import (
    PrivateTag,
    get_private_floats,
    get_private_text,
    list_private_tags,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["SUV_TAGS", "compute_suv_factor", "get_acquisition_time"]

_GE_SCAN: Final = PrivateTag(0x0009, 0x0D, "GEMS_PETD_01", "DT")
_PHILIPS_SUV: Final = PrivateTag(0x7053, 0x00, "Philips PET Private Group", "DS")
_PHILIPS_ACTIVITY: Final = PrivateTag(0x7053, 0x09, "Philips PET Private Group", "DS")

#: Tags that a header-only read must include for :func:`compute_suv_factor`.
SUV_TAGS: Final[list[str | int]] = [
    "AcquisitionDate",
    "AcquisitionTime",
    "ActualFrameDuration",
    "AttenuationCorrected",
    "CorrectedImage",
    "DecayCorrected",
    "DecayCorrection",
    "DecayCorrectionDateTime",
    "FrameReferenceTime",
    "PatientWeight",
    "RadiopharmaceuticalInformationSequence",
    "RealWorldValueMappingSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SOPClassUID",
    "SUVType",
    "SeriesDate",
    "SeriesTime",
    "TimezoneOffsetFromUTC",
    "Units",
    *list_private_tags(_GE_SCAN, _PHILIPS_SUV, _PHILIPS_ACTIVITY),
]

_ENHANCED_PET: Final = "1.2.840.10008.5.1.4.1.1.130"
#: Doses in Bq: from a hundredth of that of a mouse to a hundred times that of a therapy.
_MIN_BQ, _MAX_BQ = 1e4, 1e12
_MIN_KG, _MAX_KG = 1e-3, 1e3
#: After that, less than a thousandth of a dose is left: a date is wrong.
_MAX_HALF_LIVES: Final = 10
#: Dynamic scans begin shortly before the injection.
_LATEST_INJECTION: Final = 600.0


def compute_suv_factor(dataset: Dataset, *, first_acquired: float | None = None) -> float:
    """
    Return the SUVbw, in g/ml, of one unit of the rescaled values of a PET image, or raise ReadError.

    `first_acquired` is the least :func:`get_acquisition_time` of the series: needed if the series date was
    rewritten after the acquisition. The factor differs between images whose decay is not corrected.
    """
    units = _get_units(dataset)
    if units == "GML":
        if has_value(dataset, "SUVType") and get_code(dataset, "SUVType") != "BW":
            raise _make_error("SUVType states another normalization than by body weight")
        return 1.0
    if units == "BQML":
        return _compute_from_activity(dataset, first_acquired)
    if units == "CNTS":
        return _compute_from_counts(dataset, first_acquired)
    raise _make_error("Units is none of BQML, CNTS and GML")


def _make_error(reason: str) -> ReadError:
    return ReadError(f"SUV can't be computed: {reason}; read the values in the units of the file instead")


def _make_absence_error(dataset: Dataset, keyword: str, expected: str) -> ReadError:
    """Return the error of an attribute without a usable value: an invalid one is not called missing."""
    is_there = has_value(dataset, keyword)
    return _make_error(
        f"{keyword} is present but is not {expected}" if is_there else f"{keyword} is missing or empty"
    )


def _get_units(dataset: Dataset) -> str:
    for keyword in ("Units", "RescaleType"):
        if has_value(dataset, keyword):
            return get_code(dataset, keyword)
    for mapping in get_items(dataset, "RealWorldValueMappingSequence")[:1]:
        same = get_floats(mapping, "RealWorldValueSlope", 1) == get_floats(dataset, "RescaleSlope", 1)
        for unit in get_items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            if same and get_code(unit, "CodeValue") == "BQ/ML":
                return "BQML"
    raise _make_error("Units is missing")


def _compute_from_counts(dataset: Dataset, first_acquired: float | None) -> float:
    _get_decay_correction(dataset)
    for tag in (_PHILIPS_SUV, _PHILIPS_ACTIVITY):
        factor = get_private_floats(dataset, tag, 1)
        if factor is not None and factor[0] > 0:
            return factor[0] * (
                1.0 if tag is _PHILIPS_SUV else _compute_from_activity(dataset, first_acquired)
            )
    raise _make_error(
        "Units is CNTS, and neither Philips' SUV factor (7053,1000) nor its activity concentration factor "
        "(7053,1009) is present and positive"
    )


def _compute_from_activity(dataset: Dataset, first_acquired: float | None) -> float:
    correction = _get_decay_correction(dataset)
    weight = _get_positive(dataset, "PatientWeight", "kg", _MIN_KG, _MAX_KG)
    drugs = get_items(dataset, "RadiopharmaceuticalInformationSequence")
    if len(drugs) != 1:
        raise _make_error("RadiopharmaceuticalInformationSequence does not have exactly one item")
    drug = drugs[0]
    megabecquerel = get_identifier(dataset, "SOPClassUID") == _ENHANCED_PET
    unit, scale = ("MBq", 1e6) if megabecquerel else ("Bq", 1.0)
    dose = scale * _get_positive(drug, "RadionuclideTotalDose", unit, _MIN_BQ / scale, _MAX_BQ / scale)
    if correction == "ADMIN":
        return weight * 1000 / dose
    half_life = _get_positive(drug, "RadionuclideHalfLife", "s", 1.0, 1e10)
    decay = _compute_decay_time(
        dataset, drug, _find_reference_time(dataset, correction, half_life, first_acquired)
    )
    if decay > _MAX_HALF_LIVES * half_life:
        raise _make_error(
            f"the image is more than {_MAX_HALF_LIVES} half lives later than the injection; a date among "
            "RadiopharmaceuticalStartDateTime, SeriesDate and AcquisitionDate is wrong"
        )
    return weight * 1000 / (dose * math.exp2(-decay / half_life))


def _get_positive(dataset: Dataset, keyword: str, unit: str, least: float, most: float) -> float:
    found = get_floats(dataset, keyword, 1)
    if found is None:
        raise _make_absence_error(dataset, keyword, "one finite number")
    if found[0] == 0:
        raise _make_error(f"{keyword} is 0")
    if not least <= found[0] <= most:
        raise _make_error(
            f"{keyword} is not between {least:g} and {most:g} {unit}, as if it were in another unit"
        )
    return found[0]


def _get_decay_correction(dataset: Dataset) -> str:
    """Return START, ADMIN, NONE or GIVEN: the time to which decay was corrected."""
    corrected = get_codes(dataset, "CorrectedImage")
    if not corrected and has_value(dataset, "AttenuationCorrected"):
        return _check_enhanced_corrections(dataset)
    if not corrected:
        raise _make_absence_error(dataset, "CorrectedImage", "text")
    if "ATTN" not in corrected:
        raise _make_error("CorrectedImage lacks ATTN: attenuation was not corrected")
    correction = get_code(dataset, "DecayCorrection")
    if correction not in {"START", "ADMIN", "NONE"}:
        raise _make_error("DecayCorrection is none of START, ADMIN and NONE")
    if ("DECY" in corrected) is (correction == "NONE"):
        raise _make_error("CorrectedImage and DecayCorrection contradict each other about decay")
    return correction


def _check_enhanced_corrections(dataset: Dataset) -> str:
    if get_code(dataset, "AttenuationCorrected") != "YES":
        raise _make_error("AttenuationCorrected is not YES")
    if get_code(dataset, "DecayCorrected") != "YES" or not has_value(dataset, "DecayCorrectionDateTime"):
        raise _make_error("DecayCorrected is not YES, or DecayCorrectionDateTime is missing")
    return "GIVEN"


def get_acquisition_time(dataset: Dataset) -> float | None:
    """Return Acquisition Date and Time in seconds, for comparison; None if they are unusable."""
    return get_datetime(dataset, "AcquisitionDate", "AcquisitionTime")


def _find_reference_time(dataset: Dataset, correction: str, half_life: float, first: float | None) -> float:
    """Return the time, in seconds, to which the values of an image refer."""
    if correction == "GIVEN":
        return _require(
            parse_local_datetime(dataset, get_text(dataset, "DecayCorrectionDateTime")),
            dataset,
            "DecayCorrectionDateTime",
        )
    acquired = _require(get_acquisition_time(dataset), dataset, "AcquisitionDate", "AcquisitionTime")
    if correction == "NONE":
        _get_positive(dataset, "ActualFrameDuration", "ms", 1e-3, 1e9)
        return acquired + _compute_average_time(dataset, half_life)
    series = _require(get_datetime(dataset, "SeriesDate", "SeriesTime"), dataset, "SeriesDate", "SeriesTime")
    if series <= (acquired if first is None else min(first, acquired)):
        return series
    return _find_scan_start(dataset, acquired, half_life, first)


def _find_scan_start(dataset: Dataset, acquired: float, half_life: float, first: float | None) -> float:
    """Return when the scan began, if the series date is later than the acquisition."""
    written = get_private_text(dataset, _GE_SCAN)
    scan = parse_local_datetime(dataset, written)
    if scan is not None:
        return scan
    if written:
        note_finding(
            "GE's start of the scan (0009,100D) is present but is not a date and time; it is not used"
        )
    reference = get_floats(dataset, "FrameReferenceTime", 1)
    duration = get_floats(dataset, "ActualFrameDuration", 1)
    if reference and duration and reference[0] > 0 and duration[0] > 0:
        return acquired - reference[0] / 1000 + _compute_average_time(dataset, half_life)
    if first is not None:
        return min(first, acquired)
    raise _make_error(
        "SeriesTime is later than AcquisitionTime, and neither GE's (0009,100D) nor FrameReferenceTime with "
        "ActualFrameDuration gives the start of the scan"
    )


def _compute_average_time(dataset: Dataset, half_life: float) -> float:
    """Return the seconds from the start of a frame to its average count rate."""
    duration = (get_floats(dataset, "ActualFrameDuration", 1) or (0.0,))[0] / 1000
    decay = math.log(2) / half_life * duration
    if decay < 1e-6:
        return duration / 2
    return half_life / math.log(2) * math.log(decay / -math.expm1(-decay))


def _require(found: float | None, dataset: Dataset, *keywords: str) -> float:
    """Return a time that these attributes give; raise ReadError with the name of one that is missing."""
    if found is None:
        missing = next((k for k in keywords if not has_value(dataset, k)), None)
        if missing is not None:
            raise _make_error(f"{missing} is missing or empty")
        raise _make_error(f"{' or '.join(keywords)} is present but is not a date or time")
    return found


def _compute_decay_time(dataset: Dataset, drug: Dataset, reference: float) -> float:
    """Return the seconds from the injection to the image."""
    keyword = "RadiopharmaceuticalStartDateTime"
    if has_value(drug, keyword):
        decay = reference - _require(parse_local_datetime(dataset, get_text(drug, keyword)), drug, keyword)
        if decay < -_LATEST_INJECTION:
            raise _make_error(f"{keyword} is later than the image")
        return decay
    time = _require(get_time(drug, "RadiopharmaceuticalStartTime"), drug, "RadiopharmaceuticalStartTime")
    # it has no date: it is the last such time before the image, perhaps before midnight
    decay = reference % SECONDS_PER_DAY - time
    return decay if decay >= -_LATEST_INJECTION else decay + SECONDS_PER_DAY
