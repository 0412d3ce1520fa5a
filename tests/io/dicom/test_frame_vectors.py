"""Frames without functional groups: RT Dose, reconstructed nuclear medicine, cines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medimg.errors import DecodeError, GeometryError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.element_values import collect_findings
from medimg.io.dicom.header.frame_vectors import (
    FRAME_VECTOR_TAGS,
    compute_frame_positions,
    compute_frame_times,
    get_frame_orientation,
    parse_dose_scaling,
    parse_frame_vectors,
)
from medimg.io.dicom.header.open import to_tags


def read_header(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*FRAME_VECTOR_TAGS)))


def by_simpleitk(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(os.fspath(path))
    return reader.Execute()


def test_a_real_dose_lies_where_simpleitk_puts_it(real_data: Path) -> None:
    path = next(p for p in sorted((real_data / "dicom_misc").rglob("rtdose.dcm")) if p.stat().st_size > 3000)
    header = read_header(path)
    positions = compute_frame_positions(header)
    image = by_simpleitk(path)
    assert positions is not None
    assert len(positions) == image.GetSize()[2] == 15
    theirs = [image.TransformIndexToPhysicalPoint((0, 0, n)) for n in range(15)]
    np.testing.assert_allclose(positions, theirs, atol=1e-6)
    assert parse_dose_scaling(header) == 1e-6
    assert compute_frame_times(header) is None
    assert parse_frame_vectors(header) is None


def dose(**attributes: Any) -> Dataset:
    ds = Dataset()
    ds.Modality = "RTDOSE"
    ds.NumberOfFrames = 3
    ds.ImagePositionPatient = [1.0, 2.0, 30.0]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.GridFrameOffsetVector = [0, 2, 5]
    ds.DoseGridScaling = "1e-4"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def test_relative_and_absolute_offsets() -> None:
    expected = [(1, 2, 30), (1, 2, 32), (1, 2, 35)]
    assert compute_frame_positions(dose()) == expected
    assert compute_frame_positions(dose(GridFrameOffsetVector=[30, 32, 35])) == expected
    assert compute_frame_positions(dose(GridFrameOffsetVector=[0, -2, -5])) == [
        (1, 2, 30),
        (1, 2, 28),
        (1, 2, 25),
    ]


def test_relative_offsets_follow_the_normal_and_absolute_ones_the_z_axis() -> None:
    feet_first = {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}
    assert compute_frame_positions(dose(**feet_first)) == [(1, 2, 30), (1, 2, 28), (1, 2, 25)]
    absolute = dose(**feet_first, GridFrameOffsetVector=[30, 28, 25])
    assert compute_frame_positions(absolute) == compute_frame_positions(dose(**feet_first))
    sagittal = dose(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert compute_frame_positions(sagittal) == [(1, 2, 30), (-1, 2, 30), (-4, 2, 30)]


@pytest.mark.parametrize(
    "attributes",
    [
        {"GridFrameOffsetVector": [0, 2]},
        {"GridFrameOffsetVector": [0, 2, 5, 7]},
        {"GridFrameOffsetVector": [7, 9, 12]},
        {"GridFrameOffsetVector": [30, 32, 35], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"GridFrameOffsetVector": [0, 2, 1e9]},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
    ],
)
def test_offsets_that_say_no_place_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(GeometryError):
        compute_frame_positions(dose(**attributes))


def test_a_single_frame_of_a_dose_lies_at_its_position() -> None:
    assert compute_frame_positions(dose(NumberOfFrames=1, GridFrameOffsetVector=[0])) == [(1, 2, 30)]
    for missing in (1, ""):
        with pytest.raises(GeometryError, match="does not hold 1 usable"):
            compute_frame_positions(dose(NumberOfFrames=missing))


def test_dose_scaling_is_checked() -> None:
    assert parse_dose_scaling(dose()) == 1e-4
    assert parse_dose_scaling(dose(Modality="CT")) is None
    assert parse_dose_scaling(dose(DoseGridScaling=None)) is None
    for damaged in (0, -1):
        with pytest.raises(DecodeError, match="DoseGridScaling"):
            parse_dose_scaling(dose(DoseGridScaling=damaged))


def tomo(**attributes: Any) -> Dataset:
    """Two gates of two slices, the slices first; the second slice lies above the first."""
    detector = Dataset()
    detector.ImagePositionPatient = [-10.0, -20.0, 100.0]
    detector.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds = Dataset()
    ds.Modality = "NM"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"]
    ds.NumberOfFrames = 4
    ds.SpacingBetweenSlices = 4.0
    ds.SliceVector = [1, 2, 1, 2]
    ds.TimeSlotVector = [1, 1, 2, 2]
    ds.RRIntervalVector = [1, 1, 1, 1]
    ds.DetectorInformationSequence = Sequence([detector])
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def test_reconstructed_slices_follow_the_slice_vector() -> None:
    assert compute_frame_positions(tomo()) == [(-10, -20, 100), (-10, -20, 104)] * 2
    assert get_frame_orientation(tomo()) == (1, 0, 0, 0, 1, 0)
    # in the order in which the vectors are listed: R-R interval, time slot
    assert parse_frame_vectors(tomo()) == [(1, 1), (1, 1), (1, 2), (1, 2)]


def test_the_sign_of_the_spacing_is_the_direction_of_stacking() -> None:
    assert compute_frame_positions(tomo(SpacingBetweenSlices=-4.0)) == [(-10, -20, 100), (-10, -20, 96)] * 2


def test_without_a_slice_vector_frames_are_slices() -> None:
    ds = tomo(SliceVector=None, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"])
    assert compute_frame_positions(ds) == [(-10, -20, 100 + 4 * n) for n in range(4)]


def test_a_place_beside_the_detectors_is_taken_too() -> None:
    ds = tomo()
    detector = ds.DetectorInformationSequence[0]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = detector.ImagePositionPatient, [1, 0, 0, 0, 1, 0]
    del detector.ImagePositionPatient
    assert compute_frame_positions(ds) == compute_frame_positions(tomo())


def test_planar_nuclear_medicine_has_no_place() -> None:
    planar = tomo(ImageType=["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"])
    assert compute_frame_positions(planar) is None
    assert get_frame_orientation(planar) is None
    assert parse_frame_vectors(planar) == parse_frame_vectors(tomo())


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"SliceVector": [1, 2, 1]}, DecodeError),
        ({"SliceVector": [0, 1, 2, 3]}, DecodeError),
        ({"SpacingBetweenSlices": None}, GeometryError),
        ({"SpacingBetweenSlices": 0}, GeometryError),
        ({"DetectorInformationSequence": Sequence([Dataset()])}, GeometryError),
        ({"NumberOfFrames": 2**30}, DecodeError),
    ],
)
def test_unsound_reconstructions_are_refused(
    attributes: dict[str, Any], error: type[DecodeError | GeometryError]
) -> None:
    with pytest.raises(error):
        compute_frame_positions(tomo(**attributes))


def test_a_vector_that_is_too_short_tells_nothing_apart() -> None:
    with pytest.raises(DecodeError, match="TimeSlotVector"):
        parse_frame_vectors(tomo(TimeSlotVector=[1, 2]))


def test_a_real_planar_scan_has_detectors(real_data: Path) -> None:
    with quiet_pydicom():
        paths = sorted((real_data / "dicom_misc").rglob("JPEG-lossy.dcm"))
        headers = [h for h in map(read_header, paths) if h.get("Modality") == "NM"]
        assert headers
        assert all(compute_frame_positions(h) is None for h in headers)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"FrameTime": 40}, (0, 0.04, 0.08)),
        ({"CineRate": 50}, (0, 0.02, 0.04)),
        ({"RecommendedDisplayFrameRate": 25}, (0, 0.04, 0.08)),
        ({"FrameTime": 40, "CineRate": 1}, (0, 0.04, 0.08)),
        ({"FrameTime": 0, "CineRate": 50}, (0, 0.02, 0.04)),
        ({"FrameTimeVector": [0, 100, 50]}, (0, 0.1, 0.15)),
        ({"FrameTimeVector": [33, 100, 50]}, (0, 0.1, 0.15)),
        ({"FrameTimeVector": [0, 100, 50], "FrameTime": 40}, (0, 0.04, 0.08)),
        (
            {"FrameTimeVector": [0, 100, 50], "FrameTime": 40, "FrameIncrementPointer": 0x00181065},
            (0, 0.1, 0.15),
        ),
        ({"FrameTimeVector": [0, 100]}, None),
        ({"FrameTimeVector": [0, 100, -5]}, None),
        ({"FrameTime": -1}, None),
        ({"NumberOfFrames": 1, "FrameTime": 40}, None),
        ({}, None),
    ],
)
def test_times_of_cines(attributes: dict[str, Any], expected: tuple[float, ...] | None) -> None:
    ds = Dataset()
    ds.Modality, ds.NumberOfFrames = "US", 3
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    found = compute_frame_times(ds)
    assert found == expected if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(("keyword", "value"), [("FrameTime", -5), ("FrameTime", 0), ("CineRate", -1)])
def test_times_that_are_none_are_noted(keyword: str, value: int) -> None:
    ds = Dataset()
    ds.Modality, ds.NumberOfFrames = "US", 3
    setattr(ds, keyword, value)
    with collect_findings() as findings:
        assert compute_frame_times(ds) is None
    assert [keyword in note for note in findings] == [True]


def test_a_real_cine_has_thirty_frames_a_second(real_data: Path) -> None:
    path = next(p for p in (real_data / "dicom_misc").rglob("examples_ybr_color.dcm"))
    times = compute_frame_times(read_header(path))
    assert times is not None
    assert len(times) == 30
    assert times[-1] == pytest.approx(29 * 0.033333)
