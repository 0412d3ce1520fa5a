from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import medimg
from medimg.core import display, geometry
from medimg.core.display import choose_voi
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.core.window import LookupTable, Voi, Window
from medimg.errors import PreprocessError
from medimg.preprocessing.intensity import apply_voi
from medimg.preprocessing.preprocess import Preprocess, to_tensor
from medimg.preprocessing.resize import resize
from medimg.preprocessing.resize_plan import compute_fitted_size
from tests.dicom_files import make_instance, write, write_stack
from tests.preprocessing.reference import reference

RNG = np.random.default_rng(7)


def ct(shape: tuple[int, int, int] = (6, 40, 30), **fields: Any) -> Volume:
    array = RNG.integers(-1024, 2000, (1, *shape)).astype(np.int16)
    affine = geometry.affine_from_slices([0, 0, 0], [0, 0, 2], [1, 0, 0, 0, 1, 0], [0.8, 0.6])
    return replace(Volume(array, affine, "CT", "HU"), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"window": "lung", "fit": "crop"},
        {"window": "percentile", "fit": "stretch"},
        {"window": ("lung", "pe", "mediastinum")},
        {"window": Window(32, 8), "size": (96, 64), "fill": 0.5},
        {"window": Window(0, 1), "slices": 3},
        {"window": Window(-400, 900, "SIGMOID"), "slices": "middle", "mean": (0, 0, 0), "std": (1, 1, 1)},
        {"orientation": "stored", "size": 17},
    ],
)
def test_tensors_equal_a_plain_float64_reference(fields: dict[str, Any]) -> None:
    recipe = Preprocess(**fields)
    plain = ct()
    tilted = geometry.affine_from_slices([0, 0, 0], [0, 0, -2], [-1, 0, 0, 0, -1, 0], [0.8, 0.6])
    padding = np.zeros(plain.array.shape, bool)
    padding[..., :9] = True
    for volume in (plain, replace(plain, affine=tilted, inverted=True), replace(plain, padding=padding)):
        tensor = recipe(volume)
        assert tensor.dtype == torch.float32
        assert np.abs(tensor.numpy() - reference(volume, recipe)).max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    center=st.floats(-3000, 3000),
    width=st.one_of(st.just(1.0), st.floats(1.5, 5000)),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_on_tensors_equal_windows_on_arrays(center: float, width: float, function: Any) -> None:
    values = RNG.integers(-4000, 4000, 500).astype(np.int16)
    window = Window(center, width, function)
    assert np.abs(apply_voi(torch.from_numpy(values), window).numpy() - window.apply(values)).max() < 1e-4


def test_tables_on_tensors_equal_tables_on_arrays() -> None:
    table: Voi = LookupTable(-5, RNG.integers(0, 4096, 900).astype(np.uint16), 12)
    for values in (
        RNG.integers(-100, 1000, 500).astype(np.int32),
        RNG.normal(0, 500, 500).astype(np.float32),
    ):
        assert np.allclose(apply_voi(torch.from_numpy(values), table).numpy(), table.apply(values))


def test_one_slice_alone_gives_the_same_bits_as_in_its_stack() -> None:
    volume = ct((21, 130, 118))
    for fit in ("pad", "crop", "stretch"):
        recipe = Preprocess(fit=fit, window="lung")
        whole = recipe(volume)
        for d in (0, 7, 8, 20):
            assert torch.equal(recipe(volume.take([d]))[0], whole[d])


def test_the_shape_promised() -> None:
    assert to_tensor(ct()).shape == (6, 3, 224, 224)
    assert to_tensor(ct(), size=(64, 32), slices=2).shape == (2, 3, 64, 32)


def test_aspect_is_physical() -> None:
    """A circle in millimeters is a circle in the picture, though rows and columns are spaced differently."""
    array = np.full((1, 1, 50, 200), -1000, np.int16)
    rows, columns = np.indices((50, 200))
    array[0, 0, ((rows - 24.5) * 2) ** 2 + ((columns - 99.5) * 0.5) ** 2 < 30**2] = 1000
    affine = geometry.affine_from_slices([0, 0, 0], [0, 0, 1], [1, 0, 0, 0, 1, 0], [2.0, 0.5])
    shown = Preprocess(window="bone").render(Volume(array, affine, "CT", "HU")).planes[0, 0] > 0.5
    height, width = (int(shown.any(dim=axis).sum()) for axis in (1, 0))
    assert abs(height - width) <= 3
    assert height == pytest.approx(224 * 60 / 100, abs=3)


