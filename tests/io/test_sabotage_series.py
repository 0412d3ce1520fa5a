"""Spoiled copies of a real time series and of a real tilted CT."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy.ndimage import map_coordinates

import medimg
from medimg.core import geometry
from medimg.core.volume import Volume
from medimg.errors import DuplicateSlicesError, MedimgWarning, MissingSlicesError, TiltedGantryError
from tests.io import sabotage as s

TIMES, DEPTH = 10, 15
BY_NUMBER = "Instance Numbers alone"


@pytest.fixture(scope="module")
def series_files(real_data: Path) -> list[Path]:
    """A GE time series of which nothing but Instance Numbers tells time points apart, in their order."""
    folder = real_data / "dicom_qa/nih/In/20180918GE/mr_0004"
    files = [p for p in folder.iterdir() if p.is_file() and p.read_bytes()[128:132] == b"DICM"]
    files.sort(key=lambda p: int(pydicom.dcmread(p, specific_tags=["InstanceNumber"]).InstanceNumber))
    assert len(files) == TIMES * DEPTH
    return files


@pytest.fixture(scope="module")
def time_of(series_files: list[Path]) -> dict[bytes, int]:
    """The time point of each picture; they were numbered volume by volume."""
    return {pydicom.dcmread(p).pixel_array.tobytes(): n // DEPTH for n, p in enumerate(series_files)}


Choice = Callable[[list[Path]], list[Path]]
SPOILED: dict[str, tuple[Choice, set[tuple[int, int]]]] = {
    "whole": (lambda f: f, {(10, 15)}),
    "one file gone": (lambda f: f[:40] + f[41:], {(9, 15), (1, 14)}),
    "the end gone": (lambda f: f[:-4], {(9, 15), (1, 11)}),
    "the start gone": (lambda f: f[4:], {(9, 15), (1, 11)}),
    "a time point gone": (lambda f: f[:45] + f[60:], {(9, 15)}),
    "one position gone": (lambda f: [p for n, p in enumerate(f) if n % DEPTH != 7], {(10, 14)}),
    # what is left of two time points must not be put together, though it has each position once
    "a hole as long as a time point": (lambda f: f[:50] + f[65:], {(8, 15), (1, 5), (1, 10)}),
}


@pytest.mark.parametrize("name", SPOILED)
def test_time_points_are_never_mixed(
    series_files: list[Path], time_of: dict[bytes, int], tmp_path: Path, name: str
) -> None:
    choose, shapes = SPOILED[name]
    files = choose(series_files)
    for n, path in enumerate(files):
        shutil.copyfile(path, tmp_path / f"{n * 37 % 151:03d}")
    index = medimg.scan(tmp_path)
    assert not index.skipped
    found: set[tuple[int, int]] = set()
    count = 0
    for series in index:
        with pytest.warns(MedimgWarning, match=BY_NUMBER):
            volume = series.read(on_missing="keep")
        times = [{time_of[picture.tobytes()] for picture in channel} for channel in volume.array]
        assert all(len(t) == 1 for t in times), f"time points mixed: {times}"
        order = [min(t) for t in times]
        assert order == sorted(set(order))
        found.add(volume.shape[:2])
        count += volume.shape[0] * volume.shape[1]
    assert count == len(files)
    assert found == shapes


def test_a_position_gone_from_all_time_points_is_missing(series_files: list[Path]) -> None:
    files = [p for n, p in enumerate(series_files) if n % DEPTH != 7]
    with pytest.raises(MissingSlicesError):
        read(files)
    filled = read(files, on_missing="fix")
    assert filled.shape[:2] == (TIMES, DEPTH)
    whole = read(series_files)
    rest = [d for d in range(DEPTH) if not np.array_equal(filled.array[:, d], whole.array[:, d])]
    assert len(rest) == 1
    assert np.allclose(filled.affine, whole.affine, atol=1e-3)


def test_without_instance_numbers_nothing_is_guessed(series_files: list[Path], tmp_path: Path) -> None:
    for n, path in enumerate(series_files[: 2 * DEPTH]):
        ds = pydicom.dcmread(path)
        del ds.InstanceNumber
        ds.save_as(tmp_path / f"{n}.dcm")
    for policy in ("raise", "warn", "fix"):
        with pytest.raises(DuplicateSlicesError):
            read(tmp_path, on_duplicate=policy)
    assert read(tmp_path, on_duplicate="keep").shape[1] == 2 * DEPTH


@pytest.fixture(scope="module")
def tilted(real_data: Path) -> s.Original:
    return s.original(real_data / "dicom_qa/ct_philips")


def read(source: Any, **policies: Any) -> Volume:
    if isinstance(source, s.Original):
        source = [str(ds.filename) for ds in source.datasets]
    with warnings.catch_warnings(action="ignore", category=MedimgWarning):
        return medimg.read(source, **policies)


def test_a_really_tilted_gantry_under_each_policy(tilted: s.Original) -> None:
    step = np.diff(tilted.positions, axis=0).mean(axis=0)
    angle = np.degrees(np.arccos(step @ tilted.normal / np.linalg.norm(step)))
    assert 18 < angle < 19
    with pytest.raises(TiltedGantryError, match=f"{angle:.1f}"):
        read(tilted, on_tilt="raise")
    with pytest.warns(MedimgWarning, match="tilted"):
        warned = medimg.read([str(ds.filename) for ds in tilted.datasets], on_tilt="warn")
    kept = read(tilted, on_tilt="keep")
    for volume in (warned, kept):
        assert np.array_equal(volume.array[0], tilted.values)
        corners = geometry.index_to_lps(volume.affine, [(d, 0, 0) for d in range(s.COUNT)])
        assert np.allclose(corners, tilted.positions, atol=0.02)
        assert volume.report.tilt == pytest.approx(angle, abs=0.01)


@pytest.mark.parametrize("gone", [(), (5,)])
def test_a_straightened_gantry_has_the_values_of_its_places(tilted: s.Original, gone: tuple[int]) -> None:
    """Each voxel of the perpendicular grid against SciPy's interpolation within the slice that it lies in."""
    files = [str(ds.filename) for n, ds in enumerate(tilted.datasets) if n not in gone]
    fixed = read(files, on_tilt="fix", on_missing="fix")
    step, rows, columns = fixed.affine[:3, :3].T
    assert abs(step @ rows) < 1e-6
    assert abs(step @ columns) < 1e-6
    assert fixed.shape[1] == s.COUNT
    x, y = np.asarray(tilted.datasets[0].ImageOrientationPatient, float).reshape(2, 3)
    row_spacing, column_spacing = (float(v) for v in tilted.datasets[0].PixelSpacing)
    h, w = np.meshgrid(*(np.arange(0, n, 7) for n in fixed.shape[2:]), indexing="ij")
    compared = 0
    for d in set(range(s.COUNT)) - set(gone):
        index = np.stack([np.full_like(h, d), h, w], axis=-1)
        from_corner = geometry.index_to_lps(fixed.affine, index) - tilted.positions[d]
        assert np.abs(from_corner @ tilted.normal).max() < 0.02
        places = np.stack([from_corner @ y / row_spacing, from_corner @ x / column_spacing])
        size = np.asarray(tilted.values[d].shape)[:, None, None]
        inside = ((places >= 0) & (places <= size - 1)).all(axis=0)
        expected = map_coordinates(tilted.values[d].astype(float), places[:, inside], order=1)
        assert np.abs(fixed.array[0, d][h[inside], w[inside]] - expected).max() <= 1.0
        compared += int(inside.sum())
        assert fixed.padding is not None
        clearly_outside = ((places < -0.01) | (places > size - 0.99)).any(axis=0)
        assert fixed.padding[0, d][h[clearly_outside], w[clearly_outside]].all()
    assert compared > 10_000
