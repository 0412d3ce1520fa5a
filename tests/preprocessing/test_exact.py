"""Tensors against float64, and the same bits however the work is cut."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import medimg
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.core.window import LookupTable, Voi, Window
from medimg.errors import MedimgError, MedimgWarning
from medimg.io.series import Series
from medimg.preprocessing import resize as resize_module
from medimg.preprocessing.intensity import apply_voi
from medimg.preprocessing.preprocess import Preprocess
from medimg.preprocessing.resize import resize
from tests.preprocessing.reference import reference, reference_planes, triangle
from tests.sampling import SLOW, sample

CODES = ("SPL", "IPL", "SAR", "PIL", "ASR", "RIP", "LSA", "SLP", "IRA")
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", "f8", ">i2", ">f4")


@st.composite
def windows(draw: st.DrawFn, low: float, high: float) -> Voi:
    center = draw(st.floats(low, high))
    extent = high - low
    function: Any = draw(st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "step", "table"]))
    if function == "table":
        entries = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 4096, 300)
        return LookupTable(int(center), entries.astype(np.uint16), 12)
    if function == "step":
        return Window(round(center), 1)
    return Window(center, 1 + draw(st.floats(0.01, 2)) * extent, function)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Volumes of every type, orientation and kind, with a window that their file declares."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = (-100.0, 120.0) if dtype.itemsize == 1 else (-1024.0, 3000.0)
    low = 0.0 if dtype.kind == "u" else low
    array = rng.uniform(low, high, (1, *shape)).astype(dtype)
    if dtype.kind == "f":
        array[rng.random(array.shape) < draw(st.sampled_from([0, 0.05]))] = np.nan
    spacing = (2.0, draw(st.floats(0.5, 2)), draw(st.floats(0.5, 2)))
    per_slice = draw(st.booleans())
    voi = tuple((draw(windows(low, high)),) for _ in range(shape[0] if per_slice else 1))
    volume = Volume(array, image_affine(spacing), "MR", voi=voi, inverted=draw(st.booleans()))
    if draw(st.booleans()):
        volume = replace(volume, padding=rng.random(array.shape) < 0.1)
    # made anew, as another slice axis would lose the windows of each slice
    turned = volume.reorient(draw(st.sampled_from(CODES)))
    return replace(turned, voi=voi if not per_slice or len(voi) == turned.shape[1] else voi[:1])


recipes = st.builds(
    Preprocess,
    window=st.sampled_from(["dicom", "percentile", Window(200, 900), Window(30.3, 77.7, "LINEAR_EXACT")])
    | st.just(("dicom", "percentile", Window(100, 300, "SIGMOID"))),
    slices=st.sampled_from(["all", "middle", 2]),
    size=st.sampled_from([16, 33, (40, 23), (5, 64)]),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
    fill=st.sampled_from(["background", 0.3]),
    orientation=st.sampled_from(["display", "stored"]),
)


def assert_near(volume: Volume, recipe: Preprocess) -> None:
    planes = recipe.render(volume).planes
    assert planes.dtype == torch.float32
    assert 0 <= float(planes.min()) <= float(planes.max()) <= 1
    assert np.abs(planes.numpy() - reference_planes(volume, recipe)).max() < 1e-4
    assert np.abs(recipe(volume).numpy() - reference(volume, recipe)).max() < 1e-3


@settings(max_examples=150 if SLOW else 60, deadline=None)
@given(volume=volumes(), recipe=recipes, adjacent=st.booleans())
def test_planes_and_tensors_are_those_of_float64(
    volume: Volume, recipe: Preprocess, *, adjacent: bool
) -> None:
    if adjacent and not isinstance(recipe.window, tuple):
        recipe = recipe.replace(channels="adjacent")
    try:
        reference_planes(volume, recipe)
    except MedimgError as error:
        with pytest.raises(type(error)):
            recipe(volume)
    else:
        assert_near(volume, recipe)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    wanted=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    count=st.integers(1, 5),
)
def test_resizing_is_two_matrix_products(size: tuple[int, int], wanted: tuple[int, int], count: int) -> None:
    planes = np.random.default_rng(3).random((count, 1, *size)).astype(np.float32)
    found = resize(torch.from_numpy(planes), (1, 1), wanted, "stretch", 0.0).numpy()
    rows, columns = triangle(size[0], wanted[0]), triangle(size[1], wanted[1])
    assert np.abs(found - rows @ planes.astype(np.float64) @ columns.T).max() < 2e-6


@settings(max_examples=200, deadline=None)
@given(
    offset=st.sampled_from([0, 1e3, 3e4, 1e6, 1.6e7]),
    center=st.floats(-50, 50),
    width=st.floats(1.5, 60),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_narrow_windows_far_from_zero_lose_nothing(
    offset: float, center: float, width: float, function: Any
) -> None:
    values = (offset + np.arange(-100, 101)).astype(np.float32)
    window = Window(offset + center, width, function)
    assert np.abs(apply_voi(torch.from_numpy(values), window).numpy() - window.apply(values)).max() < 1e-5


@given(threshold=st.floats(-1e4, 1e4), ulps=st.integers(-2, 2))
def test_steps_are_where_they_are_in_float64(threshold: float, ulps: int) -> None:
    window = Window(threshold, 1)
    value = np.float32(window.threshold)
    for _ in range(abs(ulps)):
        value = np.nextafter(value, np.float32(np.copysign(np.inf, ulps)))
    values = np.array([value])
    assert apply_voi(torch.from_numpy(values), window).tolist() == window.apply(values).tolist()


def random_volume(shape: tuple[int, int, int], dtype: str = "i2", **fields: Any) -> Volume:
    array = np.random.default_rng(5).integers(0, 2000, (1, *shape)).astype(dtype)
    return Volume(array, image_affine((2.0, 0.9, 0.7)), "CT", "HU", **fields)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4"])
@pytest.mark.parametrize("size", [17, 224, 256, (31, 64)])
def test_a_picture_alone_has_the_bits_that_it_has_in_its_batch(dtype: str, size: Any) -> None:
    volume = random_volume((13, 75, 64), dtype)
    for fields in ({"window": "lung"}, {"window": ("lung", "bone", "brain")}, {"fit": "crop"}):
        recipe = Preprocess(size=size, **fields)
        whole = recipe(volume)
        for d in (0, 5, 12):
            assert torch.equal(recipe(volume.take([d]))[0], whole[d])


@pytest.mark.parametrize("budget", [1, 1000, 40_000])
@pytest.mark.parametrize("code", ["SPL", "IAR"])
def test_bits_do_not_depend_on_how_the_work_is_cut(
    monkeypatch: pytest.MonkeyPatch, budget: int, code: str
) -> None:
    padding = np.random.default_rng(1).random((1, 7, 150, 100)) < 0.1
    volume = random_volume((7, 150, 100), padding=padding).reorient(code)
    pad, crop = Preprocess(size=60), Preprocess(size=60, fit="crop")
    recipes = [pad, crop, pad.replace(channels="adjacent"), crop.replace(channels="adjacent")]
    expected = [recipe(volume) for recipe in recipes]
    monkeypatch.setattr(resize_module, "_AT_ONCE_CPU", budget)
    for recipe, tensor in zip(recipes, expected, strict=True):
        assert torch.equal(recipe(volume), tensor)


def test_bits_do_not_depend_on_the_type_of_whole_numbers() -> None:
    plain = random_volume((3, 50, 40))
    recipe = Preprocess(window=Window(301.3, 811.7))
    for dtype in ("u2", "i4", "f4", "f8", ">i2", "i8"):
        assert torch.equal(recipe(plain.with_array(plain.array.astype(dtype))), recipe(plain))


def test_normalized_pictures_are_the_normalized_planes() -> None:
    volume = random_volume((9, 50, 40))
    for fields in ({}, {"window": ("lung", "bone", "brain")}, {"channels": "adjacent"}, {"fill": 0.4}):
        recipe = Preprocess(size=(33, 17), std=(0.3, 0.1, 0.7), **fields)
        assert torch.equal(recipe(volume), recipe.normalize(recipe.render(volume).planes))


def test_other_threads_and_settings_stay_as_they_are() -> None:
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    tensor = Preprocess(size=32)(random_volume((3, 50, 40)))
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    weight = torch.ones(1, requires_grad=True)
    (tensor * weight).sum().backward()
    assert weight.grad is not None


def test_weights_made_in_inference_mode_serve_elsewhere() -> None:
    volume, recipe = random_volume((2, 53, 47)), Preprocess(size=29)
    with torch.inference_mode():
        first = recipe(volume).clone()
    assert torch.equal(recipe(volume), first)


def test_read_only_memory_is_neither_copied_nor_warned_of(tmp_path: Path) -> None:
    volume = random_volume((4, 50, 40))
    np.save(tmp_path / "a.npy", volume.array)
    mapped = volume.with_array(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert torch.equal(Preprocess()(mapped), Preprocess()(volume))


@pytest.fixture(scope="module")
def real_volumes(real_data: Path) -> list[tuple[Series, Volume]]:
    found = []
    for folder in ("lidc_3pat_excerpt", "torchxrayvision_cxr", "pydicom_examples", "nifti_space_dev"):
        index = medimg.scan(real_data / "dicom_misc" / folder)
        with warnings.catch_warnings(action="ignore", category=MedimgWarning):
            for series in sample(index) if folder == "nifti_space_dev" else index:
                with suppress(MedimgError):
                    found.append((series, series.read()))
    return found


@pytest.mark.parametrize("fields", [{}, {"window": "percentile"}, {"window": "dicom", "fit": "crop"}])
def test_real_scans_against_float64(
    real_volumes: list[tuple[Series, Volume]], fields: dict[str, Any]
) -> None:
    recipe = Preprocess(slices=3, **fields)
    compared = 0
    for series, volume in real_volumes:
        with warnings.catch_warnings(action="ignore", category=MedimgWarning):
            try:
                expected = reference_planes(volume, recipe)
            except (MedimgError, ValueError):
                continue
            if volume.shape[0] == 1:
                assert np.abs(recipe.render(series).planes.numpy() - expected).max() < 1e-4, series.path
                compared += 1
    assert compared > 3
