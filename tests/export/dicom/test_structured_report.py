"""Structured reports: probabilities, codes, references, and what other software says of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.coding import Code

import medimg
from medimg.errors import ConversionError, MedimgError
from medimg.export import structured_report
from medimg.export.dicom._concepts import SCHEME, name_concept
from tests.export.dicom.checks import NOON, complaints, read_again, save


def list_groups(report: Any) -> list[Any]:
    groups: list[Any] = report.content.get_image_measurement_groups()
    return groups


def get_value(group: Any, meaning: str) -> float:
    (found,) = [m.value for m in group.get_measurements() if m.name.meaning == meaning]
    return float(found)


def get_answers(group: Any) -> dict[str, str]:
    return {one.name.value: one.value.meaning for one in group.get_qualitative_evaluations()}


def test_probabilities_are_those_of_the_table(model: medimg.TransferClassifier, ct: Path) -> None:
    report = structured_report(model, ct)
    row = model.predict(ct).iloc[0]
    for name, group in zip(model.classes, list_groups(report), strict=True):
        assert get_value(group, "Probability") == pytest.approx(row[f"p_{name}"], abs=5e-5)
        assert group.finding_type == hd.sr.CodedConcept(name, SCHEME, name)
        assert get_answers(group) == {"predicted": "Yes" if row["predicted"] == name else "No"}
        assert group.get_measurements()[0].method.value == "uncalibrated"


def test_calibration_threshold_and_set(calibrated: medimg.TransferClassifier, ct: Path) -> None:
    normal, nodule = list_groups(structured_report(calibrated, ct))
    assert nodule.get_measurements()[0].method.meaning == "Calibrated probability (temperature)"
    assert get_value(nodule, "Threshold Value") == pytest.approx(0.001)
    answers = {"predicted": "Yes", "at-threshold": "Yes", "in-set": "Yes"}
    assert get_answers(nodule) == answers
    assert "at-threshold" not in get_answers(normal)
    assert get_answers(normal)["predicted"] == "No"


def test_the_decision_is_that_of_the_exact_probability(
    calibrated: medimg.TransferClassifier, ct: Path
) -> None:
    row = {"p_normal": 0.99901, "p_nodule": 0.00099, "predicted": "normal"}
    group = list_groups(structured_report(calibrated, ct, prediction=row))[1]
    assert get_value(group, "Probability") == 0.001
    assert get_answers(group)["at-threshold"] == "No"


@settings(max_examples=6, deadline=None)
@given(p=st.floats(0, 1), ood=st.one_of(st.none(), st.floats(0, 1)))
def test_any_probability_survives_a_file(
    p: float, ood: float | None, model: medimg.TransferClassifier, ct: Path
) -> None:
    row = {"p_normal": 1 - p, "p_nodule": p, "predicted": "normal", "ood": ood}
    report = hd.sr.ComprehensiveSR.from_dataset(
        read_again(structured_report(model, ct, prediction=row, created=NOON))
    )
    groups = list_groups(report)
    for group, expected in zip(groups, (1 - p, p), strict=False):
        found = get_value(group, "Probability")
        assert 0 <= found <= 1
        assert found == pytest.approx(expected, abs=5.1e-5)
    assert len(groups) == (2 if ood is None else 3)
    if ood is not None:
        assert get_value(groups[2], "Out-of-distribution score") == pytest.approx(ood, abs=5.1e-4)


@pytest.mark.parametrize(
    "bad",
    [{"p_nodule": math.nan}, {"p_nodule": -0.1}, {"p_nodule": 1.5}, {"p_nodule": "0.5"}, {"predicted": 3}],
)
def test_an_invalid_prediction_is_refused(
    bad: dict[str, Any], model: medimg.TransferClassifier, ct: Path
) -> None:
    row = {"p_normal": 0.5, "p_nodule": 0.5, "predicted": "normal"}
    with pytest.raises(ConversionError, match="prediction"):
        structured_report(model, ct, prediction=row | bad)
    with pytest.raises(ConversionError, match="no 'p_nodule'"):
        structured_report(model, ct, prediction={"p_normal": 0.5})


def test_differences_from_the_training_are_said(
    model: medimg.TransferClassifier, ct: Path, tmp_path: Path
) -> None:
    row = {"p_normal": 0.5, "p_nodule": 0.5, "unlike": "spacing 9 mm", "ood": 0.99}
    report = structured_report(model, ct, prediction=row)
    group = list_groups(report)[2]
    texts = [item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    assert "spacing 9 mm" in texts
    assert complaints(report, tmp_path) == set()


# Codes


def test_classes_have_the_codes_given(model: medimg.TransferClassifier, ct: Path) -> None:
    given_codes: list[Any] = [
        ("27925004", "SCT", "Nodule"),
        Code("27925004", "SCT", "Nodule"),
        hd.sr.CodedConcept("27925004", "SCT", "Nodule"),
    ]
    for code in given_codes:
        found = list_groups(structured_report(model, ct, codes={"nodule": code}))[1].finding_type
        assert found == hd.sr.CodedConcept("27925004", "SCT", "Nodule")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"noodle": ("1", "SCT", "x")}, "did you mean 'nodule'"),
        ({"nodule": "27925004"}, "must be a Code"),
        ({"nodule": ("1", "SCT")}, "must be a Code"),
        ({"nodule": ("1", "SCT", "")}, "must be a Code"),
        ({"nodule": ("1", "SCT", "a\\b")}, "must be a Code"),
        ({"nodule": ("1", "SCT", "x" * 65)}, "at most 16 and 64"),
    ],
)
def test_an_invalid_code_is_refused(
    codes: Any, message: str, model: medimg.TransferClassifier, ct: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        structured_report(model, ct, codes=codes)


@given(st.text(min_size=1, max_size=80))
def test_private_codes_fit_their_fields(name: str) -> None:
    code = name_concept(name)
    assert 1 <= len(code.value) <= 16
    assert code.value.isascii()
    assert 1 <= len(code.meaning) <= 64
    assert "\\" not in code.value + code.meaning
    assert name_concept(name + "x").value != code.value


# References and identity


def test_all_source_images_are_referred_to(model: medimg.TransferClassifier, ct: Path) -> None:
    report = structured_report(model, ct)
    sources = [pydicom.dcmread(path) for path in ct.iterdir()]
    expected = {(one.SOPClassUID, one.SOPInstanceUID) for one in sources}
    found = {
        (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID)
        for evidence in report.CurrentRequestedProcedureEvidenceSequence
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert found == expected
    for group in list_groups(report):
        assert {
            (one.referenced_sop_class_uid, one.referenced_sop_instance_uid) for one in group.source_images
        } == expected
    assert report.StudyInstanceUID == sources[0].StudyInstanceUID
    assert report.SeriesInstanceUID != sources[0].SeriesInstanceUID


def test_the_algorithm_is_identified(model: medimg.TransferClassifier, ct: Path, tmp_path: Path) -> None:
    report = structured_report(model, ct, name="Lung reader")
    path = tmp_path / "sr.dcm"
    report.save_as(path)
    group = list_groups(hd.sr.srread(path))[0]
    texts = [item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    digest = model.predict(ct).attrs["model"]
    assert "Lung reader" in texts
    assert digest in texts
    assert any(text.startswith(f"model sha256 {digest}") for text in texts)
    assert f"preprocessing {model.preprocess.fingerprint}" in texts


def test_the_same_gives_the_same_file(model: medimg.TransferClassifier, ct: Path) -> None:
    first, second = (structured_report(model, ct, created=NOON) for _ in range(2))
    assert save(first) == save(second)
    later = structured_report(model, ct)
    assert later.SOPInstanceUID == first.SOPInstanceUID
    named = structured_report(model, ct, codes={"nodule": ("27925004", "SCT", "Nodule")})
    other = structured_report(model, ct, prediction={"p_normal": 0.123, "p_nodule": 0.877})
    assert len({first.SOPInstanceUID, named.SOPInstanceUID, other.SOPInstanceUID}) == 3
    assert other.SeriesInstanceUID == first.SeriesInstanceUID != named.SeriesInstanceUID


def test_another_model_has_other_uids(model: medimg.TransferClassifier, ct: Path) -> None:
    first = structured_report(model, ct)
    bias = model.head.bias
    assert bias is not None
    with torch.no_grad():
        bias.add_(0.5)
    try:
        second = structured_report(model, ct)
    finally:
        with torch.no_grad():
            bias.sub_(0.5)
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


# Any source


def test_dciodvfy_accepts_reports(
    calibrated: medimg.TransferClassifier, ct: Path, xray: Path, tmp_path: Path
) -> None:
    for source in (ct, xray):
        report = structured_report(calibrated, source, codes={"nodule": ("27925004", "SCT", "Nodule")})
        assert complaints(report, tmp_path) == set()
        for keyword in ("SeriesDate", "SeriesTime", "Modality", "SeriesNumber", "SeriesDescription"):
            assert report.get(keyword), keyword


def test_what_is_not_dicom_is_refused(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    volume = medimg.Volume.from_array(np.zeros((2, 32, 32), np.int16))
    path = volume.save(tmp_path / "a.nii.gz")
    with pytest.raises(ConversionError, match="is NIfTI"):
        structured_report(model, path)
    with pytest.raises(MedimgError):
        structured_report(model, tmp_path / "absent")
