"""Segmentations: masks, segments and positions, as they are read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

import medimg
from medimg.errors import ConversionError, GeometryError
from medimg.export import Segment, segmentation
from tests.export.dicom.checks import NOON, complaints, save

LUNG = ("39607008", "SCT", "Lung")


@pytest.fixture
def mask(ct: Path) -> np.ndarray[Any, Any]:
    values = np.zeros(medimg.scan(ct)[0].shape[1:], np.uint8)
    values[:3, 10:20, 5:15] = 1
    values[1:, 25:30, 20:31] = 7
    return values


def test_masks_are_read_again(ct: Path, mask: np.ndarray[Any, Any], tmp_path: Path) -> None:
    result = segmentation(mask, ct, {7: "lesion", 1: Segment("lung", LUNG)})
    path = tmp_path / "seg.dcm"
    result.save_as(path)
    again = hd.seg.segread(path)
    assert [one.SegmentLabel for one in again.SegmentSequence] == ["lung", "lesion"]
    assert again.get_segment_description(1).segmented_property_type == hd.sr.CodedConcept(*LUNG)
    volume = medimg.read(ct)
    found = again.get_volume(combine_segments=True, allow_missing_positions=True)
    aligned = found.match_geometry(medimg.to_highdicom(volume))
    np.testing.assert_array_equal(aligned.array, np.where(mask == 7, 2, mask))
    sources = {uid for _, _, uid in again.get_source_image_uids()}
    assert sources == set(volume.report.sop_instance_uids)
    assert complaints(result, tmp_path) == set()


def test_volumes_and_arrays_are_the_same(ct: Path, mask: np.ndarray[Any, Any]) -> None:
    volume = medimg.read(ct)
    names = {1: "lung", 7: "lesion"}
    first = segmentation(mask, ct, names, created=NOON)
    assert save(segmentation(volume.with_array(mask[None]), ct, names, created=NOON)) == save(first)
    assert segmentation(mask, ct, names).SOPInstanceUID == first.SOPInstanceUID
    mask[0, 0, 0] = 1
    assert segmentation(mask, ct, names).SOPInstanceUID != first.SOPInstanceUID


def test_algorithms_are_identified(
    model: medimg.TransferClassifier, ct: Path, mask: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    names = {1: "lung", 7: "lesion"}
    by_model = segmentation(mask, ct, names, algorithm_type="AUTOMATIC", model=model)
    (found,) = by_model.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert found.AlgorithmVersion == model.predict(ct).attrs["model"]
    other = segmentation(mask, ct, names, algorithm_type="SEMIAUTOMATIC", name="Threshold")
    assert other.SegmentSequence[0].SegmentAlgorithmName == "Threshold"
    for one in (by_model, other):
        assert complaints(one, tmp_path) == set()
    with pytest.raises(ConversionError, match="model= or name="):
        segmentation(mask, ct, names, algorithm_type="AUTOMATIC")


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_a_single_image_needs_no_position(xray: Path, tmp_path: Path) -> None:
    mask = np.zeros(medimg.scan(xray)[0].shape[1:], bool)
    mask[0, 10:30, 5:20] = True
    result = segmentation(mask, xray, {1: Segment("lung", LUNG)})
    assert complaints(result, tmp_path) == set()
    path = tmp_path / "seg.dcm"
    result.save_as(path)
    np.testing.assert_array_equal(medimg.read(path).array[0], mask)


def test_segments_have_colors(ct: Path, mask: np.ndarray[Any, Any], tmp_path: Path) -> None:
    names: dict[int, str | Segment] = {1: Segment("lung", color=(10, 200, 30)), 7: "lesion"}
    result = segmentation(mask, ct, names)
    colors = [
        hd.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue).to_rgb()
        for one in result.SegmentSequence
    ]
    np.testing.assert_allclose(colors[0], (10, 200, 30), atol=1)
    assert max(colors[1]) - min(colors[1]) > 100
    assert complaints(result, tmp_path) == set()
    other = segmentation(mask, ct, {1: Segment("lung", color=(10, 200, 31)), 7: "lesion"})
    assert other.SOPInstanceUID != result.SOPInstanceUID
    for color in ((1, 2), (1, 2, 256), (0.5, 0.5, 0.5), "red"):
        with pytest.raises(ConversionError, match="red, green and blue"):
            Segment("lung", color=color)  # type: ignore[arg-type]  # wrong on purpose


def test_viewers_find_what_they_need(ct: Path, mask: np.ndarray[Any, Any]) -> None:
    result = segmentation(mask, ct, {1: "lung", 7: "lesion"})
    sources = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, ct.iterdir())}
    source = next(iter(sources.values()))
    assert result.FrameOfReferenceUID == source.FrameOfReferenceUID
    (series,) = result.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == set(sources)
    for frame in result.PerFrameFunctionalGroupsSequence:
        (derived,) = frame.DerivationImageSequence
        (image,) = derived.SourceImageSequence
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert position == sources[image.ReferencedSOPInstanceUID].ImagePositionPatient
        assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber in {1, 2}


def test_an_empty_mask_is_a_segmentation(ct: Path, tmp_path: Path) -> None:
    mask = np.zeros(medimg.scan(ct)[0].shape[1:], np.uint8)
    result = segmentation(mask, ct, {1: "lung"})
    assert result.NumberOfFrames == 4
    assert not result.pixel_array.any()
    assert complaints(result, tmp_path) == set()


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({1: "lung"}, r"value\(s\) 7"),
        ({}, "mapping"),
        ({0: "background", 1: "lung", 7: "x"}, "from 1"),
        ({True: "lung", 7: "x"}, "from 1"),
        ({1: 3, 7: "x"}, "a name or a Segment"),
        ({1: "a\\b", 7: "x"}, "backslash"),
        ({1: "", 7: "x"}, "1 to 64 characters"),
    ],
)
def test_invalid_segments_are_refused(
    segments: Any, message: str, ct: Path, mask: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(ConversionError, match=message):
        segmentation(mask, ct, segments)


def test_a_mask_of_other_voxels_is_refused(ct: Path, mask: np.ndarray[Any, Any]) -> None:
    names = {1: "lung", 7: "lesion"}
    with pytest.raises(GeometryError, match="shape"):
        segmentation(mask[:2], ct, names)
    with pytest.raises(GeometryError, match="position"):
        segmentation(medimg.read(ct).with_array(mask[None]).reorient("RAS").reorient("SAL"), ct, names)
    with pytest.raises(ConversionError, match="whole numbers"):
        segmentation(mask.astype(np.float32), ct, names)
    with pytest.raises(ConversionError, match="array or a Volume"):
        segmentation([[1]], ct, names)  # type: ignore[arg-type]  # wrong on purpose