def test_the_background_is_black_after_inversion_and_under_padding() -> None:
    bright = np.full((1, 1, 20, 40), 4095, np.uint16)
    volume = Volume(
        bright, geometry.image_affine(), "DX", inverted=True, voi=((Window.from_range(0, 4095),),)
    )
    assert Preprocess().render(volume).planes.max() == 0
    padding = np.ones(bright.shape, bool)
    padding[..., :2] = False
    white = replace(volume, inverted=False, padding=padding)
    assert Preprocess().render(white).planes[..., 56:].max() == 0
    recipe = Preprocess()
    assert torch.equal(recipe(replace(volume, inverted=False))[0, :, 0, 0], recipe.background[:, 0, 0])


def test_color_is_taken_as_it_is() -> None:
    rgb = RNG.integers(0, 256, (3, 1, 224, 224)).astype(np.uint8)
    volume = Volume(rgb, geometry.image_affine(), "US", photometric="RGB", space="image")
    assert torch.allclose(Preprocess().render(volume).planes[0] * 255, torch.from_numpy(rgb[:, 0]).float())


def test_adjacent_slices_are_channels() -> None:
    volume = ct((5, 32, 32))
    plain = Preprocess(window="lung").render(volume).planes[:, 0]
    adjacent = Preprocess(window="lung", channels="adjacent").render(volume).planes
    for d, three in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 4)]):
        assert torch.equal(adjacent[d], plain[list(three)])


def test_display_orientation_ignores_how_the_array_lies() -> None:
    volume = ct((4, 30, 30))
    expected = Preprocess()(volume)
    for code in ("IPL", "SAL", "SPR", "IAR"):
        turned = volume.reorient(code)
        assert torch.equal(Preprocess()(turned), expected)
        assert not torch.equal(Preprocess(orientation="stored")(turned), expected)


def test_slices_are_named_in_the_order_of_the_file() -> None:
    volume = ct((9, 16, 16)).reorient("IPL")
    rendered = Preprocess(slices=3).render(volume)
    assert rendered.slices == (8, 4, 0)


def test_time_series_ask_for_a_choice() -> None:
    volume = Volume(np.zeros((4, 2, 8, 8), np.int16), geometry.image_affine())
    with pytest.raises(PreprocessError, match="select"):
        Preprocess()(volume)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.float64, np.float32])
def test_every_type_of_value(dtype: type) -> None:
    array: np.ndarray = RNG.integers(0, 100, (1, 2, 16, 16)).astype(dtype)
    planes = Preprocess(window="percentile").render(Volume(array, geometry.image_affine())).planes
    assert 0 <= float(planes.min()) < float(planes.max()) <= 1


def test_what_is_not_finite_does_not_spread() -> None:
    array = RNG.normal(size=(1, 1, 16, 16)).astype(np.float32)
    array[0, 0, 0, 0], array[0, 0, 3, 3] = np.nan, np.inf
    assert torch.isfinite(Preprocess()(Volume(array, geometry.image_affine()))).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"window": "lungs"},
        {"channels": "windows"},
        {"window": ("lung", "bone")},
        {"window": ("lung", "bone", "brain"), "channels": "adjacent"},
        {"slices": 0},
        {"slices": "some"},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"fit": "zoom"},
        {"fill": 2},
        {"std": (0, 1, 1)},
        {"mean": (0, 1)},
        {"percentiles": (99, 1)},
        {"orientation": "up"},
        {"color": "red"},
    ],
)
def test_unsound_recipes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PreprocessError):
        Preprocess.from_dict(fields)


CHANGES: list[dict[str, Any]] = [
    {"window": "lung"},
    {"window": Window(1, 2)},
    {"window": Window(1, 2, "SIGMOID")},
    {"window": ("lung", "bone", "brain")},
    {"channels": "adjacent"},
    {"slices": 3},
    {"slices": "middle"},
    {"spacing": 1.0},
    {"spacing": (2.0, 1.0, 1.0)},
    {"size": 128},
    {"fit": "crop"},
    {"fill": 0.5},
    {"mean": (0.5, 0.5, 0.5)},
    {"std": (0.5, 0.5, 0.5)},
    {"percentiles": (1.0, 99.0)},
    {"orientation": "stored"},
    {"revision": 3},
]


def test_recipes_survive_json_and_unequal_ones_have_unequal_fingerprints() -> None:
    recipes = [Preprocess(), *(Preprocess(**change) for change in CHANGES)]
    for recipe in recipes:
        again = Preprocess.from_dict(json.loads(json.dumps(recipe.to_dict())))
        assert again == recipe
        assert again.fingerprint == recipe.fingerprint
    assert len({r.fingerprint for r in recipes}) == len(recipes)
    assert len(set(recipes)) == len(recipes)


@pytest.mark.parametrize("slices", ["all", "middle", 1, 2, 5, 99])
@pytest.mark.parametrize("spacing", [None, 1.0, (3.1, 1.0, 1.0)])
def test_counting_without_reading(tmp_path: Path, slices: Any, spacing: Any) -> None:
    write_stack(tmp_path, [0, 2, 4, 6, 8])
    series = medimg.scan(tmp_path)[0]
    recipe = Preprocess(slices=slices, spacing=spacing)
    assert recipe.count(series) == len(recipe(series))


