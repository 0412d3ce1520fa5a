"""SUV of PET: by hand, against a plain reference, and every reason for refusing."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medimg.errors import ReadError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.element_values import collect_findings
from medimg.io.dicom.header.open import to_tags
from medimg.io.dicom.values.suv import SUV_TAGS, compute_suv_factor, get_acquisition_time

HALF_LIFE = 6586.2
DOSE = 370e6
WEIGHT = 70.0


def pet(*, injected: str = "100000", **attributes: Any) -> Dataset:
    """A whole-body FDG scan: injected at 10:00, scanned at 11:00."""
    drug = Dataset()
    drug.RadionuclideTotalDose = DOSE
    drug.RadionuclideHalfLife = HALF_LIFE
    drug.RadiopharmaceuticalStartTime = injected
    ds = Dataset()
    ds.Units, ds.DecayCorrection = "BQML", "START"
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    ds.PatientWeight = WEIGHT
    ds.SeriesDate = ds.AcquisitionDate = "20240229"
    ds.SeriesTime, ds.AcquisitionTime = "110000.000", "110500"
    ds.RadiopharmaceuticalInformationSequence = Sequence([drug])
    for keyword, value in attributes.items():
        owner = drug if keyword.startswith("Radio") else ds
        if value is None:
            delattr(owner, keyword)
        else:
            setattr(owner, keyword, value)
    return ds


def by_hand(seconds: float, *, dose: float = DOSE, weight: float = WEIGHT) -> float:
    return float(weight * 1000 / (dose * 0.5 ** (seconds / HALF_LIFE)))


def test_an_hour_of_decay() -> None:
    # 370 MBq · 2^(−3600/6586.2) = 253.3 MBq; 70,000 g / 253.3 MBq
    assert compute_suv_factor(pet()) == pytest.approx(2.7635e-4, rel=1e-4)
    assert compute_suv_factor(pet()) == pytest.approx(by_hand(3600), rel=1e-12)


@given(
    injected=st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)),
    uptake=st.integers(0, 60_000),
    weight=st.floats(1, 300),
    dose=st.floats(1e6, 1e10),
    dated=st.booleans(),
)
def test_any_scan_equals_a_plain_computation_with_dates(
    injected: datetime, uptake: int, weight: float, dose: float, dated: bool
) -> None:
    injected = injected.replace(microsecond=0)
    scanned = injected + timedelta(seconds=uptake)
    stamps: dict[str, Any] = {f"{k}Date": scanned.strftime("%Y%m%d") for k in ("Series", "Acquisition")}
    stamps |= {f"{k}Time": scanned.strftime("%H%M%S") for k in ("Series", "Acquisition")}
    if dated:
        stamps["RadiopharmaceuticalStartDateTime"] = injected.strftime("%Y%m%d%H%M%S.%f")
    ds = pet(
        injected=injected.strftime("%H%M%S"),
        RadionuclideTotalDose=f"{dose:.8g}",
        PatientWeight=f"{weight:.8g}",
        **stamps,
    )
    expected = by_hand((scanned - injected).total_seconds(), dose=dose, weight=weight)
    assert compute_suv_factor(ds) == pytest.approx(expected, rel=1e-6)


def test_injection_before_midnight() -> None:
    ds = pet(injected="233000", SeriesTime="003000", AcquisitionTime="003000")
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3600))


def test_an_injection_shortly_after_the_start_of_a_dynamic_scan() -> None:
    assert compute_suv_factor(pet(injected="110030")) == pytest.approx(by_hand(-30))
    dated = pet(RadiopharmaceuticalStartDateTime="20240229110030")
    assert compute_suv_factor(dated) == pytest.approx(by_hand(-30))


def test_dates_with_time_zones() -> None:
    ds = pet(RadiopharmaceuticalStartDateTime="20240229090000+0000", TimezoneOffsetFromUTC="+0100")
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3600))
    assert compute_suv_factor(pet(RadiopharmaceuticalStartDateTime="20240229100000+0100")) == pytest.approx(
        by_hand(3600)
    )


def test_decay_corrected_to_the_injection() -> None:
    assert compute_suv_factor(pet(DecayCorrection="ADMIN")) == pytest.approx(by_hand(0))


def test_decay_not_corrected_refers_to_the_average_of_the_frame() -> None:
    ds = pet(DecayCorrection="NONE", CorrectedImage=["ATTN"], ActualFrameDuration=600_000)
    rate = math.log(2) / HALF_LIFE
    # activity averaged over the frame is that of this moment
    average = -math.log((1 - math.exp(-rate * 600)) / (rate * 600)) / rate
    assert 290 < average < 300
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3900 + average))
    assert compute_suv_factor(
        pet(DecayCorrection="NONE", CorrectedImage="ATTN", ActualFrameDuration=1)
    ) == pytest.approx(by_hand(3900.0005))


# A series that was reconstructed or sent again the next day


def redated(**attributes: Any) -> Dataset:
    return pet(SeriesDate="20240301", SeriesTime="090000", **attributes)


def test_ge_says_when_the_scan_began() -> None:
    ds = redated()
    ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20240229110000.00")
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3600))


def test_a_damaged_start_of_the_scan_is_noted() -> None:
    ds = redated()
    ds.add_new((0x0009, 0x10), "LO", "GEMS_PETD_01")
    ds.add_new((0x0009, 0x100D), "LO", "noon")
    with collect_findings() as findings:
        compute_suv_factor(ds, first_acquired=get_acquisition_time(ds))
    assert any("(0009,100D) is present" in note for note in findings)


def test_the_frame_reference_time_says_when_the_scan_began() -> None:
    rate = math.log(2) / HALF_LIFE
    average = -math.log((1 - math.exp(-rate * 180)) / (rate * 180)) / rate
    # the frame began 300 s after the scan
    ds = redated(FrameReferenceTime=(300 + average) * 1000, ActualFrameDuration=180_000)
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3600), rel=1e-6)


def test_the_first_image_of_the_series_says_when_the_scan_began() -> None:
    with pytest.raises(ReadError, match="SeriesTime is later than AcquisitionTime"):
        compute_suv_factor(redated())
    first = get_acquisition_time(redated(AcquisitionTime="110000"))
    assert compute_suv_factor(redated(), first_acquired=first) == pytest.approx(by_hand(3600))
    # a series dated between the first bed position and this one was dated anew as well
    with_own_time = pet(SeriesTime="110200")
    assert compute_suv_factor(with_own_time) == pytest.approx(by_hand(3720))
    assert compute_suv_factor(with_own_time, first_acquired=first) == pytest.approx(by_hand(3600))


def test_philips_counts() -> None:
    ds = pet(Units="CNTS")
    with pytest.raises(ReadError, match="7053,1000"):
        compute_suv_factor(ds)
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x09, "DS", "2.5")
    assert compute_suv_factor(ds) == pytest.approx(2.5 * by_hand(3600))
    block.add_new(0x00, "DS", "0.00041")
    assert compute_suv_factor(ds) == 0.00041
    block[0x00].value = 0
    assert compute_suv_factor(ds) == pytest.approx(2.5 * by_hand(3600))


def test_values_that_are_suv_already() -> None:
    ds = Dataset()
    ds.Units = "GML"
    assert compute_suv_factor(ds) == 1
    ds.SUVType = "BW"
    assert compute_suv_factor(ds) == 1
    ds.SUVType = "LBM"
    with pytest.raises(ReadError, match="SUVType"):
        compute_suv_factor(ds)


def enhanced(**attributes: Any) -> Dataset:
    ds = pet(RadiopharmaceuticalStartDateTime="20240229100000", RadionuclideTotalDose=370, **attributes)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.130"
    for keyword in ("CorrectedImage", "DecayCorrection", "Units", "SeriesDate", "AcquisitionDate"):
        del ds[keyword]
    ds.RescaleType = "BQML"
    ds.AttenuationCorrected = ds.DecayCorrected = "YES"
    ds.DecayCorrectionDateTime = "20240229110000"
    return ds


def test_enhanced_pet_has_megabecquerel_and_its_own_moment() -> None:
    assert compute_suv_factor(enhanced()) == pytest.approx(by_hand(3600))
    ds = enhanced()
    del ds.RescaleType
    ds.RescaleSlope = 2.0
    mapping, unit = Dataset(), Dataset()
    unit.CodeValue = "Bq/ml"
    mapping.RealWorldValueSlope = 2.0
    mapping.MeasurementUnitsCodeSequence = Sequence([unit])
    ds.RealWorldValueMappingSequence = Sequence([mapping])
    assert compute_suv_factor(ds) == pytest.approx(by_hand(3600))
    mapping.RealWorldValueSlope = 3.0
    with pytest.raises(ReadError, match="Units"):
        compute_suv_factor(ds)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"Units": None}, "Units"),
        ({"Units": "PROPCPS"}, "Units"),
        ({"CorrectedImage": None}, "CorrectedImage"),
        ({"CorrectedImage": ["DECY"]}, "ATTN"),
        ({"CorrectedImage": ["ATTN"]}, "DecayCorrection"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection"),
        ({"DecayCorrection": "NONE", "CorrectedImage": ["ATTN"]}, "ActualFrameDuration"),
        ({"DecayCorrection": None}, "DecayCorrection"),
        ({"DecayCorrection": "END"}, "DecayCorrection"),
        ({"PatientWeight": None}, "PatientWeight"),
        ({"PatientWeight": 0}, "PatientWeight"),
        ({"PatientWeight": 70_000}, "PatientWeight"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose"),
        ({"RadionuclideTotalDose": 0}, "RadionuclideTotalDose"),
        ({"RadionuclideTotalDose": 370}, "RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife"),
        ({"RadionuclideHalfLife": -1}, "RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "2500"}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartDateTime": "20240229"}, "RadiopharmaceuticalStartDateTime"),
        ({"RadiopharmaceuticalStartDateTime": "20240229120000"}, "RadiopharmaceuticalStartDateTime"),
        ({"RadiopharmaceuticalStartDateTime": "20230101100000"}, "RadiopharmaceuticalStartDateTime"),
        ({"SeriesDate": None}, "SeriesDate"),
        ({"SeriesTime": None}, "SeriesTime"),
        ({"AcquisitionDate": None}, "AcquisitionDate"),
        ({"AcquisitionTime": None}, "AcquisitionTime"),
        ({"injected": "111500"}, "half lives"),
    ],
)
def test_refusals_name_the_attribute_and_no_value(attributes: dict[str, Any], named: str) -> None:
    with quiet_pydicom():
        ds = pet(**attributes)
    with pytest.raises(ReadError, match=named) as caught:
        compute_suv_factor(ds)
    written = str(caught.value)
    assert not any(str(v) in written for v in attributes.values() if isinstance(v, str) and len(v) > 4)
    assert "2024" not in written


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("PatientWeight", "70,5"), ("RadionuclideTotalDose", "nan"), ("RadionuclideHalfLife", "110min"),
        ("RadiopharmaceuticalStartTime", "9h"), ("SeriesTime", "noon"), ("AcquisitionDate", "2024-02-29"),
        ("Units", "BQ^ML"),
    ],
)  # fmt: skip
def test_an_invalid_attribute_is_not_called_missing(keyword: str, text: str) -> None:
    ds = pet()
    owner = ds.RadiopharmaceuticalInformationSequence[0] if keyword.startswith("Radio") else ds
    for value, message in (
        (text, "none of BQML" if keyword == "Units" else "is present but is not"),
        ("", "is missing"),
    ):
        owner[keyword] = DataElement(keyword, "UT", value)
        ds.RescaleType = "" if keyword != "Units" or not value else "BQML"
        with pytest.raises(ReadError, match=f"{keyword}.*{message}"):
            compute_suv_factor(ds)


def test_several_radiopharmaceuticals_are_refused() -> None:
    ds = pet()
    ds.RadiopharmaceuticalInformationSequence.append(Dataset())
    with pytest.raises(ReadError, match="RadiopharmaceuticalInformationSequence"):
        compute_suv_factor(ds)


def test_a_real_scan_in_counts_per_second_is_refused(real_data: Path) -> None:
    path = next((real_data / "dicom_misc" / "fodicom_dev").rglob("GH610.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*SUV_TAGS)))
    with pytest.raises(ReadError, match="Units"):
        compute_suv_factor(header)
