"""Drawn studies, written by pydicom alone: reading gives what was written, or the error of the policy."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import medimg
from medimg.core import geometry
from medimg.core.stacking import Policy
from medimg.core.volume import Volume
from medimg.errors import GeometryError, MedimgError, MedimgWarning
from medimg.testing import check_series, check_volume
from medimg.testing.strategies import affines, directions, studies, volumes
from medimg.testing.studies import SENTINEL, Study, Truth, write_dicom
from tests.sampling import SLOW

POLICIES = st.sampled_from(get_args(Policy))
#: MEDIMG_EXAMPLES=2000 looks longer.
EXAMPLES = int(os.environ.get("MEDIMG_EXAMPLES", "60" if SLOW else "30"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(MANY, max_examples=EXAMPLES // 4, phases=[Phase.explicit, Phase.generate])


def scanned(study: Study, folder: str) -> list[tuple[Any, Truth]]:
    """Series and truth of each echo, which come in the order of their Instance Numbers or files."""
    truths = write_dicom(study, folder)
    index = medimg.scan(folder)
    assert not index.skipped
    assert len(index) == len(truths), [s.summary() for s in index]
    if len(truths) == 1:
        return [(index[0], truths[0])]
    by_echo = {_echo(s.path): s for s in index}
    return [(by_echo[n + 1], truth) for n, truth in enumerate(truths)]


def _echo(path: str) -> int:
    return int(pydicom.dcmread(path, specific_tags=["EchoNumbers"]).EchoNumbers)


def assert_is(volume: Volume, truth: Truth) -> None:
    assert volume.shape == truth.array.shape
    assert np.allclose(volume.array, truth.array, rtol=1e-6, atol=1e-6)
    assert np.allclose(volume.affine, truth.affine, atol=2e-4)
    assert volume.report.tilt == pytest.approx(truth.tilt, abs=0.2)
    assert volume.report.missing == tuple(place for place, _ in truth.missing)
    assert SENTINEL.lower() not in f"{volume!r} {volume.report}".lower()


@MANY
@given(studies(sound=True))
def test_a_sound_study_is_read_as_written(study: Study) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # time points that only Instance Numbers tell apart deserve a word
        warnings.simplefilter("ignore" if study.told_by == "number" else "error", MedimgWarning)
        for series, truth in scanned(study, folder):
            assert series.shape == truth.array.shape
            assert_is(series.read(), truth)


@FEW
@given(studies())
def test_a_drawn_study_keeps_the_contract(study: Study) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for series, _ in scanned(study, folder):
            check_series(series, read=partial(series.read, on_missing="keep"))


@MANY
@given(studies(), POLICIES, POLICIES, POLICIES)
def test_policies_decide(study: Study, on_missing: Policy, on_duplicate: Policy, on_tilt: Policy) -> None:
    policies = {"on_missing": on_missing, "on_duplicate": on_duplicate, "on_tilt": on_tilt}
    with tempfile.TemporaryDirectory() as folder:
        for series, truth in scanned(study, folder):
            if truth.copies and on_duplicate == "keep":
                continue
            expected = truth.error(**policies)
            if expected is not None:
                with pytest.raises(MedimgError) as raised:
                    series.read(**policies)
                faults = {truth.error(**{**policies, **mended}) for mended in _mended(policies)}
                assert type(raised.value) in faults | {expected}
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    volume = series.read(**policies)
                except GeometryError as error:
                    # pictures of a few pixels can be sheared by more than their size
                    assert on_tilt == "fix" and truth.tilt, error  # noqa: PT017, PT018
                    continue
            assert all(issubclass(w.category, MedimgWarning) for w in caught)
            assert bool(caught) >= truth.warns(**policies)
            assert_outcome(volume, truth, on_missing, on_tilt)


def _mended(policies: dict[str, Policy]) -> list[dict[str, Policy]]:
    """Policies with some errors turned off: where several things are wrong, any may be named first."""
    kept: Policy = "keep"
    return [{one: kept, other: kept} for one in policies for other in policies]


def assert_outcome(volume: Volume, truth: Truth, on_missing: Policy, on_tilt: Policy) -> None:
    fills = truth.missing and on_missing == "fix"
    straightens = truth.tilt and on_tilt == "fix"
    if not (fills or straightens):
        assert_is(volume, truth)
        return
    filled = sum(n for _, n in truth.missing) if fills else 0
    c, d, h, w = truth.array.shape
    assert volume.shape[:2] == (c, d + filled)
    assert volume.shape[2:] == (h, w) or (straightens and volume.shape[2] >= h and volume.shape[3] >= w)
    assert volume.spacing[1:] == pytest.approx(geometry.spacing_of(truth.affine)[1:], abs=1e-3)
    if straightens:
        step, h, w = volume.affine[:3, :3].T
        assert step @ h == pytest.approx(0, abs=1e-3)
        assert step @ w == pytest.approx(0, abs=1e-3)
    else:
        assert np.allclose(volume.affine, truth.affine, atol=2e-4)
        places = np.cumsum([0, *(1 + dict(truth.missing).get(d, 0) for d in range(truth.array.shape[1] - 1))])
        assert np.allclose(volume.array[:, places], truth.array, rtol=1e-6, atol=1e-6)


@MANY
@given(volumes())
def test_volumes_keep_the_contract(volume: Volume) -> None:
    check_volume(volume)


@MANY
@given(volumes(), st.sampled_from(["SPL", "RAS", "PIR"]), affines())
def test_turning_twice_is_turning_once(volume: Volume, code: str, affine: geometry.Affine) -> None:
    placed = replace(volume, space="patient", affine=affine)
    # exactly between the axes of the patient several codes fit equally well
    assume(placed.reorient(code).orientation == code)
    there = placed.reorient("LAI").reorient(code)
    straight = placed.reorient(code)
    assert np.array_equal(there.array, straight.array, equal_nan=straight.array.dtype.kind == "f")
    assert np.allclose(there.affine, straight.affine, atol=1e-9)


def test_strategies_draw_what_they_say() -> None:
    """All 48 orientations, half of them among few; oblique ones, shears, color, and every kind of study."""
    seen: dict[str, set[Any]] = {"codes": set(), "oblique": set(), "sheared": set(), "color": set()}
    kinds: dict[str, set[Any]] = {}

    @settings(max_examples=1500 if SLOW else 250, deadline=None, database=None, derandomize=True)
    @given(affines())
    def draw_affines(affine: geometry.Affine) -> None:
        cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        seen["codes"].add(geometry.orientation_code(affine))
        seen["oblique"].add(bool(np.abs(cosines).max(axis=0).min() < 0.999))
        seen["sheared"].add(bool(abs(cosines[:, 0] @ cosines[:, 1]) > 1e-3))

    @settings(max_examples=400 if SLOW else 120, deadline=None, database=None, derandomize=True)
    @given(directions(mirrored=False), volumes(most=2), studies())
    def draw(matrix: Any, volume: Volume, study: Study) -> None:
        seen["color"].add(volume.is_color)
        assert np.linalg.det(matrix) == pytest.approx(1)
        assert np.allclose(matrix.T @ matrix, np.eye(3))
        for name in ("syntax", "told_by", "signed", "dirty", "shuffled", "series_uid", "instance_uids"):
            kinds.setdefault(name, set()).add(getattr(study, name))
        for name in ("missing", "copied"):
            kinds.setdefault(name, set()).add(bool(getattr(study, name)))
        kinds.setdefault("tilted", set()).add(any(study.shear))

    draw_affines()
    draw()
    assert len(seen["codes"]) == 48 if SLOW else len(seen["codes"]) >= 24
    assert all(len(found) == 2 for name, found in seen.items() if name != "codes"), seen
    assert {name: len(found) for name, found in kinds.items()} == {
        "syntax": 5, "told_by": 5, "signed": 2, "dirty": 2, "shuffled": 2, "series_uid": 2,
        "instance_uids": 2, "missing": 2, "copied": 2, "tilted": 2,
    }  # fmt: skip


def test_a_study_without_a_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        Study(slices=5, missing=(1, 3))
    with pytest.raises(ValueError, match="copied"):
        Study(missing=(1,), copied=(1,))


def test_a_volume_exactly_between_the_axes_keeps_the_contract() -> None:
    """Found by drawing: several orders of the axes fit equally well, and no code is the only right one."""
    matrix = np.array([[-2, 2, 1], [1, 2, -2], [2, 1, 2]]) / 3
    affine = np.eye(4)
    affine[:3, :3] = matrix
    check_volume(Volume(np.arange(24).reshape(1, 2, 3, 4), affine))


def test_written_files_are_as_described(tmp_path: Path) -> None:
    write_dicom(Study(slices=3, shuffled=True, series_uid=False, copied=(1,)), tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert len({f.read_bytes() for f in files}) == 3
    assert all("SeriesInstanceUID" not in pydicom.dcmread(f) for f in files)
