"""Pixel spacing, distances and positions: what states them, and what is said where they are assumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import medimg
from medimg.errors import MissingSlicesError
from medimg.io.dicom.header.pixel_spacing import find_pixel_spacing
from tests.dicom_files import AXIAL, make_instance, write

LENGTHS = st.floats(1e-3, 100)
PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5)


def make_item(**values: Any) -> Dataset:
    found = Dataset()
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def make_region(rows: float, columns: float, **values: Any) -> Dataset:
    """An ultrasound region with pixels of a size in centimeters."""
    return make_item(
        **{
            "RegionSpatialFormat": 1,
            "PhysicalUnitsXDirection": 3,
            "PhysicalUnitsYDirection": 3,
            "PhysicalDeltaX": columns,
            "PhysicalDeltaY": rows,
            **values,
        }
    )


def find(**values: Any) -> tuple[Any, str, str]:
    found = find_pixel_spacing(make_item(**values))
    return found.lengths, found.warning, found.remark


@given(rows=LENGTHS, columns=LENGTHS, signs=st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])))
def test_ultrasound_regions_state_the_spacing(rows: float, columns: float, signs: tuple[int, int]) -> None:
    region = make_region(rows * signs[0], columns * signs[1])
    doppler = make_region(1, 1, RegionSpatialFormat=3, PhysicalUnitsXDirection=4, PhysicalUnitsYDirection=7)
    for regions in ([region], [region, region], [doppler, region]):
        lengths, warning, remark = find(SequenceOfUltrasoundRegions=Sequence(regions))
        assert lengths == pytest.approx((10 * rows, 10 * columns))
        assert not warning
        assert "ultrasound region" in remark
        assert ("time or velocity" in remark) == (doppler in regions)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([make_region(0.01, 0.01), make_region(0.02, 0.02)], "differ"),
        ([make_region(0.01, 0.01), make_region(0, 0.01)], "differ"),
        ([make_region(0, 0.01)], "no usable"),
        ([make_region(float("nan"), 0.01)], "no usable"),
        ([make_region(0.01, 0.01, PhysicalUnitsYDirection=0)], "no usable"),
        ([make_region(0.01, 0.01, RegionSpatialFormat=2)], "no pixel spacing"),
    ],
)
def test_regions_without_one_spacing_are_named(regions: list[Dataset], message: str) -> None:
    lengths, warning, _ = find(SequenceOfUltrasoundRegions=Sequence(regions))
    assert lengths is None
    assert message in warning
    assert "1 mm assumed" in warning


@given(rows=LENGTHS, columns=LENGTHS, factor=st.floats(1, 20))
def test_magnification_reduces_the_spacing_at_the_detector(
    rows: float, columns: float, factor: float
) -> None:
    imager = {"ImagerPixelSpacing": [f"{rows:.6g}", f"{columns:.6g}"]}
    lengths, warning, remark = find(**imager, EstimatedRadiographicMagnificationFactor=f"{factor:.6g}")
    assert lengths == pytest.approx((rows / factor, columns / factor), rel=1e-5)
    assert not warning
    assert "magnification" in remark
    lengths, warning, remark = find(**imager)
    assert lengths == pytest.approx((rows, columns), rel=1e-5)
    assert not warning
    assert "at the detector" in remark
    # Pixel Spacing that repeats the one at the detector is not calibrated, one with a calibration is
    repeated = {**imager, "PixelSpacing": imager["ImagerPixelSpacing"]}
    assert find(**repeated) == (lengths, warning, remark)
    assert find(**repeated, PixelSpacingCalibrationType="GEOMETRY") == (lengths, "", "")
    assert find(**{**repeated, "PixelSpacing": [0.5, 0.25]}) == ((0.5, 0.25), "", "")


@pytest.mark.parametrize("factor", [0, -1, 0.5, 100])
def test_factors_that_are_no_magnification_are_named(factor: float) -> None:
    lengths, warning, _ = find(ImagerPixelSpacing=[0.1, 0.1], EstimatedRadiographicMagnificationFactor=factor)
    assert lengths == (0.1, 0.1)
    assert "EstimatedRadiographicMagnificationFactor" in warning


def test_what_else_states_a_spacing() -> None:
    assert find() == (None, "no pixel spacing in the file: 1 mm assumed", "")
    lengths, warning, _ = find(PixelAspectRatio=[3, 2])
    assert lengths == (1.5, 1.0)
    assert "assumed" in warning
    assert "film" in find(NominalScannedPixelSpacing=[0.2, 0.2])[2]
    beam = find(ObjectPixelSpacingInCenterOfBeam=[0.2, 0.3], ImagerPixelSpacing=[0.4, 0.6])
    assert beam[0] == pytest.approx((0.2, 0.3))


def test_files_scanned_in_blocks_differ_in_magnification(tmp_path: Path) -> None:
    for n, factor in enumerate((1.0, 1.25, 2.0)):
        ds = make_instance(
            PIXELS, Modality="MG", PixelSpacing=None, ImageOrientationPatient=None, ImagePositionPatient=None,
            ImagerPixelSpacing=[0.1, 0.1], EstimatedRadiographicMagnificationFactor=factor,
        )  # fmt: skip
        write(ds, tmp_path / f"{n}.dcm")
    spacings = [series.spacing[1] for series in medimg.scan(tmp_path)]
    assert spacings == pytest.approx([0.1, 0.08, 0.05])


def test_us_regions_in_a_folder(tmp_path: Path) -> None:
    for n, size in enumerate((0.01, 0.02)):
        for undefined in (False, True):
            ds = make_instance(
                PIXELS, Modality="US", PixelSpacing=None, ImageOrientationPatient=None,
                ImagePositionPatient=None,
                SequenceOfUltrasoundRegions=Sequence([make_region(size, 2 * size)]),
            )  # fmt: skip
            ds["SequenceOfUltrasoundRegions"].is_undefined_length = undefined
            write(ds, tmp_path / f"{n}{undefined}.dcm")
    spacings = np.array([series.spacing[1:] for series in medimg.scan(tmp_path)])
    assert np.allclose(spacings, [(0.1, 0.2), (0.1, 0.2), (0.2, 0.4), (0.2, 0.4)])


@pytest.mark.parametrize(
    ("stated", "gap", "said"),
    [
        ({"SpacingBetweenSlices": 0.3}, 0.3, "0.3 mm (Spacing Between Slices)"),
        ({"SliceThickness": 0.4}, 0.4, "the slice thickness of 0.4 mm is assumed"),
        ({}, 1.0, "1 mm is assumed"),
    ],
)
@pytest.mark.parametrize("files", [False, True])
def test_assumed_distances_are_said_to_be_assumed(
    tmp_path: Path, stated: dict[str, float], gap: float, said: str, files: bool
) -> None:
    for n in range(3 if files else 1):
        ds = make_instance(PIXELS, InstanceNumber=n, ImagePositionPatient=None, **stated)
        if not files:
            ds.NumberOfFrames, ds.PixelData = 3, 3 * PIXELS.tobytes()
        write(ds, tmp_path / f"{n}.dcm")
    with pytest.warns(medimg.errors.MedimgWarning, match="nominal slice distance"):
        volume = medimg.read(tmp_path)
    assert volume.spacing[0] == pytest.approx(gap)
    assert any(said in note for note in volume.report.warnings)


def test_the_extent_of_a_single_slice_is_said_to_be_assumed(tmp_path: Path) -> None:
    for stated, assumed in (({}, True), ({"SliceThickness": 3}, True), ({"SpacingBetweenSlices": 3}, False)):
        volume = medimg.read(write(make_instance(PIXELS, **stated), tmp_path / "one.dcm"))
        assert any("assumed extent" in note for note in volume.report.warnings) == assumed


def write_groups(
    path: Path, positions: list[float], modality: str, *, volume: bool = False, **values: Any
) -> Path:
    """A file of frames at positions, with pixels that number them from 1."""
    name, suffix = (
        ("PlanePositionVolumeSequence", "Volume") if volume else ("PlanePositionSequence", "Patient")
    )
    other = "PlaneOrientationVolumeSequence" if volume else "PlaneOrientationSequence"
    groups = []
    for z in positions:
        group = make_item(**{name: Sequence([make_item(**{f"ImagePosition{suffix}": [1, 2, z]})])})
        groups.append(group)
    measures = make_item(PixelSpacing=[0.8, 0.6], **values)
    shared = make_item(
        PixelMeasuresSequence=Sequence([measures]),
        **{other: Sequence([make_item(**{f"ImageOrientation{suffix}": list(AXIAL)})])},
    )
    pixels = np.stack([np.full((4, 5), n + 1, np.uint8) for n in range(len(positions))])
    ds = make_instance(
        pixels[0], Modality=modality, NumberOfFrames=len(pixels), PixelSpacing=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None, RescaleSlope=None, RescaleIntercept=None,
    )  # fmt: skip
    ds.PixelData = pixels.tobytes()
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return write(ds, path)


@settings(deadline=None)
@given(steps=st.lists(st.integers(1, 5), min_size=1, max_size=5), gap=st.sampled_from([0.5, 2.0, 3.0]))
def test_the_stated_spacing_gives_the_grid_of_a_segmentation(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], gap: float
) -> None:
    places = np.concatenate([[0], np.cumsum(steps)])
    path = tmp_path_factory.mktemp("seg") / "seg.dcm"
    write_groups(path, [float(gap * p) for p in places], "SEG", SpacingBetweenSlices=gap, SliceThickness=gap)
    if max(steps) > 1:
        with pytest.raises(MissingSlicesError, match="empty slices"):
            medimg.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = medimg.read(path, on_missing="fix")
    expected = np.zeros(places[-1] + 1, np.uint8)
    expected[places] = np.arange(1, len(places) + 1)
    assert np.array_equal(volume.array[0, :, 0, 0], expected)
    assert volume.spacing[0] == pytest.approx(gap)


def test_a_segmentation_with_a_damaged_position_is_not_filled(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "seg.dcm", [0, 1, 2, 3, 90_000], "SEG", SpacingBetweenSlices=1)
    with pytest.raises(MissingSlicesError, match="a position may be damaged"):
        medimg.read(path, on_missing="fix")


def test_a_stated_spacing_that_contradicts_positions_is_named(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "seg.dcm", [0, 9], "SEG", SpacingBetweenSlices=4)
    with pytest.warns(medimg.errors.MedimgWarning, match="no multiples of Spacing Between Slices, 4 mm"):
        assert medimg.read(path).spacing[0] == 9


@pytest.mark.parametrize("thickness", [None, 2])
def test_the_distance_of_frames_without_a_stated_spacing_is_assumed(
    tmp_path: Path, thickness: float | None
) -> None:
    """Segmentations leave out empty frames, so that positions alone do not give the distance of slices."""
    values: dict[str, Any] = {} if thickness is None else {"SliceThickness": thickness}
    path = write_groups(tmp_path / "seg.dcm", [0, 6, 12], "SEG", **values)
    with pytest.warns(medimg.errors.MedimgWarning, match="distance of the frames, 6 mm, is assumed"):
        assert medimg.read(path).spacing[0] == 6
    path = write_groups(tmp_path / "thick.dcm", [0, 6, 12], "SEG", SliceThickness=6)
    assert medimg.read(path).spacing[0] == 6


def test_the_stated_spacing_of_other_images_is_not_believed(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "ct.dcm", [0, 4, 8], "CT", SpacingBetweenSlices=2)
    assert medimg.read(path).spacing[0] == 4


def test_frames_of_an_ultrasound_volume_lie_in_its_own_coordinates(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "us.dcm", [4, 0, 2], "US", volume=True)
    volume = medimg.read(path)
    assert volume.space == "image"
    assert volume.array[0, :, 0, 0].tolist() == [2, 3, 1]
    expected = np.array([[0, 0, 0.6, 1], [0, 0.8, 0, 2], [2, 0, 0, 0]])
    assert np.allclose(volume.affine[:3], expected)
    assert any("ultrasound volume" in note for note in volume.report.warnings)
