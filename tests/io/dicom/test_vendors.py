"""What scanners of several makers write: enhanced frames in any order, private labels, slabs, drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import EnhancedMRImageStorage

import medimg
from medimg.core.stacking import analyze_positions, number_positions
from medimg.errors import DuplicateSlicesError, MissingSlicesError
from tests.dicom_files import AXIAL, make_instance, write
from tests.io.dicom.test_grouping import PLACES, SHAPE, expected, image, pixels, read, save


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def frame(
    z: float,
    repetition: int,
    *,
    index: Sequence[int] = (),
    content: dict[str, Any] | None = None,
    **groups: Any,
) -> tuple[npt.NDArray[np.uint16], Dataset]:
    """The pixels of a frame and its functional groups, each given as the attributes of its item."""
    facts = dict(content or {})
    if index:
        facts["DimensionIndexValues"] = list(index)
    made = item(
        PlanePositionSequence=[item(ImagePositionPatient=[-10.0, -20.0, z])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        FrameContentSequence=[item(**facts)],
        **{keyword: [item(**attributes)] for keyword, attributes in groups.items()},
    )
    return pixels(z, repetition), made


def enhanced(frames: list[Any], *, shuffled: bool = True, **attributes: Any) -> FileDataset:
    if shuffled:
        order = np.random.default_rng(5).permutation(len(frames))
        frames = [frames[n] for n in order]
    ds = make_instance(
        frames[0][0],
        **{
            "Modality": "MR",
            "SOPClassUID": EnhancedMRImageStorage,
            "RescaleSlope": None,
            "RescaleIntercept": None,
            "PixelSpacing": None,
            "ImagePositionPatient": None,
            "ImageOrientationPatient": None,
            **attributes,
        },
    )
    ds.NumberOfFrames = len(frames)
    ds.PixelData = np.stack([stored for stored, _ in frames]).tobytes()
    ds.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.6], SliceThickness=2.5)])
    ]
    ds.PerFrameFunctionalGroupsSequence = [group for _, group in frames]
    return ds


def arrays(folder: Path) -> list[npt.NDArray[Any]]:
    """The arrays of all series, the darkest first."""
    found = [read(series).array for series in medimg.scan(folder)]
    return sorted(found, key=lambda array: float(array.mean()))


ENHANCED: dict[str, Callable[[int], dict[str, Any]]] = {
    "label": lambda r: {"MRArterialSpinLabelingSequence": {"ASLContext": ["CONTROL", "LABEL"][r]}},
    "velocity": lambda r: {
        "MRVelocityEncodingSequence": {"VelocityEncodingDirection": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]][r]}
    },
    "frame acquisition": lambda r: {"content": {"FrameAcquisitionNumber": r + 1}},
}


@pytest.mark.parametrize("name", ENHANCED)
def test_shuffled_frames_are_told_apart(tmp_path: Path, name: str) -> None:
    made = [frame(z, r, **ENHANCED[name](r)) for r in range(2) for z in PLACES]
    write(enhanced(made), tmp_path / "a.dcm")
    (array,) = arrays(tmp_path)
    # the order of directions is that of the file
    found = array if name != "velocity" else array[np.argsort(array.mean(axis=(1, 2, 3)))]
    assert np.array_equal(found, expected(range(2)))


def test_labels_and_time_points_together(tmp_path: Path) -> None:
    made = [
        frame(z, 2 * r + n, content={"TemporalPositionIndex": r + 1}, **ENHANCED["label"](n))
        for r in range(3)
        for n in range(2)
        for z in PLACES
    ]
    write(enhanced(made), tmp_path / "a.dcm")
    assert np.array_equal(medimg.read(tmp_path).array, expected(range(6)))


def test_converted_echoes_are_series(tmp_path: Path) -> None:
    """Legacy Converted Enhanced MR has the echo time among its unassigned attributes."""
    made = [
        frame(z, e, UnassignedPerFrameConvertedAttributesSequence={"EchoTime": 5.0 + e})
        for e in range(2)
        for z in PLACES
    ]
    write(enhanced(made, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.4"), tmp_path / "a.dcm")
    first, second = arrays(tmp_path)
    assert np.array_equal(first, expected([0]))
    assert np.array_equal(second, expected([1]))


def test_frames_in_no_order_are_not_guessed(tmp_path: Path) -> None:
    write(enhanced([frame(z, r) for r in range(3) for z in PLACES]), tmp_path / "a.dcm")
    with pytest.raises(DuplicateSlicesError, match="no attribute distinguishes them"):
        medimg.read(tmp_path)


def test_instance_numbers_in_no_order_are_not_guessed(tmp_path: Path) -> None:
    numbers = np.random.default_rng(2).permutation(12) + 1
    made = [image(z, r, int(numbers[4 * r + n])) for r in range(3) for n, z in enumerate(PLACES)]
    with pytest.raises(DuplicateSlicesError):
        read(save(made, tmp_path))


@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize("gap", [100.0, 101.3])
@pytest.mark.parametrize("times", [1, 2])
def test_stacks_of_one_orientation(tmp_path: Path, slices: int, gap: float, times: int) -> None:
    made = [
        frame(
            z + gap * s,
            4 * s + t,
            index=(s + 1, n + 1, t + 1),
            content={"StackID": str(s + 1), "InStackPositionNumber": n + 1, "TemporalPositionIndex": t + 1},
        )
        for t in range(times)
        for s in range(2)
        for n, z in enumerate(PLACES[:slices])
    ]
    write(enhanced(made), tmp_path / "a.dcm")
    found = arrays(tmp_path)
    for s, array in enumerate(found):
        places = [z + gap * s for z in PLACES[:slices]]
        assert np.array_equal(array, expected([4 * s + t for t in range(times)], places))
    assert len(found) == 2


def test_slabs_with_a_wide_uneven_gap_are_series(tmp_path: Path) -> None:
    """Sagittal slabs of both breasts, with nothing that tells them apart but their places."""
    made = [
        image(z + off, r, None, TemporalPositionIdentifier=r + 1)
        for r in range(2)
        for off in (0.0, 101.3)
        for z in PLACES
    ]
    near, far = arrays(save(made, tmp_path))
    assert np.array_equal(near, expected(range(2)))
    assert np.array_equal(far, expected(range(2), [z + 101.3 for z in PLACES]))


def test_a_narrow_uneven_gap_is_an_error(tmp_path: Path) -> None:
    places = (*PLACES, 11.3, 13.8, 16.3, 18.8)
    with pytest.raises(MissingSlicesError, match="uneven"):
        read(save((image(z, 0, n) for n, z in enumerate(places)), tmp_path))


def test_stations_beside_each_other_are_series(tmp_path: Path) -> None:
    made = [
        image(z, s, 4 * s + n, ImagePositionPatient=[300.0 * s, -20.0, z])
        for s in range(3)
        for n, z in enumerate(PLACES)
    ]
    found = arrays(save(made, tmp_path))
    assert len(found) == 3
    assert all(np.array_equal(array, expected([s])) for s, array in enumerate(found))


@pytest.mark.parametrize("axis", [0, 2])
def test_a_time_series_that_drifts_is_one(tmp_path: Path, axis: int) -> None:
    made = []
    for r in range(8):
        for n, z in enumerate(PLACES):
            ds = image(z, r, 4 * r + n + 1, AcquisitionNumber=r + 1)
            position = [float(v) for v in ds.ImagePositionPatient]
            position[axis] += 0.02 * r
            ds.ImagePositionPatient = [round(v, 4) for v in position]
            made.append(ds)
    volume = read(save(made, tmp_path))
    assert np.array_equal(volume.array, expected(range(8)))
    assert "differs from the stated position" in " ".join(volume.report.warnings)


@pytest.mark.parametrize("gap", [0.1, 0.02, 0.01, 0.005])
def test_slices_of_a_microscanner(tmp_path: Path, gap: float) -> None:
    made = [
        image(float(n), 0, n + 1, ImagePositionPatient=["0", "0", f"{n * gap:.6f}"], PixelSpacing=[gap, gap])
        for n in range(16)
    ]
    volume = read(save(made, tmp_path))
    assert np.array_equal(volume.array, expected([0], range(16)))
    assert volume.spacing[0] == pytest.approx(gap)


def test_places_that_jitter_are_no_microscanner() -> None:
    z = np.array([0, 0.006, 0.01, 0.003, 2.5, 2.504, 2.508, 2.51])
    places = number_positions(np.stack([0 * z, 0 * z, z], axis=1), AXIAL)
    assert places.tolist() == [0] * 4 + [1] * 4


def test_traces_of_classic_files_are_series(tmp_path: Path) -> None:
    kinds = ("NONE", "DIRECTIONAL", "DIRECTIONAL", "ISOTROPIC")
    made = [
        image(
            z,
            r,
            4 * r + n,
            DiffusionBValue=800.0 * (r > 0),
            DiffusionDirectionality=kind,
            **({"DiffusionGradientOrientation": [[1, 0, 0], [0, 1, 0]][r - 1]} if r in {1, 2} else {}),
        )
        for r, kind in enumerate(kinds)
        for n, z in enumerate(PLACES)
    ]
    directions, trace = arrays(save(made, tmp_path))
    assert np.array_equal(directions, expected(range(3)))
    assert np.array_equal(trace, expected([3]))


def test_numbered_directions_of_philips_go_by_their_numbers(tmp_path: Path) -> None:
    numbers = np.random.default_rng(4).permutation(13 * 4) + 1
    made = []
    for r in range(13):
        for n, z in enumerate(PLACES):
            ds = image(z, r, int(numbers[4 * r + n]), DiffusionBValue=800.0 * (r > 0))
            if r:
                ds.DiffusionGradientOrientation = [np.cos(r), np.sin(r), 0]
            block = ds.private_block(0x2005, "Philips MR Imaging DD 005", create=True)
            block.add_new(0x12, "IS", str(1 + (r > 0)))
            block.add_new(0x13, "IS", str(max(1, r)))
            made.append(ds)
    assert np.array_equal(read(save(made, tmp_path)).array, expected(range(13)))


def test_an_aborted_labeling_keeps_what_is_whole(tmp_path: Path) -> None:
    made = []
    for r in range(3):
        for label in range(2):
            for z in PLACES:
                ds = image(z, 2 * r + label, None, TemporalPositionIdentifier=r + 1)
                block = ds.private_block(0x2005, "Philips MR Imaging DD 005", create=True)
                block.add_new(0x29, "CS", ("LABEL", "CONTROL")[label])
                made.append(ds)
    index = medimg.scan(save(made[:-3], tmp_path))
    found = {series.shape[:2]: read(series) for series in index}
    assert np.array_equal(found[5, 4].array, expected(range(5)))
    assert np.array_equal(found[1, 1].array, expected([5], PLACES[:1]))


def test_what_is_left_of_a_run_keeps_its_name(tmp_path: Path) -> None:
    made = [image(z, r, None, TemporalPositionIdentifier=r + 1) for r in range(3) for z in PLACES][:-3]
    found = {series.shape[:2]: read(series) for series in medimg.scan(save(made, tmp_path))}
    assert found[2, 4].channels == ("time 1", "time 2")
    assert found[1, 1].channels == ("time 3",)


def test_files_of_one_volume_each_go_by_time(tmp_path: Path) -> None:
    """Siemens XA: Instance Number is 1 in each file, and the times differ from slice to slice."""
    for r in range(3):
        made = [
            frame(z, r, index=(1, n + 1), content={"FrameAcquisitionDateTime": f"2020010112{r:02d}{n:02d}.5"})
            for n, z in enumerate(PLACES)
        ]
        write(enhanced(made, InstanceNumber=1), tmp_path / f"{9 - r}.dcm")
    (series,) = medimg.scan(tmp_path)
    assert series.frame_times == pytest.approx((0, 60, 120))
    assert np.array_equal(read(series).array, expected(range(3)))


def test_gates_of_a_dynamic_scan(tmp_path: Path) -> None:
    made = [
        image(z, 2 * r + t, None, FrameReferenceTime=1000.0 * r, TriggerTime=400.0 * t)
        for r in range(3)
        for t in range(2)
        for z in PLACES
    ]
    assert np.array_equal(medimg.read(save(made, tmp_path)).array, expected(range(6)))


def test_thick_and_thin_slices_in_one_series(tmp_path: Path) -> None:
    thick, thin = [5.0 * n for n in range(4)], [1.25 * n for n in range(13)]
    made = [image(z, 0, n, SliceThickness=5.0) for n, z in enumerate(thick)]
    made += [image(z, 3, n + 50, SliceThickness=1.25) for n, z in enumerate(thin)]
    found = {array.shape[1]: array for array in arrays(save(made, tmp_path))}
    assert np.array_equal(found[4], expected([0], thick))
    assert np.array_equal(found[13], expected([3], thin))


def test_directions_rounded_to_four_decimals_are_equal(tmp_path: Path) -> None:
    made = [
        image(z, 0, n, ImageOrientationPatient=["1", "0", "0", "0", ("0.9998", "0.9999")[n % 2], "0.0153"])
        for n, z in enumerate(PLACES)
    ]
    assert read(save(made, tmp_path)).shape == (1, 4, *SHAPE)


def test_mending_does_not_add_up_the_rounding_of_positions(tmp_path: Path) -> None:
    """Slices 0.625 mm apart, written with two decimals: the median distance is off by 1 %."""
    places = [0.625 * n for n in range(120) if n != 60]
    made = [
        image(round(z, 4), 0, n, ImagePositionPatient=["0", "0", f"{z:.2f}"]) for n, z in enumerate(places)
    ]
    volume = read(save(made, tmp_path), on_missing="fix")
    assert volume.shape[1] == 120
    exact = expected([0], [round(0.625 * n, 4) for n in range(120)]).astype(int)
    assert np.abs(volume.array.astype(int) - exact).max() <= 1


def test_mending_does_not_go_beyond_the_last_slice() -> None:
    stack = analyze_positions([[0, 0, z] for z in (0, 2.5, 5, 9, 11.5, 14)], AXIAL)
    from medimg.core.stack_repair import regrid_slices

    values = np.broadcast_to(stack.distances[None, :, None, None], (1, 6, 2, 2))
    assert regrid_slices(values, stack.distances, stack.spacing)[0, :, 0, 0] == pytest.approx(
        2.5 * np.arange(6)
    )


def test_files_of_a_part_are_its_own(tmp_path: Path) -> None:
    made = [
        image(z, r, 4 * r + n + 1, AcquisitionNumber=r + 1) for r in range(3) for n, z in enumerate(PLACES)
    ]
    volume = read(save(made, tmp_path))
    files = volume.report.files
    assert volume.select(1).report.files == files[4:8]
    assert volume.take([1, 3]).report.files == tuple(files[n] for n in (1, 3, 5, 7, 9, 11))
    assert volume.select(2).take([0]).report.files == files[8:9]


def test_empty_frames_of_a_segmentation_are_filled(tmp_path: Path) -> None:
    made = [
        frame(z, 1, SegmentIdentificationSequence={"ReferencedSegmentNumber": 1}) for z in (0.0, 5.0, 12.5)
    ]
    ds = enhanced(made, Modality="SEG")
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 2.5
    write(ds, tmp_path / "a.dcm")
    with pytest.raises(MissingSlicesError, match="empty"):
        medimg.read(tmp_path)
    volume = read(tmp_path, on_missing="fix")
    assert np.array_equal(volume.array[:, [0, 2, 5]], expected([1], (0.0, 5.0, 12.5)))
    assert not volume.array[:, [1, 3, 4]].any()
    assert volume.spacing[0] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("places", "missing"),
    [
        ((0, 5, 7.5), ((0, 1),)),
        ((0, 5, 10, 15, 17.5), ((0, 1), (1, 1), (2, 1))),
        ((0, 2.5, 5, 10), ((2, 1),)),
    ],
)
def test_gaps_are_multiples_of_the_usual_distance(
    places: tuple[float, ...], missing: tuple[tuple[int, int], ...]
) -> None:
    stack = analyze_positions([[0, 0, z] for z in places], AXIAL)
    assert (stack.gap, stack.missing, stack.irregular) == (2.5, missing, ())


@pytest.mark.parametrize("before", [0, 2, 7])
@pytest.mark.parametrize("lost", [None, 0, 4, 5, 11])
@pytest.mark.parametrize("kinds", [1, 2])
def test_numbers_that_begin_anywhere_mix_no_volumes(
    tmp_path: Path, before: int, lost: int | None, kinds: int
) -> None:
    """Time points that only numbers tell apart, also of one of two kinds that were numbered together."""
    made = [
        image(
            z,
            5 * k + r,
            before + (kinds * r + k) * len(PLACES) + n + 1,
            ImageType=["ORIGINAL", "PRIMARY", "PM"[k]],
        )
        for k in range(kinds)
        for r in range(3)
        for n, z in enumerate(PLACES)
    ]
    if lost is not None:
        del made[lost]
    found = [read(series, on_missing="keep").array for series in medimg.scan(save(made, tmp_path))]
    volumes = [volume for array in found for volume in array if len(volume) == len(PLACES)]
    whole = [r for r in range(3) if lost is None or r != lost // len(PLACES)] + [5, 6, 7] * (kinds - 1)
    assert np.array_equal(sorted(v.tolist() for v in volumes), sorted(expected(whole).tolist()))
