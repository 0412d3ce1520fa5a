"""A recipe that takes few slices reads only these, and its pictures are those of the whole volume."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch

import medimg
from medimg.errors import MedimgWarning, ReadError
from medimg.io.series import Policies
from medimg.preprocessing._slice_selection import SliceSelection, find_needed_slices
from tests.dicom_files import write_stack

AXIAL: list[float] = [1, 0, 0, 0, 1, 0]
#: Slices sorted along X×Y, which leads to the feet here: the display turns them.
DOWNWARDS: list[float] = [1, 0, 0, 0, -1, 0]
PLACES = [float(z) for z in range(0, 18, 2)]
RECIPES: dict[str, dict[str, Any]] = {
    "three": {"slices": 3},
    "one": {"slices": 1},
    "middle": {"slices": "middle"},
    "four of nine": {"slices": 4, "window": "lung"},
    "adjacent": {"slices": 2, "channels": "adjacent"},
    "three windows": {"slices": 3, "window": ("lung", "bone", "brain")},
    "as stored": {"slices": 3, "orientation": "stored"},
    "declared": {"slices": 3, "window": "dicom"},
    "another declared": {"slices": 3, "window": "dicom:1"},
    "by name": {"slices": 3, "window": "dicom:second"},
    "a window": {"slices": 3, "window": medimg.Window(40, 400)},
}


def stack(folder: Path, orientation: list[float]) -> medimg.Series:
    for n, path in enumerate(write_stack(folder, PLACES, ImageOrientationPatient=orientation)):
        ds = pydicom.dcmread(path)
        ds.WindowCenter, ds.WindowWidth = [20 + n, 30], [100 + n, 90 - n]
        ds.WindowCenterWidthExplanation = ["FIRST", "SECOND"]
        ds.save_as(path)
    (series,) = medimg.scan(folder)
    return series


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("orientation", [AXIAL, DOWNWARDS])
def test_pictures_are_those_of_the_whole(tmp_path: Path, name: str, orientation: list[float]) -> None:
    series = stack(tmp_path, orientation)
    recipe = medimg.Preprocess(size=24, **RECIPES[name])
    expected = recipe.render(series.read())
    needed = find_needed_slices(recipe, series, Policies())
    assert needed is not None
    for place, path in enumerate(series.files):
        if place not in needed.stored:
            Path(path).unlink()
    found = recipe.render(series)
    assert torch.equal(found.planes, expected.planes)
    assert found.slices == expected.slices
    assert found.sop_instance_uids == expected.sop_instance_uids
    assert len(set(found.sop_instance_uids)) == len(found.slices)
    assert len(found.report.files) == len(needed.stored) < len(series.files)
    assert not torch.equal(found.planes, torch.flip(found.planes, [0])) or len(found.slices) == 1
    with pytest.raises(ReadError):
        series.read()


@pytest.mark.parametrize(
    "fields",
    [
        {"slices": 3, "window": "percentile"},
        {"slices": 3, "window": ("lung", "percentile", "bone")},
        {"slices": 3, "window": "dicom", "channels": "adjacent"},
        {"slices": 3, "spacing": 2.0},
    ],
)
def test_what_depends_on_all_slices_reads_all(tmp_path: Path, fields: dict[str, Any]) -> None:
    series = stack(tmp_path, AXIAL)
    assert find_needed_slices(medimg.Preprocess(**fields), series, Policies()) is None


@pytest.mark.parametrize("fields", [{"slices": "all"}, {"slices": 9}, {"slices": 8, "channels": "adjacent"}])
def test_all_slices_are_the_whole(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert find_needed_slices(
        medimg.Preprocess(**fields), stack(tmp_path, AXIAL), Policies()
    ) == SliceSelection.whole(9)


@pytest.mark.parametrize(
    "policies", [Policies(on_missing="fix"), Policies(on_tilt="fix"), Policies(on_duplicate="keep")]
)
def test_slices_that_are_mended_are_all_read(tmp_path: Path, policies: Policies) -> None:
    assert find_needed_slices(medimg.Preprocess(slices=1), stack(tmp_path, AXIAL), policies) is None


def test_a_ct_that_is_not_in_hu_gets_percentiles_of_all(tmp_path: Path) -> None:
    write_stack(tmp_path, PLACES, RescaleIntercept=None, RescaleSlope=None)
    recipe = medimg.Preprocess(slices=2, size=24)
    volume = medimg.read(tmp_path)
    assert volume.units == "raw"
    assert torch.equal(recipe(tmp_path), recipe(volume))


def test_a_gap_is_an_error_whichever_slices_are_taken(tmp_path: Path) -> None:
    write_stack(tmp_path, [0.0, 2.0, 4.0, 8.0, 10.0])
    with pytest.raises(medimg.errors.MissingSlicesError):
        medimg.Preprocess(slices=1)(tmp_path)


def test_real_scans(real_data: Path) -> None:
    for series in medimg.scan(real_data / "dicom_misc" / "lidc_3pat_excerpt"):
        recipe = medimg.Preprocess(slices=3, window=("lung", "pe", "mediastinum"))
        with warnings.catch_warnings(action="ignore", category=MedimgWarning):
            assert torch.equal(recipe(series), recipe(series.read()))
