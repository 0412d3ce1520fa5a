"""
PET activity into standardized uptake values for body weight.

The computation is the vendor-neutral one of RSNA's Quantitative Imaging Biomarkers Alliance
(qibawiki.rsna.org, "Standardized Uptake Value", SUV_vendorneutral_pseudocode_20180626): what it calls
impossible is refused here, with the attribute that is missing or contradicts another. Enhanced PET (PS3.3
C.8.22) gives the dose in MBq and the moment of decay correction itself.

    SUVbw = activity concentration [Bq/ml] · weight [g] / dose decayed to the moment of the image [Bq]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from medimg.errors import ReadError
from medimg.io.dicom.header.attributes import code, codes, floats, identifier, is_there, items, text
from medimg.io.dicom.header.datetimes import DAY, date_and_time, parse_moment, time_of_day
from medimg.io.dicom.header.private_tags import PrivateTag, private_floats, private_tags, private_text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["SUV_TAGS", "acquired_at", "suv_factor"]

_GE_SCAN: Final = PrivateTag(0x0009, 0x0D, "GEMS_PETD_01", "DT")
_PHILIPS_SUV: Final = PrivateTag(0x7053, 0x00, "Philips PET Private Group", "DS")
_PHILIPS_ACTIVITY: Final = PrivateTag(0x7053, 0x09, "Philips PET Private Group", "DS")

#: What a header-only read must include for :func:`suv_factor`.
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
    *private_tags(_GE_SCAN, _PHILIPS_SUV, _PHILIPS_ACTIVITY),
]

_ENHANCED_PET: Final = "1.2.840.10008.5.1.4.1.1.130"
#: Doses in Bq: from a hundredth of what a mouse is given to a hundred times that of a therapy.
_LEAST_BQ, _MOST_BQ = 1e4, 1e12
_LEAST_KG, _MOST_KG = 1e-3, 1e3
#: Hardly a thousandth of a dose is left then: a date is wrong.
_MOST_HALF_LIVES: Final = 10
#: Dynamic scans begin shortly before the injection.
_LATEST_INJECTION: Final = 600.0


def suv_factor(dataset: Dataset, *, first_acquired: float | None = None) -> float:
    """
    Return SUVbw, in g/ml, of one unit of the rescaled values of a PET image.

    Parameters
    ----------
    dataset : pydicom.Dataset
        The attributes of one PET image or frame.
    first_acquired : float, optional
        The least :func:`acquired_at` of all images of the series. Needed where the series was dated anew
        after the acquisition, to know when its first bed position was measured.

    Returns
    -------
    float
        The factor, greater than 0. It differs between images where their decay is not corrected.

    Raises
    ------
    ReadError
        If the attributes don't allow it; the message names the one that is missing or unusable.
    """
    units = _units(dataset)
    if units == "GML":
        if is_there(dataset, "SUVType") and code(dataset, "SUVType") != "BW":
            raise _refusal("SUVType says that values are normalized by something else than body weight")
        return 1.0
    if units == "BQML":
        return _from_activity(dataset, first_acquired)
    if units == "CNTS":
        return _from_counts(dataset, first_acquired)
    raise _refusal("Units is none of BQML, CNTS and GML")


def _refusal(reason: str) -> ReadError:
    return ReadError(f"no SUV can be computed: {reason}; read it in the units of the file instead")


def _units(dataset: Dataset) -> str:
    stated = code(dataset, "Units") or code(dataset, "RescaleType")
    if stated:
        return stated
    for mapping in items(dataset, "RealWorldValueMappingSequence")[:1]:
        same = floats(mapping, "RealWorldValueSlope", 1) == floats(dataset, "RescaleSlope", 1)
        for unit in items(mapping, "MeasurementUnitsCodeSequence")[:1]:
            if same and code(unit, "CodeValue") == "BQ/ML":
                return "BQML"
    raise _refusal("Units is missing")


def _from_counts(dataset: Dataset, first_acquired: float | None) -> float:
    _check_corrections(dataset)
    for tag in (_PHILIPS_SUV, _PHILIPS_ACTIVITY):
        factor = private_floats(dataset, tag, 1)
        if factor is not None and factor[0] > 0:
            return factor[0] * (1.0 if tag is _PHILIPS_SUV else _from_activity(dataset, first_acquired))
    raise _refusal(
        "Units is CNTS, and neither Philips' SUV factor (7053,1000) nor its activity concentration factor "
        "(7053,1009) is there and positive"
    )


def _from_activity(dataset: Dataset, first_acquired: float | None) -> float:
    correction = _check_corrections(dataset)
    weight = _positive(dataset, "PatientWeight", "kg", _LEAST_KG, _MOST_KG)
    drugs = items(dataset, "RadiopharmaceuticalInformationSequence")
    if len(drugs) != 1:
        raise _refusal("RadiopharmaceuticalInformationSequence has not just one item")
    drug = drugs[0]
    megabecquerel = identifier(dataset, "SOPClassUID") == _ENHANCED_PET
    unit, scale = ("MBq", 1e6) if megabecquerel else ("Bq", 1.0)
    dose = scale * _positive(drug, "RadionuclideTotalDose", unit, _LEAST_BQ / scale, _MOST_BQ / scale)
    if correction == "ADMIN":
        return weight * 1000 / dose
    half_life = _positive(drug, "RadionuclideHalfLife", "s", 1.0, 1e10)
    decay = _decay_time(dataset, drug, _reference(dataset, correction, half_life, first_acquired))
    if decay > _MOST_HALF_LIVES * half_life:
        raise _refusal(
            f"the image is more than {_MOST_HALF_LIVES} half lives later than the injection; a date among "
            "RadiopharmaceuticalStartDateTime, SeriesDate and AcquisitionDate is wrong"
        )
    return weight * 1000 / (dose * math.exp2(-decay / half_life))


def _positive(dataset: Dataset, keyword: str, unit: str, least: float, most: float) -> float:
    found = floats(dataset, keyword, 1)
    if found is None or found[0] == 0:
        raise _refusal(f"{keyword} is missing, empty or 0")
    if not least <= found[0] <= most:
        raise _refusal(
            f"{keyword} is not between {least:g} and {most:g} {unit}, as if it were in another unit"
        )
    return found[0]


def _check_corrections(dataset: Dataset) -> str:
    """Return START, ADMIN, NONE or GIVEN: to which moment decay was corrected."""
    corrected = codes(dataset, "CorrectedImage")
    if not corrected and is_there(dataset, "AttenuationCorrected"):
        return _enhanced_corrections(dataset)
    if not corrected:
        raise _refusal("CorrectedImage is missing")
    if "ATTN" not in corrected:
        raise _refusal("CorrectedImage lacks ATTN: attenuation was not corrected")
    correction = code(dataset, "DecayCorrection")
    if correction not in {"START", "ADMIN", "NONE"}:
        raise _refusal("DecayCorrection is none of START, ADMIN and NONE")
    if ("DECY" in corrected) is (correction == "NONE"):
        raise _refusal("CorrectedImage and DecayCorrection contradict each other about decay")
    return correction


def _enhanced_corrections(dataset: Dataset) -> str:
    if code(dataset, "AttenuationCorrected") != "YES":
        raise _refusal("AttenuationCorrected is not YES")
    if code(dataset, "DecayCorrected") != "YES" or not is_there(dataset, "DecayCorrectionDateTime"):
        raise _refusal("DecayCorrected is not YES, or DecayCorrectionDateTime is missing")
    return "GIVEN"


def acquired_at(dataset: Dataset) -> float | None:
    """Return Acquisition Date and Time in seconds, for comparing; None where they are missing or unusable."""
    return date_and_time(dataset, "AcquisitionDate", "AcquisitionTime")


def _reference(dataset: Dataset, correction: str, half_life: float, first: float | None) -> float:
    """Return the moment, in seconds, to which the values of an image refer."""
    if correction == "GIVEN":
        return _required(
            parse_moment(dataset, text(dataset, "DecayCorrectionDateTime")), "DecayCorrectionDateTime"
        )
    acquired = _required(acquired_at(dataset), "AcquisitionDate or AcquisitionTime")
    if correction == "NONE":
        _positive(dataset, "ActualFrameDuration", "ms", 1e-3, 1e9)
        return acquired + _average(dataset, half_life)
    series = _required(date_and_time(dataset, "SeriesDate", "SeriesTime"), "SeriesDate or SeriesTime")
    if series <= (acquired if first is None else min(first, acquired)):
        return series
    return _redated(dataset, acquired, half_life, first)


def _redated(dataset: Dataset, acquired: float, half_life: float, first: float | None) -> float:
    """Return when the scan began, where the series was dated after the acquisition."""
    scan = parse_moment(dataset, private_text(dataset, _GE_SCAN))
    if scan is not None:
        return scan
    reference = floats(dataset, "FrameReferenceTime", 1)
    duration = floats(dataset, "ActualFrameDuration", 1)
    if reference and duration and reference[0] > 0 and duration[0] > 0:
        return acquired - reference[0] / 1000 + _average(dataset, half_life)
    if first is not None:
        return min(first, acquired)
    raise _refusal(
        "SeriesTime is later than AcquisitionTime, and neither GE's (0009,100D) nor FrameReferenceTime with "
        "ActualFrameDuration says when the scan began"
    )


def _average(dataset: Dataset, half_life: float) -> float:
    """Return the seconds from the start of a frame to the moment of its average count rate."""
    duration = (floats(dataset, "ActualFrameDuration", 1) or (0.0,))[0] / 1000
    decay = math.log(2) / half_life * duration
    if decay < 1e-6:
        return duration / 2
    return half_life / math.log(2) * math.log(decay / -math.expm1(-decay))


def _required(found: float | None, names: str) -> float:
    if found is None:
        raise _refusal(f"{names} is missing or unusable")
    return found


def _decay_time(dataset: Dataset, drug: Dataset, reference: float) -> float:
    """Return the seconds from the injection to the moment of the image."""
    keyword = "RadiopharmaceuticalStartDateTime"
    if is_there(drug, keyword):
        decay = reference - _required(parse_moment(dataset, text(drug, keyword)), keyword)
        if decay < -_LATEST_INJECTION:
            raise _refusal(f"{keyword} is later than the image")
        return decay
    time = _required(time_of_day(drug, "RadiopharmaceuticalStartTime"), "RadiopharmaceuticalStartTime")
    # it has no date: the last such time before the image is meant, perhaps before midnight
    decay = reference % DAY - time
    return decay if decay >= -_LATEST_INJECTION else decay + DAY