@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), ratio=st.floats(0.2, 5))
def test_fitting_keeps_the_aspect(size: tuple[int, int], ratio: float) -> None:
    spacing = (ratio, 1.0)
    height, width = compute_fitted_size(size, spacing, (224, 200), "pad")
    assert height <= 224
    assert width <= 200
    assert height == 224 or width == 200
    height, width = compute_fitted_size(size, spacing, (224, 200), "crop")
    assert height >= 224
    assert width >= 200
    assert height == 224 or width == 200


def test_nothing_is_resized_that_has_the_size_already() -> None:
    planes = torch.rand(2, 1, 224, 224)
    assert torch.equal(resize(planes, (1.0, 1.0), (224, 224), "pad", 0.0), planes)


def test_x_ray_pictures_and_dicom_of_the_same_pixels_give_the_same_tensors(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (60, 80)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "rgb.png")
    ds = make_instance(
        pixels,
        Modality="DX",
        PixelSpacing=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        RescaleIntercept=0,
    )
    expected = to_tensor(tmp_path / "a.png")
    with pytest.warns(medimg.errors.MedimgWarning, match="no pixel spacing"):
        assert torch.equal(to_tensor(write(ds, tmp_path / "a.dcm")), expected)
    assert torch.equal(to_tensor(tmp_path / "rgb.png"), expected)
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.PixelData = (255 - pixels).tobytes()
    with pytest.warns(medimg.errors.MedimgWarning, match="no pixel spacing"):
        assert torch.allclose(to_tensor(write(ds, tmp_path / "a.dcm")), expected, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"fill": "white"},
        {"percentiles": (1, 2, 3)},
        {"percentiles": 5},
        {"mean": 0.5},
        {"std": ("a", 1, 1)},
        {"spacing": 0},
        {"spacing": -1.0},
        {"spacing": (1, 2)},
        {"spacing": "1"},
        {"window": {}},
        {"window": {"center": "a", "width": 1}},
    ],
)
def test_fields_of_the_wrong_kind_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PreprocessError):
        Preprocess.from_dict(fields)


def test_numpy_integers_are_integers() -> None:
    size: Any = np.int64(64)
    assert Preprocess(size=size, slices=np.int32(2)) == Preprocess(size=64, slices=2)  # type: ignore[arg-type]  # on purpose
    assert json.dumps(Preprocess(size=size).to_dict())


def test_presets_are_presets_whatever_a_file_calls_its_windows() -> None:
    volume = ct(voi=((Window(1, 2, "LINEAR", "lung"), Window(3, 4, "LINEAR", "OWN")),))
    assert choose_voi(volume, "lung") == (Window.preset("lung"),)
    assert choose_voi(volume, "OWN") == (Window(3, 4),)


def test_what_is_not_finite_is_black_and_does_not_spread() -> None:
    array = np.full((1, 6, 16, 16), 500, np.float32)
    array[0, 2, 3, 3], array[0, 2, 9, 9] = np.nan, np.inf
    volume = Volume(array, image_affine((2.0, 1.0, 1.0)), "CT", "HU", inverted=True)
    window = Window.from_range(400, 900)
    planes = Preprocess(window=window, size=16).render(volume).planes[2, 0]
    assert planes[3, 3] == planes[9, 9] == 0
    assert planes[0, 0] == pytest.approx(0.8)
    fine = volume.resample(1.0)
    assert np.isfinite(fine.array).all()
    assert fine.padding is not None
    assert fine.padding.any()


def test_the_nearest_slice_is_named_after_resampling() -> None:
    volume = ct((10, 16, 16)).with_array(np.zeros((1, 10, 16, 16), np.int16))
    volume = replace(volume, affine=image_affine((1.0, 1.0, 1.0)))
    rendered = Preprocess(spacing=(3.7, 1.0, 1.0), size=16).render(volume)
    centers = [(d + 0.5) * 3.7 - 0.5 for d in range(3)]
    assert list(rendered.slices) == [round(c) for c in centers]


def test_an_absurd_aspect_is_an_error_and_no_allocation() -> None:
    flat = Volume(np.zeros((1, 1, 2000, 2), np.uint8), image_affine((1.0, 100.0, 0.01)))
    with pytest.raises(PreprocessError, match="pad"):
        Preprocess(fit="crop")(flat)
    assert Preprocess()(flat).shape == (1, 3, 224, 224)


def test_arrays_of_foreign_byte_order() -> None:
    plain = ct()
    foreign = plain.with_array(plain.array.astype(">i2"))
    assert torch.equal(Preprocess()(foreign), Preprocess()(plain))


