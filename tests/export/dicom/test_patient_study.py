"""Patient and study of a result: all that the source says, and nothing else."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

import medimg
from medimg.errors import ConversionError
from medimg.export import parametric_map, secondary_capture, segmentation, structured_report
from medimg.export.dicom._patient_study import STUDY_KEYWORDS
from tests.dicom_files import make_instance, write
from tests.export.dicom.checks import list_private, read_again, save

PIXELS = np.arange(48 * 40, dtype=np.int16).reshape(48, 40)
SENTINEL = "SENTINEL"


def make_rich_instance(**attributes: Any) -> FileDataset:
    """An instance with attributes of patient and study, and with others that identify people."""
    ds = make_instance(PIXELS, FrameOfReferenceUID="1.2.3.5", **attributes)
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Okafor^Ada", "P-17", "HOSPITAL"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge, ds.PatientWeight = "19700102", "F", "053Y", "61.5"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "101112", "7", "A-8"
    ds.StudyDescription, ds.ReferringPhysicianName = "Chest", "Referrer^One"
    ds.OtherPatientIDsSequence = [Dataset()]
    ds.OtherPatientIDsSequence[0].PatientID = "P-18"
    ds.OtherPatientIDsSequence[0].TypeOfPatientID = "TEXT"
    ds.ClinicalTrialProtocolID, ds.TimezoneOffsetFromUTC = "TRIAL-3", "+0530"
    ds.Allergies = "none known"
    for keyword in (
        "InstitutionName",
        "OperatorsName",
        "ProtocolName",
        "SeriesDescription",
        "PatientAddress",
    ):
        setattr(ds, keyword, SENTINEL)
    for keyword in ("PerformingPhysicianName", "RequestedProcedureDescription", "ImageComments"):
        setattr(ds, keyword, SENTINEL)
    block = ds.private_block(0x0011, "MAKER", create=True)
    block.add_new(1, "LO", SENTINEL)
    nested = ds.OtherPatientIDsSequence[0].private_block(0x0011, "MAKER", create=True)
    nested.add_new(1, "LO", SENTINEL)
    return ds


def make_all(model: medimg.TransferClassifier, source: Path) -> list[Dataset]:
    found = medimg.explain(model, source)
    mask = np.ones((1, 48, 40), np.uint8)
    return [
        structured_report(model, source),
        *secondary_capture(model, source, explanation=found),
        parametric_map(model, source, explanation=found),
        segmentation(mask, source, {1: "all"}),
    ]


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_all_of_patient_and_study_is_copied_and_nothing_else(
    model: medimg.TransferClassifier, tmp_path: Path
) -> None:
    ds = make_rich_instance()
    path = write(ds, tmp_path / "a.dcm")
    source = pydicom.dcmread(path)
    for result in make_all(model, path):
        found = read_again(result)
        for keyword in STUDY_KEYWORDS:
            if keyword == "OtherPatientIDsSequence":
                assert found.OtherPatientIDsSequence[0].PatientID == "P-18"
            else:
                assert found.get(keyword) == source.get(keyword), keyword
        assert list_private(found) == []
        assert SENTINEL.encode() not in save(result)
        patient = {element.tag for element in found if element.tag.group == 0x0010}
        assert patient <= {Tag(keyword) for keyword in STUDY_KEYWORDS}


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_what_is_unknown_stays_unknown(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    path = write(
        make_instance(PIXELS, PatientID=None, PatientName=None, FrameOfReferenceUID="1.2.3.5"),
        tmp_path / "a.dcm",
    )
    for result in make_all(model, path):
        for keyword in (
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
        ):
            assert not result[keyword].value, keyword
        for keyword in ("PatientAge", "StudyDescription", "TimezoneOffsetFromUTC", "OtherPatientIDs"):
            assert keyword not in result


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 126", "Διονυσιος"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "王^小东=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_character_sets_are_kept(
    charset: Any, name: str, model: medimg.TransferClassifier, tmp_path: Path
) -> None:
    ds = make_instance(PIXELS, SpecificCharacterSet=charset, PatientName=name)
    path = write(ds, tmp_path / "a.dcm")
    found = read_again(structured_report(model, path))
    assert str(found.PatientName) == name
    assert found.SpecificCharacterSet == pydicom.dcmread(path).SpecificCharacterSet


@pytest.fixture(scope="module")
def foreign() -> medimg.TransferClassifier:
    return medimg.TransferClassifier(
        "squeezenet1_1", classes=["正常", "ne≠gativ"], weights=None, preprocess=medimg.Preprocess(size=64)
    )


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_classes_of_other_characters_take_utf_8(foreign: medimg.TransferClassifier, tmp_path: Path) -> None:
    path = write(
        make_instance(PIXELS, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"),
        tmp_path / "a.dcm",
    )
    found = read_again(structured_report(foreign, path))
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert str(found.PatientName) == "Müller^Jörg"
    (page,) = secondary_capture(foreign, path)
    assert "正常" in page.SeriesDescription or "ne≠gativ" in page.SeriesDescription


@pytest.mark.filterwarnings("ignore")
def test_undeclared_characters_are_not_guessed(
    foreign: medimg.TransferClassifier, model: medimg.TransferClassifier, tmp_path: Path
) -> None:
    path = write(make_instance(PIXELS, PatientName="Latin^1"), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"Latin^1", b"M\xfcller^"))
    found = read_again(structured_report(model, path))
    assert "SpecificCharacterSet" not in found
    assert b"M\xfcller^" in save(structured_report(model, path))
    with pytest.raises(ConversionError, match="no SpecificCharacterSet"):
        structured_report(foreign, path)


def test_characters_that_are_not_of_the_declared_set_are_refused(
    model: medimg.TransferClassifier, tmp_path: Path
) -> None:
    path = write(
        make_instance(PIXELS, SpecificCharacterSet="ISO_IR 192", PatientName="Latin^1"), tmp_path / "a.dcm"
    )
    path.write_bytes(path.read_bytes().replace(b"Latin^1", b"M\xfcller^"))
    with pytest.raises(ConversionError, match="PatientName has characters") as error:
        structured_report(model, path)
    assert "ller" not in str(error.value).replace(str(path), "")


def test_a_text_in_place_of_a_number_is_kept(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    path = write(make_instance(PIXELS, PatientWeight="61.55"), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"61.55 ", b"61,5kg"))
    assert b"61,5kg" in save(structured_report(model, path))


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"]
)
def test_a_missing_attribute_is_named(keyword: str, model: medimg.TransferClassifier, tmp_path: Path) -> None:
    ds = make_instance(PIXELS, FrameOfReferenceUID="1.2.3.5")
    delattr(ds, keyword)
    path = tmp_path / "a.dcm"
    ds.save_as(path)
    with pytest.raises(ConversionError, match=f"no {keyword}"):
        segmentation(np.ones((1, 48, 40), np.uint8), path, {1: "all"})
    if keyword == "FrameOfReferenceUID":
        assert structured_report(model, path).PatientID == "SENTINEL-ID"
        assert len(secondary_capture(model, path)) == 1


def test_dates_are_in_the_time_zone_of_the_source(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    path = write(make_instance(PIXELS, TimezoneOffsetFromUTC="-0330"), tmp_path / "a.dcm")
    moment = datetime.datetime(2026, 2, 3, 1, 0, tzinfo=datetime.UTC)
    report = structured_report(model, path, created=moment)
    assert (report.ContentDate, report.ContentTime) == (datetime.date(2026, 2, 2), datetime.time(21, 30))
    assert (report.SeriesDate, report.InstanceCreationDate) == (report.ContentDate, report.ContentDate)
