"""Resampling to a spacing, against the definition in float64, SciPy and SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medimg.core import _separable, geometry
from medimg.core.kernels import Interpolation
from medimg.core.read_report import ReadReport
from medimg.core.resample import plan_axes
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import PreprocessError
from tests.sampling import SLOW

RNG = np.random.default_rng(7)
KINDS: tuple[Interpolation, ...] = get_args(Interpolation)
DTYPES = ("int16", "uint8", "uint16", ">i2", "int32", "float32", "float64", ">f4")


def make(
    shape: tuple[int, int, int, int] = (1, 6, 7, 8), dtype: str = "int16", *, seed: int = 3, **fields: Any
) -> Volume:
    rng = np.random.default_rng(seed)
    low = 0 if np.dtype(dtype).kind == "u" else -1000
    array = rng.integers(low, 256 if dtype == "uint8" else 3000, shape).astype(dtype)
    affine = geometry.affine_from_slices([-5, 6, 7], [0, 0, 2], [1, 0, 0, 0, 1, 0], [0.8, 0.6])
    return replace(Volume(array, affine, "CT", "HU"), **fields)


def cardinal(distance: float) -> float:
    """Return what SciPy makes of a single 1 among zeros, between them."""
    impulse = np.zeros(81)
    impulse[40] = 1
    place = [[40 + distance]]
    return float(ndimage.map_coordinates(impulse, place, order=3, mode="mirror")[0]) if distance < 35 else 0.0


def matrix(
    size: int, count: int, scale: float, kind: Interpolation, *, antialias: bool
) -> npt.NDArray[np.float64]:
    """(new, old) weights of the definition, one by one."""
    result = np.zeros((count, size))
    width = min(max(scale, 1.0), size) if antialias else 1.0
    for new in range(count):
        center = (new + 0.5) * scale - 0.5
        if count == 1:
            center = min(center, size / 2 - 0.5)
        if kind == "nearest":
            result[new, min(size - 1, int(np.floor(center + 0.5)))] = 1
        elif kind == "linear":
            result[new] = [max(0.0, 1 - abs(old - center) / width) for old in range(size)]
        else:
            reach = int(20 * width) + 1
            for old in range(int(center) - reach, int(center) + reach + 1):
                result[new, mirrored(old, size)] += cardinal(abs(old - center) / width)
    return np.asarray(result / result.sum(axis=1, keepdims=True))


def mirrored(index: int, size: int) -> int:
    while not 0 <= index < size:
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def reference(
    volume: Volume, spacing: Sequence[float], kind: Interpolation = "linear", *, antialias: bool = True
) -> npt.NDArray[np.float64]:
    """Return dense matrices times the values, in float64."""
    result = volume.array.astype(np.float64)
    for axis, (size, old, new) in enumerate(zip(volume.shape[1:], volume.spacing, spacing, strict=True)):
        if size == 1:
            continue
        weights = matrix(size, max(1, round(size / (new / old))), new / old, kind, antialias=antialias)
        result = np.moveaxis(np.tensordot(weights, result, (1, axis + 1)), 0, axis + 1)
    return result


def on_grid_of(volume: Volume, grid: Volume, kind: int) -> npt.NDArray[Any]:
    """Return what SimpleITK makes of a volume at the places of another one."""
    image = sitk.GetImageFromArray(volume.array[0].astype(np.float32))
    wanted = sitk.GetImageFromArray(grid.array[0])
    for item, of in ((image, volume), (wanted, grid)):
        item.SetSpacing(tuple(reversed(of.spacing)))
        item.SetOrigin(tuple(of.affine[:3, 3]))
    return np.asarray(sitk.GetArrayFromImage(sitk.Resample(image, wanted, sitk.Transform(), kind)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), *[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 12)] * 3),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    antialias=st.booleans(),
)
def test_any_volume_is_what_the_definition_says(
    shape: tuple[int, int, int, int],
    spacing: tuple[float, float, float],
    dtype: str,
    kind: Interpolation,
    antialias: bool,
) -> None:
    volume = make(shape, dtype)
    result = volume.resample(spacing, interpolation=kind, antialias=antialias)
    assert result.array.dtype == np.float32
    expected = reference(volume, spacing, kind, antialias=antialias)
    assert result.shape == expected.shape
    assert np.allclose(result.array, expected, atol=3e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (7.0, 0.7, 0.9), (2.0, 0.5, 2.1), (1.3, 0.8, 0.6)])
@pytest.mark.parametrize(
    ("waiting", "matrix_size"), [(2**22, 2**18), (2**14, 2**10)], ids=["large blocks", "small blocks"]
)
def test_blocks_and_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    kind: Interpolation,
    spacing: tuple[float, float, float],
    waiting: int,
    matrix_size: int,
) -> None:
    volume = make((1, 150, 70, 90) if SLOW else (1, 60, 50, 70))
    monkeypatch.setattr(_separable, "_SMALL", 0)
    monkeypatch.setattr(_separable, "available_cores", lambda: 3)
    monkeypatch.setattr(_separable, "_WAITING", waiting)
    monkeypatch.setattr(_separable, "_PRODUCT", matrix_size)
    result = volume.resample(spacing, interpolation=kind)
    assert np.allclose(result.array, reference(volume, spacing, kind), atol=3e-3)


def smooth(shape: tuple[int, int, int, int]) -> Volume:
    d, h, w = np.indices(shape[1:])
    values = 1000 * np.sin(d / 3) * np.cos(h / 4 + w / 5)
    return make(shape).with_array(values[None].astype(np.float32))


@pytest.mark.conformance
@pytest.mark.parametrize("spacing", [(1.0, 0.5, 0.5), (1.3, 1.0, 0.9), (3.1, 0.8, 0.4)])
@pytest.mark.parametrize(("kind", "tool"), [("linear", sitk.sitkLinear), ("bspline", sitk.sitkBSpline)])
def test_without_antialiasing_the_result_is_simpleitks(
    spacing: tuple[float, float, float], kind: Interpolation, tool: int
) -> None:
    volume = make((1, 24, 30, 36))
    result = volume.resample(spacing, interpolation=kind, antialias=False)
    inside = (slice(2, -2),) * 3
    expected = on_grid_of(volume, result, tool)
    assert np.allclose(result.array[0][inside], expected[inside], atol=2e-2)
    other: Interpolation = "bspline" if kind == "linear" else "linear"
    assert np.abs(volume.resample(spacing, interpolation=other).array[0] - expected)[inside].max() > 10


def test_splines_follow_a_smooth_image_closer_than_lines() -> None:
    coarse = smooth((1, 20, 24, 28))
    errors = {}
    for kind in ("linear", "bspline"):
        fine = coarse.resample((1.0, 0.4, 0.3), interpolation=kind)
        d, h, w = np.indices(fine.shape[1:]) * 0.5 - 0.25
        truth = 1000 * np.sin(d / 3) * np.cos(h / 4 + w / 5)
        errors[kind] = np.abs(fine.array[0] - truth)[(slice(8, -8),) * 3].max()
    assert errors["bspline"] < errors["linear"] / 10


@pytest.mark.parametrize("kind", ["linear", "bspline"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_pattern_finer_than_the_new_spacing_is_averaged_away(kind: Interpolation, axis: int) -> None:
    """Unfiltered, it would turn into a coarser one that is not there."""
    sign = np.where(np.indices((40, 40, 40))[axis] % 2, 1000.0, -1000.0)
    volume = Volume(sign[None], geometry.image_affine((1.0, 1.0, 1.0)))
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 2.2
    inside = (0, *(slice(4, -4),) * 3)
    filtered = volume.resample(spacing, interpolation=kind).array[inside]
    aliased = volume.resample(spacing, interpolation=kind, antialias=False).array[inside]
    assert np.abs(filtered).max() < 50
    assert np.abs(aliased).max() > 700


@pytest.mark.parametrize("kind", ["linear", "bspline"])
def test_structures_coarser_than_the_new_spacing_stay(kind: Interpolation) -> None:
    wave = 1000 * np.sin(np.arange(120) / 8)
    volume = Volume(wave.reshape(1, 1, 1, -1), geometry.image_affine((1.0, 1.0, 1.0)))
    result = volume.resample((1.0, 1.0, 2.5), interpolation=kind).array.ravel()
    truth = 1000 * np.sin(((np.arange(48) + 0.5) * 2.5 - 0.5) / 8)
    limit = {"linear": 30, "bspline": 3}[kind]
    assert np.abs(result - truth)[6:-6].max() < limit


@given(kind=st.sampled_from(KINDS), antialias=st.booleans(), spacing=st.floats(0.2, 40))
@settings(max_examples=30, deadline=None)
def test_a_constant_stays_constant(kind: Interpolation, antialias: bool, spacing: float) -> None:
    flat = make((1, 5, 6, 7)).with_array(np.full((1, 5, 6, 7), 1234, np.int16))
    result = flat.resample(spacing, interpolation=kind, antialias=antialias)
    assert np.allclose(result.array, 1234, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_spacing_gives_the_same_values(kind: Interpolation, dtype: str) -> None:
    volume = make(dtype=dtype)
    same = volume.resample(volume.spacing, interpolation=kind)
    assert np.array_equal(same.array, volume.array.astype(np.float32))
    assert np.array_equal(same.affine, volume.affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_unequal_spacings_give_unequal_images(kind: Interpolation, axis: int) -> None:
    volume = make((1, 12, 12, 12))
    spacing = list(volume.spacing)
    spacing[axis] *= 1.5
    finer = volume.resample(spacing, interpolation=kind)
    assert finer.shape[axis + 1] == 8
    assert finer.spacing == pytest.approx(spacing)
    assert [n for i, n in enumerate(finer.shape[1:]) if i != axis] == [12, 12]
    slightly = [v * (1.01 if i == axis else 1.0) for i, v in enumerate(volume.spacing)]
    assert not np.array_equal(volume.resample(slightly, interpolation="linear").array, volume.array)


@pytest.mark.parametrize("spacing", [0.5, (2.0, 0.8, 0.6), (1.0, 0.4, 0.3), (1.9, 0.7, 0.25)])
@pytest.mark.parametrize("kind", ["linear", "bspline"])
def test_resampled_values_lie_where_they_say(
    spacing: float | tuple[float, float, float], kind: Interpolation
) -> None:
    """A linear ramp is exact away from the borders, wherever a voxel lies; splines feel these longer."""
    volume = make((1, 30, 40, 44))
    index = np.moveaxis(np.indices(volume.shape[1:]), 0, -1)
    slope = np.array([1.0, -2.0, 3.0])
    ramp = geometry.index_to_lps(volume.affine, index) @ slope
    result = volume.with_array(ramp[None]).resample(spacing, interpolation=kind)
    index = np.moveaxis(np.indices(result.shape[1:]), 0, -1)
    expected = geometry.index_to_lps(result.affine, index) @ slope
    inside = tuple(slice(n // 3, -(n // 3)) for n in expected.shape)
    assert np.allclose(result.array[0][inside], expected[inside], atol=1e-3)
    assert result.spacing == pytest.approx((spacing,) * 3 if isinstance(spacing, float) else spacing)


@pytest.mark.parametrize("kind", KINDS)
def test_outer_edges_stay(kind: Interpolation) -> None:
    volume = make((1, 10, 20, 30))
    result = volume.resample((4.0, 1.6, 0.3), interpolation=kind)
    for old, new in ((-0.5,) * 3, (-0.5,) * 3), ((9.5, 19.5, 29.5), (4.5, 9.5, 59.5)):
        before = geometry.index_to_lps(volume.affine, np.array(old))
        assert geometry.index_to_lps(result.affine, np.array(new)) == pytest.approx(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_slice_stays_single(kind: Interpolation) -> None:
    single = make((1, 1, 8, 8))
    assert single.resample((0.1, 0.8, 0.6), interpolation=kind).shape == (1, 1, 8, 8)
    assert single.resample((50.0, 0.4, 0.3), interpolation=kind).shape == (1, 1, 16, 16)


def test_nearest_makes_no_new_values() -> None:
    labels = make().with_array(RNG.choice(np.array([0, 3, 17, 900], np.int16), (1, 6, 7, 8)))
    for spacing in (0.37, 1.7):
        result = labels.resample(spacing, interpolation="nearest")
        assert set(np.unique(result.array)) <= {0, 3, 17, 900}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", [(1.0, 0.4, 0.3), (4.0, 1.6, 1.3), (1.1, 1.9, 0.35)])
def test_padding_counts_as_the_least_value_and_is_kept(
    kind: Interpolation, spacing: tuple[float, float, float]
) -> None:
    volume = make((2, 12, 14, 16))
    padding = np.zeros(volume.shape, np.bool_)
    padding[:, :, :5] = padding[0, 3] = True
    array = np.where(padding, np.int16(-32000), volume.array)
    result = replace(volume, array=array, padding=padding).resample(spacing, interpolation=kind)
    least = volume.array[~padding].min()
    plain = replace(volume, array=np.where(padding, least, volume.array))
    assert np.allclose(result.array, reference(plain, spacing, kind), atol=3e-3)
    mask = plain.with_array(padding.astype(np.uint8))
    share = reference(mask, spacing, "nearest" if kind == "nearest" else "linear")
    assert result.padding is not None
    assert np.array_equal(result.padding, share > 0.5 + 1e-5)
    assert result.padding.any()
    assert not result.padding.all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_single_precision_cannot_hold_is_an_error(kind: Interpolation) -> None:
    volume = make((1, 8, 9, 10), "float64")
    array = volume.array.copy()
    array[0, 3, 3, 3] = 1e200
    with pytest.raises(PreprocessError, match="values beyond those of float32"):
        volume.with_array(array).resample((1.0, 0.4, 0.3), interpolation=kind)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_becomes_padding_and_does_not_spread(kind: Interpolation, bad: float) -> None:
    volume = make((1, 8, 9, 10), "float64")
    array = volume.array.copy()
    array[0, 3:5, 3:6, 3:6] = bad
    result = volume.with_array(array).resample((1.0, 0.4, 0.3), interpolation=kind)
    assert np.isfinite(result.array).all()
    assert np.abs(result.array).max() < 1e4
    assert result.padding is not None
    assert result.padding.any()
    assert volume.resample(1.0).padding is None
    nothing = volume.with_array(np.full(volume.shape, bad)).resample(1.0, interpolation=kind)
    assert (nothing.array == 0).all()
    assert nothing.padding is not None
    assert nothing.padding.all()


def test_half_precision_is_read_without_a_warning() -> None:
    volume = make((1, 4, 5, 6)).with_array(RNG.normal(size=(1, 4, 5, 6)).astype(np.float16))
    assert np.allclose(volume.resample(1.0).array, reference(volume, (1.0, 1.0, 1.0)), atol=1e-5)


def test_what_holds_for_each_slice_is_dropped_with_the_slices() -> None:
    report = ReadReport("DICOM", sop_instance_uids=tuple(f"1.{n}" for n in range(6)), missing=(2,))
    windows = tuple((Window(n, 10),) for n in range(6))
    volume = make(report=report, voi=windows)
    within = volume.resample((2.0, 1.0, 1.0))
    assert within.voi == windows
    assert within.report.sop_instance_uids == report.sop_instance_uids
    assert within.report.missing == (2,)
    across = volume.resample((1.0, 0.8, 0.6))
    assert not across.voi
    assert not across.report.sop_instance_uids
    assert not across.report.missing


def test_the_report_says_how() -> None:
    volume = make()
    said = [
        volume.resample(1.0).report,
        volume.resample(1.0, antialias=False).report,
        volume.resample(1.0, interpolation="bspline").report,
        volume.resample(1.0, interpolation="nearest", antialias=False).report,
    ]
    assert [report.transforms[-1] for report in said] == [
        "resampled to 1×1×1 mm",
        "resampled to 1×1×1 mm, not antialiased",
        "resampled to 1×1×1 mm, bspline",
        "resampled to 1×1×1 mm, nearest",
    ]


@pytest.mark.parametrize(
    "spacing",
    [0.0, -1.0, float("nan"), float("inf"), (1.0, 2.0), 1e-6, 1e-310, "111", None, (1.0, 1.0, 1e-5)],
)
def test_unsound_spacings_are_refused(spacing: Any) -> None:
    with pytest.raises(PreprocessError, match="spacing"):
        make().resample(spacing)


def test_spacings_out_of_all_proportion_are_refused() -> None:
    for old, new in ((1e200, 1e-200), (1e-200, 1e200)):
        with pytest.raises(PreprocessError, match="spacing"):
            plan_axes((1, 2, 2, 2), (1.0, 1.0, old), (1.0, 1.0, new))


@pytest.mark.parametrize("kind", ["cubic", "Linear", "", None, 3])
def test_unknown_interpolations_are_refused(kind: Any) -> None:
    with pytest.raises(PreprocessError, match=r"\"linear\", \"bspline\" or \"nearest\""):
        make().resample(1.0, interpolation=kind)


def test_endless_axes_are_refused_before_anything_is_allocated() -> None:
    thread = Volume(np.zeros((1, 1, 1, 2), np.uint8), geometry.image_affine((1.0, 1.0, 1e5)))
    with pytest.raises(PreprocessError, match="coarser"):
        thread.resample(1.0)
    assert thread.resample(10.0).shape == (1, 1, 1, 20_000)