@pytest.mark.parametrize("spacing", [None, 1.6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_colors_of_any_depth_are_the_same_picture(dtype: Any, spacing: float | None) -> None:
    shares = np.random.default_rng(1).random((3, 1, 20, 30))
    affine = geometry.image_affine((1.0, 0.8, 0.8))
    white = np.iinfo(dtype).max
    deep = Volume((shares * white).astype(dtype), affine, photometric="RGB", space="image")
    recipe = Preprocess(size=24, spacing=spacing)
    exact = Volume(shares.astype(np.float32), affine, photometric="RGB", space="image")
    assert deep.white == white
    found = recipe.render(deep).planes
    assert found.max() <= 1
    assert torch.allclose(found, recipe.render(exact).planes, atol=1.5 / 255)
    assert display.render(deep).max() > 200
    assert np.abs(display.render(deep).astype(int) - display.render(exact).astype(int)).max() <= 2


BARE: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "fit": "stretch"}


def intensities(source: Any, size: tuple[int, int], **fields: Any) -> npt.NDArray[np.float32]:
    """(H, W): what a network sees, not normalized, of an image of that size."""
    with warnings.catch_warnings(action="ignore"):
        return Preprocess(size=size, **BARE, **fields)(source)[0, 0].numpy()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.tuples(st.integers(0, 200), st.integers(1, 55)),
    modality=st.sampled_from(["DX", "US", "MR", "OT", "XC", "NM"]),
    bits=st.integers(2, 8),
    inverted=st.booleans(),
)
def test_images_of_8_bits_are_taken_at_full_range(
    tmp_path: Path, values: tuple[int, int], modality: str, bits: int, inverted: bool
) -> None:
    """As by torchvision, whatever values occur in the image."""
    low, width = values
    pixels = np.random.default_rng(low).integers(low, low + width, (12, 10)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(intensities(tmp_path / "a.png", (12, 10)), pixels / 255, atol=1e-6)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    decoded = np.asarray(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_allclose(intensities(tmp_path / "a.jpg", (12, 10)), decoded / 255, atol=1e-6)
    stored = pixels >> (8 - bits)
    ds = make_instance(
        stored.astype(np.uint8 if low % 2 else np.uint16),
        Modality=modality,
        BitsStored=bits,
        HighBit=bits - 1,
        RescaleIntercept=None,
        RescaleSlope=None,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    expected = stored / (2**bits - 1)
    found = intensities(write(ds, tmp_path / "a.dcm"), (12, 10))
    np.testing.assert_allclose(found, 1 - expected if inverted else expected, atol=1e-6)
    assert not np.allclose(intensities(tmp_path / "a.png", (12, 10), revision=3), pixels / 255, atol=1e-3)


def test_percentiles_are_for_what_has_no_display_range(tmp_path: Path) -> None:
    pixels = RNG.integers(60, 90, (12, 10)).astype(np.uint8)
    plain: dict[str, Any] = {"RescaleIntercept": None, "RescaleSlope": None, "Modality": "MR"}

    def agrees(source: Any, window: Any) -> bool:
        return np.array_equal(intensities(source, (12, 10)), intensities(source, (12, 10), window=window))

    declared = make_instance(pixels, **plain, WindowCenter=75, WindowWidth=20)
    assert agrees(write(declared, tmp_path / "a.dcm"), "dicom")
    rescaled = make_instance(pixels, **{**plain, "RescaleSlope": 2, "RescaleIntercept": -100})
    assert medimg.read(write(rescaled, tmp_path / "b.dcm")).display_range == (-100.0, 410.0)
    deep = make_instance(pixels.astype(np.uint16), **plain, BitsStored=12, HighBit=11)
    assert agrees(write(deep, tmp_path / "c.dcm"), "percentile")
    units = make_instance(pixels, **plain, RescaleType="BQML")
    assert agrees(write(units, tmp_path / "d.dcm"), "percentile")
    hounsfield = make_instance(pixels, Modality="CT", RescaleSlope=8, RescaleIntercept=-1024)
    assert agrees(write(hounsfield, tmp_path / "e.dcm"), "soft_tissue")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "f.png")
    assert agrees(tmp_path / "f.png", "percentile")
    # a mask of an image is an array of its own
    image = medimg.read(tmp_path / "f.png").with_array(pixels[None, None])
    assert agrees(image, "percentile")


@pytest.mark.parametrize("revision", [1, 2, 5, True, "4", None])
def test_revisions_that_nothing_is_known_of_are_refused(revision: Any) -> None:
    with pytest.raises(PreprocessError, match="revision must be one of 3, 4"):
        Preprocess.from_dict({"revision": revision})


def test_fingerprints_of_revision_3_are_those_that_were_saved_with_it() -> None:
    assert Preprocess(revision=3).fingerprint == "3c6935a129cd95e5"
