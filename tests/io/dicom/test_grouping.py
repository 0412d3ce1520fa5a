"""One series of the scanner into volumes: kinds apart, repetitions as channels, nothing interleaved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import MRImageStorage

import medimg
from medimg.core.stacking import number_positions
from medimg.errors import AmbiguousSeriesError, DuplicateSlicesError, MedimgWarning
from tests.dicom_files import make_instance, write

SHAPE = (6, 8)
PLACES = (0.0, 2.5, 5.0, 7.5)


def pixels(z: float, repetition: int) -> npt.NDArray[np.uint16]:
    rows, columns = np.indices(SHAPE)
    return (100 * z + 20 * repetition + rows + 10 * columns).astype(np.uint16)


def image(z: float, repetition: int, number: int | None, **attributes: Any) -> FileDataset:
    facts: dict[str, Any] = {
        "Modality": "MR",
        "SOPClassUID": MRImageStorage,
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "ImagePositionPatient": [-10.0, -20.0, z],
        "RescaleSlope": None,
        "RescaleIntercept": None,
        **attributes,
    }
    if number is not None:
        facts["InstanceNumber"] = number
    return make_instance(pixels(z, repetition), **facts)


def save(images: Iterable[FileDataset], folder: Path) -> Path:
    rng = np.random.default_rng(3)
    listed = list(images)
    for name, ds in zip(rng.permutation(len(listed)), listed, strict=True):
        write(ds, folder / f"{name:03d}")
    return folder


def read(source: Any, **policies: Any) -> medimg.Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedimgWarning)
        return medimg.read(source, **policies)


def expected(repetitions: Iterable[int], places: Iterable[float] = PLACES) -> npt.NDArray[np.uint16]:
    listed = list(places)
    return np.stack([np.stack([pixels(z, r) for z in listed]) for r in repetitions])


REPETITIONS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "temporal position": lambda r, n: {"TemporalPositionIdentifier": r + 1},
    "acquisition": lambda r, n: {"AcquisitionNumber": r + 1},
    "acquisition time": lambda r, n: {"AcquisitionTime": f"1015{r:02d}.250000"},
    "acquisition date and time": lambda r, n: {"AcquisitionDateTime": f"202001021015{r:02d}.5"},
    "trigger time": lambda r, n: {"TriggerTime": 50.0 * r},
    "reference time": lambda r, n: {"FrameReferenceTime": 1000.0 * r},
    "diffusion": lambda r, n: {
        "DiffusionBValue": 800.0 * (r > 0),
        **({"DiffusionGradientOrientation": [[1, 0, 0], [0, 1, 0]][r - 1]} if r else {}),
    },
    "number alone, volume by volume": lambda r, n: {},
}


@pytest.mark.parametrize("name", REPETITIONS)
def test_repetitions_are_channels(tmp_path: Path, name: str) -> None:
    made = []
    for r in range(3):
        for n, z in enumerate(PLACES):
            made.append(image(z, r, r * len(PLACES) + n + 1, **REPETITIONS[name](r, n)))
    (series,) = medimg.scan(save(made, tmp_path))
    assert series.shape == (3, 4, *SHAPE)
    volume = read(series)
    assert np.array_equal(volume.array, expected(range(3)))
    assert np.allclose(volume.affine[:3, 0], [0, 0, 2.5])
    assert len(set(volume.channels)) == 3
    numbered = "Instance Number" in " ".join(volume.report.warnings)
    assert numbered == ("alone" in name)
    assert np.array_equal(series.read([1, 3]).array, volume.array[:, [1, 3]]) if not numbered else True


def test_repetitions_position_by_position(tmp_path: Path) -> None:
    """The scanner numbered all time points of a slice before the next slice."""
    made = [image(z, r, 3 * n + r + 1) for n, z in enumerate(PLACES) for r in range(3)]
    volume = read(save(made, tmp_path))
    assert np.array_equal(volume.array, expected(range(3)))


def test_two_attributes_together_tell_repetitions_apart(tmp_path: Path) -> None:
    made = [
        image(z, 2 * time + delay, None, TemporalPositionIdentifier=time + 1, TriggerTime=400.0 + 100 * delay)
        for time in range(3)
        for delay in range(2)
        for z in PLACES
    ]
    volume = medimg.read(save(made, tmp_path))
    assert np.array_equal(volume.array, expected(range(6)))


def test_times_of_a_series(tmp_path: Path) -> None:
    made = [
        image(z, r, None, TemporalPositionIdentifier=r + 1, AcquisitionTime=f"23590{2 * r}.5")
        for r in range(3)
        for z in PLACES
    ]
    (series,) = medimg.scan(save(made, tmp_path))
    assert series.frame_times == pytest.approx((0, 2, 4))
    assert series.read().channels == ("time 1", "time 2", "time 3")


def test_times_go_on_over_the_end_of_a_month(tmp_path: Path) -> None:
    starts = ("20230228235958.5", "20230228235959.5", "20230301000000.5")
    made = [
        image(z, r, 4 * r + n + 1, AcquisitionDateTime=start)
        for r, start in enumerate(starts)
        for n, z in enumerate(PLACES)
    ]
    (series,) = medimg.scan(save(made, tmp_path))
    assert series.frame_times == pytest.approx((0, 1, 2))


def test_what_belongs_to_slices_is_no_time(tmp_path: Path) -> None:
    """The trigger time of an EPI series is that of the slice: it repeats with each volume."""
    made = [
        image(z, r, 4 * r + n + 1, TriggerTime=100.0 * n, AcquisitionTime=f"10150{n}.0")
        for r in range(2)
        for n, z in enumerate(PLACES)
    ]
    volume = read(save(made, tmp_path))
    assert np.array_equal(volume.array, expected(range(2)))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "echo number": ({"EchoNumbers": 1}, {"EchoNumbers": 2}),
    "echo time": ({"EchoTime": 4.9}, {"EchoTime": 7.4}),
    "magnitude and phase": ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
    "component": ({"ComplexImageComponent": "REAL"}, {"ComplexImageComponent": "IMAGINARY"}),
    "kernel": ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_series(tmp_path: Path, name: str) -> None:
    made = [
        image(z, 5 * kind + r, 4 * r + n + 1, AcquisitionNumber=r, **KINDS[name][kind])
        for kind in range(2)
        for r in range(2)
        for n, z in enumerate(PLACES)
    ]
    index = medimg.scan(save(made, tmp_path))
    assert len(index) == 2
    arrays = sorted((read(series).array for series in index), key=lambda a: int(a.max()))
    assert np.array_equal(arrays[0], expected([0, 1]))
    assert np.array_equal(arrays[1], expected([5, 6]))
    with pytest.raises(AmbiguousSeriesError):
        medimg.read(tmp_path)


def test_phases_of_unequal_extent_are_series(tmp_path: Path) -> None:
    short, long = PLACES, (*PLACES, 10.0, 12.5)
    made = [image(z, 0, n + 1, AcquisitionNumber=1) for n, z in enumerate(short)]
    made += [image(z, 1, n + 5, AcquisitionNumber=2) for n, z in enumerate(long)]
    index = medimg.scan(save(made, tmp_path))
    found = {series.shape[1]: read(series).array for series in index}
    assert np.array_equal(found[4], expected([0]))
    assert np.array_equal(found[6], expected([1], long))


def test_an_aborted_time_series_keeps_what_is_whole(tmp_path: Path) -> None:
    made = [image(z, r, 4 * r + n + 1) for r in range(3) for n, z in enumerate(PLACES)][:-2]
    index = medimg.scan(save(made, tmp_path))
    found = {series.shape[:2]: read(series).array for series in index}
    assert np.array_equal(found[2, 4], expected([0, 1]))
    assert np.array_equal(found[1, 2], expected([2], PLACES[:2]))


def test_a_volume_that_lacks_a_slice_is_not_mixed_with_the_next(tmp_path: Path) -> None:
    made = [image(z, r, 4 * r + n + 1) for r in range(4) for n, z in enumerate(PLACES)]
    del made[4 + 2]
    index = medimg.scan(save(made, tmp_path))
    found = {series.shape[:2]: series for series in index}
    assert np.array_equal(read(found[3, 4]).array, expected([0, 2, 3]))
    assert np.array_equal(read(found[1, 3], on_missing="keep").array, expected([1], (0.0, 2.5, 7.5)))


def test_one_doubled_slice_is_a_duplicate_and_no_time_series(tmp_path: Path) -> None:
    made = [image(z, 0, n + 1) for n, z in enumerate(PLACES)]
    folder = save([*made, image(PLACES[1], 0, 9)], tmp_path)
    with pytest.warns(MedimgWarning, match="1 of 5 image"):
        volume = medimg.read(folder)
    assert np.array_equal(volume.array, expected([0]))
    assert len(volume.report.duplicates) == 1


def test_different_images_that_nothing_tells_apart_are_an_error(tmp_path: Path) -> None:
    folder = save([image(z, r, n + 1) for r in range(2) for n, z in enumerate(PLACES)], tmp_path)
    with pytest.raises(DuplicateSlicesError, match="phases, time points or series"):
        medimg.read(folder)


@pytest.mark.parametrize("attribute", ["PatientID", "StudyInstanceUID", "SeriesNumber"])
def test_a_constant_series_uid_merges_nothing(tmp_path: Path, attribute: str) -> None:
    values = {"PatientID": ("A", "B"), "StudyInstanceUID": ("1.5", "1.6"), "SeriesNumber": (3, 4)}
    made = [
        image(z + offset, kind, n + 1, **{attribute: values[attribute][kind]})
        for kind, offset in enumerate((0.0, 100.0))
        for n, z in enumerate(PLACES)
    ]
    index = medimg.scan(save(made, tmp_path))
    assert [s.shape[1] for s in index] == [4, 4]
    assert len({s.uid for s in index}) == 2


def test_without_series_uids_folders_are_series(tmp_path: Path) -> None:
    for kind, name in enumerate(("one", "two")):
        save((image(z, kind, n, SeriesInstanceUID=None) for n, z in enumerate(PLACES)), tmp_path / name)
    index = medimg.scan(tmp_path)
    assert [s.shape[1] for s in index] == [4, 4]
    with pytest.warns(MedimgWarning, match="no Series Instance UID"):
        volume = medimg.read(tmp_path / "two")
    assert np.array_equal(volume.array, expected([1]))


def test_equal_sop_instance_uids_lose_no_slice(tmp_path: Path) -> None:
    folder = save((image(z, 0, n, SOPInstanceUID="1.9") for n, z in enumerate(PLACES)), tmp_path)
    assert np.array_equal(read(folder).array, expected([0]))


def test_stacks_between_each_other_are_told_apart(tmp_path: Path) -> None:
    """Two reconstructions whose slices alternate, at uneven distances."""
    made = [image(z, 0, n, AcquisitionNumber=1) for n, z in enumerate(PLACES)]
    made += [image(z + 0.7, 1, n + 9, AcquisitionNumber=2) for n, z in enumerate(PLACES)]
    index = medimg.scan(save(made, tmp_path))
    assert [s.shape[:2] for s in index] == [(1, 4), (1, 4)]
    assert {round(s.spacing[0], 6) for s in index} == {2.5}


def test_places_beside_each_other_are_different() -> None:
    axial = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    positions = np.array([[0, 0, 0], [50, 0, 0], [0, 0, 2], [0, 0.001, 0.004], [50, 0, 2]])
    found = number_positions(positions, axial)
    assert found.tolist() == [0, 1, 2, 0, 3]
