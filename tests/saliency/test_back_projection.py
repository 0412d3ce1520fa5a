"""Heat lies where the pixels are that it is about, whatever the recipe did and however the array lies."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from medimg import Explanation, Preprocess, TransferClassifier, Volume, explain, read, register_backbone
from medimg.core.geometry import affine_from_slices, image_affine, index_to_lps, reorient
from medimg.models.backbones import registry
from medimg.saliency._back_projection import PixelMapping, interpolation_weights
from medimg.saliency._receptive_field import Axis, ReceptiveField
from tests.saliency.planted import SEEN

CELL = 4
CODES = ["".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)]
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})


def spotter() -> nn.Module:
    """A network whose cells are the mean brightness of 4×4 pixels."""
    gray = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.constant_(gray.weight, 1 / 3)
    return nn.Sequential(
        gray, nn.AvgPool2d(CELL), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )


def model_for(**fields: Any) -> TransferClassifier:
    """A model that finds what is bright, and takes black for nothing."""
    register_backbone("spotter", spotter, size=64)
    given: dict[str, Any] = {"window": SEEN, "size": 64, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    recipe = Preprocess(**{**given, **fields})
    model = TransferClassifier("spotter", classes=("dark", "bright"), preprocess=recipe)
    assert isinstance(model.head, nn.Linear)
    model.head.weight.data = torch.tensor([[-1.0], [1.0]])
    return model


def spot(shape: tuple[int, int, int], place: tuple[int, int, int], spacing: Any, code: str = "SPL") -> Volume:
    """A black volume with one bright voxel; its array lies as `code` says."""
    upright = affine_from_slices([-50, 30, 10], [0, 0, spacing[0]], [1, 0, 0, 0, 1, 0], spacing[1:])
    array = np.zeros((1, *shape), np.float32)
    array[0, *place] = 1.0
    turned, affine, _, _ = reorient(array, upright, code)
    return Volume(turned, affine)


def hottest(found: Explanation) -> tuple[Any, ...]:
    """The middle of where the heat is greatest, as (d, h, w) of the volume."""
    at = np.argwhere(found.heat >= found.heat.max() * (1 - 1e-5))
    return np.array([found.slices[n] for n in at[:, 0]]).mean(), *at[:, 1:].mean(axis=0)


def distance(volume: Volume, found: Explanation) -> Any:
    """Millimeters between the bright voxel and the greatest heat, along the axes of the array."""
    (place,) = np.argwhere(volume.array[0])
    return np.abs(np.array(hottest(found)) - place) * np.array(volume.spacing)


@pytest.mark.parametrize("code", CODES)
def test_every_orientation(code: str) -> None:
    volume = spot((5, 21, 30), (3, 4, 22), (4.0, 1.5, 1.1), code)
    assert volume.orientation == code
    found = explain(model_for(), volume, "bright")
    depth, rows, columns = volume.shape[1:]
    assert found.heat.shape == (depth, rows, columns)
    # at most half a cell, and half a voxel: the longer side in the display fills 16 cells
    reach = 0.5 * CELL / 64 * max(n * s for n, s in zip(volume.shape[2:], volume.spacing[1:], strict=True))
    off = distance(volume, found)
    assert off[0] == 0
    assert (off[1:] <= reach + 0.51 * np.array(volume.spacing[1:])).all()


@QUIET
@given(st.data())
def test_any_recipe(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(2, 40)] * 3), label="shape")
    place: Any = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    spacing = tuple(data.draw(st.sampled_from([0.5, 0.8, 1.0, 2.5])) for _ in shape)
    size = (data.draw(st.sampled_from([48, 64])), data.draw(st.sampled_from([32, 64, 80])))
    fit = data.draw(st.sampled_from(["pad", "crop", "stretch"]), label="fit")
    orientation = data.draw(st.sampled_from(["display", "stored"]))
    resampled = data.draw(st.sampled_from([None, 1.0, (2.0, 0.7, 1.3)]), label="spacing")
    volume = spot(shape, place, spacing, data.draw(st.sampled_from(CODES)))
    model = model_for(size=size, fit=fit, orientation=orientation, spacing=resampled)
    found = explain(model, volume, "bright")
    seen = model.preprocess.render(volume).planes
    if float(seen.max()) == 0:
        assert not found.heat.any(), "what was cropped has no heat"
    if float(seen.max()) < 0.01:
        # a cropped voxel bleeds a little into the edge, where no voxel has its center
        return
    assert found.heat.min() >= 0
    # the hottest cell of padded pictures may have its center in the padding
    assert (0.3 if fit == "pad" else 1) <= found.heat.max() <= 1
    assert found.outside < 1e-6 if fit != "pad" else found.outside < 0.9
    (at,) = np.argwhere(volume.array[0])
    off = np.abs(np.array(hottest(found)) - at) * np.array(volume.spacing)
    per_pixel = pixel_sizes(volume, model.preprocess)
    steps = np.full(3, 0.0) if resampled is None else np.full(3, np.max(resampled))
    assert (off[1:] <= 0.5 * CELL * per_pixel + np.array(volume.spacing[1:]) + steps[1:]).all()
    assert off[0] <= steps[0]


def pixel_sizes(volume: Volume, recipe: Preprocess) -> np.ndarray:
    """Millimeters for each pixel of the picture along rows and columns of the array, the greater of both."""
    extent = np.array(volume.shape[2:]) * volume.spacing[1:]
    if recipe.fit == "stretch":
        return np.full(2, (extent.max() / min(recipe.hw)))
    ratios = [extent[i] / n for i in range(2) for n in recipe.hw]
    return np.full(2, max(ratios))


def test_what_was_cropped_has_no_heat() -> None:
    volume = spot((1, 30, 90), (0, 10, 50), (1.0, 1.0, 1.0))
    everything = volume.with_array(np.ones_like(volume.array))
    heat = explain(model_for(fit="crop"), everything, "bright").heat[0]
    assert heat[:, 30:60].min() == 1.0
    assert not heat[:, :30].any()
    assert not heat[:, 60:].any()
    assert explain(model_for(fit="pad"), everything, "bright").heat.min() > 0


def test_heat_in_the_padding_is_told() -> None:
    volume = spot((1, 30, 90), (0, 10, 50), (1.0, 1.0, 1.0)).with_array(np.zeros((1, 1, 30, 90), np.float32))
    found = explain(model_for(fill=1.0), volume, "bright")
    assert found.outside > 0.9
    assert found.heat.max() < 1, "1 is the heat of the padding"
    assert found.heat[0, 15].max() == 0


def test_planes_between_pictures_are_interpolated() -> None:
    volume = spot((9, 20, 20), (4, 8, 8), (1.0, 1.0, 1.0))
    coarse = explain(model_for(spacing=3.0), volume, "bright")
    assert coarse.slices == tuple(range(9))
    profile = coarse.heat.max(axis=(1, 2))
    assert profile.argmax() == 4
    np.testing.assert_allclose(profile, profile[::-1], atol=1e-5)
    fine = explain(model_for(spacing=(0.5, 1.0, 1.0)), volume, "bright")
    assert fine.heat.max(axis=(1, 2)).argmax() == 4
    assert explain(model_for(spacing=3.0, slices=2), volume, "bright").slices == (1, 7)


def test_the_volume_lies_in_the_same_place(tmp_path: Path) -> None:
    volume = spot((6, 21, 30), (4, 4, 22), (4.0, 1.5, 1.1), "RSA")
    found = explain(model_for(), volume, "bright")
    whole = found.to_volume()
    np.testing.assert_array_equal(whole.affine, volume.affine)
    np.testing.assert_array_equal(whole.array[0], found.heat)
    (place,) = np.argwhere(volume.array[0])
    shown = found.to_volume().reorient("SPL")
    peak = np.argwhere(shown.array[0] == shown.array[0].max()).mean(axis=0)
    off = index_to_lps(shown.affine, peak) - index_to_lps(volume.affine, place)
    assert np.abs(off).max() < 3
    saved = read(found.save(tmp_path / "heat.nii.gz"))
    assert np.array_equal(saved.array[0], found.heat)
    assert np.allclose(saved.affine, volume.affine, atol=1e-4)
    some = explain(model_for(), volume, "bright", slices=range(1, 6, 2)).to_volume()
    np.testing.assert_allclose(index_to_lps(some.affine, [1, 0, 0]), index_to_lps(volume.affine, [3, 0, 0]))


def test_an_image_without_a_patient() -> None:
    array = np.zeros((3, 1, 40, 60), np.uint8)
    array[:, 0, 10, 50] = 255
    volume = Volume(array, image_affine(), photometric="RGB", space="image")
    found = explain(model_for(), volume, "bright")
    assert np.abs(np.array(hottest(found))[1:] - (10, 50)).max() <= 2.5
    assert found.to_volume().shape == (1, 1, 40, 60)
    assert found.overlay().shape == (40, 60, 3)


def test_places_of_slices() -> None:
    volume = spot((4, 8, 8), (0, 0, 0), (1.0, 1.0, 1.0), "IPL")
    places = PixelMapping.of(volume, Preprocess(size=8), (3, 2, 1, 0))
    assert places.slices == (0, 1, 2, 3)
    cams = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 2, 2), np.float32)
    tiles = (Axis.tiles(8, 2), Axis.tiles(8, 2))
    assert places.to_source(cams, tiles)[:, 0, 0].tolist() == [3, 2, 1, 0]
    chosen = places.select_slices([2, 0])
    assert (chosen.slices, chosen.images) == ((0, 2), (1, 3))
    assert chosen.to_source(cams[[1, 3]], tiles)[:, 0, 0].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (7, 2, 3), (3, 1, 0), (4, 4, 0)]
)
def test_fields_against_impulses(kernel: int, stride: int, padding: int) -> None:
    """The middle of the pixels that move a cell, found by trying all of them."""
    conv = nn.Conv2d(1, 1, kernel, stride, padding, bias=False)
    layers = (conv, nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, padding="same", bias=False))
    x = torch.zeros(1, 1, 64, 64, requires_grad=True)
    fields = ReceptiveField((64, 64))
    y = x
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.ones_(parameter)
        before = y
        y = layer(before)
        fields.record(layer, (before,), y)
    rows, _ = fields.of((int(y.shape[2]), int(y.shape[3])))
    middle = y.shape[2] // 2
    (slope,) = torch.autograd.grad(y[0, 0, middle, middle], x)
    moving = np.flatnonzero(slope[0, 0].numpy().any(axis=1))
    assert (moving[0] + moving[-1]) / 2 == pytest.approx(rows.start + middle * rows.step)


def test_unknown_grids_are_tiles() -> None:
    assert ReceptiveField((64, 32)).of((4, 4)) == (Axis(7.5, 16.0), Axis(3.5, 8.0))


def test_interpolation() -> None:
    weights = interpolation_weights(np.array([-1.0, 0.0, 0.5, 2.0, 9.0]), 3)
    np.testing.assert_allclose(weights @ np.array([1.0, 2.0, 4.0]), [1.0, 1.0, 1.5, 4.0, 4.0])


def test_voxels_that_the_edge_of_the_picture_cuts_have_the_heat_of_their_part() -> None:
    """Two columns that fill more than the picture, both with their centers beyond it."""
    volume = spot((1, 2, 2), (0, 0, 1), (1.0, 1.0, 1.6))
    heat = explain(model_for(size=(48, 32), fit="crop"), volume, "bright").heat[0]
    assert heat[0, 1] == 1.0
    assert heat[0, 0] < 0.2
    assert heat[1, 1] < 0.5
