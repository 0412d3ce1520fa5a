"""Results of real images of many modalities: dciodvfy finds nothing that it does not find in the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import medimg
from medimg.errors import ConversionError
from medimg.export import parametric_map, secondary_capture, segmentation, structured_report
from tests.export.dicom.checks import complaints, list_errors, list_private

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
