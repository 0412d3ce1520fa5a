"""Results of real images of many modalities: dciodvfy finds nothing that it does not find in the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import medimg
from medimg.errors import ConversionError, MedimgError
from medimg.export import parametric_map, secondary_capture, segmentation, structured_report
from tests.dicom_files import make_instance, write
from tests.export.dicom.checks import complaints, list_errors, list_private
from tests.sampling import sample

FILES = {
    "CT": "pydicom-data/data_store/data/eCT_Supplemental.dcm",
    "CR": "pydicom-data/data_store/data/RG3_J2KI.dcm",
    "DX": "pylibjpeg-data/ljdata/ds/JPEG2000Lossless/966_fixed.dcm",
    "US": "pydicom-data/data_store/data/OBXXXX1A.dcm",
    "OT": "wg04_dev/medical.nema.org/compsamples_rle_20040210/IMAGES/RLE/VL1_RLE",
    "enhanced MR": "nema_enhmr_dev/medical.nema.org/multiframe/DISCIMG/IMAGES/BRTUM001",
    "without frame of reference": "pydicom-data/data_store/data/693_UNCI.dcm",
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_results_of_any_image(
    kind: str, model: medimg.TransferClassifier, real_data: Path, tmp_path: Path
) -> None:
    path = real_data / "dicom_misc" / FILES[kind]
    series = medimg.scan(path)[0]
    known = list_errors(path)
    found = medimg.explain(model, series)
    mask = np.zeros(series.shape[1:], np.uint8)
    mask[:, 3:9, 4:12] = 1
    results: list[Dataset] = [
        structured_report(model, series),
        secondary_capture(model, series, explanation=found, most=1)[0],
    ]
    if kind == "without frame of reference":
        with pytest.raises(ConversionError, match="no FrameOfReferenceUID"):
            segmentation(mask, series, {1: "box"})
    elif series.space == "patient":
        maps = (parametric_map(model, series, explanation=found), segmentation(mask, series, {1: "box"}))
        results += maps
        for one, expected in zip(maps, (found.heat, mask), strict=True):
            one.save_as(tmp_path / "map.dcm")
            again = medimg.read(tmp_path / "map.dcm")
            np.testing.assert_array_equal(again.array[0], expected)
            np.testing.assert_allclose(again.affine[:, 1:], found.volume.affine[:, 1:], atol=2e-3)
    else:
        results.append(segmentation(mask[:1], series, {1: "box"}))
    source = pydicom.dcmread(path)
    for result in results:
        assert complaints(result, tmp_path) - known == set()
        assert list_private(result) == []
        assert (result.PatientID, result.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_frames_are_referred_to_by_their_numbers(model: medimg.TransferClassifier, real_data: Path) -> None:
    series = medimg.scan(real_data / "dicom_misc" / FILES["enhanced MR"])[0]
    found = medimg.explain(model, series)
    result = parametric_map(model, series, explanation=found)
    numbers = [
        int(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
        for frame in result.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(numbers) == sorted(found.volume.report.frame_numbers)
    assert len(result.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    report = structured_report(model, series)
    (reference,) = report.content.get_image_measurement_groups()[0].source_images
    assert reference.referenced_sop_instance_uid == found.volume.report.sop_instance_uids[0]


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_frames_of_a_class_of_single_images_have_no_numbers(
    model: medimg.TransferClassifier, real_data: Path, tmp_path: Path
) -> None:
    path = real_data / "dicom_misc/pydicom-data/data_store/data/OBXXXX1A_2frame.dcm"
    pages = secondary_capture(model, path)
    for page in pages:
        assert "ReferencedFrameNumber" not in page.SourceImageSequence[0]
        assert complaints(page, tmp_path) - list_errors(path) == set()
    assert "slice 1 of 2" in pages[0].DerivationDescription


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (None, "")),
        ({"BodyPartExamined": "HIP"}, ("HIP", "")),
        ({"BodyPartExamined": "HIP", "Laterality": "R"}, ("HIP", "R")),
        ({"BodyPartExamined": "BREAST", "Laterality": "", "ImageLaterality": "L"}, ("BREAST", "L")),
        ({"BodyPartExamined": "CHEST"}, ("CHEST", None)),
        ({"BodyPartExamined": "CHEST", "Laterality": "L"}, ("CHEST", None)),
        ({"BodyPartExamined": "thorax and more", "ImageLaterality": "U"}, (None, "")),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_body_part_and_side(
    attributes: dict[str, str],
    expected: tuple[str | None, str | None],
    model: medimg.TransferClassifier,
    tmp_path: Path,
) -> None:
    pixels = np.arange(48 * 40, dtype=np.int16).reshape(48, 40)
    path = write(make_instance(pixels, **attributes), tmp_path / "a.dcm")
    (page,) = secondary_capture(model, path)
    assert (page.get("BodyPartExamined"), page.get("Laterality")) == expected
    assert [line for line in complaints(page, tmp_path) if "Laterality" in line or "Body Part" in line] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dciodvfy_on_results_of_real_series(
    model: medimg.TransferClassifier, real_data: Path, tmp_path: Path
) -> None:
    index = [one for one in medimg.scan(real_data / "dicom_misc") if one.format == "DICOM"]
    made = 0
    for series in sample(index, every=17):
        # values that are copied from the source, and its UIDs
        known = list_errors(Path(series.files[0]))
        mask = np.zeros(series.shape[1:], np.uint8)
        mask[:, 3:9, 4:12] = 1
        for result in (*make_all(model, series), *make(segmentation, mask, series, {1: "box"})):
            new = {line for line in complaints(result, tmp_path) - known if "Illegal root" not in line}
            assert new == set(), series.path
            made += 1
    assert made > 2 * len(sample(index, every=17))


def make(function: Any, *args: Any, **settings: Any) -> list[Dataset]:
    """Results of one kind; none of a source that can't have it, which is an error of ours."""
    try:
        found = function(*args, **settings)
    except MedimgError:
        return []
    return found if isinstance(found, list) else [found]


def make_all(model: medimg.TransferClassifier, series: medimg.Series) -> list[Dataset]:
    slices = sorted({0, series.shape[1] // 2, series.shape[1] - 1})
    try:
        found = medimg.explain(model, series, slices=slices)
    except MedimgError:
        return []
    return [
        *make(structured_report, model, series),
        *make(secondary_capture, model, series, explanation=found, most=2),
        *make(parametric_map, model, series, explanation=found),
    ]
