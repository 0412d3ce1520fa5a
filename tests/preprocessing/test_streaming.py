"""Series in pieces: the same pictures, reports and errors as from the whole volume."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

import medimg
from medimg.core.volume import Volume
from medimg.errors import GeometryError, MedimgError, MedimgWarning, PreprocessError
from medimg.io.series import Series
from medimg.preprocessing import render
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.render import Rendered
from tests.dicom_files import make_instance, write

UPWARDS: list[float] = [1, 0, 0, 0, 1, 0]
DOWNWARDS: list[float] = [1, 0, 0, 0, -1, 0]
CORONAL: list[float] = [-1, 0, 0, 0, 0, 1]
SIZE = (20, 26)
WINDOWS: dict[str, Any] = {"WindowCenter": [40, 300], "WindowWidth": [300, 700]}
RECIPES: dict[str, dict[str, Any]] = {
    "auto": {},
    "stored": {"orientation": "stored"},
    "preset": {"window": "lung", "fit": "crop"},
    "window": {"window": medimg.Window(100.5, 333.3, "SIGMOID")},
    "three windows": {"window": ("lung", "dicom", medimg.Window(50, 99))},
    "adjacent": {"channels": "adjacent"},
    "adjacent, few": {"channels": "adjacent", "slices": 4},
    "adjacent, declared": {"channels": "adjacent", "window": "dicom"},
    "few": {"slices": 5},
    "declared": {"window": "dicom"},
    "another": {"window": "dicom:1"},
    "named": {"window": "dicom:wide"},
    "percentile": {"window": "percentile"},
    "resampled": {"spacing": 3.0},
}


@pytest.fixture(autouse=True)
def two_slices_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_PIECE_CPU", 2 * 2 * SIZE[0] * SIZE[1])


def stack(folder: Path, orientation: list[float], count: int = 9, **of_slice: Any) -> Series:
    """A series of noise; `of_slice` are functions of the number of a slice that give attributes."""
    rng = np.random.default_rng(11)
    normal = np.cross(orientation[:3], orientation[3:])
    for n in range(count):
        attributes = {"ImagePositionPatient": list(2.0 * n * normal), "InstanceNumber": n + 1, **WINDOWS}
        attributes |= {"ImageOrientationPatient": orientation}
        attributes |= {"WindowCenterWidthExplanation": ["narrow", "wide"]}
        attributes |= {keyword: value(n) for keyword, value in of_slice.items()}
        attributes = {keyword: value for keyword, value in attributes.items() if value is not None}
        write(make_instance(rng.integers(0, 2500, SIZE).astype(np.uint16), **attributes), folder / f"{n}.dcm")
    (series,) = medimg.scan(folder)
    return series


def assert_same(found: Rendered, expected: Rendered) -> None:
    assert torch.equal(found.planes, expected.planes)
    assert found.slices == expected.slices
    assert found.sop_instance_uids == expected.sop_instance_uids
    assert found.report.sop_instance_uids == expected.report.sop_instance_uids
    assert found.report.files == expected.report.files
    assert found.report.transforms == expected.report.transforms
    assert found.report.warnings == expected.report.warnings


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("orientation", [UPWARDS, DOWNWARDS, CORONAL])
def test_pieces_give_what_the_whole_volume_gives(tmp_path: Path, name: str, orientation: list[float]) -> None:
    series = stack(tmp_path, orientation)
    recipe = Preprocess(size=24, **RECIPES[name])
    expected = recipe.render(series.read())
    found = recipe.render(series)
    assert torch.equal(found.planes, expected.planes)
    assert found.slices == expected.slices
    assert found.sop_instance_uids == expected.sop_instance_uids
    assert torch.equal(recipe(tmp_path), recipe.normalize(expected.planes))
    if recipe.slices == "all":
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["auto", "preset", "three windows", "adjacent", "declared", "another"])
def test_the_whole_volume_is_never_read_where_windows_do_not_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    series = stack(tmp_path, UPWARDS)

    def refuse(*_: object, **__: object) -> Volume:
        raise AssertionError("the whole volume was read")

    monkeypatch.setattr(Series, "read", refuse)
    recipe = Preprocess(size=24, **RECIPES[name])
    if name in {"auto", "preset", "three windows", "adjacent", "declared", "another"}:
        assert recipe(series).shape == (9, 3, 24, 24)


@pytest.mark.parametrize(
    "of_slice",
    [
        {"RescaleSlope": lambda n: 1 if n < 4 else 1.25},
        {"RescaleIntercept": lambda n: -1024 if n < 5 else 40_000},
        {"WindowCenter": lambda n: [40 + 30 * n, 300], "WindowWidth": lambda n: [200 + n, 700 - n]},
        {"PixelPaddingValue": lambda n: 2000 if n % 2 else None},
        {"WindowCenterWidthExplanation": lambda n: ["1", "x"] if n == 6 else ["x", "1"]},
        {"WindowCenterWidthExplanation": lambda n: ["1", "x"] if n == 6 else ["x", "y"]},
    ],
    ids=["slope", "range", "windows", "padding", "a number as name", "a number as name of one"],
)
@pytest.mark.parametrize("name", ["auto", "declared", "another", "adjacent, declared", "few"])
def test_slices_that_differ_from_each_other(tmp_path: Path, of_slice: dict[str, Any], name: str) -> None:
    kept = {k: f for k, f in of_slice.items() if k != "PixelPaddingValue"}
    series = stack(tmp_path, DOWNWARDS, **kept)
    if "PixelPaddingValue" in of_slice:
        for path in series.files[::2]:
            ds = pydicom.dcmread(path)
            ds.add_new("PixelPaddingValue", "US", int(ds.pixel_array[3, 4]))
            ds.save_as(path)
    recipe = Preprocess(size=24, **RECIPES[name])
    assert torch.equal(recipe.render(series).planes, recipe.render(series.read()).planes)


def test_pictures_of_different_windows_differ(tmp_path: Path) -> None:
    series = stack(tmp_path, UPWARDS)
    pictures = [Preprocess(size=24, window=w).render(series).planes for w in ("dicom", "dicom:1", "lung")]
    assert not any(torch.equal(a, b) for a, b in pairwise(pictures))
    assert len({p.numpy().tobytes() for p in pictures[0]}) == 9


def test_errors_are_those_of_the_whole_volume(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "photometric": {"PhotometricInterpretation": lambda n: "MONOCHROME1" if n == 7 else "MONOCHROME2"},
        "undeclared": {
            name: lambda n: None if n == 7 else [10, 20] for name in ("WindowCenter", "WindowWidth")
        },
    }
    recipe = Preprocess(size=24, window="dicom")
    for case, of_slice in cases.items():
        series = stack(tmp_path / case, UPWARDS, **of_slice)
        with pytest.raises((GeometryError, PreprocessError)) as whole:
            recipe(series.read())
        with pytest.raises(type(whole.value)):
            recipe(series)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_stacks_of_any_depth(tmp_path: Path, count: int) -> None:
    series = stack(tmp_path, DOWNWARDS, count)
    for name in ("auto", "adjacent", "few"):
        recipe = Preprocess(size=24, **RECIPES[name])
        assert torch.equal(recipe(series), recipe(series.read()))


@pytest.mark.parametrize("folder", ["lidc_3pat_excerpt", "nifti_space_dev", "pydicom_examples"])
def test_real_scans(real_data: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(render, "_PIECE_CPU", 2**20)
    compared = 0
    with warnings.catch_warnings(action="ignore", category=MedimgWarning):
        for series in medimg.scan(real_data / "dicom_misc" / folder):
            recipe = Preprocess(size=64, window=medimg.Window(40, 400))
            try:
                expected = recipe.render(series.read())
            except MedimgError:
                continue
            assert_same(recipe.render(series), expected)
            compared += 1
    assert compared
